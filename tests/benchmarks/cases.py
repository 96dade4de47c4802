"""What is measured. Each case yields rows: ours, what is beside it, the ratio."""

from __future__ import annotations

import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.benchmarks import limits, peers, workload

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Row:
    what: str
    must_reach: str
    ours: str
    beside: str = ""
    ratio: str = ""
    spread: str = ""


@dataclass(frozen=True)
class Case:
    name: str
    run: Callable[[Path, int, bool], Iterator[Row]]
    full_only: bool = False


def _python(code: str, *arguments: str, cwd: Path, timeout: float = 900, **environment: str) -> str:
    """Run a program of its own: no state is shared between measurements."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OTEL_EXPORTER_CMB_STATE_DIR": str(cwd / "state"), **environment}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout


def _spread(values: Sequence[float], unit: str = "") -> str:
    return f"{min(values):,.0f} to {max(values):,.0f}{unit}" if max(values) >= 10 else f"{min(values):.2f} to {max(values):.2f}{unit}"


def _rates(name: str, must_reach: str, ours: Sequence[float], raw: Sequence[float], beside: str) -> Row:
    ratio = statistics.median(o / r for o, r in zip(ours, raw, strict=True))
    return Row(name, must_reach, f"{statistics.median(ours):,.0f}/s", f"{beside} {statistics.median(raw):,.0f}/s", f"{ratio:.2f}", _spread(ours))


# -- on the instrumented thread ------------------------------------------------------------------------------------------

_OVERHEAD = """
import gc, os, statistics, sys, time
mode = sys.argv[1]
from opentelemetry.sdk.trace import TracerProvider
provider = TracerProvider()
if mode != "bare":
    from otel_cmb import CMBSpanProcessor
    processor = CMBSpanProcessor()
    provider.add_span_processor(processor)
tracer = provider.get_tracer("bench")
prompt, output = "measure the Hubble constant again " * 18, "the result is 67.4 km/s/Mpc, see figure " * 10
agents = ["a%d" % n for n in range(20)]
def span(depth):
    with tracer.start_as_current_span("chat gpt-4.1") as one:
        put = one.set_attribute
        put("gen_ai.operation.name", "chat"); put("gen_ai.agent.name", agents[depth]); put("gen_ai.provider.name", "openai")
        put("gen_ai.request.model", "gpt-4.1"); put("gen_ai.input.messages", prompt); put("gen_ai.output.messages", output)
        put("gen_ai.usage.input_tokens", 100); put("gen_ai.usage.output_tokens", 20); put("app.stage", "analysis")
        put("app.attempt", depth); put("app.score", 0.5); put("app.cached", False)
        if depth: span(depth - 1)
for _ in range(20): span(15)
if mode != "bare": processor.force_flush()
took = []
for _ in range(120):
    begun = time.perf_counter(); span(15); took.append((time.perf_counter() - begun) / 16)
    if mode == "idle": processor.force_flush()
print(statistics.median(took) * 1e6)
os._exit(0)
"""


def overhead(directory: Path, rounds: int, full: bool) -> Iterator[Row]:
    found: dict[str, list[float]] = {"bare": [], "idle": [], "busy": []}
    for n in range(rounds):
        for mode in list(found):
            place = directory / f"{mode}{n}"
            place.mkdir()
            found[mode].append(float(_python(_OVERHEAD, mode, cwd=place)))
    bare = statistics.median(found["bare"])
    for mode in ("idle", "busy"):
        ratio = statistics.median(o / b for o, b in zip(found[mode], found["bare"], strict=True))
        yield Row(f"cost per span on the instrumented thread, writer {mode}", "at most 3", f"{statistics.median(found[mode]):.1f} µs",
                  f"bare SDK {bare:.1f} µs", f"{ratio:.2f}", _spread(found[mode], " µs"))


_BURST = """
import json, os, sys, time
count = int(sys.argv[1])
from opentelemetry.sdk.trace import TracerProvider
from otel_cmb import CMBSpanProcessor
import random
from tests.benchmarks import workload
provider = TracerProvider(); processor = CMBSpanProcessor(on_missing_run="create"); provider.add_span_processor(processor)
tracer = provider.get_tracer("bench")
chance = random.Random(1)
made = [workload.attributes(chance, operation, workload._AGENTS[n % 4]) for n, (_, operation) in enumerate(workload._SHAPE)]
begun = time.perf_counter()
from opentelemetry import trace, context
for _ in range(count // 20):
    open_ = []
    for n, (parent, operation) in enumerate(workload._SHAPE):
        where = context.Context() if parent is None else trace.set_span_in_context(open_[parent])
        one = tracer.start_span(operation, context=where); one.set_attribute("cmb.run.id", workload.RUN); one.set_attributes(made[n])
        open_.append(one)
    for one in reversed(open_): one.end()
ended = time.perf_counter()
left = processor.stats().pending
flushed = processor.force_flush(600_000)
drained = time.perf_counter()
stats = processor.stats()
print(json.dumps({"offered": count / (ended - begun), "drained": count / (drained - begun), "after": left / (drained - ended),
                  "flushed": flushed, "lost": sum(stats.lost.values()), "committed": stats.committed + stats.merged,
                  "received": stats.received}))
os._exit(0)
"""


def burst(directory: Path, rounds: int, full: bool) -> Iterator[Row]:
    import json

    count = 100_000 if full else 10_000
    rates, after, raw, lost, offered = [], [], [], 0, []
    for n in range(1 if not full else min(rounds, 3)):
        place = directory / str(n)
        place.mkdir()
        found = json.loads(_python(_BURST, str(count), cwd=place))
        if not found["flushed"] or found["committed"] != found["received"]:
            raise RuntimeError(f"a burst was not stored: {found}")
        lost += found["lost"]
        rates.append(found["drained"])
        after.append(found["after"])
        offered.append(found["offered"])
        ddl, rows = limits.sqlite_rows(place / "otel_cmb.db")
        raw.append(limits.sqlite_limit(place / "raw.db", ddl, rows))
    row = _rates(f"burst of {count:,} spans: stored, from first span to last commit (offered {statistics.median(offered):,.0f}/s)",
                 "0 lost; 0.6", rates, raw, "raw limit")
    yield replace(row, what=f"{row.what}; {lost} lost")
    yield _rates("what was left of it when the program had ended its last span", "0.6", after, raw, "raw limit")


# -- ingest --------------------------------------------------------------------------------------------------------------

_INGEST = """
import sys, time
from otel_cmb import config
from otel_cmb.items import Item
from otel_cmb.store import Store
from tests.benchmarks import workload
url, count, seed, run = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
made = list(workload.spans(count, seed=seed, run=run))
settings = config.load(database_url=url, on_missing_run="create", busy_timeout=60)
store = Store(settings, "state")
store.connect()
if len(sys.argv) > 5:  # begin together
    while time.time() < float(sys.argv[5]): pass
batches = [[Item(n + i, span=span) for i, span in enumerate(made[n:n + 512])] for n in range(0, count, 512)]
begun = time.perf_counter()
for batch in batches:
    while True:
        try:
            store.write(batch); break
        except Exception as error:
            from otel_cmb.faults import classify, Fault
            if classify(error).fault not in (Fault.OUTAGE, Fault.DUPLICATE): raise
elapsed = time.perf_counter() - begun
assert all(item.outcome.result == "committed" for batch in batches for item in batch), {item.outcome.result for batch in batches for item in batch}
print(count / elapsed, elapsed)
"""


@contextmanager
def _postgresql() -> Iterator[Any]:
    sys.path.insert(0, str(ROOT / "tests"))
    from support import postgres

    server = postgres.Server.embedded(durable=True)
    try:
        yield server, postgres
    finally:
        server.close()


def ingest_sqlite(directory: Path, rounds: int, full: bool) -> Iterator[Row]:
    count = 40_960 if full else 10_240
    ours, raw = [], []
    for n in range(rounds):
        place = directory / str(n)
        place.mkdir()
        ours.append(float(_python(_INGEST, "sqlite:///x.db", str(count), "1", workload.RUN, cwd=place).split()[0]))
        ddl, rows = limits.sqlite_rows(place / "x.db")
        raw.append(limits.sqlite_limit(place / "raw.db", ddl, rows))
        shutil.rmtree(place)
    yield _rates(f"durable ingest in process, SQLite, {count:,} spans in batches of 512", "0.7", ours, raw, "raw executemany")


def ingest_postgresql(directory: Path, rounds: int, full: bool) -> Iterator[Row]:
    count = 40_960 if full else 10_240
    ours, raw = [], []
    with _postgresql() as (server, postgres):
        for n in range(rounds):
            place = directory / str(n)
            place.mkdir()
            with server.database() as source, server.database() as target:
                url = postgres.text(source)
                ours.append(float(_python(_INGEST, url, str(count), "1", workload.RUN, cwd=place).split()[0]))
                raw.append(_postgresql_limit(postgres, source, target))
    yield _rates(f"durable ingest in process, PostgreSQL, {count:,} spans in batches of 512", "0.7", ours, raw, "raw COPY + ON CONFLICT")


def _postgresql_limit(postgres: Any, source: Any, target: Any) -> float:
    from otel_cmb import config, migrations
    from otel_cmb.engines import make_engine

    settings = config.load(database_url=postgres.text(target))
    engine = make_engine(settings)
    migrations.upgrade(engine, settings)
    engine.dispose()
    return limits.postgresql_limit(_libpq(source), _libpq(target))


def _libpq(url: Any) -> str:
    return str(url.set(drivername="postgresql").render_as_string(hide_password=False))


def processes(directory: Path, rounds: int, full: bool) -> Iterator[Row]:
    """Several writers of one database, each its own run; and all of one run."""
    count = 5_120
    with _postgresql() as (server, postgres):
        for kind in ("SQLite", "PostgreSQL"):
            for writers in (4, 8):
                alone, together = [], []
                for n in range(min(rounds, 3)):
                    for many, rates in ((1, alone), (writers, together)):
                        place = directory / f"{kind}{writers}{n}{many}"
                        place.mkdir()
                        with server.database() as database:
                            url = "sqlite:///x.db" if kind == "SQLite" else postgres.text(database)
                            rates.append(_together(place, url, many, count))
                ratio = statistics.median(t / a for t, a in zip(together, alone, strict=True))
                yield Row(f"{writers} writing processes, {kind}", "0.9" if kind == "SQLite" else "more than 1", f"{statistics.median(together):,.0f}/s",
                          f"one process {statistics.median(alone):,.0f}/s", f"{ratio:.2f}", _spread(together))


def _together(place: Path, url: str, writers: int, count: int) -> float:
    start = str(time.time() + 2.0 + 0.4 * writers)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OTEL_EXPORTER_CMB_STATE_DIR": str(place / "state")}
    running = [
        subprocess.Popen([sys.executable, "-c", _INGEST, url, str(count), str(n), f"{workload.RUN}-{n}", start],
                         cwd=place, env=env, stdout=subprocess.PIPE, text=True)
        for n in range(writers)]
    slowest = 0.0
    for process in running:
        output, _ = process.communicate(timeout=600)
        if process.returncode:
            raise RuntimeError("a writer failed")
        slowest = max(slowest, float(output.split()[1]))
    return writers * count / slowest


# -- receiver ------------------------------------------------------------------------------------------------------------

_SENDER = """
import statistics, sys, time
import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceStub
from otel_cmb.otlp import request_from_spans
from tests.benchmarks import workload
address, count, seed, mode = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
made = list(workload.spans(count, seed=seed))
size = 512 if mode == "bulk" else 1
requests = [request_from_spans(made[n:n + size]) for n in range(0, count, size)]
channel = grpc.insecure_channel(address, options=[("grpc.max_send_message_length", -1)])
stub = TraceServiceStub(channel)
stub.Export(request_from_spans(workload.spans(1, seed=99)))
if len(sys.argv) > 5:
    while time.time() < float(sys.argv[5]): pass
took = []
begun = time.perf_counter()
for request in requests:
    at = time.perf_counter(); stub.Export(request); took.append(time.perf_counter() - at)
    if mode == "single": time.sleep(0.01)
elapsed = time.perf_counter() - begun
took.sort()
print(count / elapsed, elapsed, took[len(took) // 2] * 1e3, took[int(len(took) * 0.99)] * 1e3)
"""


@contextmanager
def _server(place: Path, url: str) -> Iterator[tuple[str, subprocess.Popen[str], float]]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OTEL_EXPORTER_CMB_STATE_DIR": str(place / "state")}
    begun = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "otel_cmb.cli", "serve", "--database-url", url, "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0",
         "--on-missing-run", "create"], cwd=place, env=env, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    address = ""
    for line in process.stderr:
        found = re.search(r"grpc=(\S+)", line)
        if found:
            address = found.group(1)
            break
    host, _, port = address.rpartition(":")
    socket.create_connection((host, int(port)), 5).close()
    ready = time.perf_counter() - begun
    try:
        yield address, process, ready
    finally:
        process.terminate()
        process.wait(30)
        process.stderr.close()


def _memory(process: subprocess.Popen[str], field: str = "VmRSS") -> float:
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
    return int(re.search(rf"{field}:\s+(\d+)", status).group(1)) / 1024  # type: ignore[union-attr]


def receiver(directory: Path, rounds: int, full: bool) -> Iterator[Row]:
    count = 40_960 if full else 10_240
    ours, four, raw, peaks, idles, latencies, starts = [], [], [], [], [], [], []
    for n in range(rounds):
        place = directory / str(n)
        place.mkdir()
        with _server(place, "sqlite:///x.db") as (address, process, ready):
            starts.append(ready * 1000)
            idles.append(_memory(process))
            single = _python(_SENDER, address, "300", "7", "single", cwd=place).split()
            latencies.append(float(single[3]))
            one, several = _received(place, address, count)
            ours.append(one)
            four.append(several)
            peaks.append(_memory(process, "VmHWM"))
        ddl, rows = limits.sqlite_rows(place / "x.db")
        raw.append(limits.sqlite_limit(place / "raw.db", ddl, rows))
        shutil.rmtree(place)
    yield _rates(f"durable ingest through the receiver, gRPC, SQLite, {count:,} spans, requests of 512", "0.5", ours, raw, "raw limit")
    yield _rates("the same from 4 senders", "0.5", four, raw, "raw limit")
    yield Row("p99 latency of a single-span request", "25 ms", f"{statistics.median(latencies):.1f} ms",
              spread=_spread(latencies, " ms"))
    yield Row("start of `otel-cmb serve` to its first answer", "1 s", f"{statistics.median(starts):,.0f} ms", spread=_spread(starts, " ms"))
    yield Row("memory of the server, SQLite: idle, highest", "120 MiB", f"{statistics.median(idles):.0f}, {max(peaks):.0f} MiB")
    ours, four, raw, peaks = [], [], [], []
    with _postgresql() as (server, postgres):
        for n in range(min(rounds, 3)):
            place = directory / f"postgresql{n}"
            place.mkdir()
            with server.database() as source, server.database() as target:
                with _server(place, postgres.text(source)) as (address, process, _):
                    one, several = _received(place, address, count)
                    ours.append(one)
                    four.append(several)
                    peaks.append(_memory(process, "VmHWM"))
                raw.append(_postgresql_limit(postgres, source, target))
    yield _rates(f"durable ingest through the receiver, gRPC, PostgreSQL, {count:,} spans, requests of 512", "0.5", ours, raw, "raw limit")
    yield _rates("the same from 4 senders", "0.5", four, raw, "raw limit")
    yield Row("memory of the server, PostgreSQL: highest", "120 MiB", f"{max(peaks):.0f} MiB")


def _received(place: Path, address: str, count: int) -> tuple[float, float]:
    """Spans per second from one sender and from four."""
    _python(_SENDER, address, "1024", "98", "bulk", cwd=place)  # warm
    one = float(_python(_SENDER, address, str(count), "1", "bulk", cwd=place).split()[0])
    return one, _senders(place, address, 4, count // 4)


def _senders(place: Path, address: str, senders: int, count: int) -> float:
    start = str(time.time() + 3.0)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    running = [subprocess.Popen([sys.executable, "-c", _SENDER, address, str(count), str(100 + n), "bulk", start],
                                cwd=place, env=env, stdout=subprocess.PIPE, text=True) for n in range(senders)]
    slowest = max(float(process.communicate(timeout=600)[0].split()[1]) for process in running)
    return senders * count / slowest


# -- size, start, memory -------------------------------------------------------------------------------------------------


def disk(directory: Path, rounds: int, full: bool) -> Iterator[Row]:
    import sqlite3

    count = 20_000
    _python(_INGEST, "sqlite:///x.db", str(count), "1", workload.RUN, cwd=directory)
    ddl, rows = limits.sqlite_rows(directory / "x.db")
    # the same events as plain rows: payload columns and a plain meta, the span itself as OTLP/JSON in one more column
    limits.sqlite_limit(directory / "raw.db", ddl, rows)
    sizes = {}
    for name in ("x.db", "raw.db"):
        connection = sqlite3.connect(directory / name)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.execute("VACUUM")
        connection.close()
        sizes[name] = os.path.getsize(directory / name) / count
    yield Row("bytes on disk per event, indexes and tables of ours included", "1.25", f"{sizes['x.db']:,.0f}",
              f"the same rows alone {sizes['raw.db']:,.0f}", f"{sizes['x.db'] / sizes['raw.db']:.2f}")


_IMPORT = """
import sys, time
import opentelemetry.sdk.trace, opentelemetry.sdk.trace.export
begun = time.perf_counter()
import otel_cmb
light = time.perf_counter() - begun
otel_cmb.CMBSpanProcessor
print(light * 1000, (time.perf_counter() - begun) * 1000)
"""


def startup(directory: Path, rounds: int, full: bool) -> Iterator[Row]:
    light, whole, helps = [], [], []
    for _ in range(rounds):
        first, second = _python(_IMPORT, cwd=directory).split()
        light.append(float(first))
        whole.append(float(second))
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-m", "otel_cmb.cli", "--help"], capture_output=True, check=True, cwd=directory,
                       env={**os.environ, "PYTHONPATH": str(ROOT)})
        helps.append((time.perf_counter() - begun) * 1000)
    yield Row("`import otel_cmb` beyond the SDK (with the processor)", "100 ms",
              f"{statistics.median(light):.0f} ({statistics.median(whole):.0f}) ms", spread=_spread(light, " ms"))
    yield Row("`otel-cmb --help`", "300 ms", f"{statistics.median(helps):.0f} ms", spread=_spread(helps, " ms"))


_HOST = """
import os, re, sys
from opentelemetry.sdk.trace import TracerProvider
import random
from tests.benchmarks import workload
def rss(): return int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read()).group(1)) / 1024
provider = TracerProvider(); tracer = provider.get_tracer("bench"); chance = random.Random(1)
made = [workload.attributes(chance, "chat", "engineer") for _ in range(100)]
before = rss()
if sys.argv[1] == "ours":
    from otel_cmb import CMBSpanProcessor
    processor = CMBSpanProcessor(); provider.add_span_processor(processor)
peak = 0
for n in range(20000):
    with tracer.start_as_current_span("chat") as one: one.set_attributes(made[n % 100])
    if n % 500 == 0: peak = max(peak, rss())
if sys.argv[1] == "ours": processor.force_flush(120000)
print(before, peak, rss()); os._exit(0)
"""


def memory(directory: Path, rounds: int, full: bool) -> Iterator[Row]:
    without = [float(value) for value in _python(_HOST, "bare", cwd=directory).split()]
    ours = [float(value) for value in _python(_HOST, "ours", cwd=directory).split()]
    yield Row("memory added to the host: under load, after", "50 MiB",
              f"{ours[1] - without[1]:.0f}, {ours[2] - without[2]:.0f} MiB")


# -- at a million --------------------------------------------------------------------------------------------------------

_MILLION = """
import json, sys, time
from otel_cmb import config
from otel_cmb.items import Item
from otel_cmb.store import Store
from tests.benchmarks import workload
url = sys.argv[1]
store = Store(config.load(database_url=url, on_missing_run="create"), "state"); store.connect()
rates, seq = [], 0
for window in range(10):
    spent = 0.0
    for part in range(20):
        made = list(workload.spans(5000, seed=window * 100 + part, run=f"run-{window}-{part // 2}", start_ns=1_766_000_000_000_000_000 + seq * 10_000_000))
        for span in made if part // 2 == 4 else ():  # a tenth of the runs has nodes, of the same names
            span.attributes["cmb.node.id"] = span.attributes["gen_ai.agent.name"]
        for n in range(0, len(made), 500):
            batch = [Item(seq + i, span=span) for i, span in enumerate(made[n:n + 500])]; seq += len(batch)
            begun = time.perf_counter(); store.write(batch); spent += time.perf_counter() - begun
    rates.append(100_000 / spent)
store.close()
from otel_cmb import open_reader
def p50(ask, times=15):
    took = []
    for _ in range(times):
        begun = time.perf_counter(); ask(); took.append(time.perf_counter() - begun)
    return sorted(took)[times // 2] * 1e3
reader = open_reader(url)
from otel_cmb.jaeger.query import JaegerQuery
jaeger = JaegerQuery(config.load(database_url=url))
run = "run-4-4"
trace = reader.spans(reader.events(run, limit=1)[0])[0]["trace_id"]
assert len(reader.events_of_node("engineer", run, limit=200)) == 200 and len(jaeger.trace(trace)) == 20
reads = {
    "list of runs": p50(lambda: reader.runs(limit=200)), "history of a run (10,000 events), first 200": p50(lambda: reader.history(run, limit=200)),
    "events of a run, first 200": p50(lambda: reader.events(run, limit=200)), "tree, first 200": p50(lambda: reader.tree(run, limit=200)),
    "events of a node, first 200": p50(lambda: reader.events_of_node("engineer", run, limit=200)),
    "one trace by id": p50(lambda: jaeger.trace(trace)),
    "one event by id": p50(lambda: reader.event(reader.events(run, limit=1)[0].id)),
}
print(json.dumps({"rates": rates, "reads": reads}))
"""


def million(directory: Path, rounds: int, full: bool) -> Iterator[Row]:
    import json

    found = json.loads(_python(_MILLION, "sqlite:///x.db", cwd=directory, timeout=3600))
    rates = found["rates"]
    yield Row("rate of the tenth 100,000 rows, SQLite", "0.8", f"{rates[-1]:,.0f}/s", f"the first {rates[0]:,.0f}/s",
              f"{rates[-1] / rates[0]:.2f}", _spread(rates))
    for what, took in found["reads"].items():
        yield Row(f"{what}, at a million events, p50", "10 ms", f"{took:.1f} ms")


_TIMES = {"mlflow": "10", "phoenix": "80"}


def beside_peers(directory: Path, rounds: int, full: bool) -> Iterator[Row]:
    found: dict[str, list[float]] = {}
    for n in range(rounds):
        for server, home in peers.present():
            place = directory / f"{server.name}-{n}"
            place.mkdir()
            found.setdefault(server.name, []).append(peers.rate(server, home, place, n))
            shutil.rmtree(place)
    ours = found.pop("otel-cmb")
    if not found:
        yield Row("our server beside its peers: none is installed, see tests/benchmarks/peers.py", "", "")
    for name, theirs in found.items():
        yield _rates(f"durable ingest through the receiver, HTTP, SQLite, requests of 512, beside {name}", _TIMES[name], ours, theirs, name)


CASES = (
    Case("startup", startup),
    Case("overhead", overhead),
    Case("burst", burst),
    Case("ingest-sqlite", ingest_sqlite),
    Case("ingest-postgresql", ingest_postgresql),
    Case("receiver", receiver),
    Case("processes", processes, full_only=True),
    Case("peers", beside_peers, full_only=True),
    Case("disk", disk),
    Case("memory", memory),
    Case("million", million, full_only=True),
)

