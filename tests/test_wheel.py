"""The wheel has everything, and works where no clone is near.

It is built and installed by pip without an index: the build backend and the dependencies are those of this environment (by
a `.pth` file), only otel-cmb itself is the wheel's. That a fresh machine gets the dependencies is shown by `.ci/run` and the README's
two commands.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from commands import ROOT, Shell

SOURCE = ROOT / "otel_cmb"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling", reason="the build backend; it is in the extra `test`")
    target = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
         "--wheel-dir", target, ROOT],
        check=True, capture_output=True, text=True, timeout=110, stdin=subprocess.DEVNULL)
    [built] = target.glob("otel_cmb-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of a new virtual environment with the wheel; dependencies are borrowed from this one."""
    place = tmp_path_factory.mktemp("clean") / "venv"
    venv.create(place, with_pip=False, symlinks=True)
    [packages] = (place / "lib").glob("python*/site-packages")
    subprocess.run(
        [sys.executable, "-m", "pip", "--quiet", "--python", place / "bin" / "python", "install", "--no-deps", "--no-index",
         wheel],
        check=True, capture_output=True, text=True, timeout=110)
    (packages / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", encoding="utf-8")
    return place / "bin"


def test_the_wheel_has_every_file_of_the_package(wheel: Path) -> None:
    """Modules, and what is no module: the page, the protocols, the mark of typing, the bootstrap."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    wanted = {str(path.relative_to(ROOT)) for path in SOURCE.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert len(wanted) > 100
    assert wanted - names == set()
    assert {"otel_cmb/py.typed", "otel_cmb/instrumentation/bootstrap/sitecustomize.py"} <= names
    assert any(name.startswith("otel_cmb/migrations/versions/") for name in names)
    assert any(name.startswith("otel_cmb/jaeger/proto/") and name.endswith("_pb2.py") for name in names)
    assert any(name.startswith("otel_cmb/ui/static/") and name.endswith((".js", ".css", ".html")) for name in names)


def test_the_wheel_has_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"otel_cmb"}
    assert [name for name in names if re.search(r"__pycache__|\.pyc$|\.db$|/tests?/", name)] == []


def test_the_metadata_says_what_people_install_by(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        [path] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = archive.read(path).decode()
        assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())
    assert "Name: otel-cmb\n" in metadata
    assert "License-Expression: Apache-2.0\n" in metadata
    assert "Requires-Python: >=3.10\n" in metadata
    assert {"ag2", "config", "postgres", "test", "dev"} <= set(re.findall(r"^Provides-Extra: (.+)$", metadata, re.MULTILINE))


def test_the_installed_wheel_runs_a_program(installed: Path, tmp_path: Path) -> None:
    """From install to tree, in an empty directory: the package that is imported is the wheel's."""
    directory = tmp_path / "work"
    directory.mkdir()
    shell = Shell(directory)
    shell.program("""
        import otel_cmb
        with agent("engineer"):
            print(otel_cmb.__file__)
    """)
    path = f"{installed}{os.pathsep}{os.environ['PATH']}"
    done = shell.run(installed / "otel-cmb", "run", "--", "python", "program.py", PATH=path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(installed.parent))
    shown = shell.run(installed / "otel-cmb", "show", PATH=path)
    assert "agent engineer" in shown.stdout
    assert shell.run(installed / "otel-cmb", "doctor", PATH=path).returncode == 0


def test_the_installed_wheel_is_a_drop_in_exporter(installed: Path, tmp_path: Path) -> None:
    directory = tmp_path / "work"
    directory.mkdir()
    shell = Shell(directory)
    shell.program("with agent('engineer'):\n    pass\n")
    done = shell.run(
        installed / "python", "-c", "from opentelemetry.instrumentation.auto_instrumentation import run; run()",
        "python", "program.py", PATH=f"{installed}{os.pathsep}{os.environ['PATH']}",
        OTEL_TRACES_EXPORTER="cmb", OTEL_METRICS_EXPORTER="none", OTEL_LOGS_EXPORTER="none")
    assert done.returncode == 0, done.stderr
    assert [event.agent_name for event in shell.events()] == ["engineer"]
