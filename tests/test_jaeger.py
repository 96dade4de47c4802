"""What is common to Jaeger's faces: the generated messages, the index of facts, names of the GenAI view, purge, and a
database that belongs to the application."""

from __future__ import annotations

import gzip
import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from hypothesis import given, settings
from hypothesis import strategies as st
from jaeger_support import Client, normal, served, store_spans
from sqlalchemy import create_engine, text
from support import application_schema

from otel_cmb import config
from otel_cmb.errors import SchemaError
from otel_cmb.event import Link, Resource, Scope, Span, SpanEvent, Stamp
from otel_cmb.items import Item
from otel_cmb.jaeger import proto
from otel_cmb.jaeger.encode import traces_data
from otel_cmb.jaeger.genai import presented
from otel_cmb.jaeger.match import TraceQuery, matches, tags_wanted
from otel_cmb.jaeger.query import JaegerQuery
from otel_cmb.otlp import decode
from otel_cmb.search_index import (
    MAX_TEXT,
    OPERATION,
    SCOPE_NAME,
    SCOPE_VERSION,
    SERVICE,
    SPAN_KIND,
    SPAN_STATUS,
    SPREAD_NS,
    Facts,
    Part,
    as_string,
    tag,
)
from otel_cmb.store import Store

T0 = 1_770_000_000_000_000_000


def span(n: int = 1, **fields: Any) -> Span:
    fields.setdefault("resource", Resource({"service.name": "svc"}))
    fields.setdefault("name", "op")
    return Span(f"{n:032x}", f"{n:016x}", start_ns=T0, end_ns=T0 + 10**6, **fields)


# The generated messages.


def test_the_generated_messages_are_those_of_the_proto_files(tmp_path: Path) -> None:
    """In a process of its own: the new modules would collide with the old in one descriptor pool."""
    pytest.importorskip("grpc_tools")
    from otel_cmb.jaeger.proto.generate import FILES, generate

    generate(tmp_path)
    program = (
        "import importlib, sys; sys.path.insert(0, sys.argv[1]); out = {}\n"
        "import otel_cmb.jaeger.proto as package; package.__path__[:] = [sys.argv[1] + '/otel_cmb/jaeger/proto']\n"
        "for name in sys.argv[2:]:\n"
        "    module = importlib.import_module('otel_cmb.jaeger.proto.' + name + '_pb2')\n"
        "    assert sys.argv[1] in module.__file__\n"
        "    out[name] = module.DESCRIPTOR.serialized_pb.hex()\n"
        "import json; print(json.dumps(out))"
    )
    made = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), *FILES], capture_output=True, text=True, check=True, timeout=60)
    fresh = json.loads(made.stdout)
    for name in FILES:
        module = __import__(f"otel_cmb.jaeger.proto.{name}_pb2", fromlist=["DESCRIPTOR"])
        held, new = FileDescriptorProto(), FileDescriptorProto.FromString(bytes.fromhex(fresh[name]))
        module.DESCRIPTOR.CopyToProto(held)
        assert held == new, f"{name}_pb2.py is stale: python -m otel_cmb.jaeger.proto.generate"


def test_the_generated_code_was_made_by_an_old_protoc() -> None:
    for path in Path(proto.__file__).parent.glob("*_pb2.py"):
        assert "ValidateProtobufRuntimeVersion" not in path.read_text(), path


# The index of facts.

texts = st.text(max_size=300)
values = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.binary(max_size=8) | texts | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3), max_leaves=4,
)
attributes = st.dictionaries(st.text(max_size=8), values, max_size=4)
SPECIAL = {"error", "span.status", "span.kind", "scope.name", "scope.version"}


@given(attributes, attributes, attributes, attributes, attributes)
@settings(max_examples=150, deadline=None)
def test_whatever_matches_is_in_the_index(one: Any, two: Any, three: Any, four: Any, five: Any) -> None:
    made = span(
        attributes=one, events=[SpanEvent("e", T0, two)], links=[Link("1" * 32, "2" * 16, "", three)],
        resource=Resource({**four, "service.name": "svc"}), scope=Scope("scope", "1", five))
    part, facts = Part(T0, 1, made.trace_id, T0, T0), Facts()
    facts.add(made, Part(T0, 2, made.trace_id, T0, T0))  # whatever it remembers of the span before
    part.add(made, facts)
    for source in (one, two, three, five, made.resource.attributes):
        for key, value in source.items():
            if key in SPECIAL or key.startswith("resource."):
                continue
            query = TraceQuery(service="svc", operation="op", attributes={
                key: as_string(value), "scope.name": "scope", "scope.version": "1", "span.kind": "internal",
                "error": "false", "resource.service.name": "svc", "span.status": "unset"})
            assert matches(made, query)
            assert all(item in part.tags for item in tags_wanted(query))


@pytest.mark.parametrize(("value", "expected"), [
    ("x", "x"), (True, "true"), (0, "0"), (-5, "-5"), (1.0, "1"), (72.5, "72.5"), (1e21, "1e+21"),
    (1e20, "1" + "0" * 20), (1.5e-7, "1.5e-7"), (0.000001, "0.000001"), (0.1, "0.1"), (-0.0, "-0"),
    (b"\x00\xff", "AP8="), ([1, "a"], '[1,"a"]'),
    ({"b": 1, "a": [True]}, '{"a":[true],"b":1}'), (None, ""), (math.nan, "json: unsupported value: NaN"),
    ([b"\xff"], '["/w=="]'),
])
def test_values_are_compared_as_the_collector_writes_them(value: Any, expected: str) -> None:
    assert as_string(value) == expected


def test_long_texts_are_looked_for_in_the_spans(sqlite_url: str, state_dir: Path) -> None:
    store_spans(sqlite_url, state_dir, [span(attributes={"prompt": "x" * 1000})])
    query = JaegerQuery(config.load({}, database_url=sqlite_url))
    assert len(list(query.find(TraceQuery(attributes={"prompt": "x" * 1000})))) == 1
    assert list(query.find(TraceQuery(attributes={"prompt": "x" * 999}))) == []
    query.close()


def test_summaries_find_by_values_that_are_in_the_columns(database_url: str, state_dir: Path) -> None:
    question = "what is the redshift of the galaxy behind the galaxy"
    store_spans(database_url, state_dir, [
        span(n, name="chat", attributes={
            "gen_ai.operation.name": "chat", "gen_ai.prompt": f"{question} {n}", "gen_ai.completion": "large",
            "gen_ai.request.model": "m", "exact": question,
            "gen_ai.input.messages": json.dumps([{"role": "user", "content": "x" * 50_000}])})
        for n in (1, 2)
    ])
    query = JaegerQuery(config.load({}, database_url=database_url))
    for attributes, count in (
        ({"gen_ai.prompt": f"{question} 1"}, 1), ({"exact": question}, 2), ({"gen_ai.request.model": "m"}, 2),
        ({"gen_ai.prompt": question}, 0),
    ):
        wanted = TraceQuery(service="svc", attributes=attributes)
        assert len(list(query.summaries(wanted))) == len(list(query.find(wanted))) == count
    query.close()


def test_parts_are_bounded_in_size_and_time() -> None:
    part = Part(T0, 1, "1" * 32, T0, T0)
    near, far = span(), span()
    far.start_ns = T0 + SPREAD_NS + 1
    assert part.takes(near)
    assert not part.takes(far)
    facts = Facts()
    for n in range(1000):
        near.attributes = {"n": n}
        part.add(near, facts)
    assert 3000 < len(part.tags) <= 3100  # each of them once, and what is not an attribute
    assert not part.takes(near)


two_keys = st.dictionaries(st.sampled_from(("a", "b")), values, max_size=2)


@given(st.lists(st.tuples(two_keys, st.integers(0, 2), st.integers(0, 1)), max_size=12))
@settings(max_examples=150, deadline=None)
def test_what_is_remembered_of_other_spans_changes_no_fact(made: list[tuple[dict[str, Any], int, int]]) -> None:
    resources = [Resource({"service.name": "svc", "n": 1}), Resource({"service.name": True, "n": 1.0}), Resource({})]
    facts, part = Facts(), Part(T0, 1, "1" * 32, T0, T0)
    expected: set[bytes] = set()
    for attributes, resource, status in made:
        one = span(attributes=attributes, resource=resources[resource], status_code=status)
        part.add(one, facts)
        known: set[bytes] = set()
        for source in (one.attributes, one.resource.attributes, one.scope.attributes):
            known |= {tag(key, as_string(value)) for key, value in source.items() if len(as_string(value)) <= MAX_TEXT}
        known |= {
            tag(SERVICE, as_string(one.resource.attributes.get("service.name", ""))), tag(OPERATION, one.name),
            tag(SPAN_KIND, str(one.kind)), tag(SPAN_STATUS, str(status)),
            tag(SCOPE_NAME, one.scope.name), tag(SCOPE_VERSION, one.scope.version)}
        expected |= known
        assert known <= part.known
    assert part.known == expected
    assert sorted(part.tags[n:n + 3] for n in range(0, len(part.tags), 3)) == sorted(expected)


# Names of the GenAI view.


def test_agent_spans_of_any_vocabulary_get_the_names_the_page_reads() -> None:
    row = {"event_type": "tool_call", "agent_name": "engineer", "status": "completed",
           "inputs": {"tool_name": "search", "arguments": {"q": 1}}, "outputs": {"result": "found"},
           "meta": {"tool_call_id": "call_1"}}
    (shown,) = presented([span(attributes={"openinference.span.kind": "TOOL"})], row)
    assert shown.attributes == {
        "openinference.span.kind": "TOOL", "gen_ai.operation.name": "execute_tool", "gen_ai.agent.name": "engineer",
        "gen_ai.tool.name": "search", "gen_ai.tool.call.arguments": '{"q": 1}', "gen_ai.tool.call.result": "found",
        "gen_ai.tool.call.id": "call_1"}

    row = {"event_type": "llm_call", "inputs": {"messages": [{"role": "user", "content": "hi"}]},
           "outputs": {"messages": [{"role": "assistant", "content": None, "tool_calls": [
               {"id": "c", "function": {"name": "f", "arguments": "{}"}}]}]},
           "meta": {"model": "gpt-4.1", "prompt_tokens": 3, "completion_tokens": 0}}
    (shown,) = presented([span()], row)
    assert json.loads(shown.attributes["gen_ai.input.messages"]) == [
        {"role": "user", "parts": [{"type": "text", "content": "hi"}]}]
    assert json.loads(shown.attributes["gen_ai.output.messages"])[0]["parts"] == [
        {"type": "tool_call", "id": "c", "name": "f", "arguments": "{}"}]
    assert shown.attributes["gen_ai.usage.output_tokens"] == 0
    assert shown.attributes["gen_ai.request.model"] == "gpt-4.1"

    row = {"event_type": "agent_call", "inputs": {"message": "go"}, "outputs": {"response": "gone"}, "meta": {}}
    (shown,) = presented([span()], row)
    assert json.loads(shown.attributes["gen_ai.output.messages"])[0]["role"] == "assistant"


def test_spans_that_speak_for_themselves_stay_as_they_are() -> None:
    row = {"event_type": "llm_call", "inputs": {"messages": []}, "meta": {"model": "m"}, "agent_name": "a"}
    own = span(attributes={"gen_ai.operation.name": "chat"})
    assert presented([own], row) == [own]
    (shown,) = presented([span(attributes={"gen_ai.operation.name": "chat", "gen_ai.usage.thinking_tokens": 0})], row)
    assert shown.attributes["gen_ai.usage.reasoning.output_tokens"] == 0
    plain = span()
    assert presented([plain], {"event_type": "info"}) == [plain]


def test_running_spans_have_no_length_and_say_so() -> None:
    running = span()
    running.end_ns = None
    (shown,) = presented([running], {"event_type": "info", "status": "running"})
    assert shown.end_ns == T0
    assert shown.attributes == {"cmb.status": "running"}
    assert running.end_ns is None


# Encoding.


def test_chunks_keep_order_and_size() -> None:
    made = [span(1, attributes={"n": n, "text": "x" * 5000}) for n in range(300)]
    chunks = list(traces_data(made, 200_000))
    assert len(chunks) >= 8
    assert all(len(chunk) <= 200_000 for chunk in chunks)
    huge = span(1, attributes={"text": "x" * 500_000, "bytes": b"y" * 500_000}, events=[
        SpanEvent("e", T0, {"list": ["z" * 100_000] * 10})])
    (chunk,) = traces_data([huge], 200_000)
    assert len(chunk) <= 200_000
    many = span(1, attributes={f"{n}": "x" * 50 for n in range(10_000)})
    (chunk,) = traces_data([many], 100_000)
    assert len(chunk) <= 100_000


# The documentation.


@pytest.mark.parametrize("number", range(3))
def test_the_configurations_in_the_documentation_are_whole(number: int) -> None:
    """Every component a pipeline or the service names is declared, every storage a component names too."""
    page = (Path(__file__).parents[1] / "docs" / "jaeger.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    found = yaml.safe_load(blocks[number])
    service = found["service"]
    assert set(service["extensions"]) == set(found["extensions"])
    for kind in ("receivers", "processors", "exporters"):
        assert set(service["pipelines"]["traces"].get(kind, ())) == set(found.get(kind, ()))
    storages = set(found["extensions"]["jaeger_storage"]["backends"])
    named = {found["extensions"]["jaeger_query"]["storage"]["traces"]}
    named |= {exporter["trace_storage"] for exporter in found["exporters"].values() if exporter}
    assert named == storages
    for backend in found["extensions"]["jaeger_storage"]["backends"].values():
        assert set(backend.get("grpc", {})) <= {"endpoint", "tls"}  # max_recv_msg_size_mib is unknown before Jaeger v2.19
    for exporter in found["exporters"].values():
        queue = (exporter or {}).get("queue", {"num_consumers": 1, "queue_size": 1, "sizer": "requests"})
        assert queue["num_consumers"] > 0  # Jaeger has no defaults for its queue, and does not start without them
        assert queue["queue_size"] > 0
        assert queue["sizer"] == "requests"


# Servers and databases.


def test_a_caller_without_a_token_is_refused(sqlite_url: str) -> None:
    def allow(context: Any) -> tuple[grpc.StatusCode, str] | None:
        if ("authorization", "Bearer x") in context.invocation_metadata():
            return None
        return grpc.StatusCode.UNAUTHENTICATED, "a token is needed"

    with served(sqlite_url, allow) as address, grpc.insecure_channel(address) as channel:
        for ask in (Client(channel).services, lambda: Client(channel).find_traces(service="x")):
            with pytest.raises(grpc.RpcError, match="a token is needed") as refused:
                ask()
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        call = channel.unary_unary("/jaeger.storage.v2.TraceReader/GetServices")
        assert call(b"", metadata=(("authorization", "Bearer x"),)) == b""


def test_purge_empties_everything(database_url: str, state_dir: Path) -> None:
    query = JaegerQuery(config.load({}, database_url=database_url))
    query.purge()  # nothing there yet
    store_spans(database_url, state_dir, [span(n) for n in range(1, 4)])
    assert query.services() == ["svc"]
    query.purge()
    assert query.services() == query.operations("svc") == list(query.find(TraceQuery())) == []
    store_spans(database_url, state_dir, [span(9)])
    assert query.services() == ["svc"]
    query.close()


def test_readers_do_not_hold_a_writer_up(sqlite_url: str, state_dir: Path) -> None:
    store_spans(sqlite_url, state_dir, [span(n) for n in range(1, 100)])
    query = JaegerQuery(config.load({}, database_url=sqlite_url))
    found = query.find(TraceQuery(service="svc"))
    next(found)  # a client that reads slowly
    store_spans(sqlite_url, state_dir, [span(200)])
    assert len(list(found)) == 98
    assert len(list(query.find(TraceQuery(service="svc", limit=200)))) == 100
    query.close()


def test_a_database_of_another_program_is_an_error(sqlite_url: str) -> None:
    engine = create_engine(sqlite_url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE sessions (id TEXT)"))
    engine.dispose()
    with pytest.raises(SchemaError):
        JaegerQuery(config.load({}, database_url=sqlite_url)).services()


@pytest.fixture(params=["sqlite", "postgresql", "jsonb"])
def application(request: pytest.FixtureRequest) -> Iterator[tuple[str, application_schema.Application, str]]:
    kind = request.param
    url = request.getfixturevalue("sqlite_url" if kind == "sqlite" else "postgresql_url")
    made = application_schema.make(url, application_schema.Shape(json="jsonb" if kind == "jsonb" else "json"))
    yield url, made, made.add_run(made.add_session(), started=True)
    made.engine.dispose()


def test_the_applications_own_database(application: tuple[str, Any, str], state_dir: Path) -> None:
    url, made, run_id = application
    before = made.fingerprint()
    spans = [
        span(1, attributes={
            "cmb.run.id": run_id, "x": 1.0, "big": 1e20, "deep": {"a": [-0.0, b"\xff"]},
            "text": '{"b": 1, "aa": [1.0, 1e17], "c": "' + "z" * 80 + '"}'}),
        span(2, name="other",
             attributes={"cmb.run.id": run_id, "input.value": "q" * 100, "openinference.span.kind": "LLM"},
             resource=Resource({"service.name": "two"})),
        span(3, attributes={"cmb.run.id": run_id}, name="x" * 300),
    ]
    store_spans(url, state_dir, spans)
    query = JaegerQuery(config.load({}, database_url=url))
    try:
        (first,) = query.trace(spans[0].trace_id)
        assert repr(sorted(first.attributes.items())) == repr(sorted(spans[0].attributes.items()))
        assert query.services() == ["svc", "two"]
        assert query.operations("two") == [("other", "internal")]
        around = {"start_min_ns": T0 - 10**9, "start_max_ns": T0 + 10**9}
        found = list(query.find(TraceQuery(service="svc", attributes={"x": "1", "big": "1" + "0" * 20}, **around)))
        assert [item[0].trace_id for item in found] == [spans[0].trace_id]
        assert list(query.find(TraceQuery(service="svc", start_min_ns=T0 + 10**9, start_max_ns=T0 + 10**10))) == []
        assert len(list(query.find(TraceQuery(limit=2)))) == 2
        assert query.dependencies(T0 - 10**9, T0 + 10**9) == []
        with pytest.raises(PermissionError):
            query.purge()
    finally:
        query.close()
    assert made.fingerprint() == before


def opened(path: Path) -> bytes:
    data = path.read_bytes()
    return gzip.decompress(data) if path.suffix == ".gz" else data


def test_every_capture_comes_back_exactly(database_url: str, state_dir: Path) -> None:
    """Spans of every framework in the corpus, through mapper, columns, references and histories and out again; only
    what the GenAI view reads is added, and what is no span of its own (pending, repeated usage) is not there."""
    sent: dict[tuple[str, str, int], Span] = {}
    for path in sorted((Path(__file__).parent / "corpus").rglob("*.otlp.json*")):
        for made in decode(json.loads(opened(path))).spans:
            sent[made.trace_id, made.span_id, made.start_ns] = made
    assert len(sent) > 500
    found = config.load({}, database_url=database_url, state_dir=str(state_dir), record="all")
    store = Store(found, str(state_dir), per_trace_runs=True)
    items = [Item(n, span=replace(made, stamp=Stamp())) for n, made in enumerate(sent.values())]
    for start in range(0, len(items), 256):
        store.write(items[start : start + 256])
    store.close()
    kept = sum(item.outcome is not None and item.outcome.result in {"committed", "merged"} for item in items)
    query = JaegerQuery(config.load({}, database_url=database_url))
    back = [made for spans in query.traces({key[0] for key in sent}) for made in spans]
    query.close()
    assert len(back) == kept > 0.95 * len(sent)
    for made in back:
        original = sent[made.trace_id, made.span_id, made.start_ns]
        assert made.attributes.keys() >= original.attributes.keys()
        assert {key for key in made.attributes if key not in original.attributes} <= {
            name for name in made.attributes if name.startswith("gen_ai.")}
        shown = replace(made, attributes={key: made.attributes[key] for key in original.attributes})
        assert normal(shown) == normal(original)
