"""The many ways to start an AG2 chat and what ends it early: each is counted the same."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter

import pytest
from ag2_programs.support import ScriptedServer, call, failed, inputs, llm, meta, outputs, python, say
from autogen import AssistantAgent, ConversableAgent, GroupChat, GroupChatManager, UserProxyAgent, register_function
from autogen.agentchat import a_run_group_chat, run_group_chat_iter
from autogen.agentchat.group.patterns import RoundRobinPattern
from autogen.coding import LocalCommandLineCodeExecutor

pytest_plugins = ["ag2_programs.fixtures"]


def quiet(name, reply="did it", **more):
    return ConversableAgent(name, human_input_mode="NEVER", default_auto_reply=reply, **more)


def test_run_of_a_single_agent_with_tools(recorded):
    from autogen.tools import tool

    @tool(description="adds")
    def add(a: int, b: int) -> int:
        return a + b

    with ScriptedServer([call("add", {"a": 1, "b": 2}), say("3")]) as server:
        agent = ConversableAgent("solo", llm_config=llm(server))
        agent.run(message="1 + 2?", tools=[add], max_turns=2, user_input=False).process()
    assert recorded.tools() == [("add", "ok")]
    assert recorded.agents() == Counter(solo=2, user=1)
    assert recorded.nodes() == ["chat_1"]
    assert recorded.tokens() == (2, 246)


def test_run_iter_and_a_run(recorded):
    list(quiet("a").run_iter(quiet("b"), message="go", max_turns=2))
    assert recorded.agents() == Counter(a=1, b=2)

    async def main():
        response = await quiet("c").a_run(quiet("d"), message="go", max_turns=1)
        await response.process()

    asyncio.run(main())
    assert recorded.agents() == Counter(a=1, b=2, d=1)
    assert recorded.nodes() == ["chat_1", "chat_2"]


def test_group_chats_as_tasks_and_iterators(recorded):
    async def main():
        pattern = RoundRobinPattern(initial_agent=one, agents=[one, two])
        response = await a_run_group_chat(pattern, messages="go", max_rounds=3)
        await response.process()

    one, two = quiet("one"), quiet("two")
    asyncio.run(main())
    assert recorded.handoffs() == [("one", "two")]
    one, two = quiet("one"), quiet("two")
    list(run_group_chat_iter(RoundRobinPattern(initial_agent=one, agents=[one, two]), messages="go", max_rounds=3))
    assert recorded.handoffs() == [("one", "two")] * 2
    assert recorded.agents() == Counter(chat_manager=2, one=2, two=2)


def test_sequential_run(recorded):
    user = quiet("user")
    queue = [{"recipient": quiet(name), "message": "go", "max_turns": 1} for name in "ab"]
    for response in user.sequential_run(queue):
        response.process()
    assert recorded.agents() == Counter(a=1, b=1)
    assert recorded.nodes() == ["chat_1", "chat_2"]


def test_a_summary_by_the_model_is_a_model_call_of_the_chat(recorded):
    with ScriptedServer([say("answer"), say("summary")]) as server:
        engineer = AssistantAgent("engineer", llm_config=llm(server))
        result = quiet("user").initiate_chat(engineer, message="go", max_turns=1, summary_method="reflection_with_llm")
    assert result.summary == "summary"
    assert recorded.tokens() == (2, 246)
    assert [recorded.parent(span).name for span in recorded.of("llm_call")] == [
        "invoke_agent engineer", "conversation user -> engineer"]


def test_the_older_function_call(recorded):
    message = {"role": "assistant", "content": "", "function_call": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}
    with ScriptedServer([message, say("3")]) as server:
        engineer = AssistantAgent("engineer", llm_config=llm(server))
        proxy = UserProxyAgent("executor", human_input_mode="NEVER", code_execution_config=False,
                               max_consecutive_auto_reply=1, function_map={"add": lambda a, b: str(a + b)})
        proxy.initiate_chat(engineer, message="go")
    (tool,) = recorded.of("tool_call")
    assert tool.attributes["gen_ai.tool.name"] == "add"
    assert tool.attributes["gen_ai.tool.call.result"] == '"3"'


def test_register_function_and_parallel_async_tools(recorded):
    async def slow(name: str) -> str:
        await asyncio.sleep(0.01)
        return name

    def fast(name: str) -> dict:
        return {"name": name}

    two = {"role": "assistant", "content": None, "tool_calls": [
        {"id": f"c{index}", "type": "function", "function": {"name": name, "arguments": '{"name": "x"}'}}
        for index, name in enumerate(["slow", "slow", "fast"])]}
    with ScriptedServer([two, say("TERMINATE")]) as server:
        engineer = AssistantAgent("engineer", llm_config=llm(server))
        proxy = UserProxyAgent("executor", human_input_mode="NEVER", code_execution_config=False,
                               is_termination_msg=lambda message: "TERMINATE" in str(message.get("content")))
        for function in (slow, fast):
            register_function(function, caller=engineer, executor=proxy, description="does")
        asyncio.run(proxy.a_initiate_chat(engineer, message="go"))
    assert Counter(recorded.tools()) == Counter({("slow", "ok"): 2, ("fast", "ok"): 1})
    assert {recorded.parent(span).name for span in recorded.of("tool_call")} == {"invoke_agent executor"}


def test_async_human_input_also_where_it_is_overridden(recorded, monkeypatch):
    class Person(UserProxyAgent):
        async def a_get_human_input(self, prompt, **kwargs):
            return "exit"

    asyncio.run(Person("person", code_execution_config=False).a_initiate_chat(quiet("agent"), message="go"))
    monkeypatch.setattr("builtins.input", lambda *_: "exit")
    asyncio.run(UserProxyAgent("user", code_execution_config=False).a_initiate_chat(quiet("agent"), message="go"))
    assert [outputs(span) for span in recorded.of("approval_requested")] == [{"response": "exit"}] * 2
    assert [span.name for span in recorded.of("approval_requested")] == [
        "await_human_input person", "await_human_input user"]


def test_nested_chats_async(recorded):
    lead, user = quiet("lead"), quiet("user")
    chat = {"recipient": quiet("inner"), "message": "do", "max_turns": 1, "chat_id": 1}
    lead.register_nested_chats([chat], trigger=user, use_async=True)
    asyncio.run(user.a_initiate_chat(lead, message="go", max_turns=1))
    assert recorded.agents() == Counter(lead=1, inner=1)
    assert recorded.nodes() == ["chat_1"]
    assert recorded.traces() == 1


def test_a_group_inside_a_group(recorded):
    a, b, c = quiet("a"), quiet("b"), quiet("c")
    circle = {"max_round": 3, "speaker_selection_method": "round_robin"}
    inner = GroupChatManager(GroupChat([a, b], [], **circle), name="inner")
    lead = quiet("lead")
    lead.register_nested_chats([{"recipient": inner, "message": "do", "max_turns": 1}], trigger=lambda sender: True)
    outer = GroupChatManager(GroupChat([lead, c], [], **circle), name="outer")
    c.initiate_chat(outer, message="go")
    assert recorded.handoffs() == [("c", "lead"), ("a", "b"), ("lead", "c")]
    assert recorded.agents() == Counter(outer=1, inner=1, lead=1, a=1, b=1, c=1)
    assert Counter(recorded.messages()) == Counter({
        ("c", "outer"): 2, ("lead", "inner"): 1, ("a", "inner"): 1, ("b", "inner"): 1, ("lead", "outer"): 1})


def test_a_cancelled_chat_is_failed(recorded):
    async def forever(recipient, messages=None, sender=None, config=None):
        await asyncio.sleep(60)

    async def main():
        agent = quiet("agent")
        agent.register_reply([ConversableAgent, None], forever)
        task = asyncio.create_task(quiet("user").a_initiate_chat(agent, message="go", max_turns=1))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    (answer,) = recorded.of("agent_call")
    assert answer.status.description == "interrupted by CancelledError"
    assert {failed(span) for span in [*recorded.of("info"), answer]} == {"failed"}


def test_system_exit_in_a_reply_function(recorded):
    def leave(recipient, messages=None, sender=None, config=None):
        raise SystemExit(3)

    agent = quiet("agent")
    agent.register_reply([ConversableAgent, None], leave)
    with pytest.raises(SystemExit):
        quiet("user").initiate_chat(agent, message="go", max_turns=1)
    assert recorded.of("agent_call")[0].status.description == "interrupted by SystemExit"


def test_a_price_of_ones_own_and_a_message_of_parts(recorded):
    with ScriptedServer([say("hello")]) as server:
        config = llm(server)
        config["config_list"][0]["price"] = [1.0, 2.0]
        agent = AssistantAgent("engineer", llm_config=config)
        agent.generate_reply(messages=[{"role": "user", "content": [{"type": "text", "text": "hi"}]}])
    (chat,) = recorded.of("llm_call")
    assert chat.attributes["gen_ai.usage.cost"] == pytest.approx((101 * 1.0 + 21 * 2.0) / 1000)
    (answer,) = recorded.of("agent_call")
    assert (inputs(answer), outputs(answer)) == ({"message": "hi"}, {"response": "hello"})


def test_a_model_client_of_ones_own(recorded):
    from types import SimpleNamespace

    class Client:
        def __init__(self, config, **kwargs):
            pass

        def create(self, params):
            message = SimpleNamespace(content="mine", function_call=None, tool_calls=None)
            return SimpleNamespace(choices=[SimpleNamespace(message=message)], model="own", cost=0.25,
                                   usage=SimpleNamespace(prompt_tokens=7, completion_tokens=3))

        def message_retrieval(self, response):
            return [choice.message.content for choice in response.choices]

        def cost(self, response):
            return 0.25

        @staticmethod
        def get_usage(response):
            return {}

    agent = AssistantAgent("engineer", llm_config={"config_list": [{"model": "own", "model_client_cls": "Client"}],
                                                   "cache_seed": None})
    agent.register_model_client(model_client_cls=Client)
    assert agent.generate_reply(messages=[{"role": "user", "content": "hi"}]) == "mine"
    (chat,) = recorded.of("llm_call")
    assert recorded.tokens() == (1, 10)
    assert chat.attributes["gen_ai.usage.cost"] == 0.25
    assert meta(chat) == {}


def test_chats_of_many_threads_do_not_mix(recorded, tmp_path):
    def work(number):
        directory = tmp_path / str(number)
        executor = LocalCommandLineCodeExecutor(work_dir=directory)
        runner = ConversableAgent(f"runner{number}", human_input_mode="NEVER",
                                  code_execution_config={"executor": executor})
        message = python(f"open('f{number}.csv', 'w').close()")["content"]
        quiet(f"user{number}").initiate_chat(runner, message=message, max_turns=1)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(recorded.nodes()) == ["chat_1", "chat_2", "chat_3", "chat_4"]
    assert recorded.traces() == 4
    assert recorded.files() == [(f"f{number}.csv", "data") for number in range(4)]
    for span in recorded.of("code_exec"):
        number = span.attributes["gen_ai.agent.name"].removeprefix("runner")
        assert recorded.parent(span).name == f"invoke_agent runner{number}"
        assert inputs(span)["code"] == f"open('f{number}.csv', 'w').close()"
        assert meta(span)["exit_code"] == 0
