"""`otel-cmb prune`: delete what is old."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from otel_cmb import clock, config
from otel_cmb.cli.options import database_options, json_option
from otel_cmb.config import safe_url

if TYPE_CHECKING:
    from otel_cmb.retention import Pruned

WORTH_A_HINT = 1_048_576
"""Free bytes of a SQLite file from which on giving them back is worth a word."""


@click.command()
@click.option("--older-than", required=True, metavar="90d", help="Age from which on runs go: 90d, 12h, 4w.")
@click.option(
    "--keep-runs", type=click.IntRange(min=0), default=0, metavar="N",
    help="Keep the N newest runs whatever their age.",
)
@click.option("--events", is_flag=True, help="In an application's database: delete our own old events, nothing else.")
@click.option("--dry-run", is_flag=True, help="Say what would be deleted, delete nothing.")
@click.option("--state-dir", default=None, help="Directory of the journals: what a living process has open there stays.")
@database_options
@json_option
def prune(
    older_than: str, keep_runs: int, events: bool, dry_run: bool, state_dir: str | None, database_url: str | None,
    schema: str | None, as_json: bool,
) -> None:
    """Delete old runs with all their events, files and messages.

    Old is a run whose start, end and last event are; without an end, its last event. What a living process of this host
    has open stays.

    Many short transactions: writers go on meanwhile, and an interrupted prune is continued by the next. In a database
    that belongs to an application only otel-cmb's own events are deleted, and only with --events.
    """
    from otel_cmb.retention import duration_ns, prune_events, prune_runs

    if events and keep_runs:
        raise click.UsageError("--keep-runs is about whole runs, --events about the events of an application's runs")
    settings = config.load(database_url=database_url, schema=schema, state_dir=state_dir)
    cutoff = clock.now_ns() - duration_ns(older_than)
    with _bar("events" if events else "runs") as progress:
        if events:
            pruned = prune_events(settings, cutoff, dry_run=dry_run, progress=progress)
        else:
            pruned = prune_runs(settings, cutoff, keep=keep_runs, dry_run=dry_run, progress=progress)
    if as_json:
        import orjson

        click.echo(orjson.dumps({
            "database": safe_url(settings.database_url), "dry_run": dry_run, "runs": pruned.runs,
            "events": pruned.events, "files": pruned.files, "messages": pruned.messages, "traces": pruned.traces,
            "free_bytes": pruned.free_bytes,
        }, option=orjson.OPT_INDENT_2).decode())
    else:
        _say(pruned, settings, dry_run=dry_run, events=events)


def _say(pruned: Pruned, settings: config.Settings, *, dry_run: bool, events: bool) -> None:
    runs = "" if events else f"{len(pruned.runs)} runs, "
    click.echo(
        f"{safe_url(settings.database_url)}: {'would delete' if dry_run else 'deleted'} {runs}{pruned.events} events, "
        f"{pruned.files} files rows, {pruned.messages} messages rows"
    )
    if dry_run:
        for run_id in pruned.runs:
            click.echo(f"  {run_id}")
    elif pruned.free_bytes >= WORTH_A_HINT:
        click.echo(
            f"{pruned.free_bytes / 1_048_576:.0f} MiB inside the file are free for new rows; to give them back to the "
            "disk, with nobody writing: VACUUM"
        )
    elif pruned.events and settings.database_url.startswith("postgres"):
        click.echo("the space is free for new rows once autovacuum has passed; at once with: VACUUM (ANALYZE)")


@contextmanager
def _bar(what: str) -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar when a terminal watches."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(f"pruning {what}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("prune", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
