"""Real AG2 programs against a scripted model: what was recorded is counted against what truly happened."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import json
import weakref
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import pytest
from ag2_programs.support import ScriptedServer, call, calls, failed, inputs, llm, meta, outputs, python, say
from autogen import AssistantAgent, ConversableAgent, UserProxyAgent
from autogen.coding import CodeBlock, CodeResult, LocalCommandLineCodeExecutor
from opentelemetry import trace

from otel_cmb.instrumentation.ag2 import AG2Instrumentor

pytest_plugins = ["ag2_programs.fixtures"]


def ended(message):
    return "TERMINATE" in str(message.get("content") or "")


def team(server, tmp_path, **executor):
    """An engineer with a model, and an executor without."""
    engineer = AssistantAgent("engineer", llm_config=llm(server), system_message="engineer")
    proxy = UserProxyAgent(
        "executor", human_input_mode="NEVER", is_termination_msg=ended, max_consecutive_auto_reply=12,
        code_execution_config=executor.pop("code", {"executor": LocalCommandLineCodeExecutor(work_dir=tmp_path)}),
    )
    return engineer, proxy


def with_tools(engineer, proxy):
    @proxy.register_for_execution()
    @engineer.register_for_llm(description="a constant")
    def lookup_constant(name: str) -> str:
        if name == "H0":
            return "67.4"
        raise KeyError(name)


def test_two_agents_with_tools_and_code(recorded, tmp_path):
    script = [
        call("lookup_constant", {"name": "H0"}, "c1"),
        calls(("lookup_constant", {"name": "X"}, "c2"), ("no_such_tool", {}, "c3"),
              ("lookup_constant", "{not json", "c4")),
        python("print('fine')\nopen('out.csv', 'w').write('a')"),
        python("1/0"),
        say("TERMINATE"),
    ]
    with ScriptedServer(script) as server:
        engineer, proxy = team(server, tmp_path)
        with_tools(engineer, proxy)
        result = proxy.initiate_chat(engineer, message="go")
    assert "usage_including_cached_inference" in result.cost
    assert "total_cost" in result.cost["usage_including_cached_inference"]

    assert recorded.agents() == Counter(engineer=5, executor=5)
    assert recorded.tools() == [("lookup_constant", "ok"), ("lookup_constant", "failed"), ("no_such_tool", "failed"),
                                ("lookup_constant", "failed")]
    assert recorded.codes() == [(0, "ok"), (1, "failed")]
    assert recorded.tokens() == (5, 630)
    assert recorded.handoffs() == []
    assert recorded.files() == [("out.csv", "data")]
    assert recorded.traces() == 1
    assert recorded.nodes() == ["chat_1"]
    assert recorded.messages() == [("executor", "engineer"), ("engineer", "executor")] * 5

    ok, raised, unknown, unreadable = recorded.of("tool_call")
    assert json.loads(ok.attributes["gen_ai.tool.call.result"]) == "67.4"
    assert json.loads(ok.attributes["gen_ai.tool.call.arguments"]) == {"name": "H0"}
    assert ok.attributes["gen_ai.tool.call.id"] == "c1"
    assert ok.attributes["gen_ai.agent.name"] == "executor"
    assert raised.status.description == "'X'"
    assert unknown.status.description == "Function no_such_tool not found."
    assert "must be in JSON" in unreadable.status.description
    assert unreadable.attributes["gen_ai.tool.call.arguments"] == "{not json"

    worked, broke = recorded.of("code_exec")
    assert inputs(worked) == {"code": "print('fine')\nopen('out.csv', 'w').write('a')"}
    assert outputs(worked) == {"result": "fine\n"}
    assert meta(worked) == {"language": "python", "exit_code": 0, "code_length": len(inputs(worked)["code"])}
    assert worked.attributes["gen_ai.agent.name"] == "executor"
    assert broke.status.description == "exit code 1: ZeroDivisionError: division by zero"
    (file,) = recorded.of("file_gen")
    assert meta(file) == {"size_bytes": 1}
    assert recorded.parent(file) is worked or recorded.parent(file).name == "execute_code python"

    chat = recorded.of("llm_call")[0]
    assert chat.attributes["gen_ai.request.model"] == chat.attributes["gen_ai.response.model"] == "gpt-4o-mini"
    assert chat.attributes["gen_ai.usage.input_tokens"] == 101
    assert chat.attributes["gen_ai.usage.cost"] > 0
    assert chat.attributes["gen_ai.response.finish_reasons"] == ("tool_calls",)
    assert json.loads(chat.attributes["gen_ai.input.messages"])[-1]["parts"] == [{"type": "text", "content": "go"}]
    answer = recorded.of("agent_call")[0]
    assert inputs(answer) == {"message": "go"}
    assert outputs(answer) == {"response": 'lookup_constant({"name": "H0"})'}
    assert meta(answer) == {"sender": "executor"}


def test_a_reply_without_code_runs_nothing(recorded, tmp_path):
    with ScriptedServer([say("no code"), python("print(1)"), say("TERMINATE")]) as server:
        engineer, proxy = team(server, tmp_path)
        proxy.initiate_chat(engineer, message="go")
    assert recorded.codes() == [(0, "ok")]


def test_legacy_work_dir(recorded, tmp_path):
    script = [python("# filename: plan.py\nprint('hi')\nopen('fig.png', 'w').close()"),
              python("import sys; sys.exit(3)"), say("TERMINATE")]
    with ScriptedServer(script) as server:
        engineer, proxy = team(server, tmp_path, code={"work_dir": "work", "use_docker": False})
        proxy.initiate_chat(engineer, message="go")
    assert recorded.codes() == [(0, "ok"), (3, "failed")]
    assert recorded.files() == [("fig.png", "plot"), ("plan.py", "code")]
    assert [inputs(span)["file_path"] for span in recorded.of("file_gen")] == ["work/plan.py", "work/fig.png"]
    assert outputs(recorded.of("code_exec")[0]) == {"result": "hi\n"}


def test_executors_that_only_behave_as_one_and_classes_made_later(recorded):
    class Duck:
        code_extractor = LocalCommandLineCodeExecutor().code_extractor

        def execute_code_blocks(self, code_blocks):
            return CodeResult(exit_code=0, output="quack")

        def restart(self):
            pass

    class Late(LocalCommandLineCodeExecutor):
        def execute_code_blocks(self, code_blocks):
            return super().execute_code_blocks(code_blocks)

    for executor in (Duck(), Late()):
        agent = ConversableAgent("executor", code_execution_config={"executor": executor}, human_input_mode="NEVER")
        agent.generate_reply(messages=[{"role": "user", "content": "```python\nprint('quack')\n```"}])
    assert recorded.codes() == [(0, "ok"), (0, "ok")]
    assert [outputs(span)["result"].strip() for span in recorded.of("code_exec")] == ["quack", "quack"]
    assert [span.attributes["gen_ai.agent.name"] for span in recorded.of("code_exec")] == ["executor", "executor"]


def test_several_blocks_are_one_execution_and_saved_ones_none(recorded, tmp_path):
    executor = LocalCommandLineCodeExecutor(work_dir=tmp_path)
    executor.execute_code_blocks([CodeBlock(language="python", code="print(1)"),
                                  CodeBlock(language="sh", code="echo 2")])
    executor.execute_code_blocks([CodeBlock(language="html", code="<!-- filename: page.html -->")])
    (execution,) = recorded.of("code_exec")
    assert inputs(execution) == {"code": "print(1)\n\necho 2"}
    assert outputs(execution) == {"result": "1\n2\n"}
    assert meta(execution)["language"] == "python, sh"
    assert recorded.files() == [("page.html", "report")]


def test_a_refused_command_fails(recorded, tmp_path):
    executor = LocalCommandLineCodeExecutor(work_dir=tmp_path)
    with pytest.raises(ValueError, match="dangerous"):
        executor.execute_code_blocks([CodeBlock(language="sh", code="rm -rf x")])
    assert "rm -rf" in recorded.of("code_exec")[0].status.description


def test_changed_files_count_and_unchanged_do_not(recorded, tmp_path):
    (tmp_path / "old.txt").write_text("old")
    (tmp_path / "kept.txt").write_text("kept")
    (tmp_path / "sub").mkdir()
    executor = LocalCommandLineCodeExecutor(work_dir=tmp_path)
    code = "open('old.txt', 'a').write('er')\nopen('sub/report.md', 'w').write('#')"
    executor.execute_code_blocks([CodeBlock(language="python", code=code)])
    found = {inputs(span)["file_path"]: meta(span)["size_bytes"] for span in recorded.of("file_gen")}
    assert found == {str(tmp_path / "old.txt"): 5, str(tmp_path / "sub/report.md"): 1}


def test_human_input_also_where_it_is_overridden(recorded):
    class Person(UserProxyAgent):
        def get_human_input(self, prompt, **kwargs):
            return "exit"

    class Polite(Person):
        def get_human_input(self, prompt, **kwargs):
            return super().get_human_input(prompt + "please ", **kwargs)

    with ScriptedServer([say("a"), say("b")]) as server:
        for kind in (Person, Polite):
            engineer = AssistantAgent("engineer", llm_config=llm(server))
            human = kind("human", human_input_mode="ALWAYS", code_execution_config=False)
            human.initiate_chat(engineer, message="go")
    first, second = recorded.of("approval_requested")
    assert inputs(first)["prompt"].startswith("Replying as human")
    assert outputs(first) == outputs(second) == {"response": "exit"}
    assert first.attributes["gen_ai.agent.name"] == "human"
    assert recorded.agents() == Counter(engineer=2, human=2)
    assert recorded.nodes() == ["chat_1", "chat_2"]


def test_human_input_of_one_agent_is_seen_and_the_program_cannot_tell(recorded):
    """A program with a window of its own puts a function on the one agent a person is, or a mock in a test."""
    asked = mock.Mock(return_value="exit")

    async def wait(prompt, **kwargs):
        return "exit"

    with ScriptedServer([say("a"), say("b")]) as server:
        engineer = AssistantAgent("engineer", llm_config=llm(server))
        human = UserProxyAgent("human", human_input_mode="ALWAYS", code_execution_config=False)
        human.get_human_input, human.a_get_human_input = asked, wait
        human.initiate_chat(engineer, message="go")
        asyncio.run(human.a_initiate_chat(engineer, message="go"))
    asked.assert_called_once()
    human.get_human_input.assert_called_once()
    assert human.get_human_input == asked
    assert copy.deepcopy(human.a_get_human_input) is copy.copy(human.a_get_human_input) is wait
    first, second = recorded.of("approval_requested")
    assert inputs(first)["prompt"].startswith("Replying as human")
    assert outputs(first) == outputs(second) == {"response": "exit"}
    assert {span.attributes["gen_ai.agent.name"] for span in (first, second)} == {"human"}
    AG2Instrumentor().uninstrument()
    assert human.get_human_input is asked
    assert human.a_get_human_input is wait
    gone = weakref.ref(human)
    del human, engineer
    gc.collect()
    assert gone() is None


def test_an_override_that_calls_its_base_answers_once(recorded):
    class Loud(ConversableAgent):
        def generate_reply(self, messages=None, sender=None, exclude=()):
            return str(super().generate_reply(messages, sender, exclude)).upper()

        async def a_generate_reply(self, messages=None, sender=None, exclude=()):
            return str(await super().a_generate_reply(messages, sender, exclude)).upper()

    agent = Loud("loud", default_auto_reply="hi", human_input_mode="NEVER")
    assert agent.generate_reply(messages=[{"role": "user", "content": "x"}]) == "HI"
    assert asyncio.run(agent.a_generate_reply(messages=[{"role": "user", "content": "x"}])) == "HI"
    assert recorded.agents() == Counter(loud=2)
    assert [outputs(span) for span in recorded.of("agent_call")] == [{"response": "HI"}] * 2


def test_an_agent_that_asks_itself_answers_twice(recorded):
    def reflect(recipient, messages=None, sender=None, config=None):
        if messages[-1]["content"] == "again":
            return True, "second"
        return True, recipient.generate_reply(messages=[{"role": "user", "content": "again"}]) + " thought"

    agent = ConversableAgent("agent", human_input_mode="NEVER")
    agent.register_reply([ConversableAgent, None], reflect)
    assert agent.generate_reply(messages=[{"role": "user", "content": "x"}]) == "second thought"
    assert recorded.agents() == Counter(agent=2)


def test_a_failing_model_fails_its_agent_and_reaches_the_program(recorded, tmp_path):
    from openai import InternalServerError

    with ScriptedServer([500] * 9) as server:
        engineer, proxy = team(server, tmp_path)
        with pytest.raises(InternalServerError):
            proxy.initiate_chat(engineer, message="go")
    (chat,) = recorded.of("llm_call")
    assert failed(chat) == "failed"
    assert "scripted failure 500" in chat.status.description
    assert chat.attributes["error.type"] == "openai.InternalServerError"
    assert [failed(span) for span in recorded.of("agent_call")] == ["failed"]
    assert recorded.tokens() == (1, 0)


def test_keyboard_interrupt_fails_what_it_interrupts(recorded, tmp_path):
    with ScriptedServer([call("stop", {}, "c1")]) as server:
        engineer, proxy = team(server, tmp_path)

        @proxy.register_for_execution()
        @engineer.register_for_llm(description="stops")
        def stop() -> str:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            proxy.initiate_chat(engineer, message="go")
    (tool,) = recorded.of("tool_call")
    assert tool.status.description == "interrupted by KeyboardInterrupt"
    interrupted = [span.name for span in recorded.spans if failed(span) == "failed"]
    assert interrupted == ["node chat_1", "conversation executor -> engineer", "invoke_agent executor",
                           "execute_tool stop"]
    assert not trace.get_current_span().get_span_context().is_valid


def test_async_chat_stays_one_trace(recorded, tmp_path):
    script = [calls(("alookup", {"name": "a"}, "c1"), ("alookup", {"name": "b"}, "c2")), python("print(1)"),
              say("TERMINATE")]
    with ScriptedServer(script) as server:
        engineer, proxy = team(server, tmp_path)

        @proxy.register_for_execution()
        @engineer.register_for_llm(description="looks up")
        async def alookup(name: str) -> str:
            await asyncio.sleep(0)
            return name

        asyncio.run(proxy.a_initiate_chat(engineer, message="go"))
    assert recorded.agents() == Counter(engineer=3, executor=3)
    assert sorted(recorded.tools()) == [("alookup", "ok")] * 2
    assert recorded.codes() == [(0, "ok")]
    assert recorded.tokens() == (3, 372)
    assert recorded.traces() == 1
    assert len(recorded.messages()) == 6
    for span in recorded.of("llm_call"):
        assert recorded.parent(span).name == "invoke_agent engineer"


def test_an_async_tool_in_a_sync_chat_stays_below_its_agent(recorded, tmp_path):
    with ScriptedServer([call("alookup", {}, "c1"), say("TERMINATE")]) as server:
        engineer, proxy = team(server, tmp_path)

        @proxy.register_for_execution()
        @engineer.register_for_llm(description="looks up")
        async def alookup() -> str:
            return "x"

        proxy.initiate_chat(engineer, message="go")
    assert recorded.tools() == [("alookup", "ok")]
    assert recorded.parent(recorded.of("tool_call")[0]).name == "invoke_agent executor"
    assert recorded.traces() == 1


def test_nested_chats(recorded, tmp_path):
    with ScriptedServer([python("print(1)"), python("1/0"), say("TERMINATE")]) as server:
        engineer, proxy = team(server, tmp_path)
        lead = ConversableAgent("lead", human_input_mode="NEVER")
        user = ConversableAgent("user", human_input_mode="NEVER", max_consecutive_auto_reply=0)
        chat = {"sender": proxy, "recipient": engineer, "message": "do", "summary_method": "last_msg"}
        lead.register_nested_chats([chat], trigger=user)
        user.initiate_chat(lead, message="go", max_turns=1)
    assert recorded.agents() == Counter(engineer=3, executor=3, lead=1)
    assert recorded.codes() == [(0, "ok"), (1, "failed")]
    assert recorded.nodes() == ["chat_1"]
    assert recorded.traces() == 1
    names = [span.name for span in recorded.of("info")]
    assert names == ["conversation user -> lead", "conversation executor -> engineer"]
    assert recorded.parent(recorded.of("info")[1]).name == "invoke_agent lead"
    assert recorded.handoffs() == []


def test_an_agent_asked_again_inside_its_own_answer_counts_again(recorded):
    inner = ConversableAgent("inner", human_input_mode="NEVER", default_auto_reply="in")
    lead = ConversableAgent("lead", human_input_mode="NEVER", default_auto_reply="out")
    user = ConversableAgent("user", human_input_mode="NEVER")
    lead.register_nested_chats([{"recipient": inner, "message": "do", "max_turns": 2}], trigger=user)
    user.initiate_chat(lead, message="go", max_turns=1)
    assert recorded.agents() == Counter(inner=2, lead=2)


def test_initiate_chats_sync_and_async(recorded):
    alice = ConversableAgent("alice", human_input_mode="NEVER", default_auto_reply="a")
    bob = ConversableAgent("bob", human_input_mode="NEVER", default_auto_reply="b")
    user = ConversableAgent("user", human_input_mode="NEVER")
    queue = [{"recipient": alice, "message": "1", "max_turns": 1, "chat_id": 1},
             {"recipient": bob, "message": "2", "max_turns": 1, "chat_id": 2}]
    user.initiate_chats([dict(chat) for chat in queue])
    asyncio.run(user.a_initiate_chats([dict(chat) for chat in queue]))
    assert recorded.agents() == Counter(alice=2, bob=2)
    assert recorded.nodes() == ["chat_1", "chat_2", "chat_3", "chat_4"]
    assert recorded.traces() == 2
    assert inputs(recorded.of("info")[0]) == {"sender": "user", "recipients": ["alice", "bob"]}


def test_chats_in_threads_stay_below_the_caller(recorded):
    user = ConversableAgent("user", human_input_mode="NEVER")
    agents = [ConversableAgent(f"agent_{letter}", human_input_mode="NEVER", default_auto_reply="x") for letter in "ab"]
    with trace.get_tracer("app").start_as_current_span("app"), ThreadPoolExecutor() as pool:
        list(pool.map(lambda agent: user.initiate_chat(agent, message="go", max_turns=1), agents))
        assert trace.get_current_span().name == "app"
    assert recorded.traces() == 1
    assert [span.name for span in recorded.roots()] == ["app"]
    assert recorded.agents() == Counter(agent_a=1, agent_b=1)


def test_run_in_its_thread_stays_below_the_caller(recorded, tmp_path):
    with ScriptedServer([say("TERMINATE")]) as server, trace.get_tracer("app").start_as_current_span("app"):
        engineer, proxy = team(server, tmp_path)
        proxy.run(engineer, message="go").process()
    assert recorded.traces() == 1
    assert recorded.agents() == Counter(engineer=1, executor=1)


def test_a_context_of_the_program_is_kept(recorded):
    from otel_cmb import context

    user = ConversableAgent("user", human_input_mode="NEVER")
    agent = ConversableAgent("agent", human_input_mode="NEVER", default_auto_reply="x")
    with context.run(run_id="r1"), context.node("step_1"):
        user.initiate_chat(agent, message="go", max_turns=1)
    with context.run(run_id="r2"):
        user.initiate_chat(agent, message="go", max_turns=1)
    user.initiate_chat(agent, message="go", max_turns=1)
    assert recorded.nodes() == ["step_1", "chat_1", "chat_1"]


def test_cached_answers_spend_nothing(recorded, tmp_path):
    from autogen import Cache

    with ScriptedServer([say("TERMINATE")]) as server, Cache.disk(cache_path_root=str(tmp_path / "cache")) as cache:
        for _ in range(2):
            engineer, proxy = team(server, tmp_path)
            proxy.initiate_chat(engineer, message="go", cache=cache)
    assert recorded.tokens() == (2, 122)
    assert [meta(span) for span in recorded.of("llm_call")] == [{}, {"cached": True}]


@pytest.mark.parametrize("kind", ["embedded", "server"])
def test_jupyter_executors(recorded, tmp_path, kind):
    pytest.importorskip("ipykernel")
    if kind == "server":
        pytest.importorskip("kernel_gateway")
    jupyter = pytest.importorskip("autogen.coding.jupyter")
    with contextlib.ExitStack() as stack:
        if kind == "embedded":
            executor = jupyter.EmbeddedIPythonCodeExecutor(output_dir=str(tmp_path))
        else:
            server = stack.enter_context(jupyter.LocalJupyterServer())
            executor = stack.enter_context(jupyter.JupyterCodeExecutor(server, output_dir=tmp_path))
        picture = "from IPython.display import HTML, display\ndisplay(HTML('<b>x</b>'))\nprint('shown')"
        executor.execute_code_blocks([CodeBlock(language="python", code=picture)])
        executor.execute_code_blocks([CodeBlock(language="python", code="1/0")])
    assert recorded.codes()[0] == (0, "ok")
    assert recorded.codes()[1][1] == "failed"
    assert "shown" in outputs(recorded.of("code_exec")[0])["result"]
    assert "ZeroDivisionError" in outputs(recorded.of("code_exec")[1])["result"]
    assert [kind for _, kind in recorded.files()] == ["report"]
