"""Every error otel-cmb raises, in one tree.

    CMBError
    ├── ConfigurationError (ValueError)      a setting is wrong: found, expected, what to do
    │   └── DatabaseURLError                 malformed URL, missing driver, in-memory SQLite, unwritable place
    ├── RunNotFoundError (ValueError)        no such run in this database
    ├── SessionMismatchError (ValueError)    the run belongs to another session
    ├── SchemaError                          the database's tables are not what is needed
    ├── DatabaseUnavailableError             an outage: keep, back off, try again
    └── JournalError                         the local journal cannot take or give a record

Messages say what was found, what was expected and what to do next. No message carries a password:
database URLs are always rendered by :func:`otel_cmb.config.safe_url`.
"""

from __future__ import annotations


class CMBError(Exception):
    """Base of every error raised on purpose by otel-cmb."""


class ConfigurationError(CMBError, ValueError):
    """A setting has a value that cannot work."""


class DatabaseURLError(ConfigurationError):
    """The database URL is malformed, names a missing driver, or points where nothing can be kept."""


class RunNotFoundError(CMBError, ValueError):
    """The named run is not in the database."""


class SessionMismatchError(CMBError, ValueError):
    """The named run belongs to another session than the one that was named."""


class SchemaError(CMBError):
    """The database's tables do not fit; the message lists every mismatch at once."""


class DatabaseUnavailableError(CMBError):
    """The database did not answer within the time allowed; nothing is wrong with what was asked."""


class JournalError(CMBError):
    """The local journal could not take a record (disk full, read-only directory, size cap)."""
