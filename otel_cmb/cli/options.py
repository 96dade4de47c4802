"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from rich.console import Console

F = TypeVar("F", bound=Callable[..., Any])


def database_options(command: F) -> F:
    """`--database-url` and `--schema`, with the same environment variables as the library's settings."""
    command = click.option("--schema", default=None, help="PostgreSQL schema that holds the tables.")(command)
    return click.option(
        "--database-url", default=None,
        help="Database; else $OTEL_EXPORTER_CMB_DATABASE_URL, $CMBAGENT_DATABASE_URL, sqlite:///otel_cmb.db.",
    )(command)


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for a program to read.")

PIPED_WIDTH = 120


def console_for_people() -> Console:
    """Tables and trees, as wide as the terminal; wide enough for ids where the output goes elsewhere."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, soft_wrap=False)
    if not console.is_terminal and "COLUMNS" not in console._environ:
        console = Console(highlight=False, markup=False, width=PIPED_WIDTH)
    return console
