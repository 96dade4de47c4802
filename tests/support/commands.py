"""`otel-cmb` as a person runs it: the same entry point, in this process (quick) or in one of its own."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from pathlib import Path
from unittest import mock

from otel_cmb.cli import main


def otel_cmb(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command's entry point here; what it printed and its exit code."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        mock.patch.object(sys, "argv", ["otel-cmb", *arguments]),
        contextlib.redirect_stdout(out), contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return subprocess.CompletedProcess(["otel-cmb", *arguments], code, out.getvalue(), err.getvalue())


def installed_otel_cmb(*arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Run the installed command in a process of its own."""
    command = [str(Path(sys.executable).with_name("otel-cmb")), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
