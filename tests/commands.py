"""Real commands in processes of their own: each in a directory, a home for journals and a clean environment of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support import forked

from otel_cmb import open_reader

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent

AGENT_PROGRAM = """
    from opentelemetry import trace

    tracer = trace.get_tracer("program")

    def agent(name, **more):
        return tracer.start_as_current_span(f"invoke_agent {name}", attributes={
            "gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": name, **more})

    def running(name):
        return tracer.start_span(f"invoke_agent {name}", attributes={
            "gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": name})
"""
"""A program that speaks plain OpenTelemetry: what it needs to make events."""


@dataclass
class Shell:
    """A working directory with its own state directory; commands of this virtual environment come first on PATH."""

    directory: Path

    @property
    def state(self) -> Path:
        return self.directory.parent / f"{self.directory.name}-state"

    @property
    def database(self) -> Path:
        return self.directory / "otel_cmb.db"

    @property
    def url(self) -> str:
        return f"sqlite:///{self.database}"

    def environment(self, **more: str | None) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items()
                if not name.startswith(("OTEL_", "CMBAGENT_", "PYTHONPATH", "COLUMNS"))}
        kept |= {"PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}", "XDG_STATE_HOME": str(self.state),
                 "OTEL_EXPORTER_CMB_SHUTDOWN_TIMEOUT": "30"}  # a busy machine may need longer than the default
        for name, value in more.items():
            if value is None:
                kept.pop(name, None)
            else:
                kept[name] = value
        return kept

    def program(self, text: str, name: str = "program.py") -> Path:
        """A program in the directory that can make agent spans with `agent(name)`."""
        path = self.directory / name
        path.write_text(textwrap.dedent(AGENT_PROGRAM) + textwrap.dedent(text), encoding="utf-8")
        return path

    def run(self, *command: object, timeout: float = 60, **environment: str | None) -> subprocess.CompletedProcess[str]:
        """Run to the end, in a process of its own. `otel-cmb` itself is forked off one that has its imports (`support.forked`);
        what it starts is not."""
        words = [str(word) for word in command]
        if words[0] == "otel-cmb":
            return forked.run(words, self.directory, self.environment(**environment), timeout)
        return subprocess.run(
            words, cwd=self.directory, env=self.environment(**environment), capture_output=True, text=True, timeout=timeout,
            check=False, stdin=subprocess.DEVNULL)

    def prepare(self, name: str = "program.py", **environment: str | None) -> None:
        """Run a program for what it leaves, where its start is of no matter."""
        done = forked.run(["python", name], self.directory, self.environment(**environment), 60)
        assert done.returncode == 0, done.stderr

    def start(self, *command: object, **environment: str | None) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(word) for word in command], cwd=self.directory, env=self.environment(**environment), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)

    def runs(self, url: str | None = None) -> list[Any]:
        with open_reader(url or self.url) as reader:
            return reader.runs(limit=100)

    def events(self, url: str | None = None, run_id: str | None = None) -> list[Any]:
        """All events of one run, the newest if none is named."""
        with open_reader(url or self.url) as reader:
            return reader.events(run_id or reader.resolve("latest"))


def eventually(condition: Callable[[], Any], what: str, seconds: float = 60) -> Any:
    """The first true answer of the condition; what is not there yet (no file, no table) counts as false."""
    from otel_cmb.errors import CMBError

    deadline = time.monotonic() + seconds
    while True:
        try:
            found = condition()
        except CMBError:
            found = None
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)
