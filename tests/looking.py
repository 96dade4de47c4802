"""Rows for the tests of everything that looks: an example run as agent frameworks leave it, and runs of any size."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

from sqlalchemy import Connection, Engine, insert

from otel_cmb import schema
from otel_cmb.history import HistoryWriter

START = datetime(2026, 11, 22, 9, 30, tzinfo=timezone.utc).replace(tzinfo=None)
SESSION = "0d3b5a52-6a53-4a43-9f5c-8a2f5f6f7c01"
RUN = "6f1c1f0e-52d5-4f3e-9d0a-2f8f4c1d7a10"
TRACE = "5b8aa5a2d2c872e8321cf37308d69df2"

CODE = '''import numpy as np
import matplotlib.pyplot as plt

# Angular power spectrum of a Gaussian random field
def power_spectrum(field, bins=48):
    """Azimuthal average of |FFT|^2."""
    modes = np.fft.fftshift(np.abs(np.fft.fft2(field)) ** 2)
    y, x = np.indices(modes.shape)
    radius = np.hypot(x - modes.shape[1] / 2, y - modes.shape[0] / 2).astype(int)
    total = np.bincount(radius.ravel(), modes.ravel())
    return (total / np.bincount(radius.ravel()))[:bins]

field = np.random.default_rng(7).normal(size=(512, 512))
cl = power_spectrum(field)
plt.loglog(cl)
plt.savefig("spectrum.png", dpi=200)
print(f"{len(cl)} bins, mean {cl.mean():.1f}")
'''
TRACEBACK = """Traceback (most recent call last):
  File "/work/tmp_code_8f2a.py", line 2, in <module>
    import matplotlib.pyplot as plt
ModuleNotFoundError: No module named 'matplotlib'
"""
STACK = """Traceback (most recent call last):
  File "client.py", line 88, in create
    raise RateLimitError(response)
openai.RateLimitError: 429 Too Many Requests"""
PLAN = """1. engineer: simulate the field and compute C_l
2. critic: check the normalisation
3. researcher: compare with theory"""
HOSTILE = '<script>window.pwned = true</script><img src=x onerror="window.pwned = true">'


def add_run(
    connection: Connection, run_id: str, *, started: datetime | None = START, session: str = SESSION, **values: Any
) -> None:
    """A run, and its session if that is not there yet."""
    if connection.execute(schema.sessions.select().where(schema.sessions.c.id == session)).first() is None:
        connection.execute(
            insert(schema.sessions).values(
                id=session,
                name="default",
                status="active",
                created_at=START,
                last_active_at=START,
            )
        )
    connection.execute(
        insert(schema.workflow_runs).values(
            **{
                "id": run_id,
                "session_id": session,
                "mode": "one_shot",
                "agent": "engineer",
                "model": "gpt-4.1",
                "status": "completed",
                "started_at": started,
                "completed_at": started and started + timedelta(seconds=30),
                "task_description": "a task",
                "meta": None,
                **values,
            }
        )
    )


class Writer:
    """Writes the events of one run, a second hand in milliseconds since its start."""

    def __init__(
        self, connection: Connection, run_id: str = RUN, *, start: datetime = START, session: str = SESSION
    ) -> None:
        self.connection, self.run_id, self.start, self.session, self.order = connection, run_id, start, session, 0

    def event(
        self,
        event_type: str,
        at: int,
        took: int | None,
        *,
        parent: str | None = None,
        depth: int = 0,
        status: str = "completed",
        subtype: str | None = None,
        span: dict[str, Any] | None = None,
        **values: Any,
    ) -> str:
        key = str(uuid.uuid5(uuid.UUID(self.run_id), str(self.order)))
        ended = None if took is None else self.start + timedelta(milliseconds=at + took)
        if subtype is None:
            subtype = {"running": "start", "failed": "error"}.get(status, "complete")
        meta = dict(values.pop("meta", {}))
        if span is not None:
            meta["otel"] = {
                "trace_id": TRACE,
                "span_id": f"{self.order + 1:016x}",
                "name": event_type,
                "kind": 1,
                "start_ns": 1763803800000000000 + at * 1_000_000,
                "attributes": span,
            }
        self.connection.execute(
            insert(schema.execution_events).values(
                **{
                    "id": key,
                    "run_id": self.run_id,
                    "session_id": self.session,
                    "event_type": event_type,
                    "event_subtype": subtype,
                    "timestamp": self.start + timedelta(milliseconds=at),
                    "started_at": self.start + timedelta(milliseconds=at),
                    "completed_at": ended,
                    "duration_ms": took,
                    "parent_event_id": parent,
                    "depth": depth,
                    "status": status,
                    "execution_order": self.order,
                    "meta": meta,
                    **values,
                }
            )
        )
        self.order += 1
        return key


def example(connection: Connection, run_id: str = RUN, *, start: datetime = START) -> Writer:
    """A planner hands to an engineer, whose code fails and then works; a nested chat reviews it; a file comes out."""
    add_run(
        connection,
        run_id,
        started=start,
        mode="planning_control",
        agent="planner",
        completed_at=start + timedelta(seconds=42),
        task_description="Compute the angular power spectrum of a simulated CMB map and plot it.",
        meta={"task_id": "task_1768904279349_a64oayyk2"},
    )
    for index, (node, kind, agent, status) in enumerate(
        [
            ("planning", "planning", "planner", "completed"),
            ("step_1", "agent", "engineer", "completed"),
            ("review", "agent", "critic", "completed"),
            ("step_2", "agent", "researcher", "failed"),
            ("finish", "terminator", None, "skipped"),
        ]
    ):
        connection.execute(
            insert(schema.dag_nodes).values(
                run_id=run_id,
                id=node,
                session_id=SESSION,
                node_type=kind,
                agent=agent,
                status=status,
                order_index=index,
                depth=0,
            )
        )
    for a, b in [
        ("planning", "step_1"),
        ("planning", "step_2"),
        ("step_1", "review"),
        ("review", "finish"),
        ("step_2", "finish"),
    ]:
        connection.execute(insert(schema.dag_edges).values(run_id=run_id, from_node_id=a, to_node_id=b))
    w = Writer(connection, run_id, start=start)
    genai = {"gen_ai.operation.name": "invoke_agent", "gen_ai.provider.name": "openai", "server.address": "127.0.0.1"}
    plan = w.event(
        "agent_call",
        0,
        6400,
        node_id="planning",
        agent_name="planner",
        span=genai,
        inputs={
            "message": "Compute the angular power spectrum of a simulated CMB map and plot it.",
            "context": {"max_rounds": 12},
        },
        outputs={
            "response": PLAN
        },
    )
    w.event(
        "llm_call",
        300,
        5800,
        parent=plan,
        depth=1,
        node_id="planning",
        agent_name="planner",
        span={"gen_ai.request.model": "gpt-4.1"},
        inputs={
            "messages": [
                {"role": "system", "content": "You are the planner. Break the task into steps for the team."},
                {"role": "user", "content": "Compute the angular power spectrum of a simulated CMB map and plot it."},
            ]
        },
        outputs={
            "messages": [
                {
                    "role": "assistant",
                    "content": PLAN,
                }
            ]
        },
        meta={
            "model": "gpt-4.1",
            "tokens": 612,
            "prompt_tokens": 431,
            "completion_tokens": 181,
            "cost_usd": 0.00231,
            "temperature": 0.2,
            "finish_reason": "stop",
        },
    )
    w.event(
        "handoff",
        6400,
        5,
        node_id="planning",
        agent_name="planner",
        inputs={"from_agent": "planner", "to_agent": "engineer", "context": "step_1"},
        meta={"reason": "plan approved"},
    )
    build = w.event(
        "agent_call",
        6500,
        21500,
        node_id="step_1",
        agent_name="engineer",
        span=genai,
        inputs={"message": "Simulate a Gaussian random field and compute its power spectrum."},
        outputs={"response": "The spectrum is flat, as expected of white noise. See spectrum.png."},
    )
    w.event(
        "llm_call",
        6700,
        4100,
        parent=build,
        depth=1,
        node_id="step_1",
        agent_name="engineer",
        inputs={
            "messages": [
                {"role": "user", "content": "Simulate a Gaussian random field and compute its power spectrum."}
            ]
        },
        outputs={
            "messages": [
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {
                            "id": "call_1",
                            "type": "function",
                            "function": {
                                "name": "search_docs",
                                "arguments": '{"query": "fft2 normalisation", "limit": 3}',
                            },
                        }
                    ],
                }
            ]
        },
        meta={"model": "gpt-4.1", "tokens": 1840, "prompt_tokens": 1410, "completion_tokens": 430, "cost_usd": 0.00626},
    )
    w.event(
        "tool_call",
        10900,
        640,
        parent=build,
        depth=1,
        node_id="step_1",
        agent_name="engineer",
        inputs={
            "tool_name": "search_docs",
            "arguments": {"query": "fft2 normalisation", "limit": 3, "filters": {"package": "numpy", "since": 2020}},
        },
        outputs={
            "result": "numpy.fft.fft2: the forward transform is not scaled by default; norm='ortho' scales both by 1/sqrt(n)."
        },
        meta={"tool_call_id": "call_1"},
    )
    w.event(
        "code_exec",
        11800,
        2300,
        parent=build,
        depth=1,
        node_id="step_1",
        agent_name="executor",
        status="failed",
        inputs={"code": CODE},
        outputs={"result": TRACEBACK},
        meta={"language": "python", "exit_code": 1, "code_length": len(CODE)},
        error_message="ModuleNotFoundError: No module named 'matplotlib'",
    )
    w.event(
        "llm_call",
        14300,
        3600,
        parent=build,
        depth=1,
        node_id="step_1",
        agent_name="engineer",
        inputs={"messages": [{"role": "user", "content": TRACEBACK}]},
        outputs={
            "messages": [
                {
                    "role": "assistant",
                    "content": "matplotlib is missing; I install it first:\n```bash\npip install matplotlib\n```",
                }
            ]
        },
        meta={"model": "gpt-4.1", "tokens": 2210, "cost_usd": 0.00702},
    )
    w.event(
        "code_exec",
        18000,
        3900,
        parent=build,
        depth=1,
        node_id="step_1",
        agent_name="executor",
        inputs={"code": "pip install matplotlib"},
        outputs={
            "result": "Collecting matplotlib\n"
            + "\n".join(f"  downloading part {n} of 240 ({n * 37} kB)" for n in range(1, 241))
            + "\nSuccessfully installed matplotlib-3.10.1\n"
        },
        meta={"language": "bash", "exit_code": 0},
    )
    run2 = w.event(
        "code_exec",
        22100,
        5200,
        parent=build,
        depth=1,
        node_id="step_1",
        agent_name="executor",
        inputs={"code": CODE},
        outputs={"result": "48 bins, mean 261990.4\n"},
        meta={"language": "python", "exit_code": 0},
    )
    made = w.event(
        "file_gen",
        27300,
        0,
        parent=run2,
        depth=2,
        node_id="step_1",
        agent_name="executor",
        inputs={"file_path": "/work/out/spectrum.png", "file_type": "plot"},
        meta={"size_bytes": 48213},
    )
    connection.execute(
        insert(schema.files).values(
            id=str(uuid.uuid5(uuid.UUID(run_id), "file")),
            run_id=run_id,
            event_id=made,
            node_id="step_1",
            file_path="/work/out/spectrum.png",
            file_type="plot",
            size_bytes=48213,
            created_at=start + timedelta(milliseconds=27300),
        )
    )
    chat = w.event(
        "agent_call",
        28100,
        7200,
        node_id="review",
        agent_name="critic",
        span=genai,
        inputs={"message": "Check the normalisation."},
        outputs={"response": f"Looks right. {HOSTILE}"},
    )
    for n, (sender, recipient, content) in enumerate(
        [
            ("critic", "engineer", "Why is the mean 261990 and not 262144?"),
            ("engineer", "critic", "Sample variance: 512² cells, 48 bins."),
            ("critic", "engineer", "Agreed. " + HOSTILE),
        ]
    ):
        said = w.event(
            "agent_call",
            28400 + n * 2200,
            40,
            parent=chat,
            depth=1,
            subtype="message",
            node_id="review",
            agent_name=sender,
            inputs={"sender": sender, "recipient": recipient, "content": content},
        )
        connection.execute(
            insert(schema.messages).values(
                id=str(uuid.uuid5(uuid.UUID(run_id), f"message {n}")),
                run_id=run_id,
                event_id=said,
                node_id="review",
                sender=sender,
                recipient=recipient,
                content=content,
                timestamp=start + timedelta(milliseconds=28400 + n * 2200),
            )
        )
        w.event(
            "llm_call",
            28500 + n * 2200,
            1900,
            parent=chat,
            depth=1,
            node_id="review",
            agent_name=sender,
            inputs={"messages": [{"role": "user", "content": content}]},
            outputs={"messages": [{"role": "assistant", "content": "..."}]},
            meta={"model": "gpt-4.1-mini", "tokens": 310 + n, "cost_usd": 0.00019},
        )
    fail = w.event(
        "agent_call",
        29000,
        12700,
        node_id="step_2",
        agent_name="researcher",
        status="failed",
        inputs={"message": "Compare with the theoretical spectrum."},
        error_message="RateLimitError: 429 Too Many Requests",
    )
    w.event(
        "error",
        41600,
        0,
        parent=fail,
        depth=1,
        node_id="step_2",
        agent_name="researcher",
        status="failed",
        error_message="RateLimitError: 429 Too Many Requests",
        meta={
            "error_type": "openai.RateLimitError",
            "stack": STACK,
        },
    )
    w.event(
        "approval_requested",
        35400,
        5200,
        node_id="review",
        agent_name="critic",
        subtype="approved",
        inputs={"prompt": "Publish the figure?"},
        outputs={"response": "yes"},
    )
    return w


def many(connection: Connection, run_id: str, count: int, *, start: datetime = START, width: int = 10) -> None:
    """A run of `count` events: chats of `width` calls, each call with a model and a tool below it."""
    rows = list(_many_rows(run_id, count, start, width))
    for at in range(0, len(rows), 5000):
        connection.execute(insert(schema.execution_events), rows[at : at + 5000])


def _many_rows(run_id: str, count: int, start: datetime, width: int) -> Iterator[dict[str, Any]]:
    keys = [str(uuid.UUID(int=uuid.UUID(run_id).int & ~((1 << 62) - 1) | n)) for n in range(count)]
    for n in range(count):
        place = n % width
        at, took = n * 100, 90 if place else 100 * width - 10
        kind = ("agent_call", "llm_call", "tool_call", "code_exec")[place % 4 if place else 0]
        yield {
            "id": keys[n],
            "run_id": run_id,
            "session_id": SESSION,
            "node_id": None,
            "step_id": None,
            "parent_event_id": keys[n - place] if place else None,
            "event_type": kind,
            "event_subtype": "complete",
            "agent_name": f"agent_{n // width % 5}",
            "agent_role": None,
            "timestamp": start + timedelta(milliseconds=at),
            "started_at": start + timedelta(milliseconds=at),
            "completed_at": start + timedelta(milliseconds=at + took),
            "duration_ms": took,
            "inputs": {"message": f"do {n}"}
            if kind == "agent_call"
            else {"tool_name": f"tool_{n % 7}", "code": f"print({n})"},
            "outputs": {"result": "ok"},
            "error_message": "boom" if n % 97 == 5 else None,
            "execution_order": n,
            "meta": {"model": "gpt-4.1", "tokens": 10, "cost_usd": 0.001} if kind == "llm_call" else {},
            "depth": 1 if place else 0,
            "status": "failed" if n % 97 == 5 else "completed",
        }


def make_schema(engine: Engine) -> None:
    schema.metadata.create_all(engine)


def conversation(connection: Connection, writer: Writer, calls: int) -> list[list[dict[str, str]]]:
    """LLM calls of one growing conversation, stored as an owned database stores them; the messages of each call."""
    shortener = HistoryWriter(connection.dialect.name, None)
    said: list[dict[str, str]] = []
    asked = []
    for n in range(calls):
        said.append({"role": "user", "content": f"question {n} " + "x" * 1500})
        asked.append(list(said))
        kept = shortener.shorten(writer.run_id, {"messages": asked[-1]})
        writer.event(
            "llm_call",
            n * 10,
            5,
            inputs=kept,
            agent_name="talker",
            outputs={"messages": []},
            meta={"model": "m"},
            span={"n": n},
        )
        said.append({"role": "assistant", "content": f"answer {n}"})
    shortener.write(connection)
    return asked
