"""Where the journals of a database are kept on this host."""

from __future__ import annotations

import hashlib
import os

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from otel_cmb.config import Settings
from otel_cmb.database_url import check_url
from otel_cmb.dialects import POSTGRESQL, SQLITE
from otel_cmb.errors import DatabaseURLError
from otel_cmb.journal_files import database_directory

__all__ = ["RETRY_SIGNAL_FILE", "retry_signal", "state_directory"]

RETRY_SIGNAL_FILE = "retry-now"
"""Touched by `otel-cmb parked replay`: living processes try their parked spans again when its time changes."""


_NAMING = frozenset(("host", "hostaddr", "port", "dbname", "user", "service", "servicefile", "options"))
"""What of a URL's query says which database it is (libpq, "Parameter Key Words"): `options` may set the search path."""


def state_directory(settings: Settings) -> str:
    """Where the journals of these settings' database are kept. Raises :class:`DatabaseURLError` for a URL that names no
    database; one that cannot be used at the moment has a journal all the same."""
    url = _database(settings)
    query = {name: value for name, value in url.query.items() if name in _NAMING}
    named = url.set(drivername=url.get_backend_name(), password=None, query=query).render_as_string(hide_password=False)
    digest = hashlib.blake2b(f"{named}|{settings.schema or ''}".encode(), digest_size=8).hexdigest()
    return database_directory(settings.state_dir, digest)


def _database(settings: Settings) -> URL:
    try:
        return check_url(settings)
    except DatabaseURLError:  # no driver, no such directory, no right to write there: may be mended
        try:
            url = make_url(settings.database_url.strip())
        except (ArgumentError, ValueError):
            url = None
        if url is not None and url.get_backend_name() == POSTGRESQL and url.database:
            return url
        path = url.database if url is not None and url.drivername == SQLITE and not url.host else None
        if not path or path.startswith((":memory:", "file:")):
            raise
        return URL.create(SQLITE, database=os.path.abspath(os.path.expanduser(path)))


def retry_signal(directory: str) -> int | None:
    """When somebody asked last to try everything parked again (nanoseconds); `None` when nobody has."""
    try:
        return os.stat(os.path.join(directory, RETRY_SIGNAL_FILE)).st_mtime_ns
    except OSError:
        return None
