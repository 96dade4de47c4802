"""What `import otel_cmb` and `otel-cmb --help` load: nothing heavy. Times are printed (`pytest -rP`), not asserted."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from commands import BIN

HEAVY = ("grpc", "alembic", "sqlalchemy", "psycopg", "psycopg2", "starlette", "uvicorn", "rich", "autogen", "openai",
         "opentelemetry.exporter", "opentelemetry.proto", "google.protobuf", "sqlite3")

LIGHT = {
    "the package": "import otel_cmb",
    "its names": "import otel_cmb; dir(otel_cmb); otel_cmb.__version__; otel_cmb.RunNotFoundError",
    "the command line": "import otel_cmb.cli; otel_cmb.cli.cli.get_help(__import__('click').Context(otel_cmb.cli.cli))",
}


def loaded(text: str) -> set[str]:
    done = subprocess.run([sys.executable, "-c", f"{text}\nimport sys\nprint(*sys.modules)"], capture_output=True, text=True,
                          check=True, timeout=60)
    return set(done.stdout.split())


@pytest.mark.parametrize("what", LIGHT)
def test_looking_at_it_loads_nothing_heavy(what: str) -> None:
    modules = loaded(LIGHT[what])
    assert "otel_cmb" in modules
    assert {name for name in HEAVY if name in modules} == set()


def test_configuring_loads_neither_server_nor_migrations_nor_a_framework() -> None:
    """What a program pays that writes its own spans and has no OTLP endpoint."""
    modules = loaded("import otel_cmb; otel_cmb.configure('sqlite:///never_used.db', instrument=False)")
    assert "otel_cmb.pipeline" in modules
    assert {name for name in modules if name.partition(".")[0] in ("grpc", "alembic", "starlette", "uvicorn", "autogen", "rich")
            } == set()


def seconds(*command: str) -> float:
    best = 60.0
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        best = min(best, time.perf_counter() - start)
    return best


def test_times_are_printed() -> None:
    """The aims: 100 ms beyond the SDK, 300 ms for the help. A busy machine must not fail a build over them."""
    sdk = seconds(sys.executable, "-c", "import opentelemetry.sdk.trace")
    ours = seconds(sys.executable, "-c", "import opentelemetry.sdk.trace, otel_cmb")
    help_ = seconds(str(BIN / "otel-cmb"), "--help")
    print(f"import otel_cmb beyond the SDK: {1000 * (ours - sdk):.0f} ms; otel-cmb --help: {1000 * help_:.0f} ms")
    assert ours > 0
    assert help_ > 0
