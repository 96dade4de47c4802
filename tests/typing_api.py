"""The public API as people write it, for the type checker: checked by mypy --strict, never run."""

from __future__ import annotations

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

import otel_cmb
from otel_cmb import CMBSpanExporter, CMBSpanProcessor, open_reader


def configured() -> TracerProvider:
    provider: TracerProvider = otel_cmb.configure(
        "sqlite:///mine.db", otlp_endpoint="http://127.0.0.1:4317", service_name="mine", instrument=False, batch_size=64)
    provider.add_span_processor(CMBSpanProcessor(database_url="sqlite:///mine.db", record="all"))
    provider.add_span_processor(BatchSpanProcessor(CMBSpanExporter()))
    return provider


def manual() -> str:
    with otel_cmb.run(mode="planning_control", agent="planner", model="gpt-4.1", task="measure") as run:
        identifier: str = run.id
        with otel_cmb.node("step_1", node_type="agent") as node, otel_cmb.step(1, goal="measure"):
            name: str = node.id
            with otel_cmb.agent_call("engineer", message="go") as call:
                with otel_cmb.tool_call("search", arguments={"q": "H0"}) as tool:
                    tool.set_result({"value": 67.4})
                with otel_cmb.code_exec("print(1)", language="python") as execution:
                    execution.set_result("1\n", exit_code=0)
                with otel_cmb.llm_call("gpt-4.1", messages=[{"role": "user", "content": name}]) as llm:
                    llm.set_response([{"role": "assistant", "content": "67.4"}])
                    llm.set_usage(input_tokens=1, output_tokens=2, cost_usd=0.1)
                with otel_cmb.approval("Proceed?") as approval:
                    approval.set_response("yes")
                call.set_usage(model="gpt-4.1", input_tokens=1, output_tokens=2)
                call.fail("what went wrong")
                call.set_response("67.4")
            otel_cmb.file_gen("age.json", "json", size_bytes=17, agent_name="engineer")
            otel_cmb.handoff("planner", "engineer", context={"why": "code"}, reason="plan is made")
            otel_cmb.message("planner", "engineer", "go", tokens=3)
            otel_cmb.error("no such galaxy", error_type="LookupError", agent_name="engineer")
    return identifier


async def asynchronous(run_id: str) -> None:
    async with otel_cmb.attach(run_id, node_id="step_1") as run, otel_cmb.agent_call("engineer") as call:
        call.set_response(run.id)


@otel_cmb.traced_agent
def agent(question: str) -> str:
    return question


@otel_cmb.traced_tool
async def tool(count: int) -> list[int]:
    return [count]


async def decorated() -> None:
    answer: str = agent("how fast?")
    numbers: list[int] = await tool(3)
    print(answer, numbers)


def looked() -> list[str | None]:
    with open_reader("sqlite:///mine.db") as reader:
        run_id: str = reader.resolve("latest")
        try:
            return [event.event_type for event in reader.history(run_id)]
        except otel_cmb.RunNotFoundError:
            return []
