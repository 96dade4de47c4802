"""The OpenTelemetry SDK for JavaScript sends into the receiver. Needs Node, npm and a registry: long form only."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
from pathlib import Path
from typing import Any

import pytest
from receiver_support import running

from otel_cmb import config
from otel_cmb.pipeline import Pipeline

pytestmark = [pytest.mark.long, pytest.mark.timeout(400)]

PACKAGES = {
    "@opentelemetry/api": "^1",
    "@opentelemetry/sdk-trace-node": "^2",
    "@opentelemetry/exporter-trace-otlp-grpc": ">=0.200",
    "@opentelemetry/exporter-trace-otlp-http": ">=0.200",
    "@opentelemetry/exporter-trace-otlp-proto": ">=0.200",
}
PROGRAM = """
const [form, target, compression] = process.argv.slice(2);
const { NodeTracerProvider, BatchSpanProcessor } = require('@opentelemetry/sdk-trace-node');
const { context, trace } = require('@opentelemetry/api');
const { OTLPTraceExporter } = require('@opentelemetry/exporter-trace-otlp-' + form);
const url = form === 'grpc' ? 'http://' + target : target + '/v1/traces';
const exporter = new OTLPTraceExporter({ url, compression });
const provider = new NodeTracerProvider({ spanProcessors: [new BatchSpanProcessor(exporter)] });
const tracer = provider.getTracer('js', '1');
const agent = tracer.startSpan('invoke_agent planner', { attributes: {
  'gen_ai.operation.name': 'invoke_agent', 'gen_ai.agent.name': 'planner' } });
const tool = tracer.startSpan('execute_tool search', { attributes: {
  'gen_ai.operation.name': 'execute_tool', 'gen_ai.tool.name': 'search',
  'gen_ai.tool.call.arguments': JSON.stringify({ q: 'h\\u00e9llo \\ud83d\\ude00', n: 9007199254740991 }) },
}, trace.setSpan(context.active(), agent));
tool.end();
agent.end();
provider.forceFlush().then(() => provider.shutdown()).then(() => process.exit(0), error => {
  console.error(error); process.exit(1); });
"""


@pytest.fixture(scope="module")
def node_modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed")
    place = tmp_path_factory.mktemp("js")
    (place / "package.json").write_text(json.dumps({"private": True, "dependencies": PACKAGES}))
    (place / "send.js").write_text(PROGRAM)
    try:
        done = subprocess.run(
            ["npm", "install", "--no-audit", "--no-fund", "--loglevel=error"],
            cwd=place,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    except subprocess.TimeoutExpired:
        pytest.skip("the npm registry did not answer in time")
    if done.returncode != 0:
        pytest.skip(f"npm install failed: {done.stderr[-300:]}")
    return place


@pytest.mark.parametrize(
    ("form", "compression"), [("grpc", "none"), ("grpc", "gzip"), ("http", "none"), ("http", "gzip"), ("proto", "gzip")]
)
def test_spans_of_javascript_are_rows(node_modules: Path, tmp_path: Path, form: str, compression: str) -> None:
    known: dict[str, Any] = {"database_url": f"sqlite:///{tmp_path}/e.db", "state_dir": str(tmp_path / "state")}
    pipeline = Pipeline(config.load({}, **known), per_trace_runs=True)
    try:
        with running(pipeline, general=known) as server:
            target = server.grpc if form == "grpc" else server.http
            done = subprocess.run(
                ["node", "send.js", form, target, compression],
                cwd=node_modules,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            assert pipeline.flush(20)
    finally:
        pipeline.shutdown(5)
    connection = sqlite3.connect(tmp_path / "e.db")
    found = connection.execute(
        "SELECT event_type, agent_name, depth, inputs FROM execution_events ORDER BY execution_order"
    ).fetchall()
    connection.close()
    assert [row[:3] for row in found] == [("agent_call", "planner", 0), ("tool_call", "planner", 1)]
    assert json.loads(found[1][3])["arguments"] == {"q": "h\u00e9llo \U0001f600", "n": 9007199254740991}
