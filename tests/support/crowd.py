"""Several processes that run one program at the same moment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

_LEADER = """
import json, os, sys
asked = json.load(sys.stdin)
for name in asked["imports"]:
    __import__(name)
program = compile(asked["text"], "<program>", "exec")
go, gone = os.pipe()
pids = []
for number, arguments in enumerate(asked["arguments"]):
    pid = os.fork()
    if pid == 0:
        os.close(gone)
        for to, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{asked['directory']}/{number}.{name}", os.O_WRONLY | os.O_CREAT), to)
        sys.argv = ["program", *arguments]
        os.read(go, 1)  # until the last one is there
        break
    pids.append(pid)
else:
    os.close(gone)
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]))
    sys.exit()
exec(program, {"__name__": "__main__"})
"""


def together(text: str, arguments: Sequence[Sequence[object]], *, imports: Sequence[str] = ("otel_cmb.pipeline",),
             timeout: float = 200) -> list[str]:
    """Run the program once for each list of arguments, all at once, in processes that have imported the modules already;
    what each printed. Fails with the standard error of the first that failed."""
    with tempfile.TemporaryDirectory() as directory:
        asked = {"text": text, "imports": list(imports), "directory": directory,
                 "arguments": [[str(argument) for argument in each] for each in arguments]}
        done = subprocess.run([sys.executable, "-c", _LEADER], input=json.dumps(asked), capture_output=True, text=True,
                              timeout=timeout, check=True, env=dict(os.environ))
        for number, code in enumerate(json.loads(done.stdout)):
            assert code == 0, Path(directory, f"{number}.err").read_text(encoding="utf-8")
        return [Path(directory, f"{number}.out").read_text(encoding="utf-8") for number in range(len(arguments))]
