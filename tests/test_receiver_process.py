"""`otel-cmb serve` as a process: readiness, settings, signals, logs."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import requests
from fault_support import wait_for
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceStub
from receiver_support import make_request, make_span

from otel_cmb.receiver.settings import load

READY = re.compile(r"^grpc=(\S+) http=(\S+)$", re.MULTILINE)


class Server:
    """One `otel-cmb serve`."""

    def __init__(self, place: Path, *flags: str, env: dict[str, str] | None = None) -> None:
        self.database = place / "events.db"
        self.started = time.monotonic()
        self._lines: list[str] = []
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "from otel_cmb.cli import main; main()",
                "serve",
                "--grpc",
                "127.0.0.1:0",
                "--http",
                "127.0.0.1:0",
                "--state-dir",
                str(place / "state"),
                "--database-url",
                f"sqlite:///{self.database}",
                *flags,
            ],
            stderr=subprocess.PIPE,
            text=True,
            cwd=place,
            env={**os.environ, **(env or {})},
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._lines.append(line)

    @property
    def stderr(self) -> str:
        return "".join(self._lines)

    def ready(self) -> tuple[str, str]:
        while time.monotonic() - self.started < 60:
            found = READY.search(self.stderr)
            if found:
                return found[1], f"http://{found[2]}"
            if self.process.poll() is not None:
                break
            time.sleep(0.01)
        raise AssertionError(f"not ready: {self.stderr}")

    def stop(self, number: int = signal.SIGTERM, timeout: float = 60) -> int:
        self.process.send_signal(number)
        return self.end(timeout)

    def end(self, timeout: float = 60) -> int:
        """Its exit code; whatever it said is in `stderr` then."""
        code = self.process.wait(timeout)
        self._reader.join(30)
        return code

    def seconds(self) -> float:
        """What it has computed for so far, however busy the machine is."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def journaled(self) -> int:
        """Bytes in its journals."""
        return sum(path.stat().st_size for path in (self.database.parent / "state").rglob("log-*"))

    def rows(self) -> int:
        with sqlite3.connect(self.database) as connection:
            return int(connection.execute("SELECT count(*) FROM execution_events").fetchone()[0])


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    servers: list[Server] = []

    def begin(*flags: str, env: dict[str, str] | None = None) -> Server:
        servers.append(Server(tmp_path, *flags, env=env))
        return servers[-1]

    yield begin
    for server in servers:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()
        assert server.process.stderr is not None
        server.process.stderr.close()


def chat(n: int, trace: int = 1) -> Any:
    return make_span(n, trace_id=f"{trace:032x}", name="chat", attributes={"gen_ai.operation.name": "chat"})


def test_a_server_says_where_it_listens_takes_spans_and_ends_on_sigterm(start: Any) -> None:
    server = start()
    address, url = server.ready()
    assert not address.endswith(":0")
    with grpc.insecure_channel(address) as channel:
        TraceServiceStub(channel).Export(make_request(chat(1)), timeout=20)
    assert requests.get(f"{url}/readyz", timeout=5).status_code == 200
    began = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - began < 10
    assert server.rows() == 1


def test_the_start_takes_about_a_second(start: Any) -> None:
    warm = start()
    warm.ready()
    warm.stop()
    server = start()
    server.ready()
    assert server.seconds() < 4  # under 1 s on a machine of today


def test_requests_under_way_are_answered_while_the_server_drains(start: Any, tmp_path: Path) -> None:
    server = start("--answer-timeout", "3")
    address, _ = server.ready()
    with grpc.insecure_channel(address) as channel:
        TraceServiceStub(channel).Export(make_request(chat(1)), timeout=20)
        blocker = sqlite3.connect(server.database, isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        before = server.journaled()
        future = TraceServiceStub(channel).Export.future(make_request(chat(2, trace=2)), timeout=20)
        wait_for(lambda: server.journaled() > before)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        blocker.execute("ROLLBACK")
        blocker.close()
        assert future.result() is not None  # OK: in the database, or fsynced in the journal
    assert server.process.wait(60) == 0
    again = start()
    again.ready()
    deadline = time.monotonic() + 60
    while again.rows() < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert again.rows() == 2


def test_a_slow_client_does_not_hold_up_the_end(start: Any) -> None:
    server = start("--drain-timeout", "1")
    _, url = server.ready()
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as slow:
        slow.sendall(
            b"POST /v1/traces HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{"
        )
        time.sleep(0.2)
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < 15


def test_who_watches_the_health_hears_of_the_end_and_does_not_hold_it_up(start: Any) -> None:
    server = start("--drain-timeout", "50")
    address, _ = server.ready()
    with grpc.insecure_channel(address) as channel:
        heard = HealthStub(channel).Watch(HealthCheckRequest(), timeout=100)
        assert next(heard).status == HealthCheckResponse.SERVING
        stopped = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert next(heard).status == HealthCheckResponse.NOT_SERVING
        assert server.end() == 0
        assert time.monotonic() - stopped < 40


def test_what_a_killed_server_had_only_in_its_journal_is_written_by_the_next(start: Any) -> None:
    server = start("--answer-timeout", "0.5")
    address, _ = server.ready()
    with grpc.insecure_channel(address) as channel:
        stub = TraceServiceStub(channel)
        stub.Export(make_request(chat(1)), timeout=20)
        blocker = sqlite3.connect(server.database, isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        stub.Export(make_request(chat(2, trace=2), chat(3, trace=2)), timeout=20)  # OK, from the journal
    server.process.kill()
    server.process.wait()
    blocker.execute("ROLLBACK")
    blocker.close()
    assert server.rows() <= 1
    again = start()
    again.ready()
    deadline = time.monotonic() + 60
    while again.rows() < 3 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert again.rows() == 3


def test_sigkill_loses_nothing_that_was_acknowledged(start: Any) -> None:
    server = start()
    address, _ = server.ready()
    acknowledged = 0
    with grpc.insecure_channel(address) as channel:
        stub = TraceServiceStub(channel)
        stub.Export(make_request(chat(1, trace=999_999)), timeout=20)  # the schema is there
        killer = threading.Timer(0.5, server.process.kill)
        killer.start()
        try:
            while acknowledged < 5_000:
                stub.Export(make_request(*[chat(n, trace=acknowledged + 1) for n in range(1, 6)]), timeout=20)
                acknowledged += 5
        except grpc.RpcError:
            pass
        killer.join()
    assert acknowledged
    again = start()
    again.ready()
    deadline = time.monotonic() + 60
    while again.rows() < acknowledged + 1 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert acknowledged + 1 <= again.rows() <= acknowledged + 6


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--http", "0.0.0.0:0"], "--insecure"),
        (["--token-file", "nowhere"], "cannot be read"),
        (["--grpc", "nonsense"], "HOST:PORT"),
        (["--config", "nowhere.toml"], "cannot be read"),
        (["--database-url", "nonsense"], "nonsense"),
        (["--max-spans", "0"], "--max-spans"),
        (["--grpc", "off", "--http", "off"], "both doors are off"),
    ],
)
def test_settings_that_cannot_work_end_the_start_with_2(start: Any, flags: list[str], says: str) -> None:
    server = start(*flags)
    assert server.end() == 2
    assert says in server.stderr
    assert "Traceback" not in server.stderr


def test_flags_outrank_the_environment_and_that_the_file(start: Any, tmp_path: Path) -> None:
    (tmp_path / "serve.toml").write_text(
        f'on_missing_run = "create"\ndatabase_url = "sqlite:///{tmp_path}/other.db"\n'
        '[serve]\nmax_request_mib = 1\nmax_spans = 1\nlog_format = "json"\n'
    )
    server = start("--config", "serve.toml", "--max-spans", "3", env={"OTEL_EXPORTER_CMB_SERVE_MAX_SPANS": "2"})
    _, url = server.ready()
    headers = {"content-type": "application/x-protobuf"}

    def post(spans: int) -> int:
        body = make_request(*[chat(n) for n in range(1, spans + 1)]).SerializeToString()
        return requests.post(f"{url}/v1/traces", data=body, headers=headers, timeout=10).status_code

    assert (post(3), post(4)) == (200, 413)
    assert requests.post(f"{url}/v1/traces", data=b"x" * 1_100_000, headers=headers, timeout=10).status_code == 413
    assert server.stop() == 0
    assert server.rows() == 3
    assert not (tmp_path / "other.db").exists()
    entries = [json.loads(line) for line in server.stderr.splitlines() if not line.startswith("grpc=")]
    assert {"level", "message", "time"} <= set(entries[0])


def test_an_unknown_key_of_the_file_is_named(start: Any, tmp_path: Path) -> None:
    (tmp_path / "serve.toml").write_text("[serve]\ngprc = '127.0.0.1:0'\n")
    server = start("--config", "serve.toml")
    assert server.end() == 2
    assert "unknown gprc" in server.stderr


def test_a_wrong_value_of_the_file_is_named_with_the_file(start: Any, tmp_path: Path) -> None:
    (tmp_path / "serve.toml").write_text("on_missing_run = 'maybe'\n")
    server = start("--config", "serve.toml")
    assert server.end() == 2
    assert "serve.toml: on_missing_run: found 'maybe', expected 'park'" in server.stderr


def test_systemd_is_told_when_it_is_ready(start: Any, tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(path)
        channel.settimeout(20)
        server = start(env={"NOTIFY_SOCKET": path, "JOURNAL_STREAM": "8:1"})
        assert channel.recv(100) == b"READY=1"
        server.stop()
        assert channel.recv(100) == b"STOPPING=1"
    assert re.search(r"^<6>INFO ", server.stderr, re.MULTILINE)


def test_a_request_of_512_spans_is_one_transaction_unless_somebody_says_otherwise(tmp_path: Path) -> None:
    def batch_size(text: str = "", **env: str) -> int:
        (tmp_path / "serve.toml").write_text(text)
        return load({}, config_file=str(tmp_path / "serve.toml"), env=env)[1].batch_size

    assert batch_size() == 512
    assert batch_size("batch_size = 100") == 100
    assert batch_size("batch_size = 100", OTEL_EXPORTER_CMB_BATCH_SIZE="50") == 50
    assert batch_size(OTEL_EXPORTER_CMB_BATCH_SIZE="256") == 256
    assert batch_size('database_url = "postgresql://localhost/x"') == 256
    assert load({}, {"batch_size": 7}, env={})[1].batch_size == 7
