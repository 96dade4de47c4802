"""What a reader gives back: one class per table, and how they are made from rows by the rules of
:mod:`otel_cmb.reader.values`. Pure.

Datetimes are aware and in UTC; `to_dict()` renders them as ISO 8601 with a `Z`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, TypeVar, cast

from otel_cmb.reader.values import as_count, as_json, as_moment, as_number, as_text, as_title, iso

__all__ = [
    "Edge", "Event", "File", "Line", "Message", "Node", "Record", "Run", "RunTotals", "Session", "Share", "Step",
    "Totals", "TreeNode", "make", "maker",
]

ENDED = frozenset({"completed", "failed", "cancelled", "canceled", "skipped", "error"})
"""Run statuses after which nothing more is expected."""


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return iso(value)
    if isinstance(value, Record):
        return value.to_dict()
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


class Record:
    """Shared by every record: `to_dict()`, ready for JSON. Columns unknown to otel-cmb come last, as they are."""

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """A dictionary that is ready for JSON."""
        result = {item.name: _plain(getattr(self, item.name)) for item in fields(self)}  # type: ignore[arg-type]
        for name, value in (result.pop("extra", None) or {}).items():
            result.setdefault(name, _plain(value))
        return result


@dataclass(frozen=True, slots=True)
class Session(Record):
    """A row of `sessions`."""

    id: str
    name: str | None = None
    user_id: str | None = None
    status: str | None = None
    created_at: datetime | None = None
    last_active_at: datetime | None = None
    meta: Any = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RunTotals(Record):
    """Sums over the events of a run. Each token and cent is on one row only, so these are plain sums."""

    events: int = 0
    failures: int = 0
    running: int = 0
    tokens: int = 0
    cost_usd: float = 0.0


@dataclass(frozen=True, slots=True)
class Run(Record):
    """A row of `workflow_runs`, with the sums over its events."""

    id: str
    session_id: str | None = None
    project_id: str | None = None
    mode: str | None = None
    agent: str | None = None
    model: str | None = None
    status: str | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None
    task_description: str | None = None
    meta: Any = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    totals: RunTotals | None = None
    """`None` when they were not asked for."""
    cursor: str = ""
    """Give it to `runs(cursor=...)` for what comes after this run."""
    died: bool = False
    """It goes on in the database, but its process has died, as the journals of this host tell; `otel-cmb parked replay`
    finishes it. False also where nothing is known."""

    @property
    def ended(self) -> bool:
        """Nothing more is expected: the run has an end, or its status says so."""
        return self.completed_at is not None or self.status in ENDED

    @property
    def duration_ms(self) -> int | None:
        """Milliseconds from start to end; `None` while either is missing."""
        if self.started_at is None or self.completed_at is None:
            return None
        return round((self.completed_at - self.started_at).total_seconds() * 1000)

    def to_dict(self) -> dict[str, Any]:
        return {**Record.to_dict(self), "duration_ms": self.duration_ms, "ended": self.ended}


@dataclass(frozen=True, slots=True)
class Node(Record):
    """A row of `dag_nodes`. `name` is the name the application uses where `id` is a hash of it."""

    id: str
    run_id: str | None = None
    session_id: str | None = None
    parent_node_id: str | None = None
    node_type: str | None = None
    agent: str | None = None
    status: str | None = None
    order_index: int | None = None
    depth: int | None = None
    meta: Any = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name the program or the application gave it."""
        named = self.meta.get("id") if isinstance(self.meta, dict) else None
        return named if isinstance(named, str) and named else self.id

    def to_dict(self) -> dict[str, Any]:
        return {**Record.to_dict(self), "name": self.name}


@dataclass(frozen=True, slots=True)
class Edge(Record):
    """A row of `dag_edges`."""

    from_node_id: str
    to_node_id: str
    id: int | str | None = None
    run_id: str | None = None
    dependency_type: str | None = None
    condition: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Step(Record):
    """A row of `workflow_steps`."""

    id: str
    run_id: str | None = None
    session_id: str | None = None
    step_number: int | None = None
    goal: str | None = None
    summary: str | None = None
    status: str | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None
    progress_percentage: int | None = None
    inputs: Any = None
    outputs: Any = None
    error_message: str | None = None
    meta: Any = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Event(Record):
    """A whole row of `execution_events`."""

    id: str
    run_id: str | None = None
    node_id: str | None = None
    step_id: str | None = None
    session_id: str | None = None
    parent_event_id: str | None = None
    event_type: str | None = None
    event_subtype: str | None = None
    agent_name: str | None = None
    agent_role: str | None = None
    timestamp: datetime | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None
    duration_ms: int | None = None
    inputs: Any = None
    outputs: Any = None
    error_message: str | None = None
    meta: Any = None
    execution_order: int | None = None
    depth: int | None = None
    status: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def cursor(self) -> str:
        """Give it to `events(after=...)` for what comes after this event."""
        return f"{self.execution_order or 0}:{self.id}"


@dataclass(frozen=True, slots=True)
class Line(Record):
    """An event as a list or a tree shows it: no payload, but what one line needs of it."""

    id: str
    parent_event_id: str | None
    node_id: str | None
    step_id: str | None
    event_type: str | None
    event_subtype: str | None
    agent_name: str | None
    started_at: datetime | None
    completed_at: datetime | None
    duration_ms: int | None
    execution_order: int | None
    depth: int | None
    status: str | None
    error_message: str | None
    """Its first 500 characters."""
    title: str | None
    """What was done: the tool's name, the first line of the code or message, who handed off to whom, the file."""
    model: str | None
    tokens: int | None
    cost_usd: float | None

    @property
    def cursor(self) -> str:
        """Give it to `lines(after=...)` for what comes after this event."""
        return f"{self.execution_order or 0}:{self.id}"


@dataclass(frozen=True, slots=True)
class TreeNode:
    """An event with those below it. `children` are in execution order."""

    event: Line
    children: list[TreeNode] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Nested dictionaries, made without recursion: a tree may be deeper than Python's stack."""
        top = self.event.to_dict()
        top["children"] = []
        waiting = [(self, top)]
        while waiting:
            node, plain = waiting.pop()
            for child in node.children:
                below = child.event.to_dict()
                below["children"] = []
                plain["children"].append(below)
                waiting.append((child, below))
        return top


@dataclass(frozen=True, slots=True)
class File(Record):
    """A row of `files`."""

    id: str
    file_path: str | None = None
    file_type: str | None = None
    size_bytes: int | None = None
    run_id: str | None = None
    step_id: str | None = None
    event_id: str | None = None
    node_id: str | None = None
    created_at: datetime | None = None
    meta: Any = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Message(Record):
    """A row of `messages`."""

    id: str
    sender: str | None = None
    recipient: str | None = None
    content: str | None = None
    timestamp: datetime | None = None
    tokens: int | None = None
    run_id: str | None = None
    step_id: str | None = None
    event_id: str | None = None
    node_id: str | None = None
    meta: Any = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Share(Record):
    """What one agent, tool or model had of a run."""

    name: str
    calls: int = 0
    failures: int = 0
    duration_ms: int = 0
    tokens: int = 0
    cost_usd: float = 0.0


@dataclass(frozen=True, slots=True)
class Totals(Record):
    """Sums of a run, and by agent (`agent_call`s), tool (`tool_call`s, code executions by language) and model."""

    run: RunTotals
    agents: tuple[Share, ...] = ()
    tools: tuple[Share, ...] = ()
    models: tuple[Share, ...] = ()


R = TypeVar("R", bound=Record)
_makers: dict[tuple[type, tuple[str, ...]], Callable[..., Any]] = {}

_NOT_COLUMNS = frozenset({"totals", "cursor", "died", "extra"})
"""Fields that the reader fills; a column of that name is the application's."""

_RULES: dict[str, Any] = {
    **dict.fromkeys(("meta", "inputs", "outputs"), as_json),
    **dict.fromkeys(("started_at", "completed_at", "timestamp", "created_at", "last_active_at"), as_moment),
    **dict.fromkeys(
        ("duration_ms", "execution_order", "depth", "order_index", "size_bytes", "tokens", "step_number",
         "progress_percentage"), as_count,
    ),
    "cost_usd": as_number,
    "title": as_title,
}
_AS_IT_IS: dict[Any, type] = {as_text: str, as_count: int}
"""Of nearly every value: what its rule leaves as it is."""


def maker(kind: type[R], columns: tuple[str, ...]) -> Callable[..., R]:
    """Makes records of `kind` from rows with these columns: known ones by rule, the rest into `extra` if it has one."""
    if (kind, columns) not in _makers:
        _makers[kind, columns] = _new_maker(kind, columns)
    return cast("Callable[..., R]", _makers[kind, columns])


def _new_maker(kind: type[R], columns: tuple[str, ...]) -> Callable[..., R]:
    all_names = {item.name for item in fields(kind)}  # type: ignore[arg-type]
    names = all_names - _NOT_COLUMNS
    rules = {name: _RULES.get(name, as_text) for name in columns if name in names}
    known = [(place, name, rules[name], _AS_IT_IS.get(rules[name])) for place, name in enumerate(columns) if name in rules]
    others = [(place, name) for place, name in enumerate(columns) if name not in names] if "extra" in all_names else []

    def make_one(row: Sequence[Any], **given: Any) -> R:
        for place, name, rule, plain in known:
            value = row[place]
            given[name] = value if value is None or type(value) is plain else rule(value)
        if others:
            given["extra"] = {name: _extra(row[place]) for place, name in others}
        return kind(**given)

    return make_one


def make(kind: type[R], row: Mapping[str, Any], **given: Any) -> R:
    """One record from a row."""
    return maker(kind, tuple(row))(tuple(row.values()), **given)


def _extra(value: Any) -> Any:
    return value if value is None or isinstance(value, (str, int, float, datetime)) else as_json(value)
