"""Bearer tokens from a file: who may send, and for which session."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import time
from dataclasses import dataclass
from threading import Lock

from otel_cmb.errors import ConfigurationError

__all__ = ["Caller", "TokenFile"]

_LOG = logging.getLogger("otel_cmb.receiver")
MIN_LENGTH = 8
CHECK_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Caller:
    """A request's sender, as far as its token and headers tell."""

    session_id: str | None = None
    """The session its token is bound to; spans of other sessions are refused."""
    run_id: str | None = None
    """The run named by `x-cmb-run-id`."""


def _parse(text: str, path: str) -> list[tuple[bytes, str | None]]:
    tokens: list[tuple[bytes, str | None]] = []
    lines: dict[bytes, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) > 2:
            raise ConfigurationError(
                f"{path} line {number}: found {len(words)} words, expected a token and, if it is bound, a session id"
            )
        if len(words[0]) < MIN_LENGTH:
            raise ConfigurationError(f"{path} line {number}: the token is shorter than {MIN_LENGTH} characters")
        token, session_id = _digest(words[0]), words[1] if len(words) == 2 else None
        if token in lines:
            raise ConfigurationError(f"{path} line {number}: the token of line {lines[token]} again; expected each once")
        lines[token] = number
        tokens.append((token, session_id))
    if not tokens:
        raise ConfigurationError(f"{path}: no token in it; expected one per line, optionally followed by a session id")
    return tokens


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


class TokenFile:
    """The tokens of a file: one per line, optionally followed by the session id it is bound to; `#` starts a comment.

    A changed file is read again within half a second. A file that cannot be read or parsed any more leaves the tokens
    as they were and is logged, once per change. Raises :class:`ConfigurationError` when the first reading fails.
    Safe for threads.
    """

    def __init__(self, path: str) -> None:
        self._path = os.path.abspath(os.path.expanduser(path))
        self._lock = Lock()
        self._looked = time.monotonic()
        try:
            self._seen = self._signature()
            with open(self._path, encoding="utf-8-sig") as file:
                self._tokens = _parse(file.read(), self._path)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"token file {self._path} cannot be read: {error}") from error

    def _signature(self) -> tuple[int, int, int]:
        found = os.stat(self._path)
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _reload(self) -> None:
        now = time.monotonic()
        if now - self._looked < CHECK_SECONDS:
            return
        self._looked = now
        try:
            signature = self._signature()
        except OSError as error:
            if self._seen != (0, 0, 0):
                _LOG.error("token file %s is gone (%s): the tokens read before stay valid", self._path, error)
                self._seen = (0, 0, 0)
            return
        if signature == self._seen:
            return
        self._seen = signature
        try:
            with open(self._path, encoding="utf-8-sig") as file:
                self._tokens = _parse(file.read(), self._path)
        except (OSError, UnicodeDecodeError, ConfigurationError) as error:
            _LOG.error("token file is not usable, the tokens read before stay valid: %s", error)
            return
        _LOG.info("token file %s read again: %d tokens", self._path, len(self._tokens))

    def find(self, authorization: str | None) -> Caller | None:
        """The caller of an `Authorization` header; `None` when it holds no valid token.

        Compares with every token in constant time, so that neither position nor prefix can be measured.
        """
        with self._lock:
            self._reload()
            tokens = self._tokens
        scheme, _, token = (authorization or "").partition(" ")
        given = _digest(token.strip())
        found: Caller | None = None
        for digest, session_id in tokens:
            if hmac.compare_digest(digest, given):
                found = Caller(session_id=session_id)
        return found if scheme.lower() == "bearer" else None
