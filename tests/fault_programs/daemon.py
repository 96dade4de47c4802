"""A program that closes all its descriptors, as daemons do, and opens files of its own, which get their numbers."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

from opentelemetry.sdk.trace import TracerProvider

import otel_cmb
from otel_cmb.processor import CMBSpanProcessor

url, state, when = sys.argv[1:4]
processor = CMBSpanProcessor(url, state_dir=state)
provider = TracerProvider()
provider.add_span_processor(processor)
tracer = provider.get_tracer("daemon")


def agents(count):
    for n in range(count):
        tracer.start_span("invoke_agent", attributes={"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": f"a{n}"}).end()


with otel_cmb.run(agent="daemon") if when == "ends" else contextlib.nullcontext():  # else there is a run to end at the end
    agents(20)
if when != "pending":
    assert processor.force_flush(20_000)
with processor.pipeline._drainer.store_lock:  # the writer rests: what is in SQLite's hands at that moment nobody can take back
    os.closerange(3, 4096)
    mine = [open(f"mine-{n}", "w") for n in range(40)]  # noqa: SIM115
    if when == "taken":  # by another process, before we notice
        replay = "import sys; from otel_cmb.cli import main; sys.exit(main())"
        subprocess.run(
            [sys.executable, "-c", replay, "parked", "replay", "--database-url", url, "--state-dir", state], check=True, stdout=2)
if when == "ends":
    processor.pipeline._drainer.guarded_step = lambda: None  # the writer is told to stop before it looks up once more
    processor.shutdown()
    print(True)
else:
    agents(50)
    print(processor.force_flush(5_000))
    agents(5)
for file in mine:
    file.write("x")
    file.close()
processor.force_flush(5_000)
stats = processor.stats()
assert stats.balanced, stats
assert not stats.lost, stats
processor.shutdown()
assert {Path(f"mine-{n}").read_bytes() for n in range(40)} == {b"x"}
print(stats.received, stats.committed, stats.pending)
