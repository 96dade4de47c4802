"""The database goes away and comes back while senders send: nothing acknowledged is missing, nothing is there twice."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import requests
import sqlalchemy
from fault_support import wait_for
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceStub
from receiver_support import Running, make_request, make_span, running
from support import postgres
from test_receiver_process import Server

from otel_cmb import config
from otel_cmb.event import event_id
from otel_cmb.pipeline import Pipeline


class Load:
    """Senders that keep what was acknowledged and send again what was not."""

    def __init__(self, server: Running, senders: int = 3) -> None:
        self.acknowledged: set[str] = set()
        self.sent: set[str] = set()
        self.failures: list[str] = []
        self._server = server
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._send, args=(n,)) for n in range(1, senders + 1)]
        for thread in self._threads:
            thread.start()

    def _send(self, number: int) -> None:
        with grpc.insecure_channel(self._server.grpc) as channel:
            stub = TraceServiceStub(channel)
            n = 0
            while not self._stop.is_set():
                n += 1
                trace_id = f"{number * 1_000_000 + n:032x}"
                attributes = {"gen_ai.operation.name": "chat"}
                spans = [make_span(k, trace_id=trace_id, attributes=attributes) for k in range(1, 6)]
                ids = {event_id(span.trace_id, span.span_id) for span in spans}
                self.sent |= ids
                try:
                    stub.Export(make_request(*spans), timeout=30)
                    self.acknowledged |= ids
                except grpc.RpcError as error:
                    self.failures.append(error.code().name)  # type: ignore[attr-defined]
                time.sleep(0.002)

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)


@pytest.fixture
def pipelines(tmp_path: Path) -> Iterator[Any]:
    made: list[Pipeline] = []

    def make(url: str, **settings: Any) -> Pipeline:
        known = {
            "database_url": url,
            "state_dir": str(tmp_path / "state"),
            "retry_max": 0.3,
            "connect_timeout": 2,
            **settings,
        }
        made.append(Pipeline(config.load({}, **known), per_trace_runs=True))
        return made[-1]

    yield make
    for pipeline in made:
        pipeline.shutdown(5)


def stored(url: str) -> list[str]:
    engine = sqlalchemy.create_engine(url)
    try:
        with engine.connect() as connection:
            return [row[0] for row in connection.execute(sqlalchemy.text("SELECT id FROM execution_events"))]
    finally:
        engine.dispose()


def check(load: Load, pipeline: Pipeline, url: str) -> None:
    assert pipeline.flush(60)
    found = stored(url)
    assert len(found) == len(set(found))
    assert load.acknowledged <= set(found) <= load.sent
    assert len(load.acknowledged) > 50
    assert set(load.failures) <= {"UNAVAILABLE", "RESOURCE_EXHAUSTED"}
    stats = pipeline.stats()
    assert stats.balanced
    assert not stats.lost


def test_a_postgresql_that_stops_and_starts_again_under_load(
    private_postgresql: postgres.Server, pipelines: Any
) -> None:
    with private_postgresql.database() as database:
        url = postgres.text(database)
        pipeline = pipelines(url)
        with running(pipeline, answer_timeout=1) as server:
            load = Load(server)
            wait_for(lambda: len(load.acknowledged) > 50)
            private_postgresql.stop()
            before = len(load.acknowledged)
            wait_for(lambda: len(load.acknowledged) > before + 20)  # acknowledged from the journal
            private_postgresql.start()
            time.sleep(0.5)
            load.stop()
            check(load, pipeline, url)


def test_a_postgresql_that_hangs_keeps_no_request_waiting(
    private_postgresql: postgres.Server, pipelines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("otel_cmb.pipeline.NO_ANSWER", 1.0)
    url = postgres.text(private_postgresql.url)
    pipeline = pipelines(url)
    with running(pipeline, answer_timeout=1) as server:
        load = Load(server)
        wait_for(lambda: len(load.acknowledged) > 50)
        with private_postgresql.hanging():
            wait_for(lambda: pipeline.unanswered() > 1.5)
            before, began = len(load.acknowledged), time.monotonic()
            wait_for(lambda: len(load.acknowledged) > before + 200)  # each alone would wait a second: 5 spans, 3 senders
            assert time.monotonic() - began < 8
            assert "has not answered for" in pipeline.stats().last_error
            assert "otel_cmb_database_up 0" in requests.get(server.http + "/metrics", timeout=10).text
            # spans are taken and safe: nobody is to send them elsewhere
            assert requests.get(server.http + "/readyz", timeout=10).status_code == 200
        wait_for(lambda: not pipeline.stats().last_error)
        load.stop()
        check(load, pipeline, url)
        assert "otel_cmb_database_up 1" in requests.get(server.http + "/metrics", timeout=10).text


def test_a_server_whose_postgresql_hangs_ends_and_the_next_goes_on(
    private_postgresql: postgres.Server, tmp_path: Path
) -> None:
    url = postgres.text(private_postgresql.url)
    flags = ("--database-url", url, "--on-missing-run", "create", "--answer-timeout", "1", "--drain-timeout", "1")
    servers = [Server(tmp_path, *flags, env={"OTEL_EXPORTER_CMB_SHUTDOWN_TIMEOUT": "1", "OTEL_EXPORTER_CMB_QUIET_TIME": "2"})]
    try:
        address, page = servers[0].ready()
        with grpc.insecure_channel(address) as channel:
            stub = TraceServiceStub(channel)
            stub.Export(make_request(make_span(1)), timeout=30)
            with private_postgresql.hanging():
                for n in range(2, 5):
                    stub.Export(make_request(make_span(n, trace_id=f"{n:032x}")), timeout=30)
                with pytest.raises(requests.Timeout):  # a thread of the page waits, as does the one that looks for quiet runs
                    requests.get(page + "/api/runs", timeout=2)
                began = time.monotonic()
                assert servers[0].stop(timeout=100) == 0
                assert time.monotonic() - began < 20
        servers.append(Server(tmp_path, *flags))
        servers[1].ready()
        wait_for(lambda: len(stored(url)) == 4)
        assert servers[1].stop() == 0
    finally:
        for server in servers:
            server.process.kill()
            server.process.wait()
            assert server.process.stderr is not None
            server.process.stderr.close()


def test_connections_that_are_cut_under_load(cuttable_postgresql: Any, pipelines: Any) -> None:
    url, proxy = cuttable_postgresql
    pipeline = pipelines(url)
    with running(pipeline, answer_timeout=1) as server:
        load = Load(server)
        wait_for(lambda: len(load.acknowledged) > 50)
        proxy.cut()
        time.sleep(0.5)
        proxy.restore()
        time.sleep(0.5)
        load.stop()
        check(load, pipeline, url)


def test_a_sqlite_file_that_is_locked_again_and_again_under_load(sqlite_url: str, pipelines: Any) -> None:
    import sqlite3

    pipeline = pipelines(sqlite_url, busy_timeout=0.1)
    with running(pipeline, answer_timeout=0.5) as server:
        load = Load(server)
        wait_for(lambda: len(load.acknowledged) > 50)
        for _ in range(5):
            blocker = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None, timeout=10)
            blocker.execute("BEGIN IMMEDIATE")
            time.sleep(0.3)
            blocker.execute("ROLLBACK")
            blocker.close()
            time.sleep(0.1)
        load.stop()
        check(load, pipeline, sqlite_url)
