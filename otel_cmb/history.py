"""Message histories stored once per run (owned databases).

Every LLM call carries the whole conversation so far, so plain rows grow with the square of its length. Here the row keeps
the messages since the model's previous answer, and a pointer to what came before:

    inputs = {"messages": [new ...], "earlier": {"messages": 12, "history": "<id>"}}

A history is a chain: the id of each link is a hash of the link before it and of the message, so equal beginnings are equal
ids, and whoever writes a link first, it is the same link. `otel_cmb_history` has the links, `otel_cmb_contents` the
messages, each once per run. Which messages are "new" depends on the event alone, never on what was stored before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson
from sqlalchemy import Connection

from otel_cmb.dialects import insert_sql, mark, qualified

__all__ = ["HistoryWriter", "expand", "fetch_history", "split", "whole"]

REMEMBERED = 20_000
"""Most links known to be in the database: about 5 MB of a server that stays under 120 MiB."""

MIN_BYTES = 2048
"""Shorter beginnings stay in the row: a reader of plain SQL sees small conversations whole."""

EARLIER = "earlier"
CONTENTS, HISTORY = "otel_cmb_contents", "otel_cmb_history"
Links = list[tuple[str, "str | None", str, str]]
"""(id, previous, content id, JSON of the message)"""


def split(value: dict[str, Any]) -> tuple[dict[str, Any], Links]:
    """The value as the row keeps it, and the links of the history it points to; the same value where there is nothing to gain.

    The new part begins after the last message of the role `assistant`, or is the last message alone.
    """
    messages = value.get("messages")
    if type(messages) is not list or len(messages) < 2 or EARLIER in value:
        return value, []
    begin = len(messages) - 1
    while begin > 0 and not _is_answer(messages[begin - 1]):
        begin -= 1
    if begin == 0:
        begin = len(messages) - 1
    bodies = [orjson.dumps(message) for message in messages[:begin]]
    if sum(map(len, bodies)) < MIN_BYTES:
        return value, []
    links: Links = []
    previous: str | None = None
    for body in bodies:
        content = hashlib.blake2b(body, digest_size=16).hexdigest()
        link = hashlib.blake2b(f"{previous or ''}{content}".encode(), digest_size=16).hexdigest()
        links.append((link, previous, content, body.decode()))
        previous = link
    kept = {key: messages[begin:] if key == "messages" else item for key, item in value.items()}
    kept[EARLIER] = {"messages": begin, "history": previous}
    return kept, links


def _is_answer(message: Any) -> bool:
    return isinstance(message, dict) and message.get("role") == "assistant"


def expand(value: Any, fetch: Callable[[str], Sequence[Any]]) -> Any:
    """The whole value again. `fetch` gives a history's messages by its id, oldest first; it may raise `KeyError`, then the
    value stays as the row has it."""
    earlier = value.get(EARLIER) if isinstance(value, dict) else None
    if not isinstance(earlier, Mapping) or "history" not in earlier:
        return value
    try:
        before = fetch(str(earlier["history"]))
    except KeyError:
        return value
    if len(before) != earlier.get("messages"):
        return value
    return {
        key: [*before, *item] if key == "messages" else item for key, item in value.items() if key != EARLIER}


def fetch_history(connection: Connection, run_id: str, history: str, schema: str | None = None) -> list[Any]:
    """The messages of a history, oldest first. Raises `KeyError` when the database has no such history."""
    sign = mark(connection.dialect.name)
    links, contents = qualified(HISTORY, schema), qualified(CONTENTS, schema)
    rows = connection.exec_driver_sql(
        f"WITH RECURSIVE chain(id, previous, content, n) AS ("
        f"SELECT id, previous, content, 0 FROM {links} WHERE run_id = {sign} AND id = {sign} UNION ALL "
        f"SELECT h.id, h.previous, h.content, chain.n + 1 FROM {links} h JOIN chain ON h.id = chain.previous "
        f"WHERE h.run_id = {sign}) "
        f"SELECT c.body FROM chain JOIN {contents} c ON c.run_id = {sign} AND c.id = chain.content ORDER BY chain.n DESC",
        (run_id, history, run_id, run_id)).fetchall()
    if not rows:
        raise KeyError(history)
    return [orjson.loads(row[0]) for row in rows]


def whole(connection: Connection, row: dict[str, Any], schema: str | None = None) -> None:
    """Put the earlier messages back into the `inputs` and `outputs` of a row (columns `run_id`, `inputs`, `outputs`)."""
    for column in ("inputs", "outputs"):
        value = row.get(column)
        if isinstance(value, dict) and EARLIER in value:
            row[column] = expand(value, lambda history: fetch_history(connection, row["run_id"], history, schema))


class HistoryWriter:
    """Collects the links of a transaction and writes those that are not there yet."""

    def __init__(self, dialect: str, schema: str | None):
        self._links = insert_sql(
            dialect, qualified(HISTORY, schema), ("run_id", "id", "previous", "content"), conflict=("run_id", "id"))
        self._contents = insert_sql(
            dialect, qualified(CONTENTS, schema), ("run_id", "id", "body"), conflict=("run_id", "id"))
        self._known: set[tuple[str, str]] = set()
        self._new: dict[tuple[str, str], tuple[str | None, str, str]] = {}

    def shorten(self, run_id: str, value: dict[str, Any]) -> dict[str, Any]:
        """What the row keeps of `inputs` or `outputs`; the rest is written with :meth:`write`."""
        kept, links = split(value)
        for link, previous, content, body in links:
            key = (run_id, link)
            if key not in self._known and key not in self._new:
                self._new[key] = (previous, content, body)
        return kept

    def write(self, connection: Connection) -> None:
        """Write what is new, inside the caller's transaction."""
        if not self._new:
            return
        contents = {(run_id, content): body for (run_id, _), (_, content, body) in self._new.items()}
        connection.exec_driver_sql(self._contents, [(*key, body) for key, body in sorted(contents.items())])
        connection.exec_driver_sql(self._links, [
            (run_id, link, previous, content) for (run_id, link), (previous, content, _) in sorted(self._new.items())])

    def committed(self) -> None:
        if len(self._known) > REMEMBERED:
            self._known.clear()
        self._known.update(self._new)
        self._new.clear()

    def forget(self) -> None:
        """Nothing is known any more: the transaction failed, or the database may be another."""
        self._known.clear()
        self._new.clear()
