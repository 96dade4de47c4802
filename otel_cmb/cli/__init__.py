"""The `otel-cmb` command. Each command lives in the module its row names and is imported only when it is used."""

from __future__ import annotations

import importlib
import sys

import click

from otel_cmb._version import __version__
from otel_cmb.cli.output import fit_output
from otel_cmb.errors import CMBError, ConfigurationError

COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("otel_cmb.cli.run:run", "Auto-instrument a program; one run in the database."),
    "runs": ("otel_cmb.cli.look:runs", "List the runs, newest first."),
    "show": ("otel_cmb.cli.look:show", "Show a run as a tree."),
    "doctor": ("otel_cmb.cli.doctor:doctor", "Say what is stored, what is not, and why."),
    "import": ("otel_cmb.cli.transfer:import_", "Read spans from OTLP files."),
    "export": ("otel_cmb.cli.transfer:export", "Send a run to Jaeger, to a file or to one HTML page."),
    "remap": ("otel_cmb.cli.transfer:remap", "Apply today's tables to a run mapped by older ones."),
    "ui": ("otel_cmb.cli.ui:ui", "Show the runs in a browser, live."),
    "parked": ("otel_cmb.cli.parked:parked", "List, replay or drop what could not be stored."),
    "serve": ("otel_cmb.cli.serve:serve", "Receive OTLP and write it into the database."),
    "db": ("otel_cmb.cli.db:db", "Make, upgrade or check the schema."),
    "prune": ("otel_cmb.cli.prune:prune", "Delete old runs."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are named: `otel-cmb --help` imports none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - the name is the base class's
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Raises :class:`click.UsageError` that says what was probably meant."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError:
            ctx.fail(f"there is no command {args[0]!r}.{_meant(args)}")

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


def _meant(args: list[str]) -> str:
    import difflib
    import os
    import shlex
    import shutil

    near = difflib.get_close_matches(args[0], COMMANDS, n=1)
    if near:
        return f" Did you mean {near[0]!r}?"
    if os.path.isfile(args[0]) or shutil.which(args[0]) is not None:
        python = ["python"] if args[0].endswith(".py") else []
        return f" A program is run by: otel-cmb run -- {shlex.join([*python, *args])}"
    return ""


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, package_name="otel-cmb", prog_name="otel-cmb")
def cli() -> None:
    """Agent traces into the SQL database your application already has, and in front of a person."""


def main() -> None:
    """Entry point: a known error is one line on stderr; exit code 2 for a wrong setting, 1 for anything else."""
    fit_output(json="--json" in sys.argv)
    try:
        cli(prog_name="otel-cmb")
    except CMBError as error:
        click.echo(f"otel-cmb: {error}", err=True)
        sys.exit(2 if isinstance(error, ConfigurationError) else 1)
