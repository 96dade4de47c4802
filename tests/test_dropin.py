"""`cmb` as one exporter among others: the stock tools' own commands, with no program of ours in front of them."""

from __future__ import annotations

import os
import signal
import subprocess
import textwrap
import time
from pathlib import Path

import pytest
from commands import BIN, ROOT, Shell, eventually
from otlp_server import OTLPServer

from otel_cmb.event import event_id

STOCK = ("opentelemetry-instrument", "python", "program.py")
FORMS: dict[str, dict[str, str]] = {
    "OTEL_TRACES_EXPORTER=cmb": {"OTEL_TRACES_EXPORTER": "cmb"},
    "OTEL_TRACES_EXPORTER=cmb,otlp": {"OTEL_TRACES_EXPORTER": "cmb,otlp"},
    "OTEL_CONFIG_FILE": {"OTEL_CONFIG_FILE": str(ROOT / "examples" / "otel-config.yaml")},
}
METRICS_AND_LOGS_OFF = {"OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    directory = tmp_path / "work"
    directory.mkdir()
    return Shell(directory)


@pytest.fixture
def otlp():
    with OTLPServer() as server:
        yield server


def settings(form: str, otlp: OTLPServer) -> dict[str, str]:
    return FORMS[form] | METRICS_AND_LOGS_OFF | {"OTEL_EXPORTER_OTLP_ENDPOINT": otlp.endpoint}


# -- each form, with nothing else set -------------------------------------------------------------------------------


def test_the_exporter_alone_on_an_empty_directory_ends_with_a_run_and_its_rows(shell: Shell) -> None:
    """The shortest form there is: not even metrics are switched off."""
    shell.program("""
        with agent("planner"):
            with agent("engineer"):
                print("done")
    """)
    done = shell.run(*STOCK, OTEL_TRACES_EXPORTER="cmb", OTEL_METRICS_EXPORTER="none")
    assert (done.returncode, done.stdout) == (0, "done\n")
    assert "Traceback" not in done.stderr
    [run] = shell.runs()
    assert (run.status, run.mode) == ("completed", "one_shot")
    assert run.started_at is not None
    assert run.completed_at is not None
    planner, engineer = shell.events()
    assert [planner.agent_name, engineer.agent_name] == ["planner", "engineer"]
    assert engineer.parent_event_id == planner.id
    assert {planner.run_id, engineer.run_id} == {run.id}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_ends_with_a_run_and_its_rows(shell: Shell, otlp: OTLPServer, form: str) -> None:
    shell.program("with agent('planner'):\n    pass\n")
    done = shell.run(*STOCK, **settings(form, otlp))
    assert done.returncode == 0, done.stderr
    [run] = shell.runs()
    [event] = shell.events()
    assert (run.status, event.agent_name, event.status) == ("completed", "planner", "completed")
    sent = {event_id(span.trace_id.hex(), span.span_id.hex()) for span in otlp.spans()}
    assert sent == ({event.id} if "otlp" in form else set())


@pytest.mark.parametrize("form", FORMS)
def test_every_form_shows_rows_while_the_program_runs_and_keeps_them_when_it_is_killed(
    shell: Shell, otlp: OTLPServer, form: str,
) -> None:
    """SIGKILL while a span is open and many have just ended: the next process stores them and closes the open row."""
    shell.program("""
        import os
        with agent("open"):
            print("ready", flush=True)
            open("go").read()
            for n in range(50):
                with agent(f"ended {n}"):
                    pass
            os.kill(os.getpid(), 9)
    """)
    os.mkfifo(shell.directory / "go")
    process = shell.start(*STOCK, **settings(form, otlp))
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    try:
        [event] = eventually(shell.events, "the live row")
        assert (event.agent_name, event.event_subtype, event.status) == ("open", "start", "running")
    finally:
        (shell.directory / "go").write_text("", encoding="utf-8")
        process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL
    replayed = shell.run("otel-cmb", "parked", "replay")
    assert replayed.returncode == 0, replayed.stdout + replayed.stderr
    events = {event.agent_name: event for event in shell.events()}
    assert sorted(events) == sorted(["open", *(f"ended {n}" for n in range(50))])
    assert {event.status for name, event in events.items() if name != "open"} == {"completed"}
    assert events["open"].status == "failed"
    assert "ended before the span did" in events["open"].error_message


def test_the_next_process_adopts_what_a_killed_one_left(shell: Shell) -> None:
    shell.program("""
        import os
        with agent("killed"):
            pass
        os.kill(os.getpid(), 9)
    """, "killed.py")
    shell.program("with agent('next'):\n    pass\n")
    only_cmb = {"OTEL_TRACES_EXPORTER": "cmb", **METRICS_AND_LOGS_OFF}
    assert shell.run("opentelemetry-instrument", "python", "killed.py", **only_cmb).returncode != 0
    assert shell.run(*STOCK, **only_cmb).returncode == 0
    stored = [event.agent_name for run in shell.runs() for event in shell.events(run_id=run.id)]
    assert sorted(stored) == ["killed", "next"]


CRASHES = {
    "an error nobody caught": ("raise ValueError('no such galaxy')", "failed", "ValueError: no such galaxy"),
    "with an excepthook of its own": (
        "import sys; sys.excepthook = lambda *_: print('mine'); raise KeyError('x')", "failed", "KeyError: 'x'"),
    "Ctrl-C": ("raise KeyboardInterrupt", "failed", "KeyboardInterrupt"),
    "in a thread, and the program went on": (
        "import threading; t = threading.Thread(target=lambda: 1 / 0); t.start(); t.join()", "completed", None),
    "caught": ("try:\n    raise ValueError\nexcept ValueError:\n    pass", "completed", None),
    "shown to a prompt and left": (
        "import code; code.InteractiveInterpreter().runcode('1 / 0')", "completed", None),
}


@pytest.mark.parametrize("case", CRASHES)
@pytest.mark.parametrize("by_module", [False, True], ids=["file", "module"])
def test_the_run_of_a_program_that_crashes_is_failed_and_says_why(shell: Shell, case: str, by_module: bool) -> None:
    text, status, error = CRASHES[case]
    shell.program("with agent('engineer'):\n    pass\n" + text)
    command = ("opentelemetry-instrument", "python", "-m", "program") if by_module else STOCK
    shell.run(*command, OTEL_TRACES_EXPORTER="cmb", **METRICS_AND_LOGS_OFF)
    [run] = shell.runs()
    assert (run.status, (run.meta or {}).get("error")) == (status, error)
    assert [event.status for event in shell.events()] == ["completed"]


@pytest.mark.parametrize("form", ["OTEL_TRACES_EXPORTER=cmb", "OTEL_CONFIG_FILE"])
def test_an_ag2_program_lands_in_the_database_by_the_stock_command(shell: Shell, otlp: OTLPServer, form: str) -> None:
    done = shell.run("opentelemetry-instrument", "python", ROOT / "examples" / "ag2_team.py", **settings(form, otlp))
    assert done.returncode == 0, done.stderr
    [run] = shell.runs()
    assert (run.status, run.totals.tokens) == ("completed", 630)
    kinds = [event.event_type for event in shell.events()]
    assert (kinds.count("code_exec"), kinds.count("tool_call"), kinds.count("llm_call")) == (2, 2, 5)


def test_the_code_that_ag2_runs_is_not_instrumented_by_the_stock_command(shell: Shell) -> None:
    """The stock tool's default metrics exporter would hold the end of each Python child up for seconds: a timeout."""
    shell.program("""
        import os, subprocess, sys
        from autogen import ConversableAgent
        from autogen.coding import LocalCommandLineCodeExecutor

        CODE = "```python\\nimport sys; print([m for m in sys.modules if m.startswith('opentelemetry')])\\n```"
        before = os.environ["PYTHONPATH"]
        for config in ({"work_dir": "work", "use_docker": False},
                       {"executor": LocalCommandLineCodeExecutor(work_dir=".")}):
            agent = ConversableAgent("coder", llm_config=False, human_input_mode="NEVER", code_execution_config=config)
            agent.generate_reply([{"role": "user", "content": CODE}])
        assert os.environ["PYTHONPATH"] == before
        worker = subprocess.run([sys.executable, "-c", "import sys; print('opentelemetry' in sys.modules)"],
                                capture_output=True, text=True)
        print("a worker of the program:", worker.stdout)
    """)
    done = shell.run(*STOCK, OTEL_TRACES_EXPORTER="cmb", **METRICS_AND_LOGS_OFF)
    assert done.returncode == 0, done.stderr
    assert "a worker of the program: True" in done.stdout
    codes = [event for event in shell.events() if event.event_type == "code_exec"]
    assert [event.outputs["result"].strip() for event in codes] == ["[]", "[]"]


def test_a_run_named_by_the_environment_is_the_applications(shell: Shell) -> None:
    """`OTEL_CMB_RUN_ID` of a run that is there: its row is not touched, its session is on the events."""
    shell.program("""
        import otel_cmb
        otel_cmb.configure()
        with otel_cmb.run(run_id="mine", mode="deep_research"):
            pass
    """, "make.py")
    assert shell.run("python", "make.py").returncode == 0
    shell.program("with agent('engineer'):\n    pass\n")
    done = shell.run(*STOCK, OTEL_TRACES_EXPORTER="cmb", OTEL_CMB_RUN_ID="mine", **METRICS_AND_LOGS_OFF)
    assert done.returncode == 0, done.stderr
    [run] = shell.runs()
    [event] = shell.events()
    assert (run.id, run.mode, event.run_id, event.session_id) == ("mine", "deep_research", "mine", run.session_id)


# -- a run that is not there ------------------------------------------------------------------------------------------


def test_an_unknown_run_is_parked_and_said_once_and_nothing_is_raised(shell: Shell) -> None:
    shell.program("""
        for n in range(5):
            with agent(f"agent {n}"):
                pass
        print("went on")
    """)
    done = shell.run(*STOCK, OTEL_TRACES_EXPORTER="cmb", OTEL_CMB_RUN_ID="task_1768904279349_a64oayyk2",
                     **METRICS_AND_LOGS_OFF)
    assert (done.returncode, done.stdout) == (0, "went on\n")
    about = [line for line in done.stderr.splitlines() if "task_1768904279349_a64oayyk2" in line]
    assert len(about) == 1, done.stderr
    assert "otel_cmb.db" in about[0]
    assert "otel-cmb parked replay" in about[0]
    assert shell.runs() == []
    doctor = shell.run("otel-cmb", "doctor", "task_1768904279349_a64oayyk2")
    assert doctor.returncode == 1
    assert "5 of its spans are parked" in doctor.stdout


@pytest.mark.parametrize("policy", ["park", "create"])
def test_on_missing_run_decides(shell: Shell, policy: str) -> None:
    shell.program("with agent('engineer'):\n    pass\n")
    done = shell.run(*STOCK, OTEL_TRACES_EXPORTER="cmb", OTEL_CMB_RUN_ID="made", OTEL_EXPORTER_CMB_ON_MISSING_RUN=policy,
                     **METRICS_AND_LOGS_OFF)
    assert done.returncode == 0
    assert [run.id for run in shell.runs()] == (["made"] if policy == "create" else [])


# -- wrong settings: the program goes on, the log says what to do ------------------------------------------------------


@pytest.mark.parametrize(("more", "said"), [
    ({"OTEL_EXPORTER_CMB_DATABASE_URL": "sqlite://"}, "in-memory SQLite"),
    ({"OTEL_EXPORTER_CMB_DATABASE_URL": "sqlite:////nowhere/x.db", "OTEL_EXPORTER_CMB_SHUTDOWN_TIMEOUT": "0.5"}, "/nowhere"),
    ({"OTEL_EXPORTER_CMB_BATCH_SIZE": "many"}, "OTEL_EXPORTER_CMB_BATCH_SIZE: found 'many'"),
])
def test_a_wrong_setting_is_said_on_stderr_and_the_program_runs(shell: Shell, more: dict[str, str], said: str) -> None:
    shell.program("with agent('engineer'):\n    print('done')\n")
    done = shell.run(*STOCK, OTEL_TRACES_EXPORTER="cmb", **METRICS_AND_LOGS_OFF, **more)
    assert (done.returncode, done.stdout) == (0, "done\n")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


# -- the exporter behind the SDK's own processors, without ours ---------------------------------------------------------


@pytest.mark.parametrize("processor", ["BatchSpanProcessor", "SimpleSpanProcessor"])
def test_the_exporter_alone_works_behind_the_sdks_processors(shell: Shell, processor: str) -> None:
    path = shell.directory / "bare.py"
    path.write_text(textwrap.dedent(f"""
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import {processor}
        from otel_cmb import CMBSpanExporter

        provider = TracerProvider()
        provider.add_span_processor({processor}(CMBSpanExporter(database_url="sqlite:///bare.db")))
        tracer = provider.get_tracer("bare")
        names = {{"gen_ai.operation.name": "invoke_agent"}}
        with tracer.start_as_current_span("a", attributes=names | {{"gen_ai.agent.name": "planner"}}):
            with tracer.start_as_current_span("between"):
                with tracer.start_as_current_span("b", attributes=names | {{"gen_ai.agent.name": "engineer"}}):
                    pass
        provider.shutdown()
    """), encoding="utf-8")
    done = shell.run("python", "bare.py")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    url = f"sqlite:///{shell.directory}/bare.db"
    [run] = shell.runs(url)
    planner, engineer = shell.events(url)
    assert (planner.agent_name, planner.execution_order, planner.depth) == ("planner", 1, 0)
    assert (engineer.agent_name, engineer.parent_event_id, engineer.depth) == ("engineer", planner.id, 1)
    assert run.status == "completed"


def test_an_exporter_that_was_made_wrong_says_so_at_its_first_export(shell: Shell) -> None:
    """The constructor raises nothing: the SDK would swallow it and the program would run on untraced in silence."""
    path = shell.directory / "bare.py"
    path.write_text(textwrap.dedent("""
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from otel_cmb import CMBSpanExporter

        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(CMBSpanExporter(database_url="sqlite://", colour="red")))
        for _ in range(3):
            with provider.get_tracer("bare").start_as_current_span("a"):
                pass
        print("went on")
    """), encoding="utf-8")
    done = shell.run("python", "bare.py")
    assert (done.returncode, done.stdout) == (0, "went on\n")
    [line] = done.stderr.splitlines()
    assert "unknown setting colour" in line


# -- configure() -------------------------------------------------------------------------------------------------------


def test_configure_keeps_what_ended_before_sigkill(shell: Shell) -> None:
    shell.program("""
        import os
        import otel_cmb
        otel_cmb.configure()
        with otel_cmb.run(task="short life") as run:
            with otel_cmb.agent_call("engineer", message="go") as call:
                call.set_response("gone")
            os.kill(os.getpid(), 9)
    """)
    assert shell.run("python", "program.py").returncode == -signal.SIGKILL
    assert shell.run("otel-cmb", "parked", "replay").returncode == 0
    [run] = shell.runs()
    [event] = shell.events()
    assert (run.status, run.task_description) == ("failed", "short life")
    assert run.completed_at is not None
    assert (event.status, event.outputs) == ("completed", {"response": "gone"})


def test_configure_sends_the_same_spans_to_an_otlp_server(shell: Shell, otlp: OTLPServer) -> None:
    shell.program(f"""
        import otel_cmb
        otel_cmb.configure(otlp_endpoint={otlp.endpoint!r}, service_name="mine")
        with otel_cmb.run(), otel_cmb.agent_call("engineer"):
            pass
    """)
    done = shell.run("python", "program.py")
    assert done.returncode == 0, done.stderr
    [event] = shell.events()
    assert event.id in {event_id(span.trace_id.hex(), span.span_id.hex()) for span in otlp.spans()}
    assert otlp.resource_attribute("service.name") == "mine"


def test_configure_twice_and_under_otel_cmb_run_makes_no_event_twice(shell: Shell) -> None:
    shell.program("""
        import otel_cmb
        first = otel_cmb.configure()
        assert otel_cmb.configure() is first
        with otel_cmb.agent_call("engineer"):
            pass
    """)
    assert shell.run("python", "program.py").returncode == 0
    assert len(shell.events()) == 1
    assert shell.run("otel-cmb", "run", "--", "python", "program.py").returncode == 0
    assert [len(shell.events(run_id=run.id)) for run in shell.runs()] == [1, 1]


@pytest.mark.parametrize(("call", "error"), [
    ("otel_cmb.configure('sqlite://')", "DatabaseURLError"),
    ("otel_cmb.configure(batch_size=0)", "ConfigurationError"),
    ("otel_cmb.configure(colour='red')", "ConfigurationError"),
])
def test_configure_raises_what_is_wrong(shell: Shell, call: str, error: str) -> None:
    shell.program(f"import otel_cmb\n{call}\n")
    done = shell.run("python", "program.py")
    assert done.returncode == 1
    assert f"otel_cmb.errors.{error}: " in done.stderr.splitlines()[-1]


def test_attach_to_a_run_that_is_not_there_raises(shell: Shell) -> None:
    shell.program("""
        import otel_cmb
        otel_cmb.configure()
        with otel_cmb.run(run_id="task_1768904279349"):
            pass
        try:
            with otel_cmb.attach("nope"):
                print("entered")
        except otel_cmb.RunNotFoundError as error:
            assert isinstance(error, ValueError)
            print(error)
        with otel_cmb.attach("task_1768904279349") as run:
            print(run.id)
    """)
    done = shell.run("python", "program.py")
    assert done.returncode == 0, done.stderr
    said, attached = done.stdout.splitlines()
    assert "'nope'" in said
    assert "otel_cmb.db" in said
    assert attached == "task_1768904279349"


def test_the_entry_points_of_the_stock_tools_are_registered() -> None:
    done = subprocess.run([BIN / "python", "-c", textwrap.dedent("""
        from importlib.metadata import entry_points
        [exporter] = entry_points(group="opentelemetry_traces_exporter", name="cmb")
        [instrumentor] = entry_points(group="opentelemetry_instrumentor", name="otel_cmb_ag2")
        [after] = entry_points(group="opentelemetry_post_instrument", name="otel_cmb")
        print(exporter.load().__name__, instrumentor.load().__name__, after.load().__name__)
    """)], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["CMBSpanExporter", "AG2Instrumentor", "post_instrument"]


def test_a_database_that_is_away_holds_the_end_of_the_program_up_once(shell: Shell) -> None:
    """Exporter, processor and exit all ask for the last commit; together they may wait `shutdown_timeout`, not each."""
    shell.program("with agent('engineer'):\n    pass\nimport time\nprint(time.time())\n")
    done = shell.run(*STOCK, OTEL_TRACES_EXPORTER="cmb", OTEL_EXPORTER_CMB_DATABASE_URL="postgresql://user@127.0.0.1:1/agents",
                     OTEL_EXPORTER_CMB_SHUTDOWN_TIMEOUT="4", **METRICS_AND_LOGS_OFF)
    took = time.time() - float(done.stdout)
    assert done.returncode == 0
    assert "1 still in the journal" in done.stderr
    assert took < 4 + 4, "four seconds, and what the interpreter needs to end on a busy machine"
