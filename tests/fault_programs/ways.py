"""Ways a process begins, forks and ends. Arguments: database URL, state directory, side file, which way.

Every event id whose span has ended is written to the side file."""

import asyncio
import atexit
import multiprocessing
import os
import random
import sys
import threading
import time

from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

from otel_cmb.event import event_id
from otel_cmb.processor import CMBSpanProcessor

URL, STATE, SIDE, WAY = sys.argv[1:5]


def agent():
    """An agent of its own name: one inside another of the same name would be the same act."""
    return {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": f"agent {random.random()}"}


class Witness(SpanProcessor):
    def on_end(self, span):
        context = span.get_span_context()
        with open(SIDE, "a") as file:
            file.write(f"{event_id(f'{context.trace_id:032x}', f'{context.span_id:016x}')}\n")


def configure(shutdown_on_exit=False):
    provider = TracerProvider(shutdown_on_exit=shutdown_on_exit)
    provider.add_span_processor(CMBSpanProcessor(URL, state_dir=STATE, busy_timeout=0.3, connect_timeout=1))
    provider.add_span_processor(Witness())
    trace.set_tracer_provider(provider)
    return provider


def agents(count):
    for _ in range(count):
        with trace.get_tracer("ways").start_as_current_span("invoke_agent", attributes=agent()):
            pass


def spawned(count):
    if not isinstance(trace.get_tracer_provider(), TracerProvider):
        configure()
    agents(count)


def fork():
    """Forks with spans open, threads at work and the writer busy; children end by `os._exit` and by returning."""
    configure()
    stop = threading.Event()

    def busy():
        while not stop.is_set():
            agents(1)
            time.sleep(0.005)

    threading.Thread(target=busy, daemon=True).start()
    agents(5)
    children = []
    with trace.get_tracer("ways").start_as_current_span("invoke_agent", attributes=agent()):
        for n in range(6):
            pid = os.fork()
            if pid == 0:
                agents(5)
                if n % 2:
                    trace.get_tracer_provider().force_flush(5000)
                os._exit(0)
            children.append(pid)
            time.sleep(0.02)
        for pid in children:
            assert os.waitpid(pid, 0)[1] == 0
    stop.set()
    time.sleep(0.1)


def prefork():
    """A server: configured before it forks its workers, no span before; workers end in the ordinary way."""
    configure()
    for _ in range(3):
        if os.fork() == 0:
            agents(7)
            sys.exit(0)
    for _ in range(3):
        assert os.wait()[1] == 0


def pool(method):
    if method == "fork":
        configure()
        agents(3)
    with multiprocessing.get_context(method).Pool(2) as workers:
        workers.map(spawned, [4, 4, 4])
        workers.close()
        workers.join()


def processes(method):
    configure()
    agents(3)
    made = [multiprocessing.get_context(method).Process(target=spawned, args=(4,)) for _ in range(2)]
    for one in made:
        one.start()
    for one in made:
        one.join()
        assert one.exitcode == 0


def at_exit():
    """Spans that end in exit handlers that run after ours."""
    atexit.register(agents, 3)
    configure()
    agents(2)


def daemon():
    """A daemon thread that ends spans until the interpreter is gone."""
    configure()

    def work():
        while True:
            agents(1)
            time.sleep(0.0005)

    threading.Thread(target=work, daemon=True).start()
    time.sleep(0.3)


def tasks():
    configure()

    async def one(n):
        with trace.get_tracer("ways").start_as_current_span("invoke_agent", attributes=agent()):
            await asyncio.sleep(0.001 * n)
            agents(1)

    async def all_of_them():
        await asyncio.gather(*(one(n % 7) for n in range(40)))

    asyncio.run(all_of_them())


def provider_ends():
    """The SDK's own exit handler shuts us down."""
    configure(shutdown_on_exit=True)
    agents(5)


def raises():
    configure()
    agents(3)
    raise SystemExit(0)


if __name__ == "__main__":
    ways = {
        "fork": fork, "prefork": prefork, "at_exit": at_exit, "daemon": daemon, "tasks": tasks, "raises": raises,
        "provider_ends": provider_ends, "process_fork": lambda: processes("fork"), "process_spawn": lambda: processes("spawn"),
        "pool_fork": lambda: pool("fork"), "pool_spawn": lambda: pool("spawn"),
    }
    ways[WAY]()
