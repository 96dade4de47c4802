"""Group chats of AG2: who spoke, who handed over to whom, which messages there were."""

from __future__ import annotations

import asyncio
from collections import Counter
from itertools import pairwise

import pytest
from ag2_programs.support import ScriptedServer, call, calls, inputs, llm, meta, outputs, python, say
from autogen import ConversableAgent, GroupChat, GroupChatManager, UserProxyAgent
from autogen.agentchat import a_initiate_group_chat, initiate_group_chat, run_group_chat
from autogen.agentchat.group import (
    AgentTarget,
    NestedChatTarget,
    OnCondition,
    OnContextCondition,
    ReplyResult,
    RevertToUserTarget,
    StringLLMCondition,
    TerminateTarget,
)
from autogen.agentchat.group.patterns import (
    AutoPattern,
    DefaultPattern,
    ManualPattern,
    RandomPattern,
    RoundRobinPattern,
)
from autogen.coding import LocalCommandLineCodeExecutor
from opentelemetry import trace

pytest_plugins = ["ag2_programs.fixtures"]


def agent(name, llm_config=False, reply=None, **more):
    return ConversableAgent(name, llm_config=llm_config, human_input_mode="NEVER", system_message=f"I am {name}.",
                            default_auto_reply=reply or f"{name} did", **more)


TEAM = {
    "I am planner.": [call("record_plan", {}), call("transfer_to_engineer_1")],
    "I am engineer.": [call("lookup_constant", {"name": "H0"}), python("print(1)\nopen('a.csv', 'w').close()"),
                       say("done TERMINATE")],
    "I am reviewer.": [say("looks good")],
}


def team_pattern(server, tmp_path):
    """planner (a tool, then a transfer tool) -> engineer (a tool, then code) -> executor -> reviewer -> engineer."""
    config = llm(server)
    planner, engineer, reviewer = (agent(name, config) for name in ("planner", "engineer", "reviewer"))
    executor = agent("executor", code_execution_config={"executor": LocalCommandLineCodeExecutor(work_dir=tmp_path)})

    def record_plan() -> ReplyResult:
        """Records the plan."""
        return ReplyResult(message="recorded", target=AgentTarget(planner))

    async def lookup_constant(name: str) -> str:
        """Looks a constant up."""
        return "67.4"

    planner.register_for_llm()(record_plan)
    engineer.register_for_llm()(lookup_constant)
    planner.handoffs.add_llm_conditions([
        OnCondition(target=AgentTarget(engineer), condition=StringLLMCondition("when the plan is there"))])
    engineer.handoffs.set_after_work(AgentTarget(executor))
    executor.handoffs.set_after_work(AgentTarget(reviewer))
    reviewer.handoffs.set_after_work(AgentTarget(engineer))
    return DefaultPattern(
        initial_agent=planner, agents=[planner, engineer, executor, reviewer],
        group_manager_args={"is_termination_msg": lambda message: "TERMINATE" in str(message.get("content"))},
    )


def expect_team(recorded):
    assert recorded.agents() == Counter(
        {"_Group_Tool_Executor": 3, "chat_manager": 1, "engineer": 3, "executor": 1, "planner": 2, "reviewer": 1})
    assert recorded.tools() == [("record_plan", "ok"), ("lookup_constant", "ok")]
    assert [span.attributes["gen_ai.agent.name"] for span in recorded.of("tool_call")] == ["planner", "engineer"]
    assert recorded.codes() == [(0, "ok")]
    assert recorded.files() == [("a.csv", "data")]
    assert recorded.tokens() == (6, 762)
    assert recorded.handoffs() == [
        ("planner", "engineer"), ("engineer", "executor"), ("executor", "reviewer"), ("reviewer", "engineer")]
    reasons = [meta(span)["reason"] for span in recorded.of("handoff")]
    assert reasons == ["transfer_to_engineer_1", "after_work", "after_work", "after_work"]
    assert recorded.traces() == 1


def test_default_pattern(recorded, tmp_path):
    with ScriptedServer(TEAM) as server:
        initiate_group_chat(team_pattern(server, tmp_path), messages="go", max_rounds=20)
    expect_team(recorded)
    assert recorded.nodes() == ["chat_1"]
    # Each message once, from its author; the manager's copies for the listeners are none.
    tool = "_Group_Tool_Executor"
    assert recorded.messages() == [(author, "chat_manager") for author in (
        "_User", "planner", tool, "planner", tool, "engineer", tool, "engineer", "executor", "reviewer", "engineer")]
    manager = next(span for span in recorded.of("agent_call") if span.name == "invoke_agent chat_manager")
    assert outputs(manager) == {}
    assert manager.attributes["cmb.agent.role"] == "manager"
    for handoff in recorded.of("handoff"):
        assert recorded.parent(handoff).name == "invoke_agent chat_manager"


def test_default_pattern_async(recorded, tmp_path):
    with ScriptedServer(TEAM) as server:
        asyncio.run(a_initiate_group_chat(team_pattern(server, tmp_path), messages="go", max_rounds=20))
    expect_team(recorded)


def test_run_group_chat_in_its_thread(recorded, tmp_path):
    with ScriptedServer(TEAM) as server, trace.get_tracer("app").start_as_current_span("app"):
        run_group_chat(team_pattern(server, tmp_path), messages="go", max_rounds=20).process()
    expect_team(recorded)
    assert [span.name for span in recorded.roots()] == ["app"]


def test_auto_pattern(recorded, tmp_path):
    script = {
        "You are in a role play game": [say("engineer"), say("executor"), say("planner")],
        "I am planner.": [say("plan"), say("TERMINATE")], "I am engineer.": [python("print(1)")],
    }
    with ScriptedServer(script) as server:
        config = llm(server)
        planner, engineer = agent("planner", config), agent("engineer", config)
        executor = agent("executor",
                         code_execution_config={"executor": LocalCommandLineCodeExecutor(work_dir=tmp_path)})
        pattern = AutoPattern(
            initial_agent=planner, agents=[planner, engineer, executor],
            group_manager_args={"llm_config": config,
                                "is_termination_msg": lambda message: "TERMINATE" in str(message.get("content"))})
        initiate_group_chat(pattern, messages="go", max_rounds=20)
    assert recorded.handoffs() == [("planner", "engineer"), ("engineer", "executor"), ("executor", "planner")]
    assert [meta(span)["reason"] for span in recorded.of("handoff")] == ["auto"] * 3
    assert recorded.agents() == Counter({"chat_manager": 1, "checking_agent": 3, "engineer": 1, "executor": 1,
                                         "planner": 2, "speaker_selection_agent": 3})
    assert recorded.tokens() == (6, 762)
    assert recorded.nodes() == ["chat_1"]


def test_hand_built_group_chat_with_a_model_that_selects(recorded):
    script = {"You are in a role play game": [say("engineer"), say("engineer"), say("planner"), say("planner")]}
    with ScriptedServer(script) as server:
        planner, engineer, other = agent("planner"), agent("engineer"), agent("other")
        chat = GroupChat([planner, engineer, other], messages=[], max_round=5, speaker_selection_method="auto")
        manager = GroupChatManager(chat, llm_config=llm(server), human_input_mode="NEVER")
        planner.initiate_chat(manager, message="go")
    assert recorded.handoffs() == [("planner", "engineer"), ("engineer", "planner")]
    assert [meta(span)["reason"] for span in recorded.of("handoff")] == ["auto", "auto"]
    assert recorded.agents()["engineer"] == recorded.agents()["planner"] == 2


def test_the_person_outside_hands_over_to_nobody(recorded):
    engineer, writer = agent("engineer"), agent("writer")
    chat = GroupChat([engineer, writer], messages=[], max_round=4, speaker_selection_method="round_robin")
    user = UserProxyAgent("user", human_input_mode="NEVER", code_execution_config=False)
    user.initiate_chat(GroupChatManager(chat), message="go")
    assert recorded.handoffs() == [("engineer", "writer"), ("writer", "engineer")]
    assert recorded.messages() == [(author, "chat_manager") for author in ("user", "engineer", "writer", "engineer")]


def test_overrides_that_call_their_bases_hand_over_and_send_once(recorded):
    class Chat(GroupChat):
        def select_speaker(self, last_speaker, selector):
            return super().select_speaker(last_speaker, selector)

    class Sender(ConversableAgent):
        def _process_message_before_send(self, message, recipient, silent):
            return super()._process_message_before_send(message, recipient, silent)

        def initiate_chat(self, recipient, **kwargs):
            return super().initiate_chat(recipient, **kwargs)

    a, b = Sender("a", human_input_mode="NEVER", default_auto_reply="x"), agent("b")
    chat = Chat([a, b], messages=[], max_round=3, speaker_selection_method="round_robin")
    a.initiate_chat(GroupChatManager(chat), message="go")
    assert recorded.handoffs() == [("a", "b"), ("b", "a")]
    assert recorded.messages() == [("a", "chat_manager"), ("b", "chat_manager"), ("a", "chat_manager")]
    assert len(recorded.of("info")) == 1


def test_introductions_are_one_message(recorded):
    engineer, writer = agent("engineer", description="builds"), agent("writer", description="writes")
    chat = GroupChat([engineer, writer], messages=[], max_round=2, speaker_selection_method="round_robin",
                     send_introductions=True)
    engineer.initiate_chat(GroupChatManager(chat), message="go")
    assert recorded.messages() == [("engineer", "chat_manager"), ("chat_manager", "all"), ("writer", "chat_manager")]
    assert recorded.handoffs() == [("engineer", "writer")]


def test_round_robin_and_random_patterns(recorded):
    for kind in (RoundRobinPattern, RandomPattern):
        recorded.exporter.clear()
        a, b, c = agent("a"), agent("b"), agent("c")
        initiate_group_chat(kind(initial_agent=a, agents=[a, b, c]), messages="go", max_rounds=6)
        spoke = [span.attributes["gen_ai.agent.name"] for span in recorded.of("agent_call")][1:]
        assert len(spoke) == 5
        assert recorded.handoffs() == [(one, other) for one, other in pairwise(spoke) if one != other]


def test_manual_pattern_asks_a_person(recorded, monkeypatch):
    answers = iter(["2", "q"])
    monkeypatch.setattr("builtins.input", lambda *_: next(answers))
    a, b = agent("a"), agent("b")
    with ScriptedServer([say("b")]) as server:
        pattern = ManualPattern(initial_agent=a, agents=[a, b], group_manager_args={"llm_config": llm(server)})
        initiate_group_chat(pattern, messages="go", max_rounds=3)
    (asked,) = recorded.of("approval_requested")
    first, second = inputs(asked)["prompt"].removeprefix("Select the next speaker: ").split(", ")[:2]
    assert outputs(asked) == {"response": second}
    assert recorded.handoffs() == ([] if second == "a" else [("a", second)])
    assert first != second


def test_a_tool_that_names_the_next_speaker(recorded):
    with ScriptedServer({"I am planner.": [call("hand_over")], "I am engineer.": [say("hi TERMINATE")]}) as server:
        planner, engineer = agent("planner", llm(server)), agent("engineer", llm(server))

        def hand_over() -> ReplyResult:
            """Hands over."""
            return ReplyResult(message="over to you", target=AgentTarget(engineer))

        planner.register_for_llm()(hand_over)
        pattern = DefaultPattern(initial_agent=planner, agents=[planner, engineer])
        initiate_group_chat(pattern, messages="go", max_rounds=9)
    assert recorded.tools() == [("hand_over", "ok")]
    assert recorded.handoffs() == [("planner", "engineer")]
    assert meta(recorded.of("handoff")[0]) == {"reason": "hand_over"}


def test_two_transfers_at_once_are_one_handoff(recorded):
    script = {"I am planner.": [calls(("transfer_to_engineer_1", {}, "c1"), ("transfer_to_writer_2", {}, "c2"))],
              "I am writer.": [say("done")]}
    with ScriptedServer(script) as server:
        planner, engineer, writer = (agent(name, llm(server)) for name in ("planner", "engineer", "writer"))
        planner.handoffs.add_llm_conditions([
            OnCondition(target=AgentTarget(engineer), condition=StringLLMCondition("a")),
            OnCondition(target=AgentTarget(writer), condition=StringLLMCondition("b"))])
        initiate_group_chat(DefaultPattern(initial_agent=planner, agents=[planner, engineer, writer]), messages="go",
                            max_rounds=9)
    assert recorded.handoffs() == [("planner", "writer")]
    assert recorded.tools() == []


def test_a_transfer_in_the_last_round_is_not_lost(recorded):
    with ScriptedServer([call("transfer_to_engineer_1")]) as server:
        planner, engineer = agent("planner", llm(server)), agent("engineer")
        planner.handoffs.add_llm_conditions([
            OnCondition(target=AgentTarget(engineer), condition=StringLLMCondition("a"))])
        pattern = DefaultPattern(initial_agent=planner, agents=[planner, engineer])
        initiate_group_chat(pattern, messages="go", max_rounds=3)
    assert recorded.agents()["engineer"] == 0
    assert recorded.handoffs() == [("planner", "engineer")]


def test_a_transfer_tool_that_ends_the_chat_is_a_tool_call(recorded):
    with ScriptedServer([call("transfer_to_terminate_1")]) as server:
        planner, engineer = agent("planner", llm(server)), agent("engineer")
        planner.handoffs.add_llm_conditions([
            OnCondition(target=TerminateTarget(), condition=StringLLMCondition("a"))])
        pattern = DefaultPattern(initial_agent=planner, agents=[planner, engineer])
        initiate_group_chat(pattern, messages="go", max_rounds=9)
    assert recorded.handoffs() == []
    assert recorded.tools() == [("transfer_to_terminate_1", "ok")]


def test_back_to_the_user(recorded):
    class Person(UserProxyAgent):
        def get_human_input(self, prompt, **kwargs):
            return "exit"

    a, b, user = agent("a"), agent("b"), Person("user", code_execution_config=False)
    user.handoffs.set_after_work(AgentTarget(b))
    pattern = DefaultPattern(initial_agent=b, agents=[a, b], user_agent=user)
    b.handoffs.set_after_work(RevertToUserTarget())
    initiate_group_chat(pattern, messages="go", max_rounds=5)
    assert recorded.handoffs() == [("b", "user")]
    assert len(recorded.of("approval_requested")) == 1


def test_a_nested_chat_as_target(recorded):
    a, b, inner = agent("a"), agent("b"), agent("inner")
    queue = [{"recipient": inner, "message": "do", "max_turns": 1}]
    nested = NestedChatTarget(nested_chat_config={"chat_queue": queue})
    a.handoffs.add_context_condition(OnContextCondition(target=nested, condition=None))
    initiate_group_chat(DefaultPattern(initial_agent=a, agents=[a, b]), messages="go", max_rounds=4)
    (wrapper,) = [name for name in recorded.agents() if "nested" in name]
    assert recorded.handoffs() == [("a", wrapper), (wrapper, "a")]
    assert recorded.agents()["inner"] == 1


def test_resumed_history_is_no_message_again(recorded):
    a, b = agent("a"), agent("b")
    history = [{"role": "user", "content": "one", "name": "a"}, {"role": "user", "content": "two", "name": "b"}]
    chat = GroupChat([a, b], messages=[], max_round=2, speaker_selection_method="round_robin")
    manager = GroupChatManager(chat)
    last, message = manager.resume(messages=history)
    last.initiate_chat(recipient=manager, message=message, clear_history=False)
    assert recorded.messages() == [("b", "chat_manager"), ("a", "chat_manager")]


def test_a_failing_model_fails_the_manager_too(recorded):
    with ScriptedServer([500] * 9) as server:
        a, b = agent("a", llm(server)), agent("b")
        pattern = DefaultPattern(initial_agent=a, agents=[a, b])
        with pytest.raises(Exception, match="scripted failure"):
            initiate_group_chat(pattern, messages="go", max_rounds=4)
    failed = [span.name for span in recorded.spans if not span.status.is_ok]
    assert failed == ["node chat_1", "conversation _User -> chat_manager", "invoke_agent chat_manager",
                      "invoke_agent a", "chat gpt-4o-mini"]
