"""The server's certificate, its key and the client CA: read at the start, and again when they change.

Looked at when a connection begins, at most twice a second; connections that are open keep what they began with. All
files are tried together before any of it is used, so both doors show the same certificate, and a key that does not
belong to the certificate (half of a renewal) is never shown.
"""

from __future__ import annotations

import logging
import os
import ssl
import time
from dataclasses import dataclass
from threading import Lock
from typing import Any

from otel_cmb.errors import ConfigurationError
from otel_cmb.receiver.settings import ServeSettings

__all__ = ["TlsFiles", "tls_files"]

_LOG = logging.getLogger("otel_cmb.receiver")
CHECK_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class _Material:
    """What the files held, when it was last usable."""

    contents: tuple[bytes, ...]
    """Of the certificate, the key and, where there is one, the client CA."""
    context: ssl.SSLContext


class TlsFiles:
    """The PEM files of a server. Raises :class:`ConfigurationError` when they cannot be used at the start; later ones
    that cannot are logged, once per change, and those read before stay in use. Safe for threads."""

    def __init__(self, cert: str, key: str, client_ca: str | None = None) -> None:
        self._paths = tuple(os.path.abspath(path) for path in (cert, key, client_ca) if path is not None)
        self._lock = Lock()
        self._looked = time.monotonic()
        try:
            self._seen = self._signatures()
            self._material = self._load()
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"TLS cannot be served from {', '.join(self._paths)}: {error}") from error

    def _signatures(self) -> tuple[tuple[int, int, int] | None, ...]:
        return tuple(_signature(path) for path in self._paths)

    def _load(self) -> _Material:
        """Raises `OSError` (`ssl.SSLError` is one) or `ValueError` when the files do not fit together."""
        for _ in range(3):
            before = self._contents()
            context = _context(*self._paths)
            if self._contents() == before:
                return _Material(before, context)
        raise ValueError("they change while they are read")

    def _contents(self) -> tuple[bytes, ...]:
        contents = []
        for path in self._paths:
            with open(path, "rb") as file:
                contents.append(file.read())
        return tuple(contents)

    def _current(self) -> _Material:
        with self._lock:
            now = time.monotonic()
            if now - self._looked >= CHECK_SECONDS:
                self._looked = now
                self._reload()
            return self._material

    def _reload(self) -> None:
        signatures = self._signatures()
        if signatures == self._seen:
            return
        self._seen = signatures
        names = ", ".join(self._paths)
        try:
            self._material = self._load()
        except (OSError, ValueError) as error:
            _LOG.error("TLS files %s are not usable, what was read before stays in use: %s", names, error)
        else:
            _LOG.info("TLS files %s read again: new connections are served with them", names)

    def context(self) -> ssl.SSLContext:
        """For a server of Python's: each handshake is done with what the files hold at that moment."""

        def choose(connection: Any, _name: str | None, _first: ssl.SSLContext) -> None:
            context = self._current().context
            if connection.context is not context:
                connection.context = context

        first = self._current().context
        first.sni_callback = choose  # called for clients that name no server, too
        return first

    def grpc_credentials(self) -> Any:
        """For a gRPC server: its core asks before each handshake."""
        import grpc

        def configuration(material: _Material) -> Any:
            cert, key, *client_ca = material.contents
            return grpc.ssl_server_certificate_configuration([(key, cert)], client_ca[0] if client_ca else None)

        served = self._current()

        def changed() -> Any:
            nonlocal served
            material = self._current()
            if material is served:
                return None
            served = material
            return configuration(material)

        return grpc.dynamic_ssl_server_credentials(
            configuration(served), changed, require_client_authentication=len(self._paths) == 3
        )


def _signature(path: str) -> tuple[int, int, int] | None:
    """What differs once a file was written or replaced; `None` when it is not there."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _context(cert: str, key: str, client_ca: str | None = None) -> ssl.SSLContext:
    def encrypted() -> str:
        raise ValueError(f"{key} is encrypted; expected a key without a passphrase")

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(cert, key, password=encrypted)
    if client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(client_ca)
        # Who goes on with a session is not asked for a certificate again, also when its authority is not in the file any
        # more. TLS 1.3 has no sessions but tickets; the cache that 1.2 has besides cannot be switched off from Python.
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.num_tickets = 0
    return context


def tls_files(settings: ServeSettings) -> TlsFiles | None:
    """Those of the settings; `None` where there is no TLS."""
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    return TlsFiles(settings.tls_cert, settings.tls_key, settings.tls_client_ca)
