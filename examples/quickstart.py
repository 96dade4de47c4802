"""The manual API in ten lines, offline, on a SQLite file; then what it stored.

    python examples/quickstart.py
"""

from __future__ import annotations

import otel_cmb

URL = "sqlite:///quickstart.db"

otel_cmb.configure(database_url=URL)
with otel_cmb.run(mode="one_shot", agent="engineer", model="none", task="add two numbers") as run, otel_cmb.node("step_1"):
    with otel_cmb.agent_call("engineer", message="What is 1 + 2?") as call:
        with otel_cmb.tool_call("lookup", arguments={"name": "two"}) as tool:
            tool.set_result(2)
        code = "print(1 + 2)"
        with otel_cmb.code_exec(code, language="python") as execution:
            execution.set_result("3\n", exit_code=0)
        call.set_response("3")
otel_cmb.flush()

print(f"run {run.id} in {URL}:")
