"""The servers people would use instead, beside ours: OTLP over HTTP on SQLite, requests of 512 spans, one sender.

    OTEL_CMB_PEERS=DIR python -m tests.benchmarks --only peers

`DIR` holds a virtual environment per peer, named after it (`DIR/mlflow`, `DIR/phoenix`); those that are missing are left out.
A span counts when another connection sees its committed row. Every server gets requests for nothing first: mlflow's first
takes seconds (it looks for prices on the internet), phoenix's half a second.
"""

from __future__ import annotations

import http.client
import os
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from otel_cmb.otlp import request_from_spans
from tests.benchmarks import workload

ROOT = Path(__file__).parents[2]
BATCH = 512
PATIENCE = 240.0
"""Seconds a server may take to start, and to store what it was sent."""


@dataclass(frozen=True)
class Server:
    """How a server is started and what it stores."""

    name: str
    spans: int
    """As many as it stores in about ten seconds."""
    command: Callable[[Path, int], list[str]]
    environment: Callable[[Path, int], dict[str, str]]
    headers: Mapping[str, str]
    count: str
    """SQL that counts the spans that are stored."""


SERVERS = (
    Server(
        "otel-cmb", 20_480,
        lambda _, port: [sys.executable, "-m", "otel_cmb.cli", "serve", "--database-url", "sqlite:///spans.db", "--grpc", "off",
                         "--http", f"127.0.0.1:{port}", "--on-missing-run", "create"],
        lambda place, _: {"PYTHONPATH": str(ROOT), "OTEL_EXPORTER_CMB_STATE_DIR": str(place / "state")},
        {}, "SELECT count(*) FROM execution_events"),
    Server(
        "mlflow", 4_096,
        lambda home, port: [str(home / "bin/mlflow"), "server", "--backend-store-uri", "sqlite:///spans.db", "--host", "127.0.0.1",
                            "--port", str(port), "--workers", "1"],
        lambda place, _: {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "HOME": str(place)},
        {"x-mlflow-experiment-id": "0"}, "SELECT count(*) FROM spans"),
    Server(
        "phoenix", 1_024,
        lambda home, _: [str(home / "bin/phoenix"), "serve"],
        lambda place, port: {"PHOENIX_WORKING_DIR": str(place), "PHOENIX_SQL_DATABASE_URL": f"sqlite:///{place / 'spans.db'}",
                             "PHOENIX_PORT": str(port), "PHOENIX_GRPC_PORT": str(_free_port()), "PHOENIX_HOST": "127.0.0.1",
                             "PHOENIX_TELEMETRY_ENABLED": "false"},
        {}, "SELECT count(*) FROM spans"),
)


def present() -> list[tuple[Server, Path]]:
    """Our server and the peers that are installed under `OTEL_CMB_PEERS`, each with its environment's directory."""
    peers = Path(os.environ.get("OTEL_CMB_PEERS", "/nonexistent")).resolve()
    return [(server, peers / server.name) for server in SERVERS
            if server.name == "otel-cmb" or (peers / server.name / "bin").is_dir()]


def rate(server: Server, home: Path, place: Path, seed: int) -> float:
    """Spans a second from the first request until all of them can be seen by another connection."""
    port = _free_port()
    warm = request_from_spans(workload.spans(20, seed=10_000 + seed)).SerializeToString()
    spans = list(workload.spans(server.spans, seed=seed))
    bodies = [request_from_spans(spans[n:n + BATCH]).SerializeToString() for n in range(0, len(spans), BATCH)]
    with _running(server, home, place, port):
        for expected in (20, 20):  # the second sees that the first was enough
            _post(port, server.headers, [warm])
            _until_stored(server, place, expected)
        begun = time.perf_counter()
        _post(port, server.headers, bodies)
        _until_stored(server, place, 20 + len(spans))
        return len(spans) / (time.perf_counter() - begun)


@contextmanager
def _running(server: Server, home: Path, place: Path, port: int) -> Iterator[None]:
    command = server.command(home, port)
    environment = {**os.environ, **server.environment(place, port)}
    with (place / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=place, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        until = time.monotonic() + PATIENCE
        while True:
            with suppress(OSError), closing(socket.create_connection(("127.0.0.1", port), 1)):
                break
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"{server.name} did not start: {(place / 'log').read_text(errors='replace')[-2000:]}")
            time.sleep(0.1)
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, 15)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait(20)


def _post(port: int, headers: Mapping[str, str], bodies: list[bytes]) -> None:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)) as connection:
        for body in bodies:
            connection.request("POST", "/v1/traces", body, {"content-type": "application/x-protobuf", **headers})
            answer = connection.getresponse()
            said = answer.read()
            if answer.status != 200:
                raise RuntimeError(f"{answer.status}: {said[:500]!r}")


def _until_stored(server: Server, place: Path, expected: int) -> None:
    until = time.monotonic() + PATIENCE
    stored = -1
    with closing(sqlite3.connect(f"file:{place / 'spans.db'}?mode=ro", uri=True, timeout=10)) as reader:
        while time.monotonic() < until:
            stored = reader.execute(server.count).fetchone()[0]
            if stored >= expected:
                return
            time.sleep(0.002)
    raise RuntimeError(f"{server.name} stored {stored} of {expected} spans")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
