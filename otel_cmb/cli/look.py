"""`otel-cmb runs` and `otel-cmb show`: what is in the database, on a terminal or for a program."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import click

from otel_cmb.cli.options import console_for_people, database_options, json_option

if TYPE_CHECKING:
    from rich.console import Console

    from otel_cmb.cli.tree import Glyphs
    from otel_cmb.reader import Line, Reader, Run

__all__ = ["runs", "show"]

_AGO = re.compile(r"(\d{1,6})\s*([smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class Moment(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic from click 8.2 on, not before
    """A time: ISO 8601 (local unless it has a zone), or so long ago: 90s, 15m, 2h, 3d, 1w."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        ago = _AGO.fullmatch(value.strip())
        try:
            if ago is not None:
                return datetime.now(timezone.utc) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
            return datetime.fromisoformat(value.strip().replace("Z", "+00:00")).astimezone(timezone.utc)
        except (ValueError, OverflowError):
            self.fail(f"found {value!r}, expected a time like 2026-11-22, 2026-11-22T09:30 or 2h, 3d", param, ctx)


def _glyphs(console: Console) -> Glyphs:
    from otel_cmb.cli.tree import Glyphs

    return Glyphs() if console.encoding.lower().startswith("utf") else Glyphs.plain()


def _print_json(value: Any, *, indent: bool = True) -> None:
    from otel_cmb.reader.values import to_json

    sys.stdout.buffer.write(to_json(value, indent=indent) + b"\n")
    sys.stdout.buffer.flush()


@click.command()
@database_options
@json_option
@click.option("--status", "statuses", multiple=True, help="Only runs with this status; may be repeated.")
@click.option("--agent", default=None, help="Only runs of this agent.")
@click.option("--text", "-q", default=None, help="Only runs with this in id, task, mode, agent or model.")
@click.option("--since", type=Moment(), default=None, help="Started at or after: a time, or 2h, 3d.")
@click.option("--until", type=Moment(), default=None, help="Started before: a time, or 2h, 3d.")
@click.option("--limit", "-n", type=click.IntRange(1, 10_000), default=20, show_default=True, help="How many.")
@click.option("--cursor", default=None, help="Continue after the run with this cursor (see --json).")
def runs(
    *, database_url: str | None, schema: str | None, as_json: bool, statuses: Sequence[str], agent: str | None,
    text: str | None, since: datetime | None, until: datetime | None, limit: int, cursor: str | None,
) -> None:
    """List the runs, newest first; those without a start time last."""
    from otel_cmb.reader import open_reader

    with open_reader(database_url, schema=schema) as reader:
        found = reader.runs(
            status=list(statuses) or None, agent=agent, text=text, since=since, until=until, limit=limit, cursor=cursor
        )
    if as_json:
        _print_json([run.to_dict() for run in found])
        return
    console = console_for_people()
    if not found:
        narrowed = any((statuses, agent, text, since, until, cursor))
        console.print("no run fits" if narrowed else "no runs yet; record one with: otel-cmb run -- python program.py")
        return
    console.print(_table(found, console.width))
    if len(found) == limit:
        console.print(f"the newest {limit}; more with --limit", style="bright_black")


def _table(found: list[Run], width: int) -> Any:
    from rich.table import Table
    from rich.text import Text

    from otel_cmb.cli.tree import clean, count, money, span, status_of, when

    size = _shortest([run.id for run in found])
    table = Table(box=None, padding=(0, 1, 0, 0), width=width, header_style="bold")
    wide, full = width >= 100, width >= 150
    for name, shown, right in (
        ("run", True, False), ("status", True, False), ("started", True, False), ("took", True, True),
        ("mode", full, False), ("agent", wide, False), ("model", full, False), ("events", True, True),
        ("failed", wide, True), ("tokens", wide, True), ("cost", True, True),
    ):
        if shown:
            table.add_column(name, justify="right" if right else "left", no_wrap=True, max_width=24)
    table.add_column("task", ratio=1, no_wrap=True, overflow="ellipsis")
    for run in found:
        totals = run.totals
        started = when(run.started_at) or "-"
        cells: list[str | Text] = [
            clean(run.id)[:size], status_of(run),
            started if wide else started[5:16],
            span(run.duration_ms) or ("..." if run.started_at and not run.ended and not run.died else ""),
            *([clean(run.mode)] if full else []), *([clean(run.agent)] if wide else []),
            *([clean(run.model)] if full else []),
            count(totals.events) if totals else "",
        ]
        if wide:
            failures = totals.failures if totals else 0
            cells += [Text(str(failures or ""), "red"), count(totals.tokens) if totals and totals.tokens else ""]
        cells += [money(totals.cost_usd) if totals else "", clean(run.task_description)]
        table.add_row(*[cell if isinstance(cell, Text) else Text(cell) for cell in cells])
    return table


def _shortest(ids: list[str]) -> int:
    """How many characters tell these ids apart; at least eight."""
    for size in (8, 13, 18):
        if len({key[:size] for key in ids}) == len(set(ids)):
            return size
    return 36


@click.command()
@click.argument("run", required=False, default="latest")
@database_options
@json_option
@click.option("--follow", "-f", is_flag=True, help="Keep it live until the run ends, or its process has died.")
@click.option("--limit", "-n", type=click.IntRange(0), default=2000, show_default=True,
              help="Events drawn at most; 0 for all. --json always gives all.")
def show(
    *, run: str, database_url: str | None, schema: str | None, as_json: bool, follow: bool, limit: int
) -> None:
    """Show a run as a tree: nodes, agents, tools, code; time, tokens, cost.

    RUN is an id, the beginning of one, the application's task id, or `latest` (the default).
    """
    from otel_cmb.reader import open_reader

    with open_reader(database_url, schema=schema) as reader:
        run_id = reader.resolve(run)
        try:
            if as_json and follow:
                for changed in _changes(reader, run_id):
                    _print_json(changed, indent=False)
            elif as_json:
                _print_json(_whole(reader, run_id))
            elif follow:
                _follow(reader, run_id)
            else:
                _show(reader, run_id, limit)
        except KeyboardInterrupt:
            sys.exit(130)


def _whole(reader: Reader, run_id: str) -> dict[str, Any]:
    """The run with everything that belongs to it, every column of every row."""
    return {
        "run": reader.run(run_id).to_dict(),
        "totals": reader.totals(run_id).to_dict(),
        **{
            name: [record.to_dict() for record in ask(run_id)]
            for name, ask in (
                ("nodes", reader.nodes), ("edges", reader.edges), ("steps", reader.steps), ("events", reader.events),
                ("files", reader.files), ("messages", reader.messages),
            )
        },
    }


def _show(reader: Reader, run_id: str, limit: int) -> None:
    from otel_cmb.cli.tree import draw, header

    console = console_for_people()
    found = reader.run(run_id)
    lines = reader.lines(run_id, limit=limit or None)
    now = datetime.now(timezone.utc)
    if found.totals is not None:
        console.print(header(found, found.totals, now), overflow="ellipsis")
    console.print()
    for text in draw(found, reader.nodes(run_id), lines, console.width, glyphs=_glyphs(console), now=now):
        console.print(text, no_wrap=True, overflow="ignore", crop=False)
    if not lines:
        console.print("no events" if found.ended or found.died else "no events yet", style="bright_black")
    left = (found.totals.events if found.totals else 0) - len(lines)
    if limit and len(lines) == limit and left > 0:
        console.print(f"{left:,} more events; all with --limit 0", style="bright_black")


def _follow(reader: Reader, run_id: str) -> None:
    from rich.live import Live

    console = console_for_people()
    if not console.is_terminal:
        _append(reader, run_id, console)
        return
    with Live(console=console, auto_refresh=False, vertical_overflow="visible") as live:
        for found, lines in _ticking(reader, run_id):
            live.update(_screen(reader, found, lines, console), refresh=True)
        # What was cut to the height of the screen is printed whole at the end.
        live.update("", refresh=True)
    _show(reader, run_id, 0)


def _ticking(reader: Reader, run_id: str) -> Iterator[tuple[Run, list[Line]]]:
    """Like `Reader.follow`, but twice a second also when nothing changed: bars of running events grow."""
    version: str | None = None
    seen: tuple[Run, list[Line]] | None = None
    while True:
        now = reader.version()
        if seen is None or now is None or now != version or reader.died(seen[0]):
            version = now
            seen = (reader.run(run_id, totals=False), reader.lines(run_id))
        yield seen
        if seen[0].ended or seen[0].died:
            return
        time.sleep(0.5)


def _screen(reader: Reader, found: Run, lines: list[Line], console: Console) -> Any:
    from rich.console import Group
    from rich.text import Text

    from otel_cmb.cli.tree import draw, header
    from otel_cmb.reader.summary import sums_of

    now = datetime.now(timezone.utc)
    drawn = list(draw(found, reader.nodes(found.id), lines, console.width, glyphs=_glyphs(console), now=now))
    top = header(found, sums_of(lines), now)
    room = max(3, console.height - 6 - len(top.plain.splitlines()))
    cut = [Text(f"{len(drawn) - room} lines above", "bright_black")] if len(drawn) > room else []
    return Group(top, Text(), *cut, *drawn[-room:])


def _append(reader: Reader, run_id: str, console: Console) -> None:
    """Where nobody can redraw: a line when an event starts, a line when it ends."""
    from otel_cmb.cli.tree import header, moment_of, said
    from otel_cmb.reader.summary import sums_of

    glyphs = _glyphs(console)
    shown: dict[str, str | None] = {}
    found: Run | None = None
    lines: list[Line] = []
    for found, lines in reader.follow(run_id):
        if not shown:
            console.print(f"run {found.id}")
        changed = [line for line in lines if shown.get(line.id) != line.status]
        for line in sorted(changed, key=lambda line: moment_of(line) or found.started_at or datetime.now(timezone.utc)):
            shown[line.id] = line.status
            console.print(said(line, console.width, glyphs), no_wrap=True, overflow="ignore", crop=False)
        sys.stdout.flush()
    if found is not None:
        console.print(header(found, sums_of(lines), datetime.now(timezone.utc)))


def _changes(reader: Reader, run_id: str) -> Iterator[dict[str, Any]]:
    """`{"event": ...}` for each event that came or changed, `{"run": ...}` when the run did."""
    from otel_cmb.cli.tree import DIED_ADVICE

    shown: dict[str, Line] = {}
    last: Run | None = None
    for found, lines in reader.follow(run_id):
        for line in lines:
            if shown.get(line.id) != line:
                shown[line.id] = line
                event = reader.event(line.id)
                if event is not None:
                    yield {"event": event.to_dict()}
        if found != last:
            last = found
            yield {"run": found.to_dict()}
    if last is not None and last.died:
        click.echo(f"otel-cmb: {DIED_ADVICE}", err=True)
