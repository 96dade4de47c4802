"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def database_options(command: F) -> F:
    """`--database-url` and `--schema`, with the same environment variables as the library's settings."""
    command = click.option("--schema", default=None, help="PostgreSQL schema that holds the tables.")(command)
    return click.option(
        "--database-url", default=None,
        help="Database; else $OTEL_EXPORTER_CMB_DATABASE_URL, $CMBAGENT_DATABASE_URL, sqlite:///otel_cmb.db.",
    )(command)


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for a program to read.")
