"""The Collector configurations say only what the Collector (v0.159) accepts, refer to what is there, lose nothing by
default, and point at where `otel-cmb serve` listens."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from mapping_support import events, span

from otel_cmb import otlp
from otel_cmb.event import Event, Span
from otel_cmb.receiver.settings import ServeSettings, load
from otel_cmb.vocabulary import VOCABULARIES
from otel_cmb.vocabulary.base import PLAIN

CORPUS = Path(__file__).parent / "corpus"
ROOT = Path(__file__).parent.parent
FILES = {
    "collector-config.yaml": ROOT / "collector-config.yaml",
    "docs/collector-scaled.yaml": ROOT / "docs/collector-scaled.yaml",
}

ANY: Any = object()
"""A value, not a mapping with keys of its own."""
TEXT: Any = str
"""A value that the Collector takes as text only: a number has to be quoted."""
TLS = dict.fromkeys(
    ["insecure", "insecure_skip_verify", "ca_file", "cert_file", "key_file", "server_name_override", "min_version"], ANY
)
RETRY = dict.fromkeys(
    ["enabled", "initial_interval", "randomization_factor", "multiplier", "max_interval", "max_elapsed_time"], ANY
)
BATCH = dict.fromkeys(["flush_timeout", "min_size", "max_size", "sizer"], ANY)
QUEUE = {
    **dict.fromkeys(
        ["enabled", "num_consumers", "queue_size", "sizer", "block_on_overflow", "wait_for_result", "storage"], ANY
    ),
    "batch": BATCH,
}
GRPC_CLIENT = {
    **dict.fromkeys(
        [
            "endpoint",
            "compression",
            "keepalive",
            "headers",
            "balancer_name",
            "auth",
            "wait_for_ready",
            "read_buffer_size",
            "write_buffer_size",
            "timeout",
        ],
        ANY,
    ),
    "tls": TLS,
    "retry_on_failure": RETRY,
    "sending_queue": QUEUE,
}
GRPC_SERVER = {
    **dict.fromkeys(
        [
            "endpoint",
            "transport",
            "max_recv_msg_size_mib",
            "max_concurrent_streams",
            "keepalive",
            "auth",
            "read_buffer_size",
            "include_metadata",
        ],
        ANY,
    ),
    "tls": TLS,
}
HTTP_SERVER = {
    **dict.fromkeys(
        [
            "endpoint",
            "cors",
            "auth",
            "max_request_body_size",
            "include_metadata",
            "traces_url_path",
            "logs_url_path",
            "metrics_url_path",
        ],
        ANY,
    ),
    "tls": TLS,
}
BROKERS = [
    "brokers",
    "protocol_version",
    "client_id",
    "auth",
    "metadata",
    "tls",
    "resolve_canonical_bootstrap_servers_only",
]

# Component names and keys as of v0.159; `otlp` and `otlphttp` exporters, `loadbalancing` are deprecated aliases.
COMPONENTS: dict[str, dict[str, Any]] = {
    "extensions": {
        "file_storage": dict.fromkeys(
            ["directory", "create_directory", "timeout", "compaction", "fsync", "directory_permissions", "recreate"],
            ANY,
        ),
    },
    "receivers": {
        "otlp": {"protocols": {"grpc": GRPC_SERVER, "http": HTTP_SERVER}},
        "kafka": {
            **dict.fromkeys(
                [
                    *BROKERS,
                    "group_id",
                    "initial_offset",
                    "session_timeout",
                    "heartbeat_interval",
                    "autocommit",
                    "min_fetch_size",
                    "default_fetch_size",
                    "max_fetch_size",
                    "max_fetch_wait",
                    "max_partition_fetch_size",
                    "group_rebalance_strategies",
                    "header_extraction",
                ],
                ANY,
            ),
            "traces": dict.fromkeys(["topics", "encoding", "exclude_topics"], ANY),
            "message_marking": dict.fromkeys(["after", "on_error", "on_permanent_error"], ANY),
            "error_backoff": RETRY,
        },
    },
    "processors": {
        "memory_limiter": dict.fromkeys(
            ["check_interval", "limit_mib", "spike_limit_mib", "limit_percentage", "spike_limit_percentage"], ANY
        ),
        "filter": dict.fromkeys(
            [
                "error_mode",
                "trace_conditions",
                "log_conditions",
                "metric_conditions",
                "profile_conditions",
                "traces",
                "logs",
                "metrics",
                "profiles",
            ],
            ANY,
        ),
    },
    "exporters": {
        "otlp_grpc": GRPC_CLIENT,
        "kafka": {
            **dict.fromkeys(
                [
                    *BROKERS,
                    "timeout",
                    "partition_traces_by_id",
                    "partition_logs_by_resource_attributes",
                    "topic_from_attribute",
                    "include_metadata_keys",
                ],
                ANY,
            ),
            "traces": dict.fromkeys(["topic", "encoding", "topic_from_metadata_key"], ANY),
            "producer": dict.fromkeys(
                [
                    "max_message_bytes",
                    "required_acks",
                    "compression",
                    "compression_params",
                    "flush_max_messages",
                    "allow_auto_topic_creation",
                    "linger",
                ],
                ANY,
            ),
            "retry_on_failure": RETRY,
            "sending_queue": QUEUE,
        },
        "load_balancing": {
            "routing_key": ANY,
            "routing_attributes": ANY,
            "timeout": ANY,
            "protocol": {"otlp": {key: value for key, value in GRPC_CLIENT.items() if key != "endpoint"}},
            "resolver": {
                "static": dict.fromkeys(["hostnames"], ANY),
                "dns": dict.fromkeys(["hostname", "port", "interval", "timeout"], TEXT),
                "k8s": dict.fromkeys(["service", "ports", "timeout", "return_hostnames"], ANY),
            },
            "retry_on_failure": RETRY,
            "sending_queue": QUEUE,
        },
    },
}
SERVICE = {"extensions": ANY, "pipelines": ANY, "telemetry": ANY}


@pytest.fixture(params=FILES)
def found(request: Any) -> dict[str, Any]:
    document = yaml.safe_load(FILES[request.param].read_text())
    assert isinstance(document, dict)
    return document


def read(name: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(FILES[name].read_text())
    return document


def wrong_keys(value: Any, allowed: Any, where: str) -> list[str]:
    if allowed is ANY or (allowed is TEXT and isinstance(value, str)):
        return []
    if allowed is TEXT:
        return [f"{where} is no text"]
    if not isinstance(value, dict):
        return [] if value is None else [f"{where} is no mapping"]
    unknown = [f"{where}.{key}" for key in value if key not in allowed]
    return unknown + [
        line for key in value if key in allowed for line in wrong_keys(value[key], allowed[key], f"{where}.{key}")
    ]


def test_every_component_and_key_is_one_the_collector_has(found: dict[str, Any]) -> None:
    assert set(found) <= {*COMPONENTS, "service", "connectors"}
    for kind, known in COMPONENTS.items():
        for name, value in found.get(kind, {}).items():
            component = name.partition("/")[0]
            assert component in known, f"{kind}: {name}"
            assert wrong_keys(value, known[component], f"{kind}.{name}") == []
    assert set(found["service"]) <= set(SERVICE)


def test_the_check_finds_what_is_wrong() -> None:
    assert wrong_keys({"endpoint": "x", "sending_queue": {"batch": {"timeout": 1}}, "retry": {}}, GRPC_CLIENT, "e") == [
        "e.retry",
        "e.sending_queue.batch.timeout",
    ]
    assert wrong_keys({"dns": {"port": 4317}}, COMPONENTS["exporters"]["load_balancing"]["resolver"], "r") == ["r.dns.port is no text"]


def test_every_reference_is_to_something_there_and_everything_there_is_used(found: dict[str, Any]) -> None:
    used: dict[str, set[str]] = {"extensions": set(found["service"]["extensions"])}
    for name, pipeline in found["service"]["pipelines"].items():
        assert name.partition("/")[0] in ("traces", "logs")
        assert pipeline["receivers"]
        assert pipeline["exporters"]
        for kind in ("receivers", "processors", "exporters"):
            used.setdefault(kind, set()).update(pipeline.get(kind, []))
    for kind, names in used.items():
        assert names == set(found.get(kind, {})), kind
    for exporter in found["exporters"].values():
        storage = (exporter.get("sending_queue") or {}).get("storage")
        assert storage is None or storage in found["extensions"]


def test_nothing_gives_up_and_nothing_is_dropped_when_a_queue_is_full(found: dict[str, Any]) -> None:
    for name, exporter in found["exporters"].items():
        retry = exporter["retry_on_failure"]
        assert retry["enabled"] is True, name
        assert retry["max_elapsed_time"] == "0s", name  # the default gives up after 300 s
        queue = exporter.get("sending_queue")
        if queue is not None:
            assert queue["storage"], name  # survives a restart
            assert queue["block_on_overflow"] is True, name  # the default drops
            assert not queue.get("wait_for_result"), name  # cannot be combined with storage
    for name, pipeline in found["service"]["pipelines"].items():
        assert pipeline["processors"][0] == "memory_limiter", name
        assert not any(processor.partition("/")[0] == "batch" for processor in pipeline["processors"]), name


def test_batches_and_messages_fit_the_receiver(found: dict[str, Any]) -> None:
    settings, _ = load({}, env={})
    for exporter in found["exporters"].values():
        largest = ((exporter.get("sending_queue") or {}).get("batch") or {}).get("max_size", 0)
        assert largest < settings.max_bytes
    grpc = found["receivers"]["otlp"]["protocols"]["grpc"]
    assert grpc["max_recv_msg_size_mib"] == settings.max_request_mib
    assert found["receivers"]["otlp"]["protocols"]["http"]["max_request_body_size"] == settings.max_bytes


def defaults() -> ServeSettings:
    return load({}, env={})[0]


def test_endpoints_are_our_defaults_and_do_not_collide() -> None:
    config, settings = read("collector-config.yaml"), defaults()
    assert config["exporters"]["otlp_grpc/cmb"]["endpoint"] == str(settings.grpc)
    assert config["exporters"]["otlp_grpc/cmb"]["tls"] == {"insecure": True}
    assert config["exporters"]["otlp_grpc/cmb"]["timeout"] == "30s"
    assert settings.answer_timeout < 30
    protocols = config["receivers"]["otlp"]["protocols"]
    listening = {
        protocols["grpc"]["endpoint"],
        protocols["http"]["endpoint"],
        config["exporters"]["otlp_grpc/jaeger"]["endpoint"],
    }
    assert len(listening) == 3
    assert not listening & {str(settings.grpc), str(settings.http)}
    assert all(endpoint.startswith("127.0.0.1:") for endpoint in listening)


def test_jaeger_gets_everything_and_otel_cmb_what_agents_did() -> None:
    pipelines = read("collector-config.yaml")["service"]["pipelines"]
    assert pipelines["traces/all"]["exporters"] == ["otlp_grpc/jaeger"]
    assert not any("filter" in name for name in pipelines["traces/all"]["processors"])
    assert pipelines["traces/agents"]["exporters"] == ["otlp_grpc/cmb"]
    assert pipelines["logs/content"]["exporters"] == ["otlp_grpc/cmb"]


def kept(name: str) -> Callable[[Span], bool]:
    """The filter's condition, turned round, as the Collector reads it: `Keys` gives a list, which `IsMatch` looks at as JSON
    (pkg/ottl/ottlfuncs/README.md of contrib v0.158.0; run there with the same result over the whole corpus)."""
    (condition,) = read(name)["processors"]["filter/agents"]["trace_conditions"]
    *parts, root = condition.split(" and ")
    assert root == "not IsRootSpan()"  # without it the run of a web request shows as executing for ever
    patterns = []
    for part in parts:
        found = re.fullmatch(r'not IsMatch\((Keys\(span\.attributes\)|scope\.name), ("(?:[^"\\]|\\.)*")\)', part)
        assert found is not None, part
        patterns.append((found[1] == "scope.name", re.compile(json.loads(found[2]))))

    def keeps(span: Span) -> bool:
        keys = json.dumps(list(span.attributes), separators=(",", ":"))
        return not span.parent_span_id or any(
            pattern.search(span.scope.name if scope else keys) is not None for scope, pattern in patterns)

    return keeps


@pytest.mark.parametrize("name", FILES)
def test_the_filter_knows_every_vocabulary(name: str) -> None:
    keeps = kept(name)
    for vocabulary in VOCABULARIES:
        for key in [key for key, _ in vocabulary.discriminators] + [key for key, kind in vocabulary.present if kind != PLAIN]:
            assert keeps(span(2, 1, {"other": 1, key: ""})), (vocabulary.name, key)


@pytest.mark.parametrize("attributes", [
    {}, {"http.request.method": "GET", "user_agent.original": "x", "url.full": "http://ai.example/gen_ai.x"},
    {"db.system.name": "sqlite"}, {"rpc.system": "grpc"}, {"code.function.name": "email.send"},
])
@pytest.mark.parametrize("name", FILES)
def test_the_filter_drops_what_is_no_agents(name: str, attributes: dict[str, Any]) -> None:
    assert not kept(name)(span(2, 1, attributes, scope="opentelemetry.instrumentation.httpx"))
    assert kept(name)(span(2, None, attributes))


@pytest.mark.parametrize("name", FILES)
def test_the_filter_takes_no_event_of_any_framework(name: str) -> None:
    keeps, seen = kept(name), 0
    for path in CORPUS.rglob("*.otlp.json.gz"):
        spans = otlp.decode(json.loads(gzip.decompress(path.read_bytes()))).spans
        for one in spans:
            one.stamp.run_id = "run-1"
        alone = [one for one in spans if keeps(one)]
        seen += len(spans)
        assert by_trace(alone) == by_trace(spans), path
    assert seen > 1_500


def by_trace(spans: list[Span]) -> list[Event]:
    traces: dict[str, list[Span]] = {}
    for one in spans:
        traces.setdefault(one.trace_id, []).append(one)
    return sorted((event for trace in traces.values() for event in events(*trace)), key=lambda event: event.id)


def test_the_scaled_form_keeps_a_trace_together_and_commits_after_the_answer() -> None:
    config = read("docs/collector-scaled.yaml")
    assert config["exporters"]["load_balancing"]["routing_key"] == "traceID"
    assert config["exporters"]["load_balancing"]["protocol"]["otlp"]["sending_queue"] == {"enabled": False}
    assert config["exporters"]["load_balancing"]["resolver"]["dns"]["port"] == str(getattr(defaults().grpc, "port", None))
    protocol, resolver = (config["exporters"]["load_balancing"][key] for key in ("protocol", "resolver"))
    # The resolver gives addresses: a certificate with the name alone is refused without this, and nothing ever arrives.
    assert protocol["otlp"]["tls"]["server_name_override"] == resolver["dns"]["hostname"]
    assert config["exporters"]["kafka"]["partition_traces_by_id"] is True
    assert config["exporters"]["kafka"]["producer"]["required_acks"] == -1
    assert config["receivers"]["kafka"]["message_marking"] == {"after": True, "on_error": False}
    assert config["receivers"]["kafka"]["initial_offset"] == "earliest"
    assert config["receivers"]["kafka"]["traces"]["topics"] == [config["exporters"]["kafka"]["traces"]["topic"]]
    assert config["receivers"]["kafka"]["traces"]["encoding"] == config["exporters"]["kafka"]["traces"]["encoding"]
