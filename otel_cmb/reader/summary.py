"""Lines and sums: what one row says in short, and what many rows come to.

Both are asked in SQL, so that payloads stay in the database. Where its JSON cannot be asked (text columns on
PostgreSQL, a value its JSON functions refuse), the same is worked out here from whole rows, by the same tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Select, Text, and_, case, cast, func, literal, or_, select

from otel_cmb.reader.records import Line, RunTotals, Share, Totals, make
from otel_cmb.reader.source import EVENTS, Source, UnreadableJSONError
from otel_cmb.reader.values import TITLE_CHARS, as_json, as_number, as_text

__all__ = ["Summary", "sums_of"]

T = TypeVar("T")

TITLES: dict[str, tuple[tuple[str, str], ...]] = {
    "tool_call": (("", "tool_name"),),
    "code_exec": (("", "code"),),
    "file_gen": (("", "file_path"),),
    "handoff": (("", "from_agent"), (" → ", "to_agent")),
    "approval_requested": (("", "prompt"),),
    "message": (("", "sender"), (" → ", "recipient"), (": ", "content")),
    "agent_call": (("", "message"),),
}
"""By event type (or the subtype `message`): which keys of `inputs` say what was done, and what stands before each."""

PLAIN = (
    "id", "parent_event_id", "node_id", "step_id", "event_type", "event_subtype", "agent_name", "started_at",
    "completed_at", "duration_ms", "execution_order", "depth", "status",
)
ERROR_CHARS = 500
NOT_AGENT_CALLS = ("message",)
TOKENS, COST, MODEL = "tokens", "cost_usd", "model"


class Summary:
    """Questions to `execution_events`."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._rows = source.rows
        self._schema = source.schema
        self._events = source.schema[EVENTS]
        self._in_sql = source.schema.json_in_sql

    def _ask(self, in_sql: Callable[[], T], here: Callable[[], T]) -> T:
        if self._in_sql:
            try:
                return in_sql()
            except UnreadableJSONError:
                return here()  # next time in SQL again: the value may be one of many runs
        return here()

    # -- lines --------------------------------------------------------------------------------------------------------

    def lines(self, *where: Any, limit: int | None) -> list[Line]:
        """Events in execution order, without their payloads."""
        plain = [self._schema.column(EVENTS, name) for name in PLAIN]
        error = func.substr(self._schema.column(EVENTS, "error_message"), 1, ERROR_CHARS).label("error_message")
        facts = [
            func.substr(self._title(), 1, TITLE_CHARS * 4).label("title"),
            self._schema.json_text(EVENTS, "meta", MODEL).label(MODEL),
            self._number(TOKENS).label(TOKENS), self._number(COST).label(COST),
        ]
        whole = [self._schema.column(EVENTS, name) for name in ("inputs", "meta")]

        def read(columns: list[Any]) -> Select[Any]:
            order = (self._events.c.execution_order, self._events.c.id)
            return select(*plain, error, *columns).where(*where).order_by(*order).limit(limit)

        return self._ask(
            lambda: self._source.records(Line, read(facts)),
            lambda: [make(Line, _with_facts(row)) for row in self._rows(read(whole))],
        )

    def _title(self) -> ColumnElement[Any]:
        subtype = self._schema.column(EVENTS, "event_subtype")
        kind = case((subtype == "message", literal("message")), else_=self._events.c.event_type)
        choices = []
        for name, keys in TITLES.items():
            found = [cast(self._schema.json_text(EVENTS, "inputs", key), Text) for _, key in keys]
            text: ColumnElement[Any] = found[0]
            for (before, _), part in zip(keys[1:], found[1:], strict=True):
                short = func.substr(part, 1, TITLE_CHARS)
                text = func.coalesce(text, "?") + literal(before) + func.coalesce(short, "?")
            choices.append((kind == name, text))
        return case(*choices, else_=cast(self._schema.json_text(EVENTS, "meta", "otel", "name"), Text))

    def _number(self, key: str) -> ColumnElement[Any]:
        return self._schema.json_number(EVENTS, "meta", key)

    def _sum(self, column: Any) -> ColumnElement[Any]:
        """SQLite's own `sum` refuses integers that overflow 64 bits."""
        return func.total(column) if self._schema.dialect == "sqlite" else func.sum(column)

    # -- sums ---------------------------------------------------------------------------------------------------------

    def by_run(self, run_ids: list[str]) -> dict[str, RunTotals]:
        """Sums of each of these runs; a run without events may be missing."""
        return self._ask(
            lambda: self._by_run_in_sql(run_ids), lambda: {run_id: self._totals_here(run_id).run for run_id in run_ids}
        )

    def totals(self, run_id: str) -> Totals:
        return self._ask(lambda: self._totals_in_sql(run_id), lambda: self._totals_here(run_id))

    def _by_run_in_sql(self, run_ids: list[str]) -> dict[str, RunTotals]:
        status = self._schema.column(EVENTS, "status")
        statement = select(
            self._events.c.run_id, func.count().label("events"), _count(status == "failed").label("failures"),
            _count(status == "running").label("running"), self._sum(self._number(TOKENS)).label(TOKENS),
            self._sum(self._number(COST)).label(COST),
        ).where(self._events.c.run_id.in_(run_ids)).group_by(self._events.c.run_id)
        return {
            row["run_id"]: RunTotals(row["events"], _whole(row["failures"]), _whole(row["running"]),
                                     _whole(row[TOKENS]), _cents(row[COST]))
            for row in self._rows(statement)
        }

    def _totals_in_sql(self, run_id: str) -> Totals:
        kind, subtype = self._events.c.event_type, self._schema.column(EVENTS, "event_subtype")
        agent_call = and_(kind == "agent_call", or_(subtype.is_(None), subtype.not_in(NOT_AGENT_CALLS)))
        language = func.coalesce(cast(self._schema.json_text(EVENTS, "meta", "language"), Text), "?")
        tool = case(
            (kind == "tool_call", cast(self._schema.json_text(EVENTS, "inputs", "tool_name"), Text)),
            (kind == "code_exec", literal("code: ") + language),
        )
        model = cast(self._schema.json_text(EVENTS, "meta", MODEL), Text)
        spent = or_(kind == "llm_call", self._number(TOKENS).is_not(None), self._number(COST).is_not(None))
        return Totals(
            run=self._by_run_in_sql([run_id]).get(run_id, RunTotals()),
            agents=self._shares(run_id, self._schema.column(EVENTS, "agent_name"), agent_call, None),
            tools=self._shares(run_id, tool, None, kind.in_(("tool_call", "code_exec"))),
            models=self._shares(run_id, model, None, spent),
        )

    def _shares(self, run_id: str, name: Any, call: Any, where: Any) -> tuple[Share, ...]:
        """Grouped by `name`; calls, failures and time count the rows that are a `call`, tokens and cost all of them."""
        status, duration = self._schema.column(EVENTS, "status"), self._schema.column(EVENTS, "duration_ms")
        is_call = literal(True) if call is None else call
        inner = select(
            name.label("name"), case((is_call, 1), else_=0).label("calls"),
            case((and_(is_call, status == "failed"), 1), else_=0).label("failures"),
            case((is_call, duration)).label("duration_ms"),
            self._number(TOKENS).label(TOKENS), self._number(COST).label(COST),
        ).where(self._events.c.run_id == run_id, *([] if where is None else [where])).subquery()
        sums = [self._sum(inner.c[key]).label(key) for key in ("calls", "failures", "duration_ms", TOKENS, COST)]
        found = self._rows(select(inner.c.name, *sums).where(inner.c.name.is_not(None)).group_by(inner.c.name))
        return _ranked(
            Share(str(row["name"]), _whole(row["calls"]), _whole(row["failures"]), _whole(row["duration_ms"]),
                  _whole(row[TOKENS]), _cents(row[COST]))
            for row in found
        )

    def _totals_here(self, run_id: str) -> Totals:
        columns = ("event_type", "event_subtype", "agent_name", "status", "duration_ms", "inputs", "meta")
        events = failures = running = all_tokens = 0
        all_cost = 0.0
        shares: dict[str, dict[str, list[Any]]] = {"agent": {}, "tool": {}, "model": {}}
        statement = select(*[self._schema.column(EVENTS, name) for name in columns])
        for row in self._rows(statement.where(self._events.c.run_id == run_id)):
            inputs, meta, facts = _object(row["inputs"]), _object(row["meta"]), _with_facts(row)
            kind, failed = row["event_type"], row["status"] == "failed"
            tokens, cost = _whole(facts[TOKENS]), float(facts[COST] or 0)
            events, failures, running = events + 1, failures + failed, running + (row["status"] == "running")
            all_tokens, all_cost = all_tokens + tokens, _cents(all_cost + cost)
            groups: list[tuple[str, Any, bool]] = [
                ("agent", row["agent_name"], kind == "agent_call" and row["event_subtype"] not in NOT_AGENT_CALLS),
            ]
            if kind == "tool_call":
                groups.append(("tool", as_text(inputs.get("tool_name")), True))
            elif kind == "code_exec":
                groups.append(("tool", f"code: {as_text(meta.get('language')) or '?'}", True))
            if kind == "llm_call" or facts[TOKENS] is not None or facts[COST] is not None:
                groups.append(("model", facts[MODEL], True))
            for group, name, call in groups:
                if name is not None:
                    share = shares[group].setdefault(name, [0, 0, 0, 0, 0.0])
                    share[0] += call
                    share[1] += call and failed
                    share[2] += _whole(row["duration_ms"]) if call else 0
                    share[3] += tokens
                    share[4] = _cents(share[4] + cost)
        agents, tools, models = (_ranked(Share(name, *values) for name, values in shares[group].items())
                                 for group in ("agent", "tool", "model"))
        return Totals(RunTotals(events, failures, running, all_tokens, all_cost), agents, tools, models)


def _cents(cost: Any) -> float:
    """A sum of money without the noise of binary fractions."""
    return round(float(as_number(cost) or 0), 9)


def _whole(number: Any) -> int:
    return int(as_number(number) or 0)


def _count(condition: Any) -> ColumnElement[Any]:
    return func.sum(case((condition, 1), else_=0))


def _ranked(shares: Iterable[Share]) -> tuple[Share, ...]:
    """Those that did something, the most expensive first."""
    useful = [share for share in shares if share.calls or share.tokens or share.cost_usd]
    return tuple(sorted(useful, key=lambda share: (-share.cost_usd, -share.tokens, -share.duration_ms, share.name)))


def _object(value: Any) -> dict[str, Any]:
    decoded = as_json(value)
    return decoded if isinstance(decoded, dict) else {}


def _with_facts(row: dict[str, Any]) -> dict[str, Any]:
    """The row with title, model, tokens and cost, worked out from `inputs` and `meta`."""
    inputs, meta = _object(row.pop("inputs", None)), _object(row.pop("meta", None))
    kind = "message" if row.get("event_subtype") == "message" else row.get("event_type")
    keys = TITLES.get(str(kind))
    if keys is None:
        title = as_text(_object(meta.get("otel")).get("name"))
    elif len(keys) == 1:
        title = as_text(inputs.get(keys[0][1]))
    else:
        parts = (as_text(inputs.get(key)) for _, key in keys)
        title = "".join(before + ("?" if part is None else part[:TITLE_CHARS])
                        for (before, _), part in zip(keys, parts, strict=True))
    return {**row, "title": title, MODEL: as_text(meta.get(MODEL)), TOKENS: as_number(meta.get(TOKENS)),
            COST: as_number(meta.get(COST))}


def sums_of(lines: Iterable[Line]) -> RunTotals:
    """The sums of a run whose lines are all at hand."""
    known = list(lines)
    return RunTotals(
        len(known), sum(line.status == "failed" for line in known), sum(line.status == "running" for line in known),
        int(sum(line.tokens or 0 for line in known)), _cents(sum(line.cost_usd or 0 for line in known)),
    )
