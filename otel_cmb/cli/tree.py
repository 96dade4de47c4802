"""A run drawn on a terminal: nodes and events as a tree, with bars on a time axis. Pure: values in, `rich` text out.

What is drawn comes from models and tools and is hostile: control characters (escape sequences among them) and
bidirectional overrides never reach the terminal.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from otel_cmb.reader.reader import grow
from otel_cmb.reader.records import Line, Node, Run, RunTotals, TreeNode

__all__ = [
    "DIED_ADVICE", "Glyphs", "clean", "count", "draw", "header", "moment_of", "money", "rows_of", "said", "span",
    "status_of", "when",
]

_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")

STYLES = {
    "agent_call": "cyan", "llm_call": "magenta", "tool_call": "yellow", "code_exec": "blue", "file_gen": "green",
    "handoff": "bright_black", "approval_requested": "bright_yellow", "error": "red", "message": "bright_black",
}
STATUS_STYLES = {"completed": "green", "failed": "bold red", "running": "yellow", "executing": "yellow"}
PROCESS_DIED, DIED_STYLE = "process died", "bold red"
LONGEST_WHY = 400
"""Characters of why a run failed."""
DIED_ADVICE = "Its process died before it ended; `otel-cmb parked replay` finishes it."
WORDS = {
    "agent_call": "agent", "llm_call": "llm", "tool_call": "tool", "code_exec": "code", "file_gen": "file",
    "handoff": "handoff", "approval_requested": "approval", "error": "error", "info": "info", "message": "message",
}


@dataclass(frozen=True)
class Glyphs:
    """What lines are drawn with; `plain()` for a terminal that cannot show more than ASCII."""

    fork: str = "├─ "
    last: str = "└─ "
    pipe: str = "│  "
    bar: str = "━"
    tick: str = "╸"
    done: str = "✓"
    failed: str = "✗"
    running: str = "▶"
    waiting: str = "·"
    dots: str = "…"
    arrow: str = "→"

    @classmethod
    def plain(cls) -> Glyphs:
        return cls("|- ", "`- ", "|  ", "=", "-", "+", "x", ">", ".", "...", "->")


@dataclass(frozen=True)
class Row:
    """One line of the tree: what hangs before it, and the node or the event it is of."""

    guides: str
    below: str
    """What hangs before lines that belong to this one."""
    node: Node | None = None
    line: Line | None = None
    elsewhere: tuple[str, ...] = ()
    """Names of the nodes under which what this event called stands."""


def clean(text: str | None) -> str:
    """The text on one line, without anything a terminal would act on."""
    return " ".join(_UNSAFE.sub(" ", text or "").split())


def span(milliseconds: float | None) -> str:
    """`340 ms`, `6.4 s`, `2 m 05 s`, `3 h 07 m`."""
    if milliseconds is None:
        return ""
    if milliseconds < 1000:
        return f"{milliseconds:.0f} ms"
    seconds = milliseconds / 1000
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} m {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} m"


def count(number: float | None) -> str:
    """`612`, `18.4k`, `1.20M`."""
    if number is None:
        return ""
    if number < 10_000:
        return f"{number:,.0f}"
    return f"{number / 1000:.1f}k" if number < 1_000_000 else f"{number / 1_000_000:.2f}M"


def money(dollars: float | None) -> str:
    if not dollars:
        return ""
    if 0 < dollars < 0.0001:
        return "<$0.0001"
    return f"${dollars:.2f}" if dollars >= 1 else f"${dollars:.4f}"


def when(moment: datetime | None) -> str:
    """In the reader's own time zone."""
    return "" if moment is None else moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def rows_of(nodes: list[Node], lines: Iterable[Line], glyphs: Glyphs) -> Iterator[Row]:
    """The tree, flat: nodes in order with their events below, then the events of no node. Without recursion.

    What an event called stands below it, unless that is of another node: then it begins a tree below its own node. One that
    knows no node is of the node of what called it.
    """
    names = {node.id: node.name for node in nodes}
    by_node: dict[str | None, list[TreeNode]] = {}
    elsewhere: dict[str, dict[str, None]] = {}

    def node_of(branch: TreeNode, around: str | None) -> str | None:
        return branch.event.node_id if branch.event.node_id in names else around

    waiting = [(root, node_of(root, None)) for root in grow(lines)][::-1]
    for root, own in reversed(waiting):
        by_node.setdefault(own, []).append(root)
    while waiting:
        branch, own = waiting.pop()
        below = [(child, node_of(child, own)) for child in branch.children]
        branch.children[:] = [child for child, of in below if of == own]
        for child, of in below:
            if of != own and of is not None:
                by_node.setdefault(of, []).append(child)
                elsewhere.setdefault(branch.event.id, {})[names[of]] = None
        waiting += below[::-1]
    for branches in by_node.values():
        branches.sort(key=lambda branch: branch.event.execution_order or 0)
    for node in nodes:
        yield Row("", "", node=node)
        yield from _walk(by_node.get(node.id, []), "", glyphs, elsewhere, hanging=True)
    yield from _walk(by_node.get(None, []), "", glyphs, elsewhere, hanging=False)


def _walk(
    roots: list[TreeNode], before: str, glyphs: Glyphs, elsewhere: Mapping[str, Iterable[str]], *, hanging: bool,
) -> Iterator[Row]:
    waiting = [(root, before, index == len(roots) - 1, hanging) for index, root in enumerate(roots)][::-1]
    while waiting:
        node, guides, is_last, hangs = waiting.pop()
        inner = guides + ((" " * len(glyphs.pipe) if is_last else glyphs.pipe) if hangs else "")
        yield Row(guides + ((glyphs.last if is_last else glyphs.fork) if hangs else ""), inner, line=node.event,
                  elsewhere=tuple(elsewhere.get(node.event.id, ())))
        children = node.children
        waiting += [(child, inner, index == len(children) - 1, True) for index, child in enumerate(children)][::-1]


def header(run: Run, totals: RunTotals, now: datetime) -> Text:
    """Who, what, when, and what it came to."""
    text = Text()
    text.append("run ", "bold")
    text.append(clean(run.id), "bold")
    text.append("  ")
    text.append(clean(run.status) or "?", STATUS_STYLES.get(run.status or "", ""))
    if run.died:
        text.append(f"  {PROCESS_DIED}", DIED_STYLE)
    if run.ended and isinstance(run.meta, dict) and "error" in run.meta:
        text.append(f"  {clean(str(run.meta['error']))[:LONGEST_WHY]}")
    if run.task_description:
        text.append("\n" + clean(run.task_description)[:400])
    who = " · ".join(clean(part) for part in (run.mode, run.agent, run.model) if part)
    took = run.duration_ms
    if took is None and run.started_at is not None and not run.ended and not run.died:
        took = round((now - run.started_at).total_seconds() * 1000)
    started = f"started {when(run.started_at)}" if run.started_at else "without a start time"
    text.append("\n" + " · ".join(part for part in (who, started, span(took)) if part), "bright_black")
    sums = [
        f"{totals.events:,} event{'' if totals.events == 1 else 's'}", f"{totals.failures:,} failed" if totals.failures else "",
        f"{totals.tokens:,} tokens" if totals.tokens else "", money(totals.cost_usd),
    ]
    text.append("\n" + " · ".join(part for part in sums if part), "bright_black")
    if run.died:
        text.append(f"\n{DIED_ADVICE}")
    return text


def status_of(run: Run) -> Text:
    """What a list says of a run."""
    if run.died:
        return Text(PROCESS_DIED, DIED_STYLE)
    return Text(clean(run.status) or "?", STATUS_STYLES.get(run.status or "", ""))


class Axis:
    """Places times on `width` cells. In a run that goes on a running event reaches to `now`, in one whose process died to
    the last thing that is known."""

    def __init__(self, run: Run, lines: list[Line], width: int, now: datetime) -> None:
        # From the first event to the last: a program may be long about its start.
        starts = [line.started_at for line in lines if line.started_at]
        ends = [line.completed_at for line in lines if line.completed_at]
        if run.died:
            now = max([*starts, *ends], default=now)
        if not run.ended and any(line.status == "running" for line in lines):
            ends.append(now)
        self.width, self.now = width, now
        self.first = min(starts, default=now)
        self.seconds = max((max(ends, default=self.first) - self.first).total_seconds(), 0.001)

    def place(self, line: Line) -> tuple[int, int]:
        """First cell and number of cells of the event's bar."""
        if line.started_at is None:
            return 0, 0
        end = line.completed_at or (self.now if line.status == "running" else line.started_at)
        at = (line.started_at - self.first).total_seconds() / self.seconds * self.width
        took = (end - line.started_at).total_seconds() / self.seconds * self.width
        first = min(max(int(at), 0), self.width - 1)
        return first, max(1, min(round(took), self.width - first))


def draw(
    run: Run, nodes: list[Node], lines: list[Line], width: int, *, glyphs: Glyphs, now: datetime,
) -> Iterator[Text]:
    """One `Text` per line, none wider than `width`: tree, bar, duration, tokens, cost. Failures bring their message."""
    figures = 9 + 7 + (9 if width >= 100 else 0)
    bars = max(10, min(100, (width - figures) // (2 if width >= 160 else 3)))
    names = width - figures - bars - 1
    axis = Axis(run, lines, bars, now)
    for row in rows_of(nodes, lines, glyphs):
        if row.node is not None:
            yield _node_row(row.node, width, glyphs)
            continue
        line = row.line
        if line is None:
            continue
        text = Text(row.guides, "bright_black", no_wrap=True)
        _name(text, line, glyphs)
        if row.elsewhere:
            text.append(f" {glyphs.arrow} {_some(row.elsewhere, glyphs)}", "bright_black")
        text.truncate(names, overflow="crop", pad=True)
        first, cells = axis.place(line)
        style = "red" if line.status == "failed" else style_of(line)
        text.append(" " + " " * first)
        text.append((glyphs.bar if cells > 1 else glyphs.tick) * cells, style)
        text.append(" " * (bars - first - cells))
        text.append(f"{span(line.duration_ms) if line.status != 'running' else glyphs.dots:>9}")
        text.append(f"{count(line.tokens):>7}", "bright_black")
        if width >= 100:
            text.append(f"{money(line.cost_usd):>9}", "bright_black")
        text.rstrip()
        yield text
        if line.status == "failed" and line.error_message:
            yield _message_row(row, line, width, glyphs)


def _some(names: tuple[str, ...], glyphs: Glyphs) -> str:
    return ", ".join(map(clean, names[:3])) + (f", {glyphs.dots}" if len(names) > 3 else "")


def style_of(line: Line) -> str:
    return STYLES.get("message" if line.event_subtype == "message" else line.event_type or "", "white")


def _mark(status: str | None, glyphs: Glyphs) -> tuple[str, str]:
    marks = {
        "failed": (glyphs.failed, "bold red"), "running": (glyphs.running, "yellow"),
        "completed": (glyphs.done, "green"),
    }
    return marks.get(status or "", (glyphs.waiting, "bright_black"))


def _name(text: Text, line: Line, glyphs: Glyphs) -> None:
    mark, style = _mark(line.status, glyphs)
    text.append(f"{mark} ", style)
    kind = "message" if line.event_subtype == "message" else line.event_type or "?"
    text.append(f"{clean(WORDS.get(kind, kind))} ", style_of(line))
    title = line.title if kind != "llm_call" else line.model
    if line.agent_name and kind not in {"handoff", "message"}:
        text.append(f"{clean(line.agent_name)} ", "bold" if kind == "agent_call" else "")
    text.append(clean(title), "" if kind != "agent_call" else "bright_black")


def _node_row(node: Node, width: int, glyphs: Glyphs) -> Text:
    text = Text(no_wrap=True)
    mark, style = _mark(node.status, glyphs)
    text.append(f"{mark} ", style)
    text.append(clean(node.name), "bold")
    parts = [clean(part) for part in (node.node_type, node.agent, node.status) if part]
    text.append("  " + " · ".join(parts), "bright_black")
    text.truncate(width, overflow="crop")
    return text


def _message_row(row: Row, line: Line, width: int, glyphs: Glyphs) -> Text:
    lead = row.below + "   "
    text = Text(lead, "bright_black", no_wrap=True)
    room = max(10, width - cell_len(lead))
    said = clean(line.error_message)
    if cell_len(said) > room:
        said = set_cell_size(said, room - cell_len(glyphs.dots)) + glyphs.dots
    text.append(said, "red")
    text.truncate(width, overflow="crop")
    return text


def moment_of(line: Line) -> datetime | None:
    """When an event became what it is: its start while it runs, then its end."""
    return line.started_at if line.status == "running" else line.completed_at or line.started_at


def said(line: Line, width: int, glyphs: Glyphs) -> Text:
    """One line for an event that started or ended, where nothing can be redrawn."""
    moment = moment_of(line)
    text = Text(f"{moment.astimezone().strftime('%H:%M:%S') if moment else '':8} ", "bright_black", no_wrap=True)
    text.append("  " * min(line.depth or 0, 20))
    _name(text, line, glyphs)
    if line.status != "running":
        text.append(f"  {span(line.duration_ms)}", "bright_black")
    if line.status == "failed" and line.error_message:
        text.append(f"  {clean(line.error_message)}", "red")
    text.truncate(width, overflow="ellipsis")
    return text
