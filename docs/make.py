"""Writes docs/cli.md from the commands and docs/settings.md from the settings table: python docs/make.py

tests/test_docs.py fails when a page is older than what it describes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from otel_cmb.cli import COMMANDS, cli
from otel_cmb.config import SETTINGS, Setting
from otel_cmb.receiver.settings import SERVE_SETTINGS

HERE = Path(__file__).parent

CLI_HEAD = """# Commands

Made from the commands themselves by `python docs/make.py`; `otel-cmb COMMAND --help` says the same.

Exit codes: 0 it worked; 1 it did not, or something is not as it should be (`doctor`, `parked replay`, `import`); 2 a wrong
option, setting or database, said in one sentence on stderr. `otel-cmb run` gives the program's own exit code (128 + n when signal n
ended it, 127 when it could not be started); 2 when the program was not started.

`--database-url` is everywhere `sqlite:///otel_cmb.db` in the working directory unless it, `OTEL_EXPORTER_CMB_DATABASE_URL` or
`CMBAGENT_DATABASE_URL` says otherwise. What `--json` prints is for programs and keeps its keys.
"""

SETTINGS_HEAD = """# Settings

Made from the tables in the code by `python docs/make.py`. Keyword (`configure(...)`, `CMBSpanProcessor(...)`, `CMBSpanExporter(...)`, the
`cmb:` exporter of a declarative file) before environment before default. An empty variable is an unset one. A wrong value is an error
that names the setting, what was found and what is allowed: exit code 2 of a command, `ConfigurationError` from `configure()`, a line in
the log from the exporter.
"""

VARIABLES = """## Where the program is

For programs that are started inside a run; each span may say otherwise by its attributes or its context.

| variable | meaning |
|---|---|
| `OTEL_CMB_RUN_ID` | the run, which is there already; `otel-cmb run` sets it for the program, and where it is set before, writes into that run |
| `OTEL_CMB_SESSION_ID` | its session; checked against the run's, never trusted |
| `OTEL_CMB_NODE_ID` | the node, within the run |
| `OTEL_CMB_STEP_ID` | the step, within the run |
| `OTEL_CMB_DISABLED_INSTRUMENTATIONS` | frameworks not to instrument, separated by commas; `*` for all. Also `otel-cmb run --no-instrument` |
| `OTEL_CMB_ALLOW_PURGE` | `1`: `POST /api/purge` of `otel-cmb serve` deletes every trace, for callers on this machine. For Jaeger's own storage suite only |
| `OTEL_CMB_VERBOSE` | `1`: the program says on stderr what is instrumented by what. Also `otel-cmb run --verbose` |

Standard variables that count too: `OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` and their relatives (the same spans
are sent there), `OTEL_SERVICE_NAME`, `OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT` (2048 under `otel-cmb run` and `configure()`; the SDK's own 128 drops
the oldest attributes of a long chat), `OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT`.
"""

SERVE_HEAD = """## `otel-cmb serve`

Flag (the name without `serve_`, with dashes) before environment before the file of `--config` (TOML, table `[serve]`) before default.
"""


def commands(group: click.Group, prefix: str) -> Iterator[tuple[str, click.Command]]:
    """Every command under its whole name, groups before what is in them."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None, name
        yield f"{prefix} {name}", command
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix} {name}")


def cli_page() -> str:
    parts = [CLI_HEAD]
    parts.append("| command | |\n|---|---|\n" + "\n".join(
        f"| [`{name}`](#otel-cmb-{name}) | {text} |" for name, (_, text) in COMMANDS.items()) + "\n")
    for name, command in commands(cli, "otel-cmb"):
        context = click.Context(command, info_name=name, max_content_width=120, terminal_width=120)
        parts.append(f"{'##' if name.count(' ') == 1 else '###'} {name}\n\n```text\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)


def _default(setting: Setting) -> str:
    value = setting.default
    if value is None:
        return "-"
    if isinstance(value, tuple):
        return "`" + ",".join(value) + "`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _table(settings: tuple[Setting, ...]) -> str:
    rows = ["| setting | default | allowed | meaning |", "|---|---|---|---|"]
    for setting in settings:
        names = "<br>".join([f"`{setting.name}`", *(f"`{variable}`" for variable in setting.env)])
        rows.append(f"| {names} | {_default(setting)} | {setting.allowed.strip()} | {setting.doc} |".replace("| - |", "| |"))
    return "\n".join(rows) + "\n"


def settings_page() -> str:
    return "\n".join([SETTINGS_HEAD, _table(SETTINGS), VARIABLES, SERVE_HEAD, _table(SERVE_SETTINGS)])


PAGES = {"cli.md": cli_page, "settings.md": settings_page}


def main() -> int:
    for name, page in PAGES.items():
        (HERE / name).write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
