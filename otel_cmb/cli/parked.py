"""`otel-cmb parked`: what could not be stored, and why; try it again, or give it up."""

from __future__ import annotations

import contextlib
import os
import sys
from collections import Counter
from datetime import datetime, timezone
from typing import Any

import click

from otel_cmb import config
from otel_cmb.accounting import Totals
from otel_cmb.cli.options import console_for_people, database_options, json_option
from otel_cmb.config import safe_url
from otel_cmb.errors import CMBError, DatabaseUnavailableError
from otel_cmb.faults import Fault, classify
from otel_cmb.journal import Parked, Progress, Summary, adoptable, journals, read_only_summary
from otel_cmb.journal_records import NO_SPAN
from otel_cmb.pipeline import RETRY_SIGNAL_FILE, get_pipeline, state_directory
from otel_cmb.quiet_runs import end_quiet_runs

NAME_SHOWN = 60
"""Characters of a span's name in the list for people; `--json` has all of it."""

state_dir_option = click.option("--state-dir", default=None, help="Directory of the journals.")


@click.group()
def parked() -> None:
    """What could not be stored, and why."""


def _summaries(directory: str) -> list[Summary]:
    return [read_only_summary(path) for path in journals(directory)]


def _described(summary: Summary, parked_: Parked) -> dict[str, Any]:
    return {
        "trace_id": parked_.trace_id, "span_id": parked_.span_id, "name": parked_.name, "run_id": parked_.run_id,
        "reason": parked_.reason, "detail": parked_.detail,
        "since": datetime.fromtimestamp(parked_.since, timezone.utc).isoformat().replace("+00:00", "Z"),
        "attempts": parked_.attempts, "journal": summary.path, "process": summary.pid if summary.alive else None,
    }


@parked.command("list")
@database_options
@state_dir_option
@json_option
def list_(database_url: str | None, schema: str | None, state_dir: str | None, as_json: bool) -> None:
    """Every parked span with its reason. Looks only; also into journals of living processes."""
    settings = config.load(database_url=database_url, schema=schema, state_dir=state_dir)
    summaries = _summaries(state_directory(settings))
    rows = [_described(summary, item) for summary in summaries for item in summary.parked if item.span_id is not None]
    pending = sum(summary.pending for summary in summaries)
    content = sum(item.reason == NO_SPAN for summary in summaries for item in summary.parked)
    if as_json:
        import orjson

        click.echo(orjson.dumps(rows, option=orjson.OPT_INDENT_2).decode())
        return
    if not rows:
        click.echo(f"nothing is parked for {safe_url(settings.database_url)}"
                   + (f"; {pending} span(s) are in journals, not written yet" if pending else "")
                   + (f"; {content} log record(s) wait for their span" if content else ""))
        return
    from rich.table import Column, Table

    table = Table("since", *(Column(name, overflow="fold") for name in ("reason", "run", "span", "name")), "attempts",
                  box=None, pad_edge=False)
    for row in rows:
        table.add_row(
            row["since"][:19], row["reason"], row["run_id"] or "", row["span_id"], (row["name"] or "")[:NAME_SHOWN],
            str(row["attempts"]))
    console = console_for_people()
    console.print(table)
    for reason, n in Counter(row["reason"] for row in rows).most_common():
        detail = next(row["detail"] for row in rows if row["reason"] == reason)
        console.print(f"{n} × {reason}: {detail}")
    console.print("next: otel-cmb parked replay, or otel-cmb parked drop")


@parked.command(short_help="Try everything again now.")
@database_options
@state_dir_option
@json_option
def replay(database_url: str | None, schema: str | None, state_dir: str | None, as_json: bool) -> None:
    """Try everything again now: journals of dead processes are adopted, living ones are told to try. Exit code 0 when
    nothing stays parked, 1 otherwise."""
    settings = config.load(database_url=database_url, schema=schema, state_dir=state_dir)
    directory = state_directory(settings)
    pipeline = get_pipeline(settings)
    summaries = _summaries(directory)
    before = sum(1 for summary in summaries for item in summary.parked if item.span_id)
    committed = _committed(directory, summaries)
    told = _tell_the_living(directory)
    watching = sys.stderr.isatty() and not as_json
    try:
        with _bar(watching) as update:
            pipeline.replay(update)
        with contextlib.suppress(CMBError):  # said above, or there is no database yet
            end_quiet_runs(settings)
    except Exception as error:
        verdict = classify(error)
        if verdict.fault in (Fault.OUTAGE, Fault.MISCONFIGURED):
            raise DatabaseUnavailableError(
                f"{safe_url(settings.database_url)} cannot be written now: {verdict.reason}; nothing was lost, try again "
                "when it is back") from error
        raise
    finally:
        pipeline.shutdown(1.0)
    summaries = _summaries(directory)
    remaining = Counter(item.reason for summary in summaries for item in summary.parked if item.span_id is not None)
    left = sum(remaining.values())
    stored = max(0, _committed(directory, summaries) - committed)
    if as_json:
        import orjson

        click.echo(orjson.dumps(
            {"before": before, "stored": stored, "parked": dict(remaining), "told": told}).decode())
    else:
        click.echo(f"{stored} stored, {left} still parked"
                   + "".join(f"; {n} × {reason}" for reason, n in remaining.most_common())
                   + (f"; {told} living process(es) were told to try now" if told else ""))
    sys.exit(1 if left else 0)


def _committed(directory: str, summaries: list[Summary]) -> int:
    """Spans of this host whose rows are committed: what waited in the journal without being parked counts too."""
    return Totals(directory).read().get("committed", 0) + sum(summary.counts.get("committed", 0) for summary in summaries)


@contextlib.contextmanager
def _bar(watching: bool) -> Any:
    if not watching:
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("replaying", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _tell_the_living(directory: str) -> int:
    """Living processes look at a file's time when they wake; touching it makes them try everything now."""
    living = [summary for summary in _summaries(directory) if summary.alive and summary.pid not in (None, os.getpid())]
    if living:
        with open(os.path.join(directory, RETRY_SIGNAL_FILE), "a", encoding="ascii"):
            os.utime(os.path.join(directory, RETRY_SIGNAL_FILE))
    return len(living)


@parked.command()
@click.option("--run", "run_id", default=None, help="Only spans of this run.")
@click.option("--reason", default=None, help="Only spans parked for this reason.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@database_options
@state_dir_option
@json_option
def drop(
    run_id: str | None, reason: str | None, yes: bool, database_url: str | None, schema: str | None, state_dir: str | None,
    as_json: bool,
) -> None:
    """Give parked spans up, for good. They are counted as lost (`dropped`). Only of processes that are gone."""
    settings = config.load(database_url=database_url, schema=schema, state_dir=state_dir)
    directory = state_directory(settings)

    def wanted(item: Parked) -> bool:
        return (run_id is None or item.run_id == run_id) and (reason is None or item.reason == reason)

    total = sum(1 for summary in _summaries(directory) for item in summary.parked if item.span_id and wanted(item))
    if total and not yes:
        click.confirm(f"drop {total} parked span(s) of {safe_url(settings.database_url)}?", abort=True, err=as_json)
    dropped = 0
    for journal in adoptable(directory):
        items = [item for item in journal.parked() if wanted(item)]
        spans = sum(1 for item in items if item.span_id is not None)
        journal.advance(Progress(unpark=[item.seq for item in items], counts={"lost:dropped": spans} if spans else {}))
        dropped += spans
        counts = journal.counts()
        if journal.close():
            Totals(directory).add(counts)
    if as_json:
        import orjson

        click.echo(orjson.dumps({"dropped": dropped, "kept": total - dropped}).decode())
    else:
        kept = total - dropped
        click.echo(f"{dropped} dropped" + (f"; {kept} belong to living processes and were left" if kept else ""))
