"""The receiver's settings, in one table: flag > environment > TOML file > default.

The flag of a row is its name without `serve_`, with dashes; in the TOML file it is the key of the same name in the
table `[serve]`. The other settings of otel-cmb (`database_url`, `state_dir`, ...) may stand at the top of that file.
"""

from __future__ import annotations

import importlib
import ipaddress
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from otel_cmb import config
from otel_cmb.config import Setting, Settings
from otel_cmb.errors import ConfigurationError

__all__ = ["SERVE_SETTINGS", "Address", "ServeSettings", "load"]

_MIB = 1_048_576
OFF = ("off", "none")


@dataclass(frozen=True, slots=True)
class Address:
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def loopback(self) -> bool:
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def _address(value: Any) -> Address | None:
    """HOST:PORT (port 0 picks a free one), or 'off'"""
    if value is None or isinstance(value, Address):
        return value
    text = str(value).strip()
    if text.lower() in OFF:
        return None
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65_535:
        raise ValueError
    if host.startswith("[") != host.endswith("]") or (":" in host and not host.startswith("[")):
        raise ValueError
    return Address(host.strip("[]"), int(port))


def _page(value: Any) -> str:
    """an address that begins with http:// or https://"""
    text = str(value).strip()
    if not text.startswith(("http://", "https://")):
        raise ValueError
    return text


_whole, _number, _boolean, _text, _choice = (
    config._whole, config._number, config._boolean, config._text, config._choice,
)

SERVE_SETTINGS: tuple[Setting, ...] = (
    Setting("serve_grpc", "127.0.0.1:4317", _address, "Address of OTLP over gRPC."),
    Setting("serve_http", "127.0.0.1:4318", _address, "Address of OTLP over HTTP, health, metrics and the web page."),
    Setting("serve_jaeger_storage", None, _address, "Address of Jaeger's remote storage API; not served if unset."),
    Setting("serve_jaeger_url", None, _page, "Where Jaeger's own pages are: the web page links its traces there."),
    Setting("serve_token_file", None, _text,
            "File of bearer tokens, one per line, optionally followed by the session id it is bound to."),
    Setting("serve_tls_cert", None, _text, "Certificate chain (PEM) of the server, for both doors."),
    Setting("serve_tls_key", None, _text, "Private key (PEM) of the certificate."),
    Setting("serve_tls_client_ca", None, _text, "Certificates (PEM), one of which signed each client's: mutual TLS."),
    Setting("serve_insecure", False, _boolean,
            "Serve an address other hosts reach without TLS or without a token."),
    Setting("serve_max_request_mib", 64, _whole(1), "Largest request in MiB, before and after decompression."),
    Setting("serve_max_spans", 100_000, _whole(1), "Most spans in one request."),
    Setting("serve_max_concurrent", 64, _whole(1),
            "Requests worked on at once; as many again wait, the rest must retry."),
    Setting("serve_max_waiting_mib", 256, _whole(1), "Bytes of requests, in MiB, that may wait for their commit."),
    Setting("serve_max_memory_mib", 1_024, _whole(64),
            "Memory of the process, in MiB, above which requests that arrive slowly are told to come back; half of it is for "
            "bodies that are being received."),
    Setting("serve_max_connections", 1_000, _whole(1),
            "Open connections of each door, also those in the midst of a handshake; fewer where the limit of open files is "
            "lower."),
    Setting("serve_answer_timeout", 5.0, _number,
            "Seconds a request waits for its commit; what is pending then is fsynced in the journal and answered OK."),
    Setting("serve_read_timeout", 30.0, _number, "Seconds a client may take to send a request."),
    Setting("serve_drain_timeout", 10.0, _number, "Seconds requests may take to end after SIGTERM."),
    Setting("serve_log_format", "text", _choice("text", "json"), "Form of the log on stderr."),
    Setting("serve_log_level", "info", _choice("debug", "info", "warning", "error"), "Least level that is logged."),
)


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """The settings of one receiver, parsed. See :data:`SERVE_SETTINGS` for what each means."""

    grpc: Address | None
    http: Address | None
    jaeger_storage: Address | None
    jaeger_url: str | None
    token_file: str | None
    tls_cert: str | None
    tls_key: str | None
    tls_client_ca: str | None
    insecure: bool
    max_request_mib: int
    max_spans: int
    max_concurrent: int
    max_waiting_mib: int
    max_memory_mib: int
    max_connections: int
    answer_timeout: float
    read_timeout: float
    drain_timeout: float
    log_format: str
    log_level: str

    @property
    def max_bytes(self) -> int:
        return self.max_request_mib * _MIB


def _read_toml(path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The general settings and those of `[serve]` in the file."""
    name = "tomllib" if sys.version_info >= (3, 11) else "tomli"
    toml = importlib.import_module(name)
    try:
        with open(os.path.expanduser(path), "rb") as file:
            found = toml.load(file)
    except OSError as error:
        raise ConfigurationError(f"configuration file {path} cannot be read: {error}") from error
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError
        raise ConfigurationError(f"configuration file {path} is not TOML: {error}") from error
    serve = found.pop("serve", {})
    if not isinstance(serve, dict):
        raise ConfigurationError(f"configuration file {path}: serve is {serve!r}, expected a table [serve]")
    known = {setting.name.removeprefix("serve_") for setting in SERVE_SETTINGS}
    general = {setting.name for setting in config.SETTINGS}
    wrong = sorted(set(serve) - known) + sorted(set(found) - general)
    if wrong:
        raise ConfigurationError(
            f"configuration file {path}: unknown {', '.join(wrong)}; [serve] has {', '.join(sorted(known))}; "
            f"at the top stand {', '.join(sorted(general))}"
        )
    return found, serve


BATCH_SIZE = next(setting for setting in config.SETTINGS if setting.name == "batch_size")
SQLITE_BATCH = 512
"""`batch_size` of a server, where nobody says another. Exporters send 512 spans: a request is one transaction, a sixth more
spans a second. On PostgreSQL it gives less, and takes the memory beyond 120 MiB."""


def load(
    flags: Mapping[str, Any], general_flags: Mapping[str, Any] | None = None, *,
    config_file: str | None = None, env: Mapping[str, str] | None = None,
) -> tuple[ServeSettings, Settings]:
    """The receiver's settings and the pipeline's. `None` in the flags means not given.

    Raises :class:`ConfigurationError` naming what was found, what was expected and where it came from.
    """
    environ = os.environ if env is None else env
    config_file = config_file or environ.get("OTEL_EXPORTER_CMB_CONFIG_FILE") or None
    general_file, serve_file = _read_toml(config_file) if config_file else ({}, {})
    values: dict[str, Any] = {}
    for setting in SERVE_SETTINGS:
        name = setting.name.removeprefix("serve_")
        value, source = flags.get(name), f"--{name.replace('_', '-')}"
        if value is None and (variable := setting.said(environ)) is not None:
            value, source = environ[variable], variable
        if value is None and name in serve_file:
            value, source = serve_file[name], f"{config_file}: serve.{name}"
        if value is None:
            value = setting.default
        try:
            values[name] = None if value is None else setting.parse(value)
        except (ValueError, TypeError) as error:
            raise ConfigurationError(f"{source}: found {value!r}, expected {setting.allowed}") from error
    serve = ServeSettings(**values)
    _check(serve)
    general = {name: value for name, value in (general_flags or {}).items() if value is not None}
    # the environment outranks the file, so what the environment has is not taken from the file
    for setting in config.SETTINGS:
        if setting.name in general_file and setting.said(environ) is None:
            value = general_file[setting.name]
            try:
                setting.parse(value)
            except (ValueError, TypeError) as error:
                raise ConfigurationError(
                    f"{config_file}: {setting.name}: found {value!r}, expected {setting.allowed}"
                ) from error
            general.setdefault(setting.name, value)
    found = config.load(environ, **general)
    unsaid = BATCH_SIZE.name not in general and BATCH_SIZE.said(environ) is None
    if unsaid and found.database_url.startswith("sqlite"):
        found = replace(found, batch_size=SQLITE_BATCH)
    return serve, found


def _check(serve: ServeSettings) -> None:
    if serve.grpc is None and serve.http is None:
        raise ConfigurationError("both doors are off; give --grpc or --http an address")
    if (serve.tls_cert is None) != (serve.tls_key is None):
        raise ConfigurationError("TLS needs both --tls-cert and --tls-key")
    if serve.tls_client_ca is not None and serve.tls_cert is None:
        raise ConfigurationError("--tls-client-ca needs --tls-cert and --tls-key")
    for path in (serve.tls_cert, serve.tls_key, serve.tls_client_ca):
        if path is not None and not os.access(path, os.R_OK):
            raise ConfigurationError(f"{path}: no such file, or not readable; expected a PEM file")
    if serve.insecure:
        return
    for flag, address in (("--grpc", serve.grpc), ("--http", serve.http), ("--jaeger-storage", serve.jaeger_storage)):
        if address is None or address.loopback:
            continue
        if serve.tls_cert is None:
            raise ConfigurationError(
                f"{flag} {address}: other hosts can reach this address; give --tls-cert, --tls-key and --token-file, "
                "or say --insecure"
            )
        if serve.token_file is None:
            raise ConfigurationError(
                f"{flag} {address}: other hosts can reach this address; give --token-file, with or without "
                "--tls-client-ca, or say --insecure"
            )
