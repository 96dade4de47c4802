"""The receiver with the real pipeline and real databases: what is acknowledged is in the database, once."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import requests
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceStub
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from receiver_support import Running, make_request, make_span, running

from otel_cmb import config, otlp
from otel_cmb.event import Span, event_id
from otel_cmb.pipeline import Pipeline


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "events.db"


@pytest.fixture
def serving(database: Path, state_dir: Path) -> Iterator[Any]:
    """Starts receivers on the database, and ends their pipelines."""
    pipelines: list[Pipeline] = []

    def start(general: dict[str, Any] | None = None, **flags: Any) -> Any:
        known = {
            "database_url": f"sqlite:///{database}",
            "state_dir": str(state_dir),
            "settle_time": 0.2,
            **(general or {}),
        }
        pipelines.append(Pipeline(config.load({}, **known), per_trace_runs=True))
        return running(pipelines[-1], general=known, **flags)

    yield start
    for pipeline in pipelines:
        pipeline.shutdown(5)


def rows(database: Path, sql: str, *values: Any) -> list[Any]:
    connection = sqlite3.connect(database)
    try:
        return connection.execute(sql, values).fetchall()
    finally:
        connection.close()


def send(server: Running, *spans: Span, **metadata: str) -> Any:
    with grpc.insecure_channel(server.grpc) as channel:
        pairs = [(key.replace("_", "-"), value) for key, value in metadata.items()]
        return TraceServiceStub(channel).Export(make_request(*spans), timeout=20, metadata=pairs)


def agent(n: int, trace: int = 1, **changes: Any) -> Span:
    attributes = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": f"agent{n}"}
    named = {"trace_id": f"{trace:032x}", "name": f"invoke_agent agent{n}", "attributes": attributes}
    return make_span(n, **{**named, **changes})


def make_run(database: Path, run_id: str, session_id: str = "session-1") -> None:
    with sqlite3.connect(database) as connection:
        connection.execute(
            "INSERT OR IGNORE INTO sessions (id, name, status, created_at, last_active_at) "
            "VALUES (?, ?, 'active', ?, ?)",
            (session_id, session_id, "2026-01-01 00:00:00", "2026-01-01 00:00:00"),
        )
        connection.execute(
            "INSERT INTO workflow_runs (id, session_id, mode, agent, model, status, started_at) "
            "VALUES (?, ?, 'one_shot', 'a', 'm', 'executing', '2026-01-01 00:00:00')",
            (run_id, session_id),
        )
    connection.close()


@pytest.mark.parametrize("door", ["grpc", "grpc-gzip", "http", "http-gzip", "http-deflate"])
def test_spans_of_the_sdk_are_rows_when_the_exporter_returns(serving: Any, database: Path, door: str) -> None:
    with serving() as server:
        exporter: Any
        if door.startswith("grpc"):
            compression = grpc.Compression.Gzip if "gzip" in door else grpc.Compression.NoCompression
            exporter = GrpcExporter(endpoint=server.grpc, insecure=True, compression=compression)
        else:
            named = {
                "http": Compression.NoCompression,
                "http-gzip": Compression.Gzip,
                "http-deflate": Compression.Deflate,
            }
            exporter = HttpExporter(endpoint=f"{server.http}/v1/traces", compression=named[door])
        provider = TracerProvider()
        provider.add_span_processor(BatchSpanProcessor(exporter))
        tracer = provider.get_tracer("test")
        with (
            tracer.start_as_current_span(
                "invoke_agent planner",
                attributes={"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "planner"},
            ),
            tracer.start_as_current_span(
                "execute_tool search",
                attributes={"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "search"},
            ),
        ):
            pass
        provider.force_flush()
        provider.shutdown()
        server.pipeline.flush(10)
    found = rows(
        database, "SELECT event_type, agent_name, status, depth FROM execution_events ORDER BY execution_order"
    )
    assert found == [("agent_call", "planner", "completed", 0), ("tool_call", "planner", "completed", 1)]
    assert rows(database, "SELECT count(*), min(started_at IS NOT NULL) FROM workflow_runs") == [(1, 1)]


def test_json_by_hand_is_stored(serving: Any, database: Path) -> None:
    with serving() as server:
        answer = requests.post(f"{server.http}/v1/traces", json=otlp.json_from_spans([agent(1)]), timeout=10)
        assert (answer.status_code, answer.json()) == (200, {})
        server.pipeline.flush(10)
    assert rows(database, "SELECT id FROM execution_events") == [(event_id(f"{1:032x}", f"{1:016x}"),)]


def test_the_header_outranks_what_the_spans_say(serving: Any, database: Path) -> None:
    with serving() as server:
        send(server, agent(9, trace=9))
        server.pipeline.flush(10)  # the schema is there
        make_run(database, "run-a")
        make_run(database, "run-b")
        attributes = {"gen_ai.operation.name": "chat", "cmb.run.id": "run-a"}
        send(server, agent(1, attributes=attributes))
        send(server, agent(2, trace=2, attributes=attributes), x_cmb_run_id="run-b")
        assert rows(database, "SELECT run_id FROM execution_events WHERE run_id LIKE 'run-%' ORDER BY run_id") == [
            ("run-a",),
            ("run-b",),
        ]


def test_a_missing_run_is_parked_made_or_a_failure_as_the_policy_says(serving: Any, database: Path) -> None:
    attributes = {"gen_ai.operation.name": "chat", "cmb.run.id": "nowhere"}
    with serving() as server:
        send(server, agent(1, attributes=attributes))
        assert server.pipeline.stats().parked == {"run_not_found": 1}
        server.pipeline.shutdown(5)
    with serving({"on_missing_run": "fail", "state_dir": f"{database}.fail"}) as server:
        with pytest.raises(grpc.RpcError) as caught:
            send(server, agent(2, trace=2, attributes=attributes))
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION  # type: ignore[attr-defined]
        server.pipeline.shutdown(5)
    assert rows(database, "SELECT count(*) FROM execution_events") == [(0,)]
    with serving({"on_missing_run": "create", "state_dir": f"{database}.create"}) as server:
        send(server, agent(3, trace=3, attributes=attributes))
        assert rows(database, "SELECT run_id FROM execution_events") == [("nowhere",)]


def test_sending_again_changes_nothing(serving: Any, database: Path) -> None:
    with serving() as server:
        for _ in range(3):
            send(server, agent(1), agent(2, parent_span_id=f"{1:016x}"))
        server.pipeline.flush(10)
        before = rows(database, "SELECT * FROM execution_events ORDER BY id")
        send(server, agent(1), agent(2, parent_span_id=f"{1:016x}"))
        server.pipeline.flush(10)
        assert rows(database, "SELECT * FROM execution_events ORDER BY id") == before
        assert len(before) == 2
        stats = server.pipeline.stats()
        assert stats.balanced
        assert stats.received == 8


def test_a_token_bound_to_a_session_cannot_write_into_another(serving: Any, database: Path, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("first-token session-1\nfree-token-0\n")
    with serving(token_file=str(tmp_path / "tokens")) as server:
        free = {"authorization": "Bearer free-token-0"}
        bound = {"authorization": "Bearer first-token"}
        send(server, agent(9, trace=9), **free)
        server.pipeline.flush(10)
        make_run(database, "mine", "session-1")
        make_run(database, "theirs", "session-2")
        theirs = agent(1, attributes={"gen_ai.operation.name": "chat", "cmb.run.id": "theirs"})
        mine = agent(2, trace=2, attributes={"gen_ai.operation.name": "chat", "cmb.run.id": "mine"})
        with pytest.raises(grpc.RpcError) as caught:
            send(server, theirs, **bound)
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED  # type: ignore[attr-defined]
        assert send(server, theirs, mine, **bound).partial_success.rejected_spans == 1
        assert rows(database, "SELECT run_id FROM execution_events WHERE run_id IN ('mine', 'theirs')") == [("mine",)]
        assert server.pipeline.stats().parked == {}
        # a run made for this token belongs to its session
        send(server, agent(5, trace=5), **bound)
        server.pipeline.flush(10)
        made = rows(
            database,
            "SELECT r.session_id FROM execution_events e JOIN workflow_runs r ON r.id = e.run_id WHERE e.id = ?",
            event_id(f"{5:032x}", f"{5:016x}"),
        )
        assert made == [("session-1",)]
        # and another session's header is of no use
        with pytest.raises(grpc.RpcError) as caught:
            send(server, agent(6, trace=6), x_cmb_run_id="theirs", **bound)
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED  # type: ignore[attr-defined]


def test_content_of_logs_does_not_reach_the_spans_of_another_session(
    serving: Any, database: Path, tmp_path: Path
) -> None:
    (tmp_path / "tokens").write_text("first-token session-1\nother-token session-2\n")
    record = {
        "traceId": f"{1:032x}",
        "spanId": f"{1:016x}",
        "timeUnixNano": "5",
        "eventName": "gen_ai.user.message",
        "body": otlp.json_value({"content": "SMUGGLED"}),
    }
    logs = {"resourceLogs": [{"scopeLogs": [{"logRecords": [record]}]}]}
    with serving(token_file=str(tmp_path / "tokens")) as server:

        def post(token: str) -> None:
            headers = {"authorization": f"Bearer {token}"}
            assert requests.post(f"{server.http}/v1/logs", json=logs, headers=headers, timeout=10).status_code == 200
            server.pipeline.flush(10)

        post("other-token")  # before its span, and after it
        send(server, agent(1, attributes={"gen_ai.operation.name": "chat"}), authorization="Bearer first-token")
        server.pipeline.flush(10)
        post("other-token")
        assert "SMUGGLED" not in str(rows(database, "SELECT inputs, meta FROM execution_events"))
        post("first-token")
        assert "SMUGGLED" in str(rows(database, "SELECT inputs FROM execution_events"))


def test_concurrent_requests_share_transactions_and_lose_nothing(serving: Any, database: Path) -> None:
    with serving() as server:

        def work(n: int) -> int:
            with grpc.insecure_channel(server.grpc) as channel:
                stub = TraceServiceStub(channel)
                for m in range(10):
                    stub.Export(make_request(*[agent(k + 1, trace=n * 100 + m + 1) for k in range(5)]), timeout=30)
            return 50

        with ThreadPoolExecutor(8) as pool:
            acknowledged = sum(pool.map(work, range(8)))
        server.pipeline.flush(20)
        assert rows(database, "SELECT count(*), count(DISTINCT id) FROM execution_events") == [
            (acknowledged, acknowledged)
        ]
        for run_id, number, orders in rows(
            database, "SELECT run_id, count(*), count(DISTINCT execution_order) FROM execution_events GROUP BY run_id"
        ):
            assert number == orders, run_id


def test_while_the_database_is_locked_spans_are_acknowledged_from_the_journal(serving: Any, database: Path) -> None:
    with serving({"busy_timeout": 0.1, "retry_max": 0.2}, answer_timeout=1) as server:
        send(server, agent(1))
        server.pipeline.flush(10)
        blocker = sqlite3.connect(database, isolation_level=None, check_same_thread=False)
        blocker.execute("BEGIN IMMEDIATE")
        send(server, agent(2, trace=2))
        assert server.pipeline.stats().pending == 1
        assert rows(database, "SELECT count(*) FROM execution_events") == [(1,)]
        blocker.execute("ROLLBACK")
        blocker.close()
        assert server.pipeline.flush(20)
        assert rows(database, "SELECT count(*) FROM execution_events") == [(2,)]
        assert server.pipeline.stats().balanced


def test_two_servers_on_one_database_give_every_span_one_row(serving: Any, database: Path) -> None:
    with serving() as one, serving() as two:
        send(one, agent(1))
        one.pipeline.flush(10)
        make_run(database, "shared")
        failures: list[BaseException] = []

        def work(server: Running, first: int) -> None:
            try:
                for n in range(20):
                    attributes = {"gen_ai.operation.name": "chat", "cmb.run.id": "shared"}
                    send(server, agent(first + n, trace=first + n, attributes=attributes))
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=pair) for pair in ((one, 100), (two, 200), (two, 100))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert failures == []
        assert one.pipeline.flush(20)
        assert two.pipeline.flush(20)
        assert rows(
            database, "SELECT count(*), count(DISTINCT execution_order) FROM execution_events WHERE run_id = 'shared'"
        ) == [(40, 40)]


def test_a_run_ends_with_its_root_whichever_server_gets_it(serving: Any, database: Path) -> None:
    """The run of a trace was made by a server that got the children; its root comes to another (or to the next one)."""
    with serving() as one, serving() as two:
        send(one, agent(2, parent_span_id=f"{1:016x}"))
        assert one.pipeline.flush(10)
        assert rows(database, "SELECT status FROM workflow_runs") == [("executing",)]
        send(two, agent(1))
        assert two.pipeline.flush(10)
        assert rows(database, "SELECT status FROM workflow_runs") == [("completed",)]
        assert rows(database, "SELECT count(DISTINCT run_id), count(*) FROM execution_events") == [(1, 2)]


def test_a_mixed_batch_stores_every_good_span(serving: Any, database: Path) -> None:
    with serving() as server:
        request = make_request(*[agent(n, name="QQQQ") for n in range(1, 21)])
        for message in request.resource_spans[0].scope_spans[0].spans[::5]:
            message.trace_id = b"\0" * 16
        data = request.SerializeToString().replace(b"QQQQ", b"Q\xffQQ", 3)
        answer = requests.post(
            f"{server.http}/v1/traces", data=data, headers={"content-type": "application/x-protobuf"}, timeout=20
        )
        assert answer.status_code == 200
        server.pipeline.flush(10)
        assert rows(database, "SELECT count(*) FROM execution_events") == [(16,)]


def test_content_of_logs_is_joined_to_its_span(serving: Any, database: Path) -> None:
    chat = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m"}
    record = {
        "traceId": f"{1:032x}",
        "spanId": f"{1:016x}",
        "timeUnixNano": "5",
        "eventName": "gen_ai.user.message",
        "body": otlp.json_value({"content": "what is the answer?"}),
    }
    choice = {
        **record,
        "timeUnixNano": "6",
        "eventName": "gen_ai.choice",
        "body": otlp.json_value({"index": 0, "finish_reason": "stop", "message": {"content": "42"}}),
    }
    logs = {"resourceLogs": [{"scopeLogs": [{"logRecords": [record, choice]}]}]}
    with serving() as server:
        assert requests.post(f"{server.http}/v1/logs", json=logs, timeout=10).status_code == 200
        send(server, agent(1, attributes=chat))
        server.pipeline.flush(10)
        assert requests.post(f"{server.http}/v1/logs", json=logs, timeout=10).status_code == 200
        server.pipeline.flush(10)
    (found,) = rows(database, "SELECT inputs, outputs FROM execution_events")
    assert "what is the answer?" in found[0]
    assert "42" in found[1]
