"""Forks a worker for each line on standard input and prints its pid. A worker makes spans until it is killed; every span
whose `on_end` has returned is written to a side file. Arguments: database URL, state directory, side file."""

import os
import random
import sys
import threading
import time

from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

import otel_cmb
from otel_cmb.event import event_id
from otel_cmb.processor import CMBSpanProcessor

URL, STATE, SIDE = sys.argv[1:4]


class Witness(SpanProcessor):
    """Asked after the processor under test: whatever it sees has been accepted."""

    def __init__(self) -> None:
        self.fd = os.open(SIDE, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def on_end(self, span):
        if span.attributes.get("cmb.event.type") == "none":  # the span of `run()` has no row
            return
        context = span.get_span_context()
        os.write(self.fd, f"{event_id(f'{context.trace_id:032x}', f'{context.span_id:016x}')}\n".encode())


def agents(chance: random.Random, deep: int) -> None:
    attributes = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": f"agent {chance.random()}"}
    with trace.get_tracer("killed").start_as_current_span("invoke_agent", attributes=attributes):
        if chance.random() < 0.3:
            time.sleep(chance.random() * 0.1)
        for _ in range(chance.randrange(4)):
            if deep < 4:
                agents(chance, deep + 1)


def work(seed: int) -> None:
    chance = random.Random(seed)
    while True:
        if chance.random() < 0.5:
            with otel_cmb.run(agent="planner", model="test"):
                agents(chance, 0)
        else:
            agents(chance, 0)
        time.sleep(chance.random() * 0.02)


def worker(seed: int) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(CMBSpanProcessor(URL, state_dir=STATE))
    provider.add_span_processor(Witness())
    trace.set_tracer_provider(provider)
    for n in range(2):
        threading.Thread(target=work, args=(seed * 10 + n,), daemon=True).start()
    work(seed * 10 + 5)


for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        try:
            worker(int(line))
        finally:
            os._exit(9)
    print(pid, flush=True)
    os.waitpid(pid, 0)
