"""What the AG2 instrumentation does to the process: patches that come off again, threads, files, our own errors."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import runpy
import sqlite3
import subprocess
import sys
import textwrap
import threading
import weakref
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from ag2_programs.support import Recorded, ScriptedServer, call, inputs, llm, python, say
from autogen import AssistantAgent, ConversableAgent, GroupChat, GroupChatManager, OpenAIWrapper, UserProxyAgent
from autogen.coding import CodeBlock, LocalCommandLineCodeExecutor
from opentelemetry import baggage, trace
from opentelemetry.context import attach, detach, get_current
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from otel_cmb.instrumentation import ag2_files, ag2_patch, threads
from otel_cmb.instrumentation.ag2 import AG2Instrumentor
from otel_cmb.instrumentation.ag2_files import Snapshot, file_type

pytest_plugins = ["ag2_programs.fixtures"]

EXAMPLES = Path(__file__).parents[1] / "examples"


class Overriding(ConversableAgent):
    def generate_reply(self, messages=None, sender=None, exclude=()):
        return "mine"


CLASSES = (ConversableAgent, Overriding, UserProxyAgent, GroupChat, GroupChatManager, OpenAIWrapper,
           LocalCommandLineCodeExecutor, threading.Thread, ThreadPoolExecutor)


def test_uninstrument_restores_every_class(global_provider):
    before = [dict(vars(found)) for found in CLASSES]
    for _ in range(2):
        AG2Instrumentor().instrument()
        assert vars(Overriding)["generate_reply"] is not before[1]["generate_reply"]
        assert vars(ConversableAgent)["initiate_chat"] is not before[0]["initiate_chat"]
        Overriding("x").generate_reply(messages=[{"role": "user", "content": "hi"}])
        AG2Instrumentor().uninstrument()
        assert [dict(vars(found)) for found in CLASSES] == before
    Overriding("x").generate_reply(messages=[{"role": "user", "content": "hi"}])
    assert global_provider.recorded.agents() == Counter(x=2)


class Weighing:
    """A tool that is an object; what it raises is all that AG2 lets nobody see."""

    async def __call__(self, galaxy):
        await asyncio.sleep(0)
        raise LookupError("not on the map: " + galaxy)


def weigh(galaxy):
    raise ValueError("too heavy: " + galaxy)


async def a_weigh(galaxy):
    await asyncio.sleep(0)
    raise OverflowError("far too heavy: " + galaxy)


@pytest.mark.parametrize(("tool", "arguments", "error", "message"), [
    (weigh, '{"galaxy": "M31"}', "ValueError", "too heavy: M31"),
    (a_weigh, '{"galaxy": "M31"}', "OverflowError", "far too heavy: M31"),
    (lambda galaxy: a_weigh(galaxy), '{"galaxy": "M31"}', "OverflowError", "far too heavy: M31"),
    (Weighing(), '{"galaxy": "M31"}', "LookupError", "not on the map: M31"),
    (weigh, "{}", "TypeError", "missing 1 required positional argument"),
    (weigh, "{no json", "ToolError", "The argument must be in JSON format"),
    (None, "{}", "ToolError", "Function weigh not found"),
])
@pytest.mark.parametrize("awaited", [False, True])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # AG2's thread for an async tool
def test_a_tool_that_fails_says_its_own_error_and_where(recorded, tool, arguments, error, message, awaited):
    agent = ConversableAgent("hands", human_input_mode="NEVER", function_map=None if tool is None else {"weigh": tool})
    before = dict(agent.function_map)
    asked = {"name": "weigh", "arguments": arguments}
    done, answer = asyncio.run(agent.a_execute_function(asked)) if awaited else agent.execute_function(asked)
    assert (done, answer["content"].startswith("Error: ")) == (False, True)
    [span] = recorded.spans
    assert span.attributes["error.type"] == error
    assert message in span.status.description
    assert span.status.description[0] not in "\"'"
    stacks = [event.attributes["exception.stacktrace"] for event in span.events if event.name == "exception"]
    assert len(stacks) == (error != "ToolError")
    assert all("test_ag2_mechanics.py" in stack or error == "TypeError" for stack in stacks)
    assert agent.function_map == before
    assert all(agent.function_map[name] is found for name, found in before.items())


def test_an_exception_of_a_tool_is_let_go_and_the_agents_functions_are_its_own(recorded):
    """Nothing holds on to what was in the tool's frames; the tool itself, and a copy of the agent, find what they had."""
    class Data:
        pass

    seen, held = [], []

    def tool():
        data = Data()
        held.append(weakref.ref(data))
        seen.append(agent._function_map["tool"] is tool)
        raise ValueError("no")

    agent = ConversableAgent("hands", human_input_mode="NEVER")
    agent.register_function({"tool": tool})
    functions = agent.function_map
    gc.disable()
    try:
        agent.execute_function({"name": "tool", "arguments": "{}"})
        assert (seen, held[0]()) == ([True], None)
    finally:
        gc.enable()
    assert agent.function_map is functions
    assert vars(agent)["_function_map"] is functions
    with pytest.raises(AttributeError):
        del agent._function_map, agent._function_map
    AG2Instrumentor().uninstrument()
    assert "_function_map" not in vars(ConversableAgent)


def test_what_somebody_put_on_top_stays_and_ours_below_is_silent(global_provider):
    original = vars(ConversableAgent)["send"]
    AG2Instrumentor().instrument()
    ours = ConversableAgent.generate_reply

    def theirs(self, *args, **kwargs):
        return ours(self, *args, **kwargs)

    ConversableAgent.generate_reply = theirs
    try:
        AG2Instrumentor().uninstrument()
        assert vars(ConversableAgent)["generate_reply"] is theirs
        agent = ConversableAgent("x", default_auto_reply="hi", human_input_mode="NEVER")
        assert agent.generate_reply(messages=[{"role": "user", "content": "x"}]) == "hi"
        assert global_provider.recorded.spans == []
    finally:
        ConversableAgent.generate_reply = ours.__wrapped__
    assert vars(ConversableAgent)["send"] is original


def test_our_own_errors_are_logged_once_and_change_nothing(recorded, monkeypatch, caplog):
    monkeypatch.delenv("OTEL_CMB_TESTING")
    monkeypatch.setattr(ag2_patch, "_last_report", [])
    monkeypatch.setattr("otel_cmb.spans.agent_call", lambda *_a, **_k: 1 / 0)
    monkeypatch.setattr("otel_cmb.spans.message", lambda *_a, **_k: 1 / 0)
    agent = ConversableAgent("x", default_auto_reply="hi", human_input_mode="NEVER")
    user = ConversableAgent("user", human_input_mode="NEVER")
    with caplog.at_level(logging.ERROR, logger="otel_cmb.instrumentation"):
        result = user.initiate_chat(agent, message="go", max_turns=2)
    assert [message["content"] for message in result.chat_history] == ["go", "hi", "", "hi"]
    assert len([record for record in caplog.records if record.name == "otel_cmb.instrumentation"]) == 1


def test_internal_errors_are_raised_under_test():
    with pytest.raises(ZeroDivisionError), ag2_patch.handle_internal_errors():
        raise ZeroDivisionError
    with pytest.raises(KeyboardInterrupt), ag2_patch.handle_internal_errors():
        raise KeyboardInterrupt


def test_a_provider_of_ones_own(global_provider, monkeypatch):
    monkeypatch.setenv("OTEL_CMB_TESTING", "1")
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    AG2Instrumentor().instrument(tracer_provider=provider)
    try:
        agent = ConversableAgent("x", default_auto_reply="hi", human_input_mode="NEVER")
        ConversableAgent("user", human_input_mode="NEVER").initiate_chat(agent, message="go", max_turns=1)
    finally:
        AG2Instrumentor().uninstrument()
    assert Recorded(exporter).agents() == Counter(x=1)
    assert Recorded(exporter).messages() == [("user", "x"), ("x", "user")]
    assert {span.name for span in global_provider.recorded.spans} <= {"node chat_1"}


def native_chat(server, tmp_path, provider):
    from autogen.opentelemetry import instrument_agent, instrument_llm_wrapper

    instrument_llm_wrapper(tracer_provider=provider, capture_messages=True)
    engineer = AssistantAgent("engineer", llm_config=llm(server))
    proxy = UserProxyAgent("executor", human_input_mode="NEVER", max_consecutive_auto_reply=5,
                           is_termination_msg=lambda message: "TERMINATE" in str(message.get("content")),
                           code_execution_config={"executor": LocalCommandLineCodeExecutor(work_dir=tmp_path)})

    @proxy.register_for_execution()
    @engineer.register_for_llm(description="adds")
    def add(a: int, b: int) -> int:
        return a + b

    for agent in (engineer, proxy):
        instrument_agent(agent, tracer_provider=provider)
    proxy.initiate_chat(engineer, message="go")


@pytest.mark.parametrize("elsewhere", [False, True])
def test_with_ag2s_own_tracing_one_act_is_one_event(recorded, global_provider, tmp_path, elsewhere):
    exporter = InMemorySpanExporter()
    other = TracerProvider()
    other.add_span_processor(SimpleSpanProcessor(exporter))
    native_create = OpenAIWrapper.create
    try:
        with ScriptedServer([call("add", {"a": 1, "b": 2}), python("print(3)"), say("TERMINATE")]) as server:
            native_chat(server, tmp_path, other if elsewhere else global_provider)
    finally:
        OpenAIWrapper.create = native_create
    assert recorded.agents() == Counter(engineer=3, executor=3)
    assert recorded.tools() == [("add", "ok")]
    assert recorded.codes() == [(0, "ok")]
    assert recorded.tokens() == (3, 372)
    assert not [span for span in recorded.spans if "ag2.span.type" in span.attributes]
    native = Counter(span.attributes["ag2.span.type"] for span in exporter.get_finished_spans())
    assert native == (Counter(agent=6, llm=3, tool=1, code_execution=1, conversation=1) if elsewhere else Counter())


def test_nothing_is_imported_before_the_program_does_it(tmp_path):
    program = textwrap.dedent("""
        import sys
        from otel_cmb.instrumentation.ag2 import AG2Instrumentor
        AG2Instrumentor().instrument()
        assert "autogen" not in sys.modules
        import autogen
        agent = autogen.ConversableAgent("x", default_auto_reply="hi", human_input_mode="NEVER")
        assert hasattr(autogen.ConversableAgent.generate_reply, "__wrapped__")
        AG2Instrumentor().uninstrument()
        assert not hasattr(autogen.ConversableAgent.generate_reply, "__wrapped__")
        assert "autogen.opentelemetry" not in sys.modules
    """)
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, cwd=tmp_path, timeout=60)


# Threads.

@pytest.fixture
def threaded():
    threads.instrument()
    token = attach(baggage.set_baggage("who", "caller"))
    yield
    detach(token)
    threads.uninstrument()


def test_context_crosses_threads_of_every_kind(threaded):
    class Overrides(threading.Thread):
        def run(self):
            seen.append(baggage.get_baggage("who"))

    seen = []
    work = [threading.Thread(target=lambda: seen.append(baggage.get_baggage("who"))), Overrides(),
            threading.Timer(0, lambda: seen.append(baggage.get_baggage("who")))]
    for thread in work:
        thread.start()
        thread.join()
        assert "run" not in vars(thread)
        with pytest.raises(RuntimeError, match="threads can only be started once"):
            thread.start()
    assert seen == ["caller"] * 3


def test_a_pool_worker_has_the_context_of_each_task(threaded):
    with ThreadPoolExecutor(max_workers=1) as pool:
        first = pool.submit(baggage.get_baggage, "who").result()
        token = attach(baggage.set_baggage("who", "second"))
        second = pool.submit(baggage.get_baggage, name="who").result()
        detach(token)
        token = attach(type(get_current())())
        third = pool.submit(baggage.get_baggage, "who").result()
        detach(token)
        with pytest.raises(LookupError):
            pool.submit({}.__getitem__, "missing").result()
    assert (first, second, third) == ("caller", "second", None)

    async def main():
        return await asyncio.get_running_loop().run_in_executor(None, baggage.get_baggage, "who")

    assert asyncio.run(main()) == "caller"


def test_threads_are_restored_by_the_last_one():
    start, submit = threading.Thread.start, ThreadPoolExecutor.submit
    threads.instrument()
    threads.instrument()
    threads.uninstrument()
    assert threading.Thread.start is not start
    threads.uninstrument()
    threads.uninstrument()
    assert (threading.Thread.start, ThreadPoolExecutor.submit) == (start, submit)


# Files.

@pytest.mark.parametrize(("path", "expected"), [
    ("a/b.py", "code"), ("x.CSV", "data"), ("fig.png", "plot"), ("r.md", "report"), ("run.log", "log"),
    ("noext", "other"), ("plan.json", "plan"), ("final_plan.md", "plan"), ("planet.csv", "data"),
    ("chat_history.json", "chat"), ("context.md", "context"), ("plan.py", "code"), ("a.xyz", "other"),
    (".hidden", "other"), ("archive.tar.gz", "data"),
])
def test_file_types(path, expected):
    assert file_type(path) == expected


def test_snapshot_knows_what_is_not_the_codes(tmp_path):
    snapshot = Snapshot(str(tmp_path))
    database = sqlite3.connect(tmp_path / "runs.db")
    with contextlib.closing(database):
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("CREATE TABLE t (x)")
        for name in ("tmp_code_0123456789abcdef0123456789abcdef.py", "functions.py", ".git/x", "__pycache__/a.pyc",
                     "kept.py", "deep/er/x.csv"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(name)
        (tmp_path / "link").symlink_to(tmp_path)
        found = snapshot.written(own=["functions.py"])
        assert found == [(str(tmp_path / "kept.py"), 7), (str(tmp_path / "deep/er/x.csv"), 13)]
        assert Snapshot(str(tmp_path)).written() == []
        assert snapshot.written(own=["functions.py"]) == []


def test_what_otel_cmb_writes_is_not_the_codes(recorded, tmp_path):
    from otel_cmb import config, pipeline

    settings = config.load(database_url=f"sqlite:///{tmp_path}/mine.db", state_dir=str(tmp_path / "journals"))
    pipeline.use_pipeline(pipeline.get_pipeline(settings))
    try:
        code = ("import os; os.mkdir('journals'); open('journals/j1', 'w').close(); open('mine.db', 'w').close(); "
                "open('theirs.db', 'w').close()")
        LocalCommandLineCodeExecutor(work_dir=tmp_path).execute_code_blocks([CodeBlock(language="python", code=code)])
    finally:
        pipeline.forget_pipelines()
    assert recorded.files() == [("theirs.db", "data")]


def test_snapshot_of_too_many_files_goes_by_time(tmp_path, monkeypatch):
    for number in range(6):
        (tmp_path / f"a{number}").write_text("")
        os.utime(tmp_path / f"a{number}", (1, 1))
    monkeypatch.setattr(ag2_files, "MAX_FILES", 5)
    snapshot = Snapshot(str(tmp_path))
    (tmp_path / "a0").unlink()
    (tmp_path / "a1").write_text("new")
    assert [Path(item.path).name for item in snapshot.written()] == ["a1"]


def test_snapshot_of_a_directory_that_comes_later(tmp_path):
    snapshot = Snapshot(str(tmp_path / "later"))
    (tmp_path / "later").mkdir()
    (tmp_path / "later/x.txt").write_text("x")
    assert [item.size for item in snapshot.written()] == [1]


# Examples.

def test_the_team_example(recorded, monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "argv", ["ag2_team.py"])
    monkeypatch.syspath_prepend(str(EXAMPLES))
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(EXAMPLES / "ag2_team.py"), run_name="__main__")
    assert ended.value.code == 0
    assert recorded.tools() == [("lookup_constant", "ok"), ("record_plan", "ok")]
    assert recorded.codes() == [(1, "failed"), (0, "ok")]
    assert recorded.handoffs() == [("planner", "engineer"), ("engineer", "executor"), ("executor", "engineer"),
                                   ("engineer", "executor"), ("executor", "engineer")]
    assert sorted(inputs(span)["file_path"] for span in recorded.of("file_gen")) == [
        "team_work/age.json", "team_work/age.py"]
    assert recorded.tokens() == (5, 630)
    assert "otel_cmb" not in (EXAMPLES / "ag2_team.py").read_text().replace("otel-cmb", "")
    assert trace.get_current_span().get_span_context().is_valid is False
