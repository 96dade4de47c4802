"""One of several processes that write one run, and one trace, at the same time."""

import sys

from otel_cmb import config
from otel_cmb.event import Span, Stamp
from otel_cmb.pipeline import Pipeline

url, state, me = sys.argv[1], sys.argv[2], int(sys.argv[3])
base = 1_760_000_000_000_000_000
pipeline = Pipeline(config.load(database_url=url, state_dir=state, batch_size=7, retry_max=0.2))
spans = []
for n in range(60):
    number = 1 + me + 4 * n
    spans.append(Span(
        f"{1:032x}", f"{number:016x}", "invoke_agent", base + number * 1000, base + number * 1000 + 500,
        parent_span_id=f"{number // 3 or 1:016x}" if number > 1 else None,
        attributes={"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": f"agent {number}"}, stamp=Stamp(run_id="shared")))
for n in range(0, 60, 3):
    pipeline.accept(spans[::-1][n : n + 3])
done = pipeline.flush(40)
stats = pipeline.stats()
assert stats.balanced, stats
assert not stats.lost, stats
print(done, stats.committed + stats.merged)
pipeline.shutdown()
