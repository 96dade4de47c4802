"""A program whose disk is full in the middle (no file may grow beyond a limit); the database is elsewhere."""

import resource
import sys

from opentelemetry.sdk.trace import TracerProvider

from otel_cmb.processor import CMBSpanProcessor

url, state = sys.argv[1:3]
processor = CMBSpanProcessor(url, state_dir=state)
provider = TracerProvider()
provider.add_span_processor(processor)
tracer = provider.get_tracer("limited")


def agents(count):
    for n in range(count):
        tracer.start_span("invoke_agent", attributes={"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": f"a{n}"}).end()


agents(100)
processor.force_flush(10_000)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
agents(100)
print(processor.force_flush(10_000))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
agents(100)
print(processor.force_flush(10_000))
stats = processor.stats()
assert stats.balanced, stats
assert not stats.lost, stats
print(stats.received, stats.committed + stats.merged)
