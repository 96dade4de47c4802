"""Measure otel-cmb, as ratios inside one run.

    python -m tests.benchmarks [--full] [--only NAME ...] [--rounds 5] [--write]

Quick form: under two minutes. `--full` adds a million rows, the readers at that size and more rounds. `--write` puts the
result into tests/benchmarks/RESULTS.md. Every figure is the median of the rounds; the raw limit beside it was measured in the
same rounds, alternating, because machines are noisy and only ratios travel.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks import cases

HERE = Path(__file__).parent


def machine() -> str:
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=HERE)
    return (f"{os.cpu_count()} × {model}, load {os.getloadavg()[0]:.0f}, {platform.system()} {platform.release()}, Python {platform.python_version()}, "
            f"commit {commit.stdout.strip() or 'unknown'}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    lines = ["| what | ours | beside it | ratio | must reach | spread of ours |", "|---|---|---|---|---|---|"]
    where = machine()  # as it was at the beginning: others may commit meanwhile
    print(where, flush=True)
    begun = time.monotonic()
    for case in cases.CASES:
        if (options.only and case.name not in options.only) or (case.full_only and not (options.full or options.only)):
            continue
        with tempfile.TemporaryDirectory(prefix="otel-cmb-bench-") as directory:
            for row in case.run(Path(directory), options.rounds, options.full):
                line = f"| {row.what} | {row.ours} | {row.beside} | {row.ratio} | {row.must_reach} | {row.spread} |"
                lines.append(line)
                print(line, flush=True)
    print(f"{time.monotonic() - begun:.0f} s")
    if options.write:
        arguments = " ".join(sys.argv[1:])
        (HERE / "RESULTS.md").write_text(
            "# Benchmark results\n\n"
            f"`python -m tests.benchmarks {arguments}` on {datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d}; {where}.\n"
            f"Medians of {options.rounds} rounds; the figure beside ours was measured in the same rounds.\n\n"
            + "\n".join(lines) + "\n", encoding="utf-8")
    return 0



if __name__ == "__main__":
    sys.exit(main())
