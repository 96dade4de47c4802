"""What a database error means for the spans in hand, by one table.

*outage*: nothing is wrong with the rows; keep them, back off, try again. *poison*: a row of the batch cannot be
stored; bisect, park it, commit the rest. *duplicate*: another writer was first; read again and merge.
*misconfigured*: rights or tables are missing; keep journaling and say so loudly.

SQLSTATEs: PostgreSQL 18, appendix A. Result codes: sqlite.org/rescode.html.
"""

from __future__ import annotations

import enum
import re
import sqlite3
from typing import NamedTuple

from sqlalchemy import exc

from otel_cmb.config import safe_text
from otel_cmb.errors import ConfigurationError, DatabaseUnavailableError, RunNotFoundError, SchemaError

__all__ = ["Fault", "Verdict", "classify"]

LONGEST_LINE = 2_000
"""Characters that are read of what a driver says."""


class Fault(enum.Enum):
    """The four things a database error can mean."""

    OUTAGE = "outage"
    POISON = "poison"
    DUPLICATE = "duplicate"
    MISCONFIGURED = "misconfigured"


class Verdict(NamedTuple):
    """What to do, and one line for a person: no values of rows, no passwords."""

    fault: Fault
    reason: str


_OUT, _BAD, _DUP, _MIS = Fault.OUTAGE, Fault.POISON, Fault.DUPLICATE, Fault.MISCONFIGURED

# The longest prefix that fits decides; `True`: the driver's first line says more and names no value of a row.
_SQLSTATES: dict[str, tuple[Fault, str, bool]] = {
    "08": (_OUT, "connection to the database failed", True),
    "09": (_BAD, "a trigger of the database refused the row", False),
    "0A": (_MIS, "the server does not support what is needed", True),
    "21": (_BAD, "the row does not fit the table", False),
    "22": (_BAD, "a value does not fit its column", False),
    "23": (_BAD, "a constraint of the table refused the row", False),
    "23505": (_DUP, "a row with this key is there already", False),
    "25": (_OUT, "the transaction was ended by the server", True),
    "25006": (_MIS, "the database is read-only", True),
    "27": (_BAD, "a trigger of the database refused the row", False),
    "28": (_MIS, "the server refused the login; check user and password of the database URL", True),
    "3D": (_MIS, "the database does not exist; create it or correct the database URL", True),
    "3F": (_MIS, "the schema does not exist; create it or correct the setting `schema`", True),
    "40": (_OUT, "another transaction was in the way", True),
    "40002": (_BAD, "a constraint of the table refused the row", False),
    "42": (_MIS, "tables and program do not fit; see `otel-cmb db check`", True),
    "42501": (_MIS, "rights are missing", True),
    "44": (_BAD, "a view's check option refused the row", False),
    "53": (_OUT, "the server has run out of a resource", True),
    "54": (_BAD, "the row is larger than the server takes", False),
    "55": (_OUT, "something of the database is locked", True),
    "57": (_OUT, "the server stopped the connection or the query", True),
    "58": (_OUT, "the server's operating system reports an error", True),
    "P0": (_BAD, "a trigger of the database refused the row", False),
    "XX": (_OUT, "the server reports an internal error", True),
}

_SQLITE_CODES: dict[int, tuple[Fault, str]] = {
    3: (_MIS, "the file may not be used"),
    5: (_OUT, "another process is writing to the file"),
    6: (_OUT, "another connection is writing to the table"),
    7: (_OUT, "out of memory"),
    8: (_MIS, "the file is read-only"),
    9: (_OUT, "the statement was interrupted"),
    10: (_OUT, "the disk reports an error"),
    11: (_MIS, "the file is damaged; see PRAGMA integrity_check"),
    13: (_OUT, "the disk is full"),
    14: (_OUT, "the file cannot be opened"),
    15: (_OUT, "another process is writing to the file"),
    17: (_OUT, "the schema was changed meanwhile"),
    18: (_BAD, "the row is larger than SQLite takes"),
    19: (_BAD, "a constraint of the table refused the row"),
    20: (_BAD, "a value does not fit its column"),
    23: (_MIS, "the file may not be used"),
    25: (_BAD, "a value does not fit its column"),
    26: (_MIS, "the file is not a SQLite database"),
}
_SQLITE_DUPLICATE = {1555, 2067, 2579}  # PRIMARYKEY, UNIQUE, ROWID

# Python 3.10 gives no result code, only SQLite's text; SQLITE_ERROR (1) is told by its text on every version.
_SQLITE_TEXTS: tuple[tuple[str, int | tuple[Fault, str]], ...] = (
    ("UNIQUE constraint failed", 2067),
    ("constraint failed", 19),
    ("table is locked", 6),
    ("database schema is locked", 6),
    ("is locked", 5),
    ("locking protocol", 15),
    ("readonly database", 8),
    ("disk I/O error", 10),
    ("is malformed", 11),
    ("is full", 13),
    ("unable to open", 14),
    ("schema has changed", 17),
    ("too big", 18),
    ("datatype mismatch", 20),
    ("not a database", 26),
    ("interrupted", 9),
    ("no such table", (_MIS, "tables and program do not fit; see `otel-cmb db check`")),
    ("no such column", (_MIS, "tables and program do not fit; see `otel-cmb db check`")),
    ("has no column named", (_MIS, "tables and program do not fit; see `otel-cmb db check`")),
    ("ON CONFLICT clause does not match", (_MIS, "tables and program do not fit; see `otel-cmb db check`")),
    ("foreign key mismatch", (_MIS, "a foreign key names a table or column that is not there")),
)

# What libpq says when it cannot connect carries no SQLSTATE.
_CONNECT_TEXTS: tuple[tuple[str, Fault, str], ...] = (
    ("password authentication failed|no password supplied", _MIS,
     "the server refused the password; check user and password of the database URL"),
    ("role .* does not exist", _MIS, "the server does not know the user; check the database URL"),
    ("no pg_hba.conf entry|Ident authentication failed|Peer authentication failed", _MIS,
     "the server does not let this user in from here (pg_hba.conf)"),
    ("database .* does not exist", _MIS, "the database does not exist; create it or correct the database URL"),
    ("permission denied for database", _MIS, "the user may not connect to this database"),
    ("does not support SSL|certificate verify failed|root certificate", _MIS, "the TLS settings do not fit the server"),
    ("invalid connection option|invalid dsn|invalid sslmode|invalid port", _MIS, "the database URL has a wrong option"),
    ("could not translate host name|Name or service not known|failed to resolve host|nodename nor servname", _OUT,
     "the server's host name is not known (here, now)"),
    ("Connection refused", _OUT, "no server answers at that address"),
    ("No such file or directory", _OUT, "no server listens on that socket"),
    ("timeout|timed out", _OUT, "the server did not answer in time"),
    ("starting up|shutting down|recovery mode", _OUT, "the server is starting or stopping"),
    ("too many clients|too many connections|remaining connection slots", _OUT, "the server takes no more connections"),
)

_CLASSES: tuple[tuple[type[BaseException], Fault, str], ...] = (
    (ConfigurationError, _MIS, ""),
    (SchemaError, _MIS, ""),
    (RunNotFoundError, _BAD, ""),
    (DatabaseUnavailableError, _OUT, ""),
    (exc.TimeoutError, _OUT, "all connections to the database are in use"),
    (exc.DisconnectionError, _OUT, "connection to the database failed"),
    (exc.NoSuchTableError, _MIS, "tables and program do not fit; see `otel-cmb db check`"),
    (exc.NoSuchColumnError, _MIS, "tables and program do not fit; see `otel-cmb db check`"),
    (UnicodeError, _BAD, "a text cannot be encoded"),
    (OverflowError, _BAD, "a number does not fit its column"),
    (MemoryError, _OUT, "out of memory"),
    (OSError, _OUT, "the operating system reports an error"),
    (ImportError, _OUT, "nothing can be imported any more, the interpreter is ending"),
)


def classify(error: BaseException) -> Verdict:
    """What `error`, raised by a statement, a commit or a connection attempt, means.

    Anything unknown is poison: bisection then finds the row it belongs to, and a parked row is kept.
    """
    cause: BaseException = error
    if isinstance(error, exc.StatementError) and error.orig is not None:
        cause = error.orig
    sqlstate = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
    if sqlstate:
        return _by_sqlstate(cause, str(sqlstate))
    if isinstance(cause, sqlite3.Error):
        return _by_sqlite_code(cause)
    for kind, fault, reason in _CLASSES:
        if isinstance(cause, kind):
            return Verdict(fault, reason or _first_line(cause))
    if isinstance(error, exc.DBAPIError):
        return _by_connect_text(error, cause)
    return Verdict(_BAD, f"{type(cause).__name__} while the row was written")


def _by_sqlstate(cause: BaseException, sqlstate: str) -> Verdict:
    if "row-level security" in str(cause):  # 42501 like missing rights, but the next row may pass
        return Verdict(_BAD, "the table's row-level security refused the row [42501]")
    for length in (5, 2):
        if sqlstate[:length] in _SQLSTATES:
            fault, meaning, detailed = _SQLSTATES[sqlstate[:length]]
            break
    else:
        fault, meaning, detailed = _BAD, "the server refused the row", False
    reason = f"{meaning} [{sqlstate}]"
    if detailed:
        return Verdict(fault, f"{reason}: {_first_line(cause)}")
    diagnosis = getattr(cause, "diag", None)
    for name in ("table_name", "column_name", "constraint_name"):
        value = getattr(diagnosis, name, None)
        if value:
            reason += f", {name.replace('_name', '')} {value}"
    return Verdict(fault, reason)


def _by_sqlite_code(cause: sqlite3.Error) -> Verdict:
    text = str(cause)
    code: int | None = getattr(cause, "sqlite_errorcode", None)
    if code is None or code & 0xFF == 1:
        for part, meaning in _SQLITE_TEXTS:
            if part in text:
                if not isinstance(meaning, int):
                    return Verdict(meaning[0], f"{meaning[1]}: {_first_line(cause)}")
                code = meaning
                break
    if code in _SQLITE_DUPLICATE:
        return Verdict(_DUP, f"a row with this key is there already: {_first_line(cause)}")
    if code is not None and code & 0xFF in _SQLITE_CODES:
        fault, meaning_text = _SQLITE_CODES[code & 0xFF]
        return Verdict(fault, f"{meaning_text}: {_first_line(cause)}")
    return Verdict(_BAD, f"SQLite refused the row: {_first_line(cause)}")


def _by_connect_text(error: exc.DBAPIError, cause: BaseException) -> Verdict:
    text = str(cause)
    for pattern, fault, reason in _CONNECT_TEXTS:
        if re.search(pattern, text, re.IGNORECASE):
            return Verdict(fault, f"{reason}: {_first_line(cause)}")
    names = {kind.__name__ for kind in type(cause).__mro__}
    if error.connection_invalidated or names & {"OperationalError", "InterfaceError"}:
        return Verdict(_OUT, f"connection to the database failed: {_first_line(cause)}")
    return Verdict(_BAD, f"{type(cause).__name__} while the row was written")


def _first_line(cause: BaseException) -> str:
    lines = str(cause).strip().splitlines()
    return safe_text(lines[0][:LONGEST_LINE])[:300] if lines else type(cause).__name__
