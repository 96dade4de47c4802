"""`otel-cmb import`, `export` and `remap`: runs in and out."""

from __future__ import annotations

import sys
from typing import Any

import click

from otel_cmb.cli.options import database_options, json_option

__all__ = ["export", "import_", "remap"]


@click.command("import")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--run", "run_id", help="Store everything in this run, which must be there.")
@click.option("--new-run", is_flag=True, help="Make one run for everything; for spans stored before, name theirs.")
@click.option("--session", help="Session of the new run.")
@click.option("--on-missing-run", type=click.Choice(["park", "create", "fail"]),
              help="What happens to spans that name a run that is not there.  [default: park]")
@click.option("--record", type=click.Choice(["agents", "all"]), help="Spans that become events.  [default: agents]")
@click.option("--state-dir", help="Directory of the journal.")
@json_option
@database_options
def import_(
    *, files: tuple[str, ...], run_id: str | None, new_run: bool, session: str | None, as_json: bool, **settings: Any
) -> None:
    """Read spans from OTLP files: protobuf, JSON, JSON lines (Collector's file exporter), also gzipped; - is stdin.

    Without --run and --new-run each span goes to the run it names, and spans that name none to one run per trace.
    Importing twice changes nothing. Exit code 0: everything is committed; 1: something is not, and a table says why.
    """
    from otel_cmb import config
    from otel_cmb.database_url import check_url
    from otel_cmb.transfer.importer import Importer
    from otel_cmb.transfer.progress import progress

    if run_id is not None and new_run:
        raise click.UsageError("--run and --new-run exclude each other")
    if session is not None and not new_run:
        raise click.UsageError("--session belongs to --new-run")
    loaded = config.load(**settings)
    check_url(loaded)
    importer = Importer(loaded, run_id=run_id, new_run=new_run, session=session)
    try:
        with progress("import", importer.total_bytes(files)) as advance:
            for path in files:
                importer.read(path, advance)
        report = importer.finish()
    finally:
        importer.close()
    click.echo(report.as_json() if as_json else report.as_text())
    sys.exit(0 if report.complete else 1)


@click.command()
@click.argument("run", metavar="RUN")
@click.option("--to", "target", required=True, metavar="TARGET",
              help="otlp://HOST:PORT (gRPC; otlps:// with TLS), FILE.json, FILE.jsonl or FILE.html; - is stdout.")
@click.option("--header", "headers", multiple=True, metavar="KEY=VALUE",
              help="gRPC metadata, e.g. authorization=Bearer ...")
@click.option("--rate", type=click.FloatRange(min=1), default=5_000, show_default=True, help="Most spans per second.")
@click.option("--after", help="Go on after this place, as an interrupted export named it.")
@json_option
@database_options
def export(
    *, run: str, target: str, headers: tuple[str, ...], rate: float, after: str | None, as_json: bool,
    database_url: str | None, schema: str | None,
) -> None:
    """Send a run to Jaeger or another OTLP receiver, or write it to a file.

    The spans are those that came in, exactly; rows that the application wrote itself become spans too. An export to a
    receiver that breaks off says with which --after it goes on. Exit code 0: everything was taken.
    """
    from otel_cmb import config
    from otel_cmb.reader import open_reader
    from otel_cmb.transfer import exporter

    pairs = []
    for header in headers:
        key, equals, value = header.partition("=")
        if not equals:
            raise click.UsageError(f"--header {header!r}: expected KEY=VALUE")
        pairs.append((key.strip().lower(), value))
    settings = config.load(database_url=database_url, schema=schema)
    with open_reader(settings.database_url, schema=settings.schema) as reader:
        report = exporter.export(reader, reader.resolve(run), target, settings, headers=pairs, rate=rate, after=after)
    click.echo(report.as_json() if as_json else report.as_text(), err=target == "-")
    sys.exit(0 if report.complete else 1)


@click.command()
@click.argument("run", metavar="RUN")
@click.option("--state-dir", help="Directory of the journal.")
@json_option
@database_options
def remap(*, run: str, as_json: bool, **settings: Any) -> None:
    """Apply today's tables to a run whose rows were mapped by older ones; ids, order and links stay."""
    import orjson
    from sqlalchemy.exc import SQLAlchemyError

    from otel_cmb import config
    from otel_cmb.errors import DatabaseUnavailableError
    from otel_cmb.faults import classify
    from otel_cmb.pipeline import state_directory
    from otel_cmb.reader import open_reader
    from otel_cmb.store import Store

    loaded = config.load(**settings)
    with open_reader(loaded.database_url, schema=loaded.schema) as reader:
        run_id = reader.resolve(run)
    store = Store(loaded, state_directory(loaded))
    try:
        counts = store.remap(run_id)
    except SQLAlchemyError as error:
        verdict = classify(error)
        raise DatabaseUnavailableError(
            f"run {run_id}: {verdict.reason}; traces done before stay done, run the command again"
        ) from error
    finally:
        store.close()
    if as_json:
        click.echo(orjson.dumps({"run_id": run_id, **counts}).decode())
    else:
        click.echo(f"run {run_id}: " + ", ".join(f"{number} {name}" for name, number in counts.items()))
