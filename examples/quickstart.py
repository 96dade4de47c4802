"""The manual API in ten lines, offline, on a SQLite file; then what it stored.

    python examples/quickstart.py
"""

from __future__ import annotations

import otel_cmb

URL = "sqlite:///quickstart.db"

provider = otel_cmb.configure(database_url=URL)
with (
    otel_cmb.run(agent="engineer", task="add two numbers") as run,
    otel_cmb.node("step_1"),
    otel_cmb.agent_call("engineer", message="What is 1 + 2?") as call,
):
    with otel_cmb.tool_call("lookup", arguments={"name": "two"}) as tool:
        tool.set_result(2)
    with otel_cmb.code_exec("print(1 + 2)", language="python") as execution:
        execution.set_result("3\n", exit_code=0)
    call.set_response("3")
provider.force_flush()

with otel_cmb.open_reader(URL) as reader:
    stored = reader.run(run.id)
    print(f"run {stored.id}: {stored.status}, in {URL}")
    for event in reader.history(run.id):
        print(f"{'  ' * event.depth}{event.event_type} {event.agent_name} {event.status}: "
              f"{event.inputs} -> {event.outputs}")
