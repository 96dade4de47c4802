"""`otel-cmb doctor [RUN]`: what is stored, what is not, and why."""

from __future__ import annotations

import sys

import click

from otel_cmb import config
from otel_cmb.cli.options import database_options, json_option


@click.command()
@click.argument("run", required=False)
@click.option("--state-dir", default=None, help="Directory of the journals.")
@database_options
@json_option
def doctor(run: str | None, state_dir: str | None, database_url: str | None, schema: str | None, as_json: bool) -> None:
    """Say what is stored, what is not, and why. Exit code 0 when nothing is wrong, 1 otherwise.

    With RUN (an id, an alias, `latest`): does it exist, which ids are near, what of it is stored, what waits.
    """
    from otel_cmb.diagnosis import diagnose

    settings = config.load(database_url=database_url, schema=schema, state_dir=state_dir)
    diagnosis = diagnose(settings, run)
    if as_json:
        import orjson

        click.echo(orjson.dumps(diagnosis.as_dict(), option=orjson.OPT_INDENT_2).decode())
    else:
        click.echo(diagnosis.database)
        for check in diagnosis.checks:
            click.secho(f"{'ok ' if check.ok else 'BAD'}  {check.answer}", fg=None if check.ok else "red")
            if check.advice:
                click.echo(f"     → {check.advice}")
    sys.exit(0 if diagnosis.healthy else 1)
