"""A team of AG2 agents: a planner, an engineer and an executor work out the age of the universe.

    python examples/ag2_team.py                        # offline: the model's answers are a script
    OPENAI_API_KEY=... python examples/ag2_team.py --real --model gpt-4.1

It is an AG2 program like any other and knows nothing about tracing. To have its run in a database:

    otel-cmb run --task "age of the universe" -- python examples/ag2_team.py
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Annotated, Any

from autogen import ConversableAgent
from autogen.agentchat import initiate_group_chat
from autogen.agentchat.group import AgentTarget, ReplyResult
from autogen.agentchat.group.patterns import DefaultPattern
from autogen.coding import LocalCommandLineCodeExecutor
from scripted_server import ScriptedServer, call, say

TASK = "Compute the age of the universe in a flat universe without radiation, and save it to a file."

FIRST_TRY = """Here is the code.
```python
hubble, omega_matter = 67.4, 0.315
print(f"{1 / hubble * age_factor(omega_matter):.2f}")
```"""

SECOND_TRY = """I forgot to define the factor.
```python
# filename: age.py
import json
import math

hubble, omega_matter = 67.4, 0.315
omega_lambda = 1 - omega_matter
factor = 2 / 3 / math.sqrt(omega_lambda) * math.asinh(math.sqrt(omega_lambda / omega_matter))
age = factor * 977.8 / hubble
with open("age.json", "w") as file:
    json.dump({"age_gyr": round(age, 2)}, file)
print(f"age of the universe: {age:.2f} Gyr")
```"""

SCRIPT = {
    "You are the planner": [
        call("lookup_constant", {"name": "H0"}),
        call("record_plan", {"steps": ["take H0 and the matter density", "integrate", "save age.json"]}),
    ],
    "You are the engineer": [say(FIRST_TRY), say(SECOND_TRY), say("The age of the universe is 13.80 Gyr. TERMINATE")],
}

CONSTANTS = {"H0": 67.4, "omega_matter": 0.315}


@contextlib.contextmanager
def model(real: bool, name: str) -> Iterator[dict[str, Any]]:
    """The configuration of a real model, or of the script."""
    if real:
        yield {"config_list": [{"model": name}]}
        return
    with ScriptedServer(SCRIPT) as server:
        config = {"model": "gpt-4o-mini", "api_key": "scripted", "base_url": server.base_url}
        yield {"config_list": [config], "cache_seed": None}


def finished(message: dict[str, Any]) -> bool:
    return "TERMINATE" in str(message.get("content") or "")


def build(llm_config: dict[str, Any], work_dir: str) -> DefaultPattern:
    """The team: the planner hands over by its tool, engineer and executor take turns until the engineer is done."""
    planner = ConversableAgent(
        "planner", llm_config=llm_config,
        system_message="You are the planner. Look up the constants you need, then record a plan of three steps.",
    )
    engineer = ConversableAgent(
        "engineer", llm_config=llm_config,
        system_message="You are the engineer. Answer with one Python block that does the plan, with the standard "
                       "library. The executor runs it and tells you the output. When it is right, say the result and "
                       "TERMINATE.",
    )
    executor = ConversableAgent(
        "executor", human_input_mode="NEVER",
        code_execution_config={"executor": LocalCommandLineCodeExecutor(work_dir=work_dir, timeout=30)},
    )

    def lookup_constant(name: Annotated[str, "H0 or omega_matter"]) -> str:
        """The value of a cosmological constant."""
        return str(CONSTANTS[name])

    def record_plan(steps: Annotated[list[str], "the steps, in order"]) -> ReplyResult:
        """Record the plan and hand over to the engineer."""
        with open(os.path.join(work_dir, "plan.md"), "w", encoding="utf-8") as file:
            file.writelines(f"{number}. {step}\n" for number, step in enumerate(steps, 1))
        return ReplyResult(message="\n".join(steps), target=AgentTarget(engineer))

    for tool in (lookup_constant, record_plan):
        planner.register_for_llm(description=tool.__doc__)(tool)
    engineer.handoffs.set_after_work(AgentTarget(executor))
    executor.handoffs.set_after_work(AgentTarget(engineer))
    return DefaultPattern(
        initial_agent=planner, agents=[planner, engineer, executor],
        group_manager_args={"is_termination_msg": finished},
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--real", action="store_true", help="a real model (OPENAI_API_KEY) instead of the script")
    parser.add_argument("--model", default="gpt-4.1-mini", help="name of the real model")
    parser.add_argument("--work-dir", default="team_work", help="where the code runs and writes")
    options = parser.parse_args()
    os.makedirs(options.work_dir, exist_ok=True)
    real = options.real or bool(os.environ.get("OPENAI_API_KEY") and os.environ.get("OPENAI_BASE_URL"))
    with model(real, options.model) as llm_config:
        result, _, last = initiate_group_chat(build(llm_config, options.work_dir), messages=TASK, max_rounds=20)
    print(f"\n{last.name}: {result.chat_history[-1]['content']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
