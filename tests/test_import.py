"""`otel-cmb import` and `export`: every form of file, streamed, twice without harm, exactly as it came."""

from __future__ import annotations

import gzip
import io
import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner
from commands import Shell
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from receiver_support import TRACE, FakePipeline, make_request, make_span, running
from support.proxy import Proxy

from otel_cmb import otlp
from otel_cmb.cli import cli
from otel_cmb.errors import CMBError, ConfigurationError
from otel_cmb.event import Link, Resource, Span, SpanEvent
from otel_cmb.otlp_files import read_chunks
from otel_cmb.otlp_wire import varint
from otel_cmb.pipeline import forget_pipelines


def agents(count: int, trace: int = 1) -> list[Span]:
    """A trace whose children come before their parent, as SDKs send them."""
    root = f"{1:016x}"
    return [
        make_span(
            n,
            trace_id=f"{trace:032x}",
            parent_span_id=None if n == 1 else root,
            name=f"invoke_agent a{n}",
            attributes={"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": f"a{n}"},
            events=[SpanEvent("e", 5, {"x": True})],
            links=[Link(TRACE, "a" * 16, attributes={"y": b"\0"})],
            resource=Resource({"service.name": "s"}),
            end_ns=1_700_000_000_000_100_000 - n,
            flags=1,
            trace_state="a=b",
        )
        for n in range(count, 0, -1)
    ]


class CommandLine:
    """The commands, in this process (each starts anew, with pipelines of its own) or in one of their own."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.database = place / "events.db"

    def _words(self, words: tuple[Any, ...]) -> list[str]:
        extra = ["--state-dir", str(self.place / "state")] if words[0] in ("import", "remap") else []
        return [*(str(word) for word in words), "--database-url", f"sqlite:///{self.database}", *extra]

    def __call__(self, *words: Any, stdin: bytes | None = None) -> subprocess.CompletedProcess[str]:
        try:
            done = CliRunner().invoke(cli, self._words(words), input=stdin)
        finally:
            forget_pipelines()
        code, stderr = done.exit_code, done.stderr
        if isinstance(done.exception, CMBError):  # as `main` says it
            code = 2 if isinstance(done.exception, ConfigurationError) else 1
            stderr += f"otel-cmb: {done.exception}"
        elif done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return subprocess.CompletedProcess(words, code, done.stdout, stderr)

    def process(self, *words: Any, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
        program = "from otel_cmb.cli import main; main()"
        return subprocess.run(
            [sys.executable, "-c", program, *self._words(words)],
            input=stdin,
            capture_output=True,
            cwd=self.place,
            timeout=100,
            check=False,
        )

    def rows(self, sql: str) -> list[Any]:
        connection = sqlite3.connect(self.database)
        try:
            return connection.execute(sql).fetchall()
        finally:
            connection.close()


@pytest.fixture
def cmb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    monkeypatch.chdir(tmp_path)
    return CommandLine(tmp_path)


def lines_of(*groups: list[Span]) -> bytes:
    return b"".join(orjson.dumps(otlp.json_from_spans(group)) + b"\n" for group in groups)


def delimited(prefix: Callable[[int], bytes], *groups: list[Span]) -> bytes:
    messages = [make_request(*group).SerializeToString() for group in groups]
    return b"".join(prefix(len(message)) + message for message in messages)


A, B = agents(3, 1), agents(2, 2)
FORMS: dict[str, bytes] = {
    "json lines": lines_of(A, B),
    "json lines without the last newline": lines_of(A, B)[:-1],
    "one document": json.dumps(otlp.json_from_spans([*A, *B])).encode(),
    "one document, pretty": json.dumps(otlp.json_from_spans([*A, *B]), indent=2).encode(),
    "one document after a byte order mark": b"\xef\xbb\xbf"
    + json.dumps(otlp.json_from_spans([*A, *B]), indent=1).encode(),
    "a list of documents": json.dumps([otlp.json_from_spans(A), otlp.json_from_spans(B)]).encode(),
    "protobuf": make_request(*A, *B).SerializeToString(),
    "protobuf, concatenated": make_request(*A).SerializeToString() + make_request(*B).SerializeToString(),
    "protobuf, varint": delimited(varint, A, B),
    "protobuf, big-endian": delimited(lambda size: size.to_bytes(4, "big"), A, B),
}


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_file_is_read(form: str, packed: bool) -> None:
    data = gzip.compress(FORMS[form]) if packed else FORMS[form]
    chunks = list(read_chunks(io.BufferedReader(io.BytesIO(data))))  # type: ignore[arg-type]
    assert [problem for chunk in chunks for problem in chunk.problems] == []
    assert [span for chunk in chunks for span in chunk.spans] == [*A, *B]


def chunks_of(data: bytes) -> tuple[list[str], list[str]]:
    """(names of the spans, problems)"""
    found = list(read_chunks(io.BufferedReader(io.BytesIO(data))))  # type: ignore[arg-type]
    return [span.name for chunk in found for span in chunk.spans], [line for chunk in found for line in chunk.problems]


def test_bad_lines_are_named_and_the_others_read() -> None:
    good = lines_of(A).strip()
    names, problems = chunks_of(b"{broken\n" + good + b"\n\n{}\n[1]\n" + lines_of(B) + b'{"resourceSpans": 5}\n')
    assert len(names) == 5
    assert [problem.split(":")[0] for problem in problems] == ["line 1", "line 4", "line 5", "line 7"]


def test_spans_without_ids_are_named_with_their_line() -> None:
    bad = otlp.json_from_spans(A)
    bad["resourceSpans"][0]["scopeSpans"][0]["spans"][1]["spanId"] = "12"
    names, problems = chunks_of(lines_of(B) + orjson.dumps(bad))
    assert len(names) == 4
    assert problems[0].startswith("line 2: span 'invoke_agent a2'")


def test_lines_of_other_signals_are_passed_over() -> None:
    assert chunks_of(b'{"resourceMetrics": []}\n' + lines_of(A))[1] == []


@pytest.mark.parametrize("form", ["protobuf", "protobuf, varint", "protobuf, big-endian", "json lines"])
def test_a_file_that_ends_too_early_gives_what_it_has(form: str) -> None:
    names, problems = chunks_of(FORMS[form][:-7])
    assert len(problems) == 1
    assert len(names) < 5
    names, problems = chunks_of(gzip.compress(FORMS[form])[:-12])
    assert len(problems) >= 1


@pytest.mark.parametrize("data", [b"\x89PNG\r\n", b"\xff\xff\xff\xff\xff\xff", b"hello", b"\x1f\x8bjunk"])
def test_files_that_are_no_otlp_say_so(data: bytes) -> None:
    names, problems = chunks_of(data)
    assert names == []
    assert len(problems) == 1


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(FORMS)), st.integers(0, 5_000), st.binary(min_size=1, max_size=5))
def test_damaged_files_never_raise(form: str, at: int, junk: bytes) -> None:
    data = FORMS[form]
    at %= len(data)
    chunks_of(data[:at] + junk + data[at + len(junk) :])


# the command


def test_a_file_with_children_before_parents_becomes_one_tree_and_again_changes_nothing(
    cmb: CommandLine, tmp_path: Path
) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines_of(agents(6))))
    first = cmb("import", "a.jsonl.gz", "--new-run", "--json")
    assert first.returncode == 0, first.stderr
    report = json.loads(first.stdout)
    assert (report["spans"], report["committed"], report["known_run"], report["complete"]) == (6, 6, False, True)
    tree = cmb.rows("SELECT agent_name, depth, execution_order FROM execution_events ORDER BY execution_order")
    assert [row[0] for row in tree] == ["a1", "a2", "a3", "a4", "a5", "a6"]
    assert [row[1] for row in tree] == [0, 1, 1, 1, 1, 1]
    before = cmb.rows("SELECT * FROM execution_events ORDER BY id")
    again = cmb("import", "a.jsonl.gz", "--new-run")
    assert again.returncode == 0
    assert f"run {report['run_id']} has these spans already" in again.stdout
    assert cmb("import", "a.jsonl.gz").returncode == 0
    assert cmb.rows("SELECT * FROM execution_events ORDER BY id") == before
    runs = cmb.rows("SELECT id, status, started_at IS NOT NULL FROM workflow_runs")
    assert runs == [(report["run_id"], "completed", 1)]


def test_one_new_run_takes_all_traces_and_no_flag_gives_each_its_own(cmb: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(FORMS["one document"])
    assert cmb("import", "a.json").returncode == 0
    assert cmb.rows("SELECT count(*), count(DISTINCT run_id) FROM execution_events") == [(5, 2)]
    cmb.database = tmp_path / "other.db"
    assert cmb("import", "--new-run", "a.json").returncode == 0
    assert cmb.rows("SELECT count(*), count(DISTINCT run_id) FROM execution_events") == [(5, 1)]
    run_id = cmb.rows("SELECT id FROM workflow_runs")[0][0]
    (tmp_path / "b.json").write_bytes(lines_of(agents(2, 7)))
    assert cmb("import", "--run", run_id, "b.json").returncode == 0
    assert cmb.rows("SELECT count(*), count(DISTINCT run_id) FROM execution_events") == [(7, 1)]


def test_a_new_run_for_what_several_runs_have_makes_none_and_parks_nothing(cmb: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(FORMS["one document"])
    assert cmb("import", "a.json").returncode == 0
    before = cmb.rows("SELECT id, run_id, execution_order FROM execution_events ORDER BY id")
    done = cmb("import", "--new-run", "a.json")
    assert done.returncode == 0, done.stdout
    assert "no run was made" in done.stdout
    assert cmb.rows("SELECT id, run_id, execution_order FROM execution_events ORDER BY id") == before
    assert cmb.rows("SELECT count(*) FROM workflow_runs") == [(2,)]


def test_stdin_is_a_file_too(cmb: CommandLine) -> None:
    done = cmb.process("import", "-", stdin=FORMS["protobuf"])
    assert done.returncode == 0, done.stderr
    assert cmb("import", "-", stdin=gzip.compress(FORMS["json lines"])).returncode == 0
    assert cmb.rows("SELECT count(*) FROM execution_events") == [(5,)]


def test_an_unknown_run_and_an_unknown_file_are_errors_before_anything_is_stored(
    cmb: CommandLine, tmp_path: Path
) -> None:
    (tmp_path / "a.json").write_bytes(FORMS["json lines"])
    missing = cmb("import", "--run", "nowhere", "a.json")
    assert missing.returncode == 1
    assert "nowhere" in missing.stderr
    assert cmb("import", "a.json", "not-there.json").returncode == 2
    assert cmb.rows("SELECT count(*) FROM execution_events") == [(0,)]


def test_bad_lines_make_exit_1_and_the_rest_is_stored(cmb: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines_of(A) + b"{broken\n" + lines_of(B))
    done = cmb("import", "a.jsonl")
    assert done.returncode == 1
    assert "a.jsonl: line 2" in done.stdout
    assert cmb.rows("SELECT count(*) FROM execution_events") == [(5,)]


def test_what_is_parked_is_in_a_table_with_what_to_do(cmb: CommandLine, tmp_path: Path) -> None:
    span = make_span(1, attributes={"gen_ai.operation.name": "chat", "cmb.run.id": "nowhere"})
    (tmp_path / "a.jsonl").write_bytes(lines_of([span], B))
    done = cmb("import", "a.jsonl")
    assert done.returncode == 1
    assert "run_not_found" in done.stdout
    assert "--on-missing-run create" in done.stdout
    assert cmb.rows("SELECT count(*) FROM execution_events") == [(2,)]
    assert cmb("import", "a.jsonl", "--on-missing-run", "create").returncode == 0
    assert cmb.rows("SELECT count(*) FROM execution_events WHERE run_id = 'nowhere'") == [(1,)]


def test_a_database_that_is_away_ends_an_import_soon_and_what_was_read_is_kept(
    tmp_path: Path, cuttable_postgresql: tuple[str, Proxy],
) -> None:
    url, proxy = cuttable_postgresql
    (tmp_path / "work").mkdir()
    shell = Shell(tmp_path / "work")
    (shell.directory / "a.jsonl").write_bytes(lines_of(agents(6)))
    of_the_database = {"OTEL_EXPORTER_CMB_DATABASE_URL": url, "OTEL_EXPORTER_CMB_CONNECT_TIMEOUT": "1"}
    proxy.cut()
    began = time.monotonic()
    done = shell.run("otel-cmb", "import", "a.jsonl", **of_the_database)
    assert time.monotonic() - began < 25
    assert done.returncode == 1
    assert "6 spans read, 0 committed, 6 pending" in done.stdout
    assert "6 spans are kept in the journal" in done.stdout
    assert "`otel-cmb parked replay`" in done.stdout
    new = shell.run("otel-cmb", "import", "--new-run", "a.jsonl", **of_the_database)
    assert (new.returncode, new.stdout) == (1, "")
    assert "nothing was imported" in new.stderr
    proxy.restore()
    replayed = shell.run("otel-cmb", "parked", "replay", **of_the_database)
    assert replayed.returncode == 0, replayed.stdout + replayed.stderr
    assert len(shell.events(url)) == 6
    [run] = shell.runs(url)
    assert (run.status, run.agent) == ("completed", "a1")


def test_a_large_file_streams_in_little_memory(cmb: CommandLine, tmp_path: Path) -> None:
    big = {"text": "x" * 20_000}
    with (tmp_path / "big.jsonl").open("wb") as file:
        for trace in range(1, 201):
            spans = [
                make_span(n, trace_id=f"{trace:032x}", attributes={"gen_ai.operation.name": "chat", **big})
                for n in range(1, 21)
            ]
            file.write(lines_of(spans))
    size = (tmp_path / "big.jsonl").stat().st_size
    assert size > 75_000_000
    script = (
        "import resource, sys\nfrom otel_cmb.otlp_files import read_chunks\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "spans = sum(len(chunk.spans) for chunk in read_chunks(open(sys.argv[1], 'rb')))\n"
        "print(spans, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "big.jsonl")], capture_output=True, check=True)
    spans, grown = (int(word) for word in done.stdout.split())
    assert spans == 4_000
    assert grown * 1024 < size / 3


# and out again


def test_an_exported_run_is_exactly_what_was_imported(cmb: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(FORMS["one document"])
    assert cmb("import", "--new-run", "a.json").returncode == 0
    for name in ("out.json", "out.jsonl", "out.json.gz", "out.jsonl.gz"):
        assert cmb("export", "latest", "--to", name).returncode == 0
        data = (tmp_path / name).read_bytes()
        found = list(read_chunks(io.BufferedReader(io.BytesIO(data))))  # type: ignore[arg-type]
        spans = [span for chunk in found for span in chunk.spans]
        assert sorted(spans, key=repr) == sorted([*A, *B], key=repr)
    document = json.loads(cmb("export", "latest", "--to", "-").stdout)
    assert sorted(otlp.decode(document).spans, key=repr) == sorted([*A, *B], key=repr)
    assert list(tmp_path.glob("*.tmp")) == []


def test_an_export_to_a_receiver_is_exact_and_goes_on_where_it_broke_off(cmb: CommandLine, tmp_path: Path) -> None:
    many = [*agents(600), *B]
    (tmp_path / "a.jsonl").write_bytes(lines_of(many))
    assert cmb("import", "--new-run", "a.jsonl").returncode == 0
    with running(http="off") as server:
        done = cmb("export", "latest", "--to", f"otlp://{server.grpc}", "--rate", "100000")
        assert done.returncode == 0, done.stderr
        assert sorted(server.pipeline.spans, key=repr) == sorted(many, key=repr)
        assert max(len(request) for request in [server.pipeline.spans[:512]]) <= 512
    with running(_OnceThenFull(), http="off") as server:
        done = cmb("export", "latest", "--to", f"otlp://{server.grpc}", "--rate", "100000")
        assert done.returncode == 1
        cursor = done.stderr.split("--after ")[1].split()[0]
        taken = len(server.pipeline.spans)
        server.pipeline.full = False
        done = cmb("export", "latest", "--to", f"otlp://{server.grpc}", "--after", cursor, "--rate", "100000")
        assert done.returncode == 0, done.stderr
        assert 0 < taken < len(many)
        assert len({(span.trace_id, span.span_id) for span in server.pipeline.spans}) == len(many)


class _OnceThenFull(FakePipeline):
    """Takes one request, then fails for good in a way that is not to be retried."""

    def __init__(self) -> None:
        super().__init__()
        self.full = True

    def accept(self, spans: list[Span]) -> Any:
        if self.full and self.spans:
            raise ZeroDivisionError("a bug")
        return super().accept(spans)


def test_an_export_to_nobody_or_nowhere_is_an_error(cmb: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(FORMS["one document"])
    assert cmb("import", "--new-run", "a.json").returncode == 0
    for target, code in (("nonsense", 2), ("otlp://", 2), ("otlp://h:1/path", 2), ("no/such/place.json", 1)):
        done = cmb("export", "latest", "--to", target)
        assert done.returncode == code, target
        assert "Traceback" not in done.stderr
    assert cmb("export", "no-such-run", "--to", "x.json").returncode == 1


def test_rows_of_the_application_become_spans(cmb: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(FORMS["one document"])
    assert cmb("import", "--new-run", "a.json").returncode == 0
    run_id, session_id = cmb.rows("SELECT id, session_id FROM workflow_runs")[0]
    with sqlite3.connect(cmb.database) as connection:
        columns = (
            "id, run_id, session_id, parent_event_id, event_type, agent_name, status, timestamp, started_at, "
            "completed_at, "
            "execution_order, inputs, error_message"
        )
        for identifier, parent, order in (("own-1", None, 100), ("own-2", "own-1", 101)):
            connection.execute(
                f"INSERT INTO execution_events ({columns}) VALUES (?, ?, ?, ?, 'agent_call', 'planner', 'failed', "
                "'2026-01-01 00:00:00.000001', '2026-01-01 00:00:00.000001', '2026-01-01 00:00:02', ?, "
                "'{\"message\": \"hi\"}', 'no')",
                (identifier, run_id, session_id, parent, order),
            )
    assert cmb("export", "latest", "--to", "out.json").returncode == 0
    spans = [
        span
        for span in otlp.decode(json.loads((tmp_path / "out.json").read_bytes())).spans
        if span.scope.name == "otel_cmb.application"
    ]
    first, second = spans
    assert (first.name, first.status_code, first.status_message) == ("agent_call planner", 2, "no")
    assert (second.trace_id, second.parent_span_id) == (first.trace_id, first.span_id)
    assert first.start_ns == 1_767_225_600_000_001_000
    assert first.end_ns == 1_767_225_602_000_000_000
    assert json.loads(first.attributes["cmb.inputs"]) == {"message": "hi"}
    assert first.attributes["cmb.event.type"] == "agent_call"


def test_what_the_sdk_would_send_is_what_the_file_holds() -> None:
    data = FORMS["protobuf"]
    assert otlp.decode(ExportTraceServiceRequest.FromString(data)).spans == [*A, *B]


def test_histories_that_are_stored_once_are_whole_again_in_an_export(cmb: CommandLine, tmp_path: Path) -> None:
    messages = [{"role": "user", "parts": [{"type": "text", "content": "x" * 3_000}]}]
    spans = []
    for n in range(1, 6):
        attributes = {"gen_ai.operation.name": "chat", "gen_ai.input.messages": json.dumps(messages)}
        spans.append(make_span(n, attributes=attributes))
        messages = [
            *messages,
            {"role": "assistant", "parts": []},
            {"role": "user", "parts": [{"type": "text", "content": f"{n}"}]},
        ]
    (tmp_path / "a.jsonl").write_bytes(lines_of(spans))
    assert cmb("import", "--new-run", "a.jsonl").returncode == 0
    assert "earlier" in cmb.rows("SELECT inputs FROM execution_events ORDER BY execution_order DESC LIMIT 1")[0][0]
    assert cmb("export", "latest", "--to", "out.json").returncode == 0
    found = otlp.decode(json.loads((tmp_path / "out.json").read_bytes())).spans
    assert sorted(found, key=repr) == sorted(spans, key=repr)


def test_a_page_of_the_run_and_a_remap_that_finds_nothing_to_change(cmb: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(FORMS["one document"])
    assert cmb("import", "--new-run", "a.json").returncode == 0
    assert cmb("export", "latest", "--to", "run.html").returncode == 0
    assert "<html" in (tmp_path / "run.html").read_text()
    before = cmb.rows("SELECT * FROM execution_events ORDER BY id")
    done = cmb("remap", "latest", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"] == 5
    assert cmb.rows("SELECT * FROM execution_events ORDER BY id") == before
    assert cmb("remap", "no-such-run").returncode == 1


def test_a_database_url_that_is_none_is_said_although_there_is_nothing_to_import(tmp_path: Path) -> None:
    empty = tmp_path / "empty.json"
    empty.write_bytes(b"")
    done = CliRunner().invoke(cli, ["import", str(empty), "--database-url", "garbage"])
    assert isinstance(done.exception, ConfigurationError)
    assert "'garbage' cannot be read" in str(done.exception)


def test_a_directory_is_told_what_to_name_in_it(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["import", str(tmp_path), "--database-url", f"sqlite:///{tmp_path}/x.db"])
    assert isinstance(done.exception, ConfigurationError)
    assert "found a directory; expected an OTLP file" in str(done.exception)
    assert not (tmp_path / "x.db").exists()


def test_an_export_that_waits_for_its_receiver_says_so_at_once(
    cmb: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "a.json").write_bytes(FORMS["one document"])
    assert cmb("import", "--new-run", "a.json").returncode == 0
    monkeypatch.setattr("otel_cmb.transfer.exporter.RETRY_SECONDS", 2.0)
    url = f"sqlite:///{cmb.database}"
    done = CliRunner().invoke(cli, ["export", "latest", "--to", "otlp://127.0.0.1:1", "--database-url", url])
    assert "did not take the spans: UNAVAILABLE" in str(done.exception)
    assert [record.getMessage().split("(")[0] for record in caplog.records] == ["otel-cmb: the receiver does not take the spans now "]
    assert "trying again for up to 2 s" in caplog.text
