"""`otel-cmb db`: make, upgrade or check the schema."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from otel_cmb import config
from otel_cmb.cli.options import database_options, json_option
from otel_cmb.config import safe_url

if TYPE_CHECKING:
    from otel_cmb.binding import Examination


@click.group()
def db() -> None:
    """Make, upgrade or check the schema."""


@db.command()
@database_options
def init(database_url: str | None, schema: str | None) -> None:
    """Make otel-cmb's own schema in an empty database. Made already: nothing happens.

    With --schema, a PostgreSQL schema that does not exist is made first. A database with the tables of an application
    is not touched.
    """
    _bring_up(config.load(database_url=database_url, schema=schema), make=True)


@db.command(short_help="Bring an older schema of otel-cmb up to date.")
@database_options
def upgrade(database_url: str | None, schema: str | None) -> None:
    """Bring an older schema of otel-cmb to the newest revision, in one transaction."""
    _bring_up(config.load(database_url=database_url, schema=schema), make=False)


def _bring_up(settings: config.Settings, *, make: bool) -> None:
    from otel_cmb import dialects, engines, migrations
    from otel_cmb.binding import examine
    from otel_cmb.errors import SchemaError

    where = safe_url(settings.database_url)
    engine = engines.make_engine(settings)
    try:
        with engines.clear_errors(engine):
            if make and settings.schema is not None and engine.dialect.name != dialects.SQLITE:
                migrations.make_schema(engine, settings.schema)
            with engine.connect() as connection:
                found = examine(connection, settings)
            if found.tables and not found.owned:
                raise SchemaError(
                    f"{where} has the tables of an application, which otel-cmb uses as they are; there is nothing to "
                    "make or upgrade; see whether they fit with: otel-cmb db check"
                )
            if found.empty and not make:
                raise SchemaError(f"{where} has no schema of otel-cmb to upgrade; make one with: otel-cmb db init")
            revision = migrations.upgrade(engine, settings, found.schema)
    finally:
        engine.dispose()
    if found.revision == revision:
        click.echo(f"{where}: the schema is at revision {revision}, nothing to do")
    elif found.revision is None:
        click.echo(f"{where}: schema made, revision {revision}")
    else:
        click.echo(f"{where}: upgraded from revision {found.revision} to {revision}")


@db.command(short_help="Say whether otel-cmb can work with the schema; changes nothing.")
@database_options
@json_option
def check(database_url: str | None, schema: str | None, as_json: bool) -> None:
    """Say whose schema it is and whether otel-cmb can work with it: every misfit at once, with the SQL that would mend
    it. Changes nothing. Exit code 0 when it fits, 1 when not."""
    from otel_cmb import engines
    from otel_cmb.binding import examine
    from otel_cmb.errors import SchemaError

    settings = config.load(database_url=database_url, schema=schema)
    engine = engines.make_engine(settings, read_only=True)
    try:
        with engines.clear_errors(engine), engine.connect() as connection:
            try:
                found = examine(connection, settings)
            except SchemaError as error:
                _report({"database": safe_url(settings.database_url), "fits": False, "problem": str(error)}, as_json)
                sys.exit(1)
    finally:
        engine.dispose()
    report = _described(found, settings)
    _report(report, as_json)
    sys.exit(0 if report["fits"] else 1)


def _described(found: Examination, settings: config.Settings) -> dict[str, Any]:
    from otel_cmb.binding import refusal

    problem = refusal(found, settings)
    return {
        "database": safe_url(settings.database_url), "server": found.server or found.dialect, "schema": found.schema,
        "whose": "otel-cmb" if found.owned else "nobody's" if found.empty else "an application's",
        "revision": found.revision, "fits": problem is None, "problem": problem,
        "mismatches": [
            {"table": item.table, "column": item.column, "found": item.found, "needed": item.needed, "sql": item.sql}
            for item in found.mismatches
        ],
        "tables": {
            name: {"writable": table.writable, "reason": table.reason or None, "key": list(table.key)}
            for name, table in sorted(found.tables.items())
        },
        "notes": found.notes,
    }


def _report(report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        import orjson

        click.echo(orjson.dumps(report, option=orjson.OPT_INDENT_2).decode())
        return
    click.echo(f"{report['database']}")
    if "whose" in report:
        place = f", schema {report['schema']}" if report["schema"] else ""
        revision = f", revision {report['revision']}" if report["revision"] else ""
        click.echo(f"{report['server']}{place}: {report['whose']} schema{revision}")
        for name, table in report["tables"].items():
            click.echo(f"  {name:18s} {'ok' if table['writable'] else 'read only: ' + table['reason']}")
        for note in report["notes"]:
            click.echo(f"  note: {note}")
    click.secho(report["problem"] or "it fits", fg="red" if report["problem"] else "green")
