"""Run `otel-cmb` as a person does: the installed command, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def otel_cmb(*arguments: str, timeout: float = 60, **options: object) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("otel-cmb")), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, **options)
