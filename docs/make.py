"""Writes docs/cli.md from the commands, docs/settings.md from the settings table and docs/python.md from the docstrings:
python docs/make.py

tests/test_docs.py fails when a page is older than what it describes.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

import otel_cmb
from otel_cmb import accounting, context, spans
from otel_cmb.cli import COMMANDS, cli
from otel_cmb.compat.cmbagent import EventCaptureManager
from otel_cmb.config import SETTINGS, Setting
from otel_cmb.reader import Reader, records
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


PYTHON_HEAD = """# In Python

Made from the docstrings by `python docs/make.py`; `help(otel_cmb)` says the same. All functions and the two exporter classes are
imported from `otel_cmb`, the others are what these return. What raises, raises one of the errors at the end of this page.
"""

AGENT_TEXT = (
    "The first five are blocks for `with` and `async with`: the event is there from the start, completed at the end, and failed when "
    "an exception leaves the block. The others are over at once. None raises because of what it is given.")

PYTHON: dict[str, tuple[str, tuple[Any, ...]]] = {
    "Setting up": ("Once, at the start of a program.", (
        otel_cmb.configure, otel_cmb.CMBSpanProcessor, otel_cmb.CMBSpanExporter, accounting.Stats)),
    "Where things belong": ("Blocks for `with` and `async with`. What happens inside belongs to the run, node or step.", (
        otel_cmb.run, otel_cmb.attach, otel_cmb.node, otel_cmb.step, context.Run, context.Node, context.Step)),
    "What an agent does": (AGENT_TEXT, (
        otel_cmb.agent_call, otel_cmb.tool_call, otel_cmb.code_exec, otel_cmb.llm_call, otel_cmb.approval, otel_cmb.file_gen,
        otel_cmb.handoff, otel_cmb.message, otel_cmb.error, otel_cmb.traced_agent, otel_cmb.traced_tool, spans.Block,
        spans.AgentCall, spans.ToolCall, spans.CodeExec, spans.LLMCall, spans.Approval)),
    "Reading": ("", (
        otel_cmb.open_reader, Reader, *(getattr(records, name) for name in records.__all__ if name not in ("make", "maker")))),
    "In the place of cmbagent's own class": ("`from otel_cmb.compat.cmbagent import EventCaptureManager`", (EventCaptureManager,)),
    "Errors": ("", tuple(
        value for name in otel_cmb.__all__ if inspect.isclass(value := getattr(otel_cmb, name)) and issubclass(value, Exception))),
}

HOOKS = frozenset({"on_start", "on_end", "pipeline", "leave_to_processor", "count", "lose", "open"})
"""Methods for the SDK, and for ourselves."""


def python_page() -> str:
    parts = [PYTHON_HEAD]
    for title, (text, things) in PYTHON.items():
        parts += [f"## {title}\n", *([f"{text}\n"] if text else [])]
        for thing in things:
            parts += _class(thing) if inspect.isclass(thing) else [f"### {thing.__name__}\n", _code(thing), _text(thing)]
    return "\n".join(parts)


def _class(kind: type) -> Iterator[str]:
    bases = [base.__name__ for base in kind.__bases__ if base is not object]
    yield f"### {kind.__name__}{'(' + ', '.join(bases) + ')' if bases else ''}\n"
    if inspect.getdoc(kind) and not (dataclasses.is_dataclass(kind) and kind.__doc__.startswith(kind.__name__ + "(")):
        yield _text(kind)
    if dataclasses.is_dataclass(kind):
        yield "```python\n" + "\n".join(f"{field.name}: {field.type}" for field in dataclasses.fields(kind)) + "\n```\n"
    for name, member in vars(kind).items():
        plain = member.fget if isinstance(member, property) else member
        if name.startswith("_") or name in HOOKS or not inspect.isfunction(plain) or issubclass(kind, Exception):
            continue
        if not plain.__doc__ and any(hasattr(base, name) for base in kind.__bases__):
            continue  # as said there
        if isinstance(member, property):
            yield f"`{name}: {_type(inspect.signature(plain).return_annotation)}`\n"
        else:
            yield _code(plain)
        yield _text(member)


def _code(function: Any) -> str:
    signature = inspect.signature(function)
    shown, star = [], False
    for parameter in signature.parameters.values():
        if parameter.name == "self":
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not star:
            shown.append("*")
            star = True
        prefix = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        shown.append(f"{prefix}{parameter.name}: {_type(parameter.annotation)}{default}")
    end = f") -> {_type(signature.return_annotation)}"
    line = f"{function.__name__}({', '.join(shown)}{end}"
    if len(line) > 110:
        line = f"{function.__name__}(\n    " + ",\n    ".join(shown) + f",\n{end}"
    return f"```python\n{line}\n```\n"


def _type(annotation: Any) -> str:
    return re.sub(r"\b_Block\b", "ContextManager", str(annotation))


def _text(thing: Any) -> str:
    text = inspect.getdoc(thing)
    if not text:
        raise SystemExit(f"{thing} has no docstring")
    text = text.replace(":data:`otel_cmb.config.SETTINGS`", "[settings](settings.md)")
    return re.sub(r":\w+:`~?(?:\w+\.)*(\w+)`", r"`\1`", text) + "\n"


PAGES = {"cli.md": cli_page, "settings.md": settings_page, "python.md": python_page}


def main() -> int:
    for name, page in PAGES.items():
        (HERE / name).write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
