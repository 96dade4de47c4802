"""The command, and small programs, in processes of their own that need not import anything first.

One process per session has imported what the command needs and forks for each question: what is run there has its own
process, directory, environment, standard streams, exit handlers and end; only the start of the interpreter and its imports
are shared. What is tested about those starts a process of its own.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import select
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

_SERVER = """
import json, os, runpy, sys, time
import alembic.command, alembic.config, rich.console, rich.live, rich.table, rich.tree, sqlalchemy.dialects.postgresql, sqlalchemy.dialects.sqlite
import otel_cmb, otel_cmb.cli, otel_cmb.migrations, otel_cmb.pipeline, otel_cmb.reader, otel_cmb.spans, otel_cmb.store

for line in sys.stdin:
    asked = json.loads(line)
    pid = os.fork()
    if pid == 0:
        break
    print(json.dumps(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])), flush=True)
else:
    sys.exit()
os.chdir(asked["directory"])
os.environ.clear()
os.environ.update(asked["environment"])
time.tzset()
for number, name in enumerate((os.devnull, asked["out"], asked["err"])):
    os.dup2(os.open(name, os.O_RDWR | os.O_CREAT), number)
sys.argv = asked["command"]
if sys.argv[0] == "otel-cmb":
    sys.exit(otel_cmb.cli.main())
sys.argv = sys.argv[1:]
sys.path[0] = os.getcwd()
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@functools.cache
def _server() -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "CMBAGENT_"))}
    server = subprocess.Popen([sys.executable, "-c", _SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                              env=environment | {"PYTHONIOENCODING": "utf-8"})

    def end() -> None:
        server.communicate(timeout=10)

    atexit.register(end)
    return server


def run(command: list[str], directory: Path, environment: dict[str, str], timeout: float) -> subprocess.CompletedProcess[str]:
    """Like `subprocess.run` with captured output and no input: `otel-cmb ...`, or `python program.py ...`."""
    assert command[0] in ("otel-cmb", "python")
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    with tempfile.TemporaryDirectory() as kept:
        out, err = Path(kept, "out"), Path(kept, "err")
        asked: dict[str, Any] = {"command": command, "directory": str(directory), "environment": environment,
                                 "out": str(out), "err": str(err)}
        server.stdin.write(json.dumps(asked) + "\n")
        server.stdin.flush()
        if not select.select([server.stdout], [], [], timeout)[0]:
            server.kill()
            _server.cache_clear()
            raise subprocess.TimeoutExpired(command, timeout, out.read_bytes(), err.read_bytes())
        code = json.loads(server.stdout.readline())
        return subprocess.CompletedProcess(command, code, out.read_text(encoding="utf-8"), err.read_text(encoding="utf-8"))
