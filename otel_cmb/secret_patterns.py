"""Secrets whose form is known: the patterns, and a quick look that tells most texts that hold none of them. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["BETWEEN", "DEFAULT", "NAMES", "NAME_ENDS", "NAME_NEEDLES", "SECRET_KEY", "Pattern", "Sieve"]

_RUN = 20


@dataclass(frozen=True, slots=True)
class Pattern:
    """One kind of secret. `needles` are lower-case texts one of which is in every match: the regular expression runs
    only around those found (none: everywhere, which costs). `replacement` is a template of :func:`re.sub`. `reach`: a
    match begins at most this many characters before a needle and ends at most 4,300 after it; 0: no such bounds.

    What else is in every match spares most texts the needles. `run`: 20 letters, digits, `_` or `-` in a row, which
    prose rarely has. `holds`: this character. `assigned`: one of these (lower case), and after it, with nothing but white
    space, quotes and backslashes between, `:` or `=`; a match that has `alone` in it (lower case) need not."""

    name: str
    needles: tuple[str, ...]
    regex: re.Pattern[str]
    replacement: str
    run: bool = False
    reach: int = 0
    holds: str = ""
    assigned: tuple[str, ...] = ()
    alone: str = ""


def _words(
    name: str, needles: Iterable[str], regex: str, replacement: str, *, reach: int = 64, holds: str = "",
    assigned: tuple[str, ...] = (), alone: str = "",
) -> Pattern:
    return Pattern(
        name, tuple(needles), re.compile(regex), replacement, reach=reach, holds=holds, assigned=assigned, alone=alone)


def _token(name: str, needles: Iterable[str], regex: str) -> Pattern:
    return Pattern(name, tuple(needles), re.compile(regex), f"[redacted: {name}]", run=True, reach=64)


NAMES = (
    r"(?:pass(?:word|wd|phrase)|api[_-]?key|(?:client|app|shared)[_-]?secret|secret[_-]?(?:access[_-]?)?key"
    r"|(?:access|refresh|auth|bearer|session|id)[_-]?token|private[_-]?key|account[_-]?key)"
)
NAME_NEEDLES = (
    "passw", "passphrase", "secret", "api_key", "api-key", "apikey", "private_key", "private-key", "privatekey",
    "account_key", "account-key", "accountkey", "_token", "-token", "accesstoken", "refreshtoken", "authtoken",
    "bearertoken", "sessiontoken", "idtoken",
)
NAME_ENDS = (
    "password", "passwd", "passphrase", "secret", "api_key", "api-key", "apikey", "secret_key", "secret-key", "secretkey",
    "access_key", "access-key", "accesskey", "private_key", "private-key", "privatekey", "account_key", "account-key",
    "accountkey", "_token", "-token", "accesstoken", "refreshtoken", "authtoken", "bearertoken", "sessiontoken", "idtoken",
)
"""All that a text which `NAMES` matches can end with."""
_COARSE = ("key", "token")
"""Looked for first: a text without them needs not be searched for the needles that contain them."""
# In an assignment without quotes the right side may be code that names the secret without holding it.
_CODE = (
    r"(?!\[redacted|os\.|env\b|environ|getenv|process\.|self\.|config|settings|none\b|null\b|true\b|false\b|str\b|input\("
    r"|optional|[a-z_.]+\(|[a-z_.]+\[|[<{$*])"
)
_NO_URL = r"\s@\"'<>\\"
_USER = rf"[^:/\[{_NO_URL}]{{0,256}}:"
_SERVERS = (
    "postgres", "postgresql", "psycopg", "psycopg2", "asyncpg", "mysql", "pymysql", "mysqldb", "mariadb", "mongodb", "mssql",
    "pyodbc", "redis", "rediss", "amqp", "amqps", "clickhouse", "cockroachdb",
)
_URL_WITH_SLASH = (
    # As SQLAlchemy reads it: a user and a password, unless that is a port, perhaps a path, and a query. Only where programs
    # read URLs like that: in others what stands between a colon and an `@` is a path and a branch.
    rf"(://(?:{'|'.join(f'(?<={name}://)' for name in _SERVERS)}){_USER}"
    rf"(?!\d{{1,5}}(?:/[^?{_NO_URL}]{{0,256}})?\?))"
    # Never across another `://`, so that no part of a text is looked at from more than one of them.
    rf"(?!\[redacted|@)[^:{_NO_URL}]{{0,1024}}(?::(?!//)[^:{_NO_URL}]{{0,256}}){{0,4}}(?=@)"
)
"""A password with a `/` in it, which it should not have, and with which it works all the same."""

DEFAULT: tuple[Pattern, ...] = (
    _words("private key", ("-----begin",),
           r"-----BEGIN [A-Z ]*PRIVATE KEY(?: BLOCK)?-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY(?: BLOCK)?-----|\Z)",
           "[redacted: private key]", reach=0, holds="Y"),
    _token("JWT", ("eyj",), r"\beyJ[A-Za-z0-9_-]{17,}\.[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)?"),
    _words("authorization", ("bearer ", "authorization"),
           r"((?i:\bbearer\s+|authorization[\"'\\]*\s*[:=]\s*[\"'\\]*(?:[a-z-]+\s+)?))"
           r"(?!\[redacted)(?=[a-z.~+/=_-]*[0-9A-Z=+/])[A-Za-z0-9._~+/=-]{8,}", r"\1[redacted: authorization]",
           assigned=("authorization",), alone="bearer"),
    _token("API key", ("sk-", "sk_", "rk_", "pk-lf-"),
           r"(?<![A-Za-z0-9])(?:(?:sk|rk)_(?:live|test)_[A-Za-z0-9]{16,}"
           r"|(?:sk|pk-lf)-(?=[A-Za-z_-]*[0-9A-Z])[A-Za-z0-9_-]{17,})"),
    _token("GitHub token", ("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"),
           r"\b(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{30,})"),
    _token("GitLab token", ("glpat-",), r"\bglpat-[A-Za-z0-9_-]{20,}"),
    _token("AWS key", ("akia", "asia"), r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
    _token("Slack token", ("xox",), r"\bxox[abeprs]-[A-Za-z0-9-]{15,}"),
    _token("Google key", ("aiza", "ya29."), r"\b(?:AIza[A-Za-z0-9_-]{35}|ya29\.[A-Za-z0-9_-]{20,})"),
    _token("Hugging Face token", ("hf_",), r"\bhf_[A-Za-z0-9]{30,}"),
    _words("password", ("://",),
           rf"(://[^:/{_NO_URL}]{{0,256}}:)(?!\[redacted)[^/{_NO_URL}]{{1,1024}}(?:@[^/?#{_NO_URL}]{{0,128}}){{0,4}}(?=@)",
           r"\1[redacted: password]", holds="@"),
    _words("password", ("://",), _URL_WITH_SLASH, r"\1[redacted: password]", holds="@"),
    _words("secret", NAME_NEEDLES,
           rf"(?i)({NAMES}(?:\\*[\"'])?\s*(?:[:=]|=>)\s*(?P<quote>\\*[\"']))(?!\[redacted)"
           r"(?:(?!(?P=quote))(?:\\.|[\s\S])){1,4096}", r"\1[redacted: secret]", assigned=NAME_ENDS),
    _words("secret", NAME_NEEDLES,
           rf"(?i)({NAMES}(?P<quote>\\*[\"'])\s*:\s*)-?[0-9][0-9.]{{3,}}",
           r"\1\g<quote>[redacted: secret]\g<quote>", assigned=NAME_ENDS),
    _words("secret", NAME_NEEDLES,
           rf"(?i)({NAMES}\s*[:=]\s*){_CODE}[^\s\"'\\,;&)}}\]]{{4,}}", r"\1[redacted: secret]", assigned=NAME_ENDS),
)

SECRET_KEY = re.compile(
    rf"(?i)(?:^|[._-])(?:(?:proxy[_-])?authorization|(?:x[_-])?{NAMES}|(?:set[_-])?cookie|credentials?|secret|passwd|pwd)$"
)

_IN_A_RUN = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"
_RUNS = bytes(97 if byte in _IN_A_RUN else 32 for byte in range(256))
_RUN_NEEDLE = b"a" * _RUN
BETWEEN = " \t\n\r\f\v\x1c\x1d\x1e\x1f\"'\\"
"""What may stand between a name and its `:` or `=`: all ASCII that `\\s` matches, quotes, backslashes."""
_APART = 24
"""Characters for each `:` from which on looking before it is cheaper than looking for every needle in the text."""
_SPLIT = 65_536
"""Longest text that is split at its colons: the pieces of a longer one take memory."""


class Sieve:
    """Tells texts in which some patterns certainly match nowhere, by what is in every match of theirs."""

    def __init__(self, patterns: tuple[Pattern, ...]):
        self.blind = any(not pattern.needles for pattern in patterns)
        """A pattern may match anything: nothing can be told."""
        self._alone = tuple(dict.fromkeys(
            (needle, pattern.holds) for pattern in patterns if not pattern.run
            for needle in ((pattern.alone,) if pattern.alone else () if pattern.assigned else pattern.needles)))
        self._ends = tuple(dict.fromkeys(end for pattern in patterns for end in pattern.assigned))
        self._last = frozenset(end[-3:] for end in self._ends)
        words = dict.fromkeys(needle for pattern in patterns if pattern.assigned for needle in pattern.needles)
        self._words = tuple(needle for needle in words if not any(coarse in needle for coarse in _COARSE))
        self._coarse = tuple(
            (coarse, tuple(needle for needle in words if coarse in needle)) for coarse in _COARSE
            if any(coarse in needle for needle in words)
        )
        self._tokens = tuple({needle for pattern in patterns if pattern.run for needle in pattern.needles})

    def may_hold(self, text: str) -> bool:
        """Whether a pattern may match somewhere in the text, or in one of several joined by line breaks. `False` is
        certain."""
        if self.blind:
            return True
        lowered = text.lower()
        for needle, character in self._alone:
            if character in text and needle in lowered:
                return True
        if (":" in text or "=" in text) and self._may_assign(text, lowered):
            return True
        if _RUN_NEEDLE in text.encode("utf-8", "replace").translate(_RUNS):
            for needle in self._tokens:
                if needle in lowered:
                    return True
        return False

    def _may_assign(self, text: str, lowered: str) -> bool:
        """Whether the name of a secret may stand before a `:` or `=`."""
        if "=" in lowered:
            lowered = lowered.replace("=", ":")
        # beyond ASCII a regular expression that ignores case takes more letters for an `s` or `k` than lower() makes one
        size = len(lowered)
        if size <= _SPLIT and text.isascii() and len(pieces := lowered.split(":", size // _APART)) * _APART < size:
            if self._last.isdisjoint([piece.rstrip(BETWEEN)[-3:] for piece in pieces]):
                return False
            return any(piece.rstrip(BETWEEN).endswith(self._ends) for piece in pieces[:-1])
        for needle in self._words:
            if needle in lowered:
                return True
        return any(coarse in lowered and any(needle in lowered for needle in needles) for coarse, needles in self._coarse)
