"""What the documentation says is so: README blocks run, every command, option and setting is documented.

In README.md the blocks marked `python` and `bash` are run, in their order, in one directory that has a copy of the
examples; `sh` blocks need a network, a server or a browser and are only checked for commands and options that exist.
"""

from __future__ import annotations

import ast
import graphlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import click
import pytest
from commands import BIN

from otel_cmb.cli import COMMANDS, cli
from otel_cmb.config import SETTINGS
from otel_cmb.receiver.settings import SERVE_SETTINGS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])


def blocks(*languages: str) -> list[tuple[str, str]]:
    return [(language, text) for language, text in BLOCK.findall(README) if language in languages]


@pytest.fixture(scope="module")
def make() -> ModuleType:
    """docs/make.py as a module."""
    spec = importlib.util.spec_from_file_location("docs_make", ROOT / "docs" / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[str, str]]]:
    """The README's blocks, run one after the other as a reader would: the directory, and (block, stdout) of each."""
    directory = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "examples", directory / "examples", ignore=shutil.ignore_patterns("__pycache__", "*.db"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "CMBAGENT_", "COLUMNS"))}
    environment |= {"XDG_STATE_HOME": str(directory / "state"),
                    "OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none",  # no waiting for port 4317 of this machine
                    "PATH": str(BIN) + os.pathsep + environment.get("PATH", "")}
    printed = []
    for language, text in blocks("python", "bash"):
        command = [sys.executable, "-c", text] if language == "python" else ["bash", "-euo", "pipefail", "-c", text]
        done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, timeout=90, check=False,
                              stdin=subprocess.DEVNULL)
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        printed.append((text, done.stdout))
    return directory, printed


def normal(text: str) -> list[str]:
    """Output without what differs from run to run: ids, times, durations, bars."""
    text = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "ID", text)
    text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "TIME", text)
    text = re.sub(r"\d+(\.\d+)? m?s\b", "SPAN", text)
    text = re.sub(r"[━╸╺]+", "", text)
    return [re.sub(r" +", " ", line).rstrip() for line in text.strip().splitlines()]


def same(one: str, other: str) -> bool:
    """The same line of a tree; how much of a title fits beside the times is left open."""
    first, second = one.partition(" SPAN"), other.partition(" SPAN")
    return first[2] == second[2] and (first[0].startswith(second[0]) or second[0].startswith(first[0]))


def test_the_first_screen_shows_what_its_ten_lines_print(played: tuple[Path, list[tuple[str, str]]]) -> None:
    shown = blocks("text")[0][1]
    assert normal(shown) == normal(next(out for text, out in played[1] if text == "otel-cmb show\n"))


def test_the_tree_in_the_readme_is_that_of_the_example(played: tuple[Path, list[tuple[str, str]]]) -> None:
    """Line by line, leaving out what the README leaves out."""
    directory, _ = played
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    done = subprocess.run(
        [BIN / "otel-cmb", "run", "--task", "age of the universe", "--database-url", "sqlite:///tree.db",
         "--", "python", "examples/ag2_team.py"],
        cwd=directory, env=environment, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr
    tree = subprocess.run([BIN / "otel-cmb", "show", "--database-url", "sqlite:///tree.db"],
                          cwd=directory, env=environment, capture_output=True, text=True, timeout=30, check=True).stdout
    lines = iter(normal(tree))
    for line in normal(blocks("text")[1][1]):
        if line.strip() != "...":
            assert any(same(line, other) for other in lines), f"not in the tree, or not there: {line!r}\n{tree}"


def test_the_row_in_the_readme_is_the_row_of_the_first_screen(played: tuple[Path, list[tuple[str, str]]]) -> None:
    shown = json.loads(blocks("json")[0][1])
    directory, _ = played
    from otel_cmb import open_reader

    with open_reader(f"sqlite:///{directory}/otel_cmb.db") as reader:
        run = next(run for run in reader.runs(limit=50) if run.task_description == "measure H0")
        row = next(event for event in reader.events(run.id) if event.event_type == "code_exec").to_dict()
    assert shown.keys() <= row.keys()
    for name in shown.keys() - {"run_id", "session_id", "parent_event_id", "meta"}:
        assert row[name] == shown[name], name
    assert shown["meta"].keys() == row["meta"].keys()


def test_the_two_commands_of_the_readme_are_there() -> None:
    first, second = [text for _, text in blocks("sh") if "-m venv" in text]
    assert "otel-cmb run" in first
    assert "examples/ag2_team.py" in first
    assert second.strip().endswith("python -m pytest -n 2")
    assert first.count("\n") == second.count("\n") == 1


def _options(command: click.Command) -> set[str]:
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_that_the_pages_show_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    found = [line for language, block in BLOCK.findall(text) if language in ("sh", "bash") for line in block.splitlines()]
    found += re.findall(r"`(otel-cmb [^`]+)`", text)
    for line in found:
        for part in re.split(r"&&|\|", line.split("#")[0]):
            try:
                words = shlex.split(part)
            except ValueError:
                continue
            where = next((index for index, word in enumerate(words) if word.endswith("otel-cmb")), None)
            if where is None or len(words) == where + 1:
                continue
            command, rest = cli.get_command(click.Context(cli), words[where + 1]), words[where + 2:]
            if words[where + 1].isupper() or words[where + 1].startswith("-"):
                continue
            assert command is not None, line
            while isinstance(command, click.Group) and rest and rest[0] in command.commands:
                command, rest = command.commands[rest[0]], rest[1:]
            for word in rest[:rest.index("--")] if "--" in rest else rest:
                if word.startswith("--"):
                    assert word.strip("[]").partition("=")[0] in _options(command), f"{page.name}: {line}"


def test_every_command_is_there_with_help_and_every_option_has_a_text(make: ModuleType) -> None:
    names = [name for name, _ in make.commands(cli, "otel-cmb")]
    assert [name.split()[1] for name in names if name.count(" ") == 1] == list(COMMANDS)
    for name, command in make.commands(cli, "otel-cmb"):
        assert command.help, name
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"{name} {parameter.opts}"


@pytest.mark.parametrize("name", ["cli.md", "settings.md", "python.md"])
def test_the_made_pages_are_what_the_code_says(name: str) -> None:
    # In a process of its own: click keeps the help option of a command that another test has called by itself.
    code = "import runpy, sys; sys.stdout.write(runpy.run_path(sys.argv[1])['PAGES'][sys.argv[2]]())"
    made = subprocess.run(
        [sys.executable, "-c", code, str(ROOT / "docs" / "make.py"), name], capture_output=True, text=True, check=True, cwd=ROOT)
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == made.stdout, "run: python docs/make.py"


def test_every_setting_and_variable_is_documented() -> None:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    for setting in (*SETTINGS, *SERVE_SETTINGS):
        assert setting.doc
        for variable in setting.env:
            assert f"`{variable}`" in page
    internal = {"OTEL_CMB_AUTO", "OTEL_CMB_CHAT_NUMBERS", "OTEL_CMB_TESTING", "OTEL_CMB_RUN_LOCKS"}
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "otel_cmb").rglob("*.py"))
    used = set(re.findall(r"\bOTEL_CMB_[A-Z_]*[A-Z]\b", sources)) - internal
    assert used, "the variables are somewhere"
    assert {name for name in used if f"`{name}`" not in page} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_module_is_on_the_architecture_page() -> None:
    """A module that nobody can find is a module that gets written twice."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    tops = {path.stem if path.suffix == ".py" else f"{path.name}/"
            for path in (ROOT / "otel_cmb").iterdir()
            if (path.suffix == ".py" and not path.name.startswith("_")) or (path.is_dir() and path.name != "__pycache__")}
    assert {name for name in tops if f"`{name}`" not in page} == set()


def _floors() -> dict[str, int]:
    """Module or package to its floor on the architecture page."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d) \w+ \| ([^|]*) \|", page, re.MULTILINE)
    return {name.rstrip("/"): int(floor) for floor, names in rows for name in re.findall(r"`([\w/]+)`", names)}


def _imported(path: Path) -> set[str]:
    """Top-level modules and packages of ours that a file imports when it is imported."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module is not None and node.module.split(".")[0] == "otel_cmb":
            inner = node.module.split(".")[1:2]
            found.update(inner or (alias.name for alias in node.names))
    return found


def test_imports_point_downward() -> None:
    """From floor to floor, and nowhere in a circle."""
    floors, graph = _floors(), {}
    for path in sorted((ROOT / "otel_cmb").rglob("*.py")):
        name = path.relative_to(ROOT / "otel_cmb").parts[0].removesuffix(".py")
        if name in floors:
            graph.setdefault(name, set()).update(_imported(path) & floors.keys() - {name})
    assert {f"{name} imports {other}" for name, others in graph.items() for other in others if floors[other] > floors[name]} == set()
    graphlib.TopologicalSorter(graph).prepare()  # raises where there is a circle
