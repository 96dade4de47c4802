"""Every setting, in one table: keyword > environment > default. `docs/settings.md` is made from it.

An empty environment variable is an unset one. A bad value is a :class:`ConfigurationError` that names the setting, what
was found and what is allowed, raised when the settings are loaded, never later.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import unquote_plus

from otel_cmb.errors import ConfigurationError

__all__ = ["SETTINGS", "Setting", "Settings", "default_state_dir", "load", "safe_text", "safe_url"]

PREFIX = "OTEL_EXPORTER_CMB_"


def default_state_dir() -> str:
    """`otel-cmb` in the user's state directory (XDG Base Directory specification 0.8)."""
    base = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return os.path.join(base, "otel-cmb")


def _text(value: Any) -> str:
    return str(value)


def _boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    lowered = str(value).strip().lower()
    if lowered in {"true", "1", "yes", "on"}:
        return True
    if lowered in {"false", "0", "no", "off"}:
        return False
    raise ValueError("true or false")


def _whole(minimum: int) -> Callable[[Any], int]:
    def parse(value: Any) -> int:
        number = int(value)
        if number < minimum:
            raise ValueError
        return number

    parse.__doc__ = f"a whole number, at least {minimum}"
    return parse


def _number(value: Any) -> float:
    """a number of seconds, not negative"""
    number = float(value)
    if not 0 <= number < float("inf"):
        raise ValueError
    return number


def _choice(*allowed: str) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        if value not in allowed:
            raise ValueError
        return str(value)

    parse.__doc__ = " or ".join(repr(item) for item in allowed)
    return parse


def _names(value: Any) -> tuple[str, ...]:
    """names separated by commas"""
    items = value.split(",") if isinstance(value, str) else value
    return tuple(str(item).strip() for item in items if str(item).strip())


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the table. `env` are environment variables, first set wins; the first is the canonical one."""

    name: str
    default: Any
    parse: Callable[[Any], Any]
    doc: str
    extra_env: tuple[str, ...] = ()

    @property
    def env(self) -> tuple[str, ...]:
        return (PREFIX + self.name.upper(), *self.extra_env)

    def said(self, environ: Mapping[str, str]) -> str | None:
        """The variable that gives it a value; `None`: none does."""
        return next((variable for variable in self.env if environ.get(variable)), None)

    @property
    def allowed(self) -> str:
        return self.parse.__doc__ or "text"


_text.__doc__ = "text"
_boolean.__doc__ = "true or false"

CODE_TOOLS = (
    "run_code", "execute_code", "python", "code_interpreter", "python_interpreter", "run_python", "execute_python",
    "python_repl", "exec_code", "code_execution", "run_python_code", "bash", "shell", "run_shell",
    "run_shell_command",
)

SETTINGS: tuple[Setting, ...] = (
    Setting("database_url", "sqlite:///otel_cmb.db", _text,
            "SQLAlchemy URL of the database: a SQLite file or PostgreSQL.", ("CMBAGENT_DATABASE_URL",)),
    Setting("schema", None, _text, "PostgreSQL schema that holds the tables; the search path's first one if unset."),
    Setting("on_missing_run", "park", _choice("park", "create", "fail"),
            "What happens to a span whose run is not in the database: kept and tried again, the run is made, or the door "
            "fails."),
    Setting("state_dir", None, _text, "Directory of the journals; `otel-cmb` in the user's state directory if unset."),
    Setting("record", "agents", _choice("agents", "all"),
            "Which spans become events: those of agents, or every span (the others as `info`)."),
    Setting("capture", ("all",), _names,
            "Whose payloads (inputs, outputs) are kept: `all`, `none`, or event types separated by commas."),
    Setting("redact", True, _boolean,
            "Replace what looks like a secret (keys, tokens, passwords in URLs) before anything is written."),
    Setting("max_value_bytes", 262_144, _whole(256),
            "Longest text kept of one value, in bytes of UTF-8; the rest is replaced by a marker with length and digest."),
    Setting("code_tools", CODE_TOOLS, _names, "Names of tools whose calls are code executions."),
    Setting("batch_size", 256, _whole(1), "Most spans in one transaction; `otel-cmb serve` takes 512 on SQLite."),
    Setting("live_ms", 100, _whole(10), "How often running spans are looked at; a row appears within 250 ms with the default."),
    Setting("export_timeout", 10.0, _number, "Seconds an exporter's `export` waits for the commit."),
    Setting("connect_timeout", 5.0, _number, "Seconds to wait for a connection, and for `attach()` to be answered."),
    Setting("busy_timeout", 2.0, _number, "Seconds one attempt waits for another writer of the same SQLite file."),
    Setting("shutdown_timeout", 5.0, _number,
            "Seconds the end of the program may wait for the last commit; the rest stays in the journal."),
    Setting("retry_max", 5.0, _number, "Longest pause in seconds between two attempts while the database is away."),
    Setting("park_retry", 300.0, _number, "Seconds during which a parked span is tried again by itself."),
    Setting("content_time", 86_400.0, _number,
            "Seconds for which the content of a log record waits for its span, tried again ever more rarely; then it is given "
            "up, and counted. A span that is sampled out never comes."),
    Setting("settle_time", 2.0, _number,
            "Seconds a span that names no run waits for its trace's root (receiver, importer) before a run is made or it is "
            "parked."),
    Setting("quiet_time", 3600.0, _number,
            "Seconds without anything new after which a receiver ends the run of a trace whose root never came, or a run "
            "made because it was missing; 0: never."),
    Setting("journal_max_bytes", 1_073_741_824, _whole(1_048_576),
            "Size cap of one process's journal: first no start rows, then no content, then spans are refused and counted."),
)

_BY_NAME = {setting.name: setting for setting in SETTINGS}


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of one pipeline, parsed. See :data:`SETTINGS` for what each means."""

    database_url: str = field(repr=False)  # its password must not stand wherever settings are shown
    schema: str | None
    on_missing_run: str
    state_dir: str
    record: str
    capture: tuple[str, ...]
    redact: bool
    max_value_bytes: int
    code_tools: tuple[str, ...]
    batch_size: int
    live_ms: int
    export_timeout: float
    connect_timeout: float
    busy_timeout: float
    shutdown_timeout: float
    retry_max: float
    park_retry: float
    content_time: float
    settle_time: float
    quiet_time: float
    journal_max_bytes: int


assert [item.name for item in fields(Settings)] == [setting.name for setting in SETTINGS]


def load(env: Mapping[str, str] | None = None, **keywords: Any) -> Settings:
    """Settings from keywords (`None` means unset), then the environment, then defaults.

    Raises :class:`ConfigurationError` for an unknown keyword or a value that does not parse. Does not connect and does
    not touch the disk.
    """
    environ = os.environ if env is None else env
    unknown = sorted(set(keywords) - set(_BY_NAME))
    if unknown:
        raise ConfigurationError(
            f"unknown setting {', '.join(unknown)}; known are {', '.join(sorted(_BY_NAME))} (see docs/settings.md)"
        )
    values: dict[str, Any] = {}
    for setting in SETTINGS:
        value, source = keywords.get(setting.name), f"keyword {setting.name}"
        if value is None and (variable := setting.said(environ)) is not None:
            value, source = environ[variable], variable
        if value is None:
            values[setting.name] = setting.default
            continue
        try:
            values[setting.name] = setting.parse(value)
        except (ValueError, TypeError) as error:
            raise ConfigurationError(f"{source}: found {value!r}, expected {setting.allowed}") from error
    if values["state_dir"] is None:
        values["state_dir"] = default_state_dir()
    values["state_dir"] = str(Path(values["state_dir"]).expanduser().absolute())
    return Settings(**values)


_SCHEME = re.compile(r"\s*[\w+.-]*:?//+")
_USER_AND_PASSWORD = re.compile(r"[^:/]*:[^@]*@")
"""What SQLAlchemy takes for user and password: the password may have anything in it but `@`, also `/`, `?` and spaces."""
_NO_PORT = re.compile(r"(?:\[[^\]]*\]|(?![A-Za-z]:[\\/])[^:/\[]*):(?!\d{0,5}(?:/|\Z))")
_SECRET_PARAMETER = re.compile(r"(?i)(?!passfile\Z).*(?:pass|pwd|secret|token|key)")
_ASSIGNED = re.compile(
    r"(?i)(?P<head>\b(?:ssl)?(?:password|passwd|pwd)\s*=\s*)(?:'(?:\\.|[^'\\])*'?|[^&\s]+)")
_IN_TEXT = re.compile(r"(?P<head>://[^\s:/@]*:)\S*(?=@)")
_HIDDEN = "***"


def safe_url(url: str) -> str:
    """The URL with its passwords replaced, fit for a log or an error, also where it is none: then rather too much is
    hidden than too little. What cannot be encoded is escaped."""
    scheme = found[0] if (found := _SCHEME.match(url)) else ""
    rest = url[len(scheme) :]
    known = _USER_AND_PASSWORD.match(rest)
    question = rest.find("?", known.end() if known else 0)
    if question >= 0 and any("=" not in item and "@" in item for item in rest[question + 1 :].split("&")):
        question = -1  # no parameters: the rest of a password
    body, query = (rest, "") if question < 0 else (rest[:question], rest[question + 1 :])
    is_file = url.lstrip().lower().startswith("sqlite")  # a path, in which `:` and `@` mean nothing
    colon, at = body.find(":"), body.rfind("@")
    if 0 <= colon < at and (known or not is_file):
        body = body[: colon + 1] + _HIDDEN + body[at:]
    elif not is_file and (no_port := _NO_PORT.match(body)):
        body = body[: no_port.end()] + _HIDDEN
    shown = scheme + body + (f"?{'&'.join(map(_safe_parameter, query.split('&')))}" if question >= 0 else "")
    return _ASSIGNED.sub(_hidden, shown).encode("utf-8", "backslashreplace").decode()


def _safe_parameter(item: str) -> str:
    name, equals, value = item.partition("=")
    if not equals:
        return _HIDDEN if name else ""
    secret = _SECRET_PARAMETER.match(unquote_plus(name)) or "://" in unquote_plus(value)
    return f"{name}={_HIDDEN}" if secret else item


def safe_text(text: str) -> str:
    """What somebody else says, a driver for example, with the passwords of URLs and connection strings in it replaced."""
    return _ASSIGNED.sub(_hidden, _IN_TEXT.sub(_hidden, text))


def _hidden(match: re.Match[str]) -> str:
    # A function, not a template: `re` imports a module to read one, which it cannot when the interpreter ends.
    return match["head"] + _HIDDEN
