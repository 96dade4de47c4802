"""`otel-cmb run -- python program.py`, as a person uses it: the real command in a process of its own."""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import signal
import socket
import sqlite3
import subprocess
import textwrap
import time
from pathlib import Path

import pytest
from commands import BIN, ROOT, Shell, eventually
from otlp_server import OTLPServer
from support import application_schema
from support.proxy import Proxy

from otel_cmb.event import event_id

AG2 = ("python", ROOT / "examples" / "ag2_team.py")


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    directory = tmp_path / "work"
    directory.mkdir()
    return Shell(directory)


def only_run(shell: Shell, url: str | None = None):
    [run] = shell.runs(url)
    return run


# -- what is passed through ----------------------------------------------------------------------------------------


def test_output_and_exit_code_are_the_programs_and_the_summary_is_one_line_on_stderr(shell: Shell) -> None:
    shell.program("""
        import sys
        with agent("engineer"):
            print("to stdout", sys.argv[1:])
            print("to stderr", file=sys.stderr)
    """)
    done = shell.run("otel-cmb", "run", "--", "python", "program.py", "--fast", "two words")
    assert done.returncode == 0
    assert done.stdout == "to stdout ['--fast', 'two words']\n"
    first, summary = done.stderr.splitlines()
    assert first == "to stderr"
    run = only_run(shell)
    assert summary == (f"otel-cmb: run {run.id} completed: 1 event in sqlite:///otel_cmb.db; otel-cmb show {run.id}")
    assert run.status == "completed"
    assert run.started_at is not None
    assert run.completed_at >= run.started_at
    [event] = shell.events()
    assert (event.event_type, event.agent_name, event.status, event.run_id, event.session_id) == (
        "agent_call", "engineer", "completed", run.id, run.session_id)


def test_the_next_command_that_the_summary_names_finds_the_same_database(shell: Shell) -> None:
    shell.program("""
        with agent("engineer"):
            pass
    """)
    done = shell.run("otel-cmb", "run", "--database-url", "sqlite:///other place.db", "--", "python", "program.py")
    next_step = shlex.split(done.stderr.splitlines()[-1].rpartition("; ")[2])
    assert next_step[:2] == ["otel-cmb", "show"]
    shown = shell.run(*next_step)
    assert shown.returncode == 0
    assert "agent engineer" in shown.stdout


def test_arguments_need_not_be_text(shell: Shell) -> None:
    """A file's name may be any bytes; the run that says the command has to be stored all the same."""
    shell.program("""
        import os, sys
        with agent("engineer"):
            print([os.fsencode(argument) for argument in sys.argv[1:]])
    """)
    done = shell.run("otel-cmb", "run", "--", "python", "program.py", os.fsdecode(b"r\xe9sum\xe9.txt"))
    assert done.stdout == "[b'r\\xe9sum\\xe9.txt']\n"
    assert only_run(shell).task_description == "python program.py r\ufffdsum\ufffd.txt"
    assert len(shell.events()) == 1
    missing = shell.run("otel-cmb", "show", os.fsdecode(b"\xff"))
    assert missing.returncode == 1
    assert "no run" in missing.stderr and "Traceback" not in missing.stderr


def test_standard_input_reaches_the_program(shell: Shell) -> None:
    done = subprocess.run(
        [BIN / "otel-cmb", "run", "--", "python", "-c", "print(input()[::-1])"], cwd=shell.directory, env=shell.environment(),
        input="abc\n", capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout == "cba\n"


@pytest.mark.parametrize(("text", "code", "why"), [
    ("import sys; sys.exit(3)", 3, "exit code 3"),
    ("raise RuntimeError('boom')", 1, "exit code 1"),
    ("import os; os._exit(7)", 7, "exit code 7"),
    ("import os; os.kill(os.getpid(), 9)", 137, "ended by SIGKILL"),
    ("import os; os.kill(os.getpid(), 15)", 143, "ended by SIGTERM"),
])
def test_however_the_program_ends_what_had_ended_is_stored_and_what_had_not_is_closed(
    shell: Shell, text: str, code: int, why: str,
) -> None:
    shell.program(f"""
        with agent("ended"):
            pass
        open_ = running("open")
        import contextlib, sqlite3, time
        for _ in range(3000):  # until its row is there
            with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect("otel_cmb.db")) as other:
                if other.execute("SELECT 1 FROM execution_events WHERE agent_name = 'open'").fetchone():
                    break
            time.sleep(0.02)
        {text}
    """)
    done = shell.run("otel-cmb", "run", "--", "python", "program.py")
    assert done.returncode == code
    run = only_run(shell)
    assert run.status == "failed"
    assert run.completed_at is not None
    assert why in done.stderr.splitlines()[-1]
    events = {event.agent_name: event for event in shell.events()}
    assert events["ended"].status == "completed"
    assert events["open"].status == "failed"
    assert events["open"].error_message
    assert ("Traceback" in done.stderr) == ("boom" in text)


def test_a_span_that_the_end_of_the_interpreter_closes_is_stored_and_holds_nothing_up(shell: Shell) -> None:
    """The generator behind `start_as_current_span` is closed while the interpreter goes down: no thread can be had."""
    shell.program("""
        open_ = agent("open")
        open_.__enter__()
    """)
    done = shell.run("otel-cmb", "run", "--", "python", "program.py", timeout=30)
    assert done.returncode == 0, done.stderr
    [event] = shell.events()
    assert event.status in ("completed", "failed")
    assert event.completed_at is not None


def test_spans_of_a_burst_before_sigkill_are_all_there(shell: Shell) -> None:
    """Nothing waits in memory: what had ended when the program was killed is stored, to the last span."""
    shell.program("""
        import os
        for n in range(300):
            with agent(f"agent {n}"):
                pass
        os.kill(os.getpid(), 9)
    """)
    assert shell.run("otel-cmb", "run", "--", "python", "program.py").returncode == 137
    assert sorted(event.agent_name for event in shell.events()) == sorted(f"agent {n}" for n in range(300))


def test_what_a_crash_interrupts_says_the_error(shell: Shell) -> None:
    shell.program("""
        with agent("engineer"):
            raise ValueError("no such galaxy")
    """)
    done = shell.run("otel-cmb", "run", "--", "python", "program.py")
    assert done.returncode == 1
    assert "ValueError: no such galaxy" in done.stderr
    [event] = [event for event in shell.events() if event.event_type == "agent_call"]
    assert event.status == "failed"
    assert "no such galaxy" in event.error_message


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_command_reaches_the_program_and_the_run_ends_failed(shell: Shell, number: signal.Signals) -> None:
    shell.program("""
        import signal, sys, time
        def leave(number, frame):
            print("got", number, flush=True)
            sys.exit(130)
        signal.signal(signal.SIGINT, leave)
        signal.signal(signal.SIGTERM, leave)
        with agent("engineer"):
            print("ready", flush=True)
            for _ in range(600):
                time.sleep(0.05)
    """)
    process = shell.start("otel-cmb", "run", "--", "python", "program.py")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    out, _ = process.communicate(timeout=30)
    assert out == f"got {int(number)}\n"
    assert process.returncode == 130
    run = only_run(shell)
    assert run.status == "failed"
    assert run.completed_at is not None
    [event] = shell.events()
    assert event.completed_at is not None


def test_control_c_at_a_terminal_reaches_both_once(shell: Shell) -> None:
    """A terminal sends SIGINT to the whole foreground group; the command must neither die of it nor send another."""
    import pty

    shell.program("""
        import signal, sys, time
        got = []
        signal.signal(signal.SIGINT, lambda *_: got.append(1))
        with agent("engineer"):
            print("ready", flush=True)
            while not got:
                time.sleep(0.05)
            time.sleep(0.5)
        print("signals", len(got), flush=True)
        sys.exit(4)
    """)
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(shell.directory)
        os.execve(BIN / "otel-cmb", ["otel-cmb", "run", "--", "python", "program.py"], shell.environment(TERM="xterm"))
    status, screen = at_control_c(child, terminal)
    assert b"signals 1" in screen
    assert os.waitstatus_to_exitcode(status) == 4
    assert only_run(shell).status == "failed"
    assert b"events" in screen, "a terminal sees how many there are"


# Sleeps are short: a signal just before one, when Python has looked for signals the last time, does not shorten it.
CLEANS_UP = """
    import sys, time
    with agent("engineer"):
        pass
    try:
        print("ready", flush=True)
        for _ in range(600):
            time.sleep(0.05)
    except KeyboardInterrupt:
        try:
            time.sleep(1)
            print("cleaned up", flush=True)
        except KeyboardInterrupt:
            print("interrupted twice", flush=True)
        sys.exit(6)
"""


@pytest.mark.parametrize("way", ["timeout", "the group", "the group and us"])
def test_a_signal_to_the_whole_group_reaches_the_program_once(shell: Shell, way: str) -> None:
    """Nobody sits at a terminal; `timeout` signals its child and its group, `kill -INT -PGID` the group."""
    shell.program(CLEANS_UP)
    command = [BIN / "otel-cmb", "run", "--", "python", "program.py"]
    if way == "timeout":
        command = ["timeout", "--preserve-status", "-s", "INT", "4", *command]
    process = subprocess.Popen(
        command, cwd=shell.directory, env=shell.environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
        stderr=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    if way != "timeout":
        assert process.stdout.readline() == "ready\n"
        if way == "the group and us":
            process.send_signal(signal.SIGINT)
        os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert out.splitlines()[-1] == "cleaned up", err
    assert process.returncode == 6
    assert only_run(shell).status == "failed"


def test_control_c_reaches_the_program_once_where_its_input_is_a_file(shell: Shell) -> None:
    import pty

    shell.program(CLEANS_UP)
    (shell.directory / "input").write_text("", encoding="utf-8")
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(shell.directory)
        os.dup2(os.open("input", os.O_RDONLY), 0)
        os.execve(BIN / "otel-cmb", ["otel-cmb", "run", "--", "python", "program.py"], shell.environment(TERM="xterm"))
    status, screen = at_control_c(child, terminal)
    assert b"cleaned up" in screen, screen
    assert os.waitstatus_to_exitcode(status) == 6


def at_control_c(child: int, terminal: int) -> tuple[int, bytes]:
    """How the command ended and all that it printed, when ^C is typed once its program is ready."""
    screen = b""
    while b"ready" not in screen:
        screen += os.read(terminal, 1000)
    time.sleep(0.2)
    os.write(terminal, b"\x03")
    while True:
        try:
            data = os.read(terminal, 1000)
        except OSError:  # the terminal is closed
            break
        if not data:
            break
        screen += data
    _, status = os.waitpid(child, 0)
    os.close(terminal)
    return status, screen


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-", ">&-", "<&-"])
def test_a_standard_stream_may_be_closed(shell: Shell, closed: str) -> None:
    """A daemon's, or a careless script's: the program runs to its end, its exit code and its run come out right."""
    shell.program("""
        import sys, time
        with agent("engineer"):
            time.sleep(0.5)
        open("came to its end", "w").close()
        sys.exit(3)
    """)
    done = shell.run("sh", "-c", f"otel-cmb run --verbose -- python program.py {closed}")
    assert done.returncode == 3, done.stderr
    assert (shell.directory / "came to its end").exists()
    [event] = shell.events()
    assert (event.agent_name, only_run(shell).status) == ("engineer", "failed")


# -- children ------------------------------------------------------------------------------------------------------


def test_python_children_are_not_instrumented_and_print_nothing_into_captured_output(shell: Shell) -> None:
    """AG2's code executor starts Python: a tracer there would write into the code's output."""
    shell.program("""
        import subprocess, sys
        text = "import sys; print(sorted(m for m in sys.modules if m.startswith(('otel_cmb', 'opentelemetry'))))"
        with agent("executor"):
            done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True)
        print(repr(done.stdout), repr(done.stderr), done.returncode)
    """)
    done = shell.run("otel-cmb", "run", "--", "python", "program.py")
    assert done.stdout == "'[]\\n' '' 0\n"
    assert len(shell.events()) == 1


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_multiprocessing_children_belong_to_the_program(shell: Shell, method: str) -> None:
    shell.program(f"""
        import multiprocessing

        def work(n):
            with agent(f"child {{n}}"):
                pass

        if __name__ == "__main__":
            context = multiprocessing.get_context({method!r})
            with agent("parent"):
                children = [context.Process(target=work, args=(n,)) for n in range(2)]
                for child in children:
                    child.start()
                for child in children:
                    child.join()
            assert all(child.exitcode == 0 for child in children)
    """)
    done = shell.run("otel-cmb", "run", "--", "python", "program.py")
    assert done.returncode == 0, done.stderr
    assert sorted(event.agent_name for event in shell.events(run_id=only_run(shell).id)) == ["child 0", "child 1", "parent"]
    assert {event.status for event in shell.events()} == {"completed"}


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_chats_of_multiprocessing_children_are_nodes_of_their_own(shell: Shell, method: str) -> None:
    shell.program(f"""
        import multiprocessing
        from autogen import ConversableAgent

        def chat(n):
            one, other = (ConversableAgent(name + str(n), llm_config=False, human_input_mode="NEVER", default_auto_reply="ok")
                          for name in ("a", "b"))
            one.initiate_chat(other, message="go", max_turns=1)

        if __name__ == "__main__":
            chat(0)
            context = multiprocessing.get_context({method!r})
            children = [context.Process(target=chat, args=(n,)) for n in (1, 2)]
            for child in children:
                child.start()
            chat(3)
            for child in children:
                child.join()
    """)
    done = shell.run("otel-cmb", "run", "--", "python", "program.py")
    assert done.returncode == 0, done.stderr
    nodes = {event.agent_name: event.node_id for event in shell.events() if event.event_type == "info"}
    assert nodes["a0"] == "chat_1"
    assert sorted(nodes.values()) == ["chat_1", "chat_2", "chat_3", "chat_4"]


CHATS = """
    import sys
    from autogen import ConversableAgent

    for name in sys.argv[1:]:
        one, other = (ConversableAgent(side + name, llm_config=False, human_input_mode="NEVER", default_auto_reply="ok")
                      for side in ("from_", "to_"))
        one.initiate_chat(other, message="go", max_turns=1)
"""


def chat_nodes(shell: Shell, url: str | None = None) -> dict[str, str]:
    return {event.agent_name.removeprefix("from_"): event.node_id for event in shell.events(url) if event.event_type == "info"}


def test_the_chats_of_all_programs_of_a_run_are_different_nodes(shell: Shell) -> None:
    """One after the other, and at the same time; nothing is left of what they count in."""
    shell.program(CHATS, "chats.py")
    done = shell.run("otel-cmb", "run", "--", "sh", "-c",
                     "python chats.py a b; python chats.py c & python chats.py d; wait")
    assert done.returncode == 0, done.stderr
    nodes = chat_nodes(shell)
    assert (nodes["a"], nodes["b"], {nodes["c"], nodes["d"]}) == ("chat_1", "chat_2", {"chat_3", "chat_4"})
    assert not list(shell.state.rglob("chats-*"))


# -- a run that is there already -----------------------------------------------------------------------------------


def existing_run(shell: Shell) -> str:
    done = shell.run("python", "-c", textwrap.dedent("""
        import otel_cmb
        otel_cmb.configure(instrument=False)
        with otel_cmb.run(task="the whole") as run:
            print(run.id)
    """))
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("how", ["option", "environment"])
def test_a_program_writes_into_a_run_that_is_there(shell: Shell, how: str) -> None:
    """Its chats are nodes of their own, and the run is what it was."""
    shell.program(CHATS, "chats.py")
    run_id = existing_run(shell)
    before = only_run(shell)
    for name in ("a", "b"):
        if how == "option":
            done = shell.run("otel-cmb", "run", "--run", run_id, "--", "python", "chats.py", name)
        else:
            done = shell.run("otel-cmb", "run", "--", "python", "chats.py", name, OTEL_CMB_RUN_ID=run_id)
        assert done.returncode == 0, done.stderr
    assert f"otel-cmb: written into run {run_id}, in all 8 events in sqlite:///otel_cmb.db; otel-cmb show" in done.stderr
    nodes = chat_nodes(shell)
    assert nodes["a"] != nodes["b"]
    after = only_run(shell)
    assert (after.id, after.status, after.completed_at, after.task_description) == (
        run_id, "completed", before.completed_at, "the whole")


def test_a_run_of_the_application_is_named_by_its_alias_and_the_node_goes_with_it(shell: Shell) -> None:
    app = application_schema.make(shell.url)
    session_id = app.add_session()
    run_id = app.add_run(session_id, started=True, task_id="task_77")
    node_id = app.add_node(run_id, session_id, "step_1")
    app.engine.dispose()
    shell.program("with agent('engineer'):\n    pass\n")
    done = shell.run("otel-cmb", "run", "--", "python", "program.py", OTEL_CMB_RUN_ID="task_77", OTEL_CMB_NODE_ID="step_1")
    assert done.returncode == 0, done.stderr
    [event] = shell.events(run_id=run_id)
    assert (event.run_id, event.node_id, event.session_id) == (run_id, node_id, session_id)
    assert [run.status for run in shell.runs()] == ["executing"]


@pytest.mark.parametrize(("named", "node"), [("cmb.run.id=elsewhere,", None), ("", "step_1")])
def test_a_run_that_the_resource_names_is_not_the_commands(shell: Shell, named: str, node: str | None) -> None:
    """`OTEL_RESOURCE_ATTRIBUTES` outranks `OTEL_CMB_RUN_ID`; the command's own run is meant all the same."""
    shell.program("""
        import os
        print(os.environ["OTEL_RESOURCE_ATTRIBUTES"])
        with agent("engineer"):
            pass
    """)
    attributes = f"team=blue,{named}cmb.session.id=s, cmb.node.id=step_1"
    done = shell.run("otel-cmb", "run", "--", "python", "program.py", OTEL_RESOURCE_ATTRIBUTES=attributes)
    assert "1 event in" in done.stderr
    assert done.stdout == ("team=blue\n" if named else "team=blue, cmb.node.id=step_1\n")
    [event] = shell.events()
    assert (event.run_id, event.node_id) == (only_run(shell).id, node)


def test_two_installations_instrument_a_program_once(shell: Shell, tmp_path: Path) -> None:
    """A program in one virtual environment starts `otel-cmb run` of another one: both put their file on the path."""
    import otel_cmb.instrumentation

    other = tmp_path / "other" / "bootstrap"
    shutil.copytree(Path(otel_cmb.instrumentation.__file__).parent / "bootstrap", other)
    shell.program("""
        with agent("engineer"):
            pass
    """)
    done = shell.run("otel-cmb", "run", "--", "python", "program.py", PYTHONPATH=str(other))
    assert done.returncode == 0
    assert "Overriding" not in done.stderr
    assert "1 event" in done.stderr


def test_a_program_that_fails_does_not_end_a_run_that_was_there(shell: Shell) -> None:
    shell.program("""
        import os, subprocess, sys
        with agent("outer"):
            inner = ["otel-cmb", "run", "--", "python", "-c", "import sys; sys.exit(3)"]
            done = subprocess.run(inner, capture_output=True, text=True)
        print(done.returncode, done.stderr)
    """)
    done = shell.run("otel-cmb", "run", "--", "python", "program.py")
    run = only_run(shell)
    assert f"3 otel-cmb: written into run {run.id}" in done.stdout
    assert "the program failed (exit code 3)" in done.stdout
    assert run.status == "completed"


def test_a_run_that_is_not_there_is_said_before_the_program_starts(shell: Shell) -> None:
    existing_run(shell)
    done = shell.run("otel-cmb", "run", "--run", "no-such-run", "--", "touch", "started")
    assert (done.returncode, done.stdout) == (2, "")
    assert "run 'no-such-run' is not in workflow_runs of sqlite:///otel_cmb.db" in done.stderr
    assert not (shell.directory / "started").exists()
    made = shell.run("otel-cmb", "run", "--run", "made-now", "--on-missing-run", "create", "--", "true")
    assert made.returncode == 0, made.stderr
    assert {run.id: run.status for run in shell.runs()}["made-now"] == "completed"


def test_what_describes_a_new_run_is_refused_for_one_that_is_there(shell: Shell) -> None:
    done = shell.run("otel-cmb", "run", "--task", "another", "--", "touch", "started", OTEL_CMB_RUN_ID="given")
    refused(shell, done, "--task describes a new run, but OTEL_CMB_RUN_ID names an existing one, given")


def test_a_program_that_replaces_itself_is_still_the_program(shell: Shell) -> None:
    """Servers that reload and scripts that enter their virtual environment do it by `exec`."""
    shell.program("""
        import os, sys
        with agent(f"life {len(sys.argv)}"):
            pass
        if len(sys.argv) == 1:
            os.execv(sys.executable, [sys.executable, *sys.argv, "again"])
    """)
    done = shell.run("otel-cmb", "run", "--", "python", "program.py")
    assert done.returncode == 0, done.stderr
    assert sorted(event.agent_name for event in shell.events()) == ["life 1", "life 2"]


def test_a_fork_keeps_its_own_spans_and_never_those_of_its_parent(shell: Shell) -> None:
    shell.program("""
        import os
        with agent("before"):
            pass
        if os.fork() == 0:
            with agent("child"):
                pass
            os._exit(0)
        os.wait()
        with agent("after"):
            pass
    """)
    assert shell.run("otel-cmb", "run", "--", "python", "program.py").returncode == 0
    assert sorted(event.agent_name for event in shell.events()) == ["after", "before", "child"]


def test_a_sitecustomize_of_the_user_still_runs(shell: Shell) -> None:
    place = shell.directory / "site"
    place.mkdir()
    (place / "sitecustomize.py").write_text("import os\nos.environ['SEEN'] = 'yes'\n", encoding="utf-8")
    shell.program("""
        import os
        with agent(os.environ["SEEN"]):
            pass
    """)
    done = shell.run("otel-cmb", "run", "--", "python", "program.py", PYTHONPATH=str(place))
    assert done.returncode == 0, done.stderr
    assert [event.agent_name for event in shell.events()] == ["yes"]


def test_a_program_that_clears_its_environment_for_a_moment_stays_in_its_run(shell: Shell) -> None:
    """`mock.patch.dict(os.environ, clear=True)` around what it tests, or an environment made anew for a child."""
    shell.program(CHATS + """
    import os
    from unittest import mock

    with mock.patch.dict(os.environ, {}, clear=True):
        one.initiate_chat(other, message="again", max_turns=1)
        with agent("unseen"):
            pass
        if os.fork() == 0:
            with agent("child"):
                pass
            os._exit(0)
        os.wait()
    """, "chats.py")
    done = shell.run("otel-cmb", "run", "--", "python", "chats.py", "a")
    assert done.returncode == 0, done.stderr
    run = only_run(shell)
    events = shell.events()
    assert {event.run_id for event in events} == {run.id}
    assert {"unseen", "child"} <= {event.agent_name for event in events}
    assert sorted(event.node_id for event in events if event.event_type == "info") == ["chat_1", "chat_2"]


def test_a_program_goes_to_another_run_by_the_variable_and_to_none_by_an_empty_one(shell: Shell) -> None:
    existing = existing_run(shell)
    shell.program(f"""
        import os
        with agent("first"):
            pass
        os.environ["OTEL_CMB_RUN_ID"] = {existing!r}
        with agent("second"):
            pass
        os.environ["OTEL_CMB_RUN_ID"] = ""
        with agent("third"):
            pass
        del os.environ["OTEL_CMB_RUN_ID"]
        with agent("fourth"):
            pass
    """)
    done = shell.run("otel-cmb", "run", "--task", "this", "--", "python", "program.py")
    assert done.returncode == 0, done.stderr
    runs = {run.id: run for run in shell.runs()}
    [mine] = [run.id for run in runs.values() if run.task_description == "this"]
    [automatic] = runs.keys() - {mine, existing}
    assert {run_id: [event.agent_name for event in shell.events(run_id=run_id)] for run_id in runs} == {
        mine: ["first", "fourth"], existing: ["second"], automatic: ["third"]}


OWN_DATABASE = """
    import os
    import otel_cmb

    with agent("before"):
        provider = otel_cmb.configure("sqlite:///own.db", instrument=False)
        with otel_cmb.run(agent="engineer", task="the program's") as run, otel_cmb.node("step_1"):
            with otel_cmb.step("1", goal="all"), agent("inside"):
                pass
    with otel_cmb.node("alone"), agent("outside"):
        pass
"""


def test_a_program_with_a_database_of_its_own_is_in_both_whole(shell: Shell) -> None:
    """Its own is as it would be without the command, the command's has all in the command's run; nothing waits for a run
    that the other one has."""
    shell.program(OWN_DATABASE)
    own = f"sqlite:///{shell.directory}/own.db"
    done = shell.run("otel-cmb", "run", "--", "python", "program.py")
    assert done.returncode == 0, done.stderr
    run = only_run(shell)
    assert done.stderr == f"otel-cmb: run {run.id} completed: 3 events in sqlite:///otel_cmb.db; otel-cmb show {run.id}\n"
    assert {event.agent_name: (event.run_id, event.node_id) for event in shell.events()} == {
        "before": (run.id, None), "inside": (run.id, "step_1"), "outside": (run.id, "alone")}
    [theirs] = [found for found in shell.runs(own) if found.task_description == "the program's"]
    [automatic] = [found for found in shell.runs(own) if found.id != theirs.id]
    assert {event.agent_name for found in (theirs, automatic) for event in shell.events(own, found.id)} == {
        "before", "inside", "outside"}
    assert [event.agent_name for event in shell.events(own, automatic.id)] == ["outside"]
    for database in ("otel_cmb.db", "own.db"):
        with sqlite3.connect(shell.directory / database) as connection:
            for table in ("workflow_runs", "dag_nodes", "workflow_steps"):
                assert {row[0] for row in connection.execute(f"SELECT status FROM {table}")} == {"completed"}, table
        assert "nothing is parked" in shell.run("otel-cmb", "parked", "list", "--database-url", f"sqlite:///{database}").stdout


def test_a_bare_exporter_to_a_database_of_its_own_parks_nothing(shell: Shell) -> None:
    shell.program("""
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from otel_cmb import CMBSpanExporter
        trace.get_tracer_provider().add_span_processor(BatchSpanProcessor(CMBSpanExporter("sqlite:///own.db")))
        with agent("engineer"):
            pass
    """)
    done = shell.run("otel-cmb", "run", "--", "python", "program.py")
    assert "1 event in" in done.stderr
    own = f"sqlite:///{shell.directory}/own.db"
    [event] = shell.events(own)
    assert event.run_id != only_run(shell).id
    assert only_run(shell, own).status == "completed"


def test_the_same_database_under_another_name_is_no_other_one(shell: Shell) -> None:
    shell.program(OWN_DATABASE.replace("own.db", "./otel_cmb.db"))
    done = shell.run("otel-cmb", "run", "--task", "this", "--", "python", "program.py")
    assert done.returncode == 0, done.stderr
    runs = {run.task_description: [event.agent_name for event in shell.events(run_id=run.id)] for run in shell.runs()}
    assert runs == {"this": ["before", "outside"], "the program's": ["inside"]}


# -- where it goes -------------------------------------------------------------------------------------------------


def test_what_the_options_say_is_on_the_row(shell: Shell) -> None:
    shell.program("pass")
    command = ("otel-cmb", "run", "--task", "measure H0", "--mode", "deep_research", "--agent", "planner", "--model", "gpt-4.1",
               "--session", "monday", "--", "python", "program.py")
    assert shell.run(*command).returncode == 0
    run = only_run(shell)
    assert (run.task_description, run.mode, run.agent, run.model) == ("measure H0", "deep_research", "planner", "gpt-4.1")
    with sqlite3.connect(shell.database) as connection:
        [(name, session)] = connection.execute("SELECT name, id FROM sessions").fetchall()
    assert (name, session) == ("monday", run.session_id)
    assert shell.run(*command).returncode == 0
    assert {run.session_id for run in shell.runs()} == {session}, "the session of that name is found again"


def test_a_program_that_changes_its_directory_writes_the_same_database(shell: Shell) -> None:
    (shell.directory / "elsewhere").mkdir()
    shell.program("""
        import os
        os.chdir("elsewhere")
        with agent("mover"):
            pass
    """)
    assert shell.run("otel-cmb", "run", "--", "python", "program.py").returncode == 0
    assert [event.agent_name for event in shell.events()] == ["mover"]
    assert list((shell.directory / "elsewhere").iterdir()) == []


def test_rows_are_there_while_the_program_runs(shell: Shell) -> None:
    shell.program("""
        with agent("engineer"):
            print("ready", flush=True)
            input_ = open("go")
            input_.read()
    """)
    os.mkfifo(shell.directory / "go")
    process = shell.start("otel-cmb", "run", "--", "python", "program.py")
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        [event] = eventually(shell.events, "the live row")
        assert (event.event_subtype, event.status, event.completed_at) == ("start", "running", None)
        assert only_run(shell).completed_at is None
    finally:
        (shell.directory / "go").write_text("", encoding="utf-8")
        process.communicate(timeout=30)
    [event] = shell.events()
    assert (event.event_subtype, event.status) == ("complete", "completed")


def test_the_database_url_may_come_from_the_environment_of_the_application(shell: Shell) -> None:
    shell.program("with agent('engineer'):\n    pass\n")
    other = shell.directory / "application.db"
    done = shell.run("otel-cmb", "run", "--", "python", "program.py", CMBAGENT_DATABASE_URL=f"sqlite:///{other}")
    assert done.returncode == 0
    assert len(shell.events(f"sqlite:///{other}")) == 1
    assert not shell.database.exists()


def test_postgresql_is_the_same_setting(shell: Shell, postgresql_url: str) -> None:
    shell.program("with agent('engineer'):\n    pass\n")
    done = shell.run("otel-cmb", "run", "--database-url", postgresql_url, "--", "python", "program.py")
    assert done.returncode == 0, done.stderr
    assert [event.agent_name for event in shell.events(postgresql_url)] == ["engineer"]
    assert only_run(shell, postgresql_url).status == "completed"


def test_a_database_that_is_away_stops_neither_program_nor_spans(shell: Shell) -> None:
    """The program runs, what it did waits in the journal, and the summary says so. No password is printed."""
    shell.program("with agent('engineer'):\n    print('done')\n")
    url = f"postgresql+psycopg://nobody:secret-word@127.0.0.1:{_closed_port()}/agents"
    done = shell.run("otel-cmb", "run", "--database-url", url, "--", "python", "program.py",
                     OTEL_EXPORTER_CMB_SHUTDOWN_TIMEOUT="1")
    assert (done.returncode, done.stdout) == (0, "done\n")
    assert "is away" in done.stderr
    summary = done.stderr.splitlines()[-1]
    assert "1 span waits in the journal" in summary
    assert "otel-cmb parked list" in summary
    assert "secret-word" not in done.stderr
    assert summary.count("cannot be read now") == summary.count("127.0.0.1:") == 1


# -- OTLP ----------------------------------------------------------------------------------------------------------


def test_the_same_spans_arrive_at_an_otlp_server(shell: Shell) -> None:
    shell.program("""
        for name in ("planner", "engineer"):
            with agent(name):
                pass
    """)
    with OTLPServer() as server:
        done = shell.run("otel-cmb", "run", "--otlp-endpoint", server.endpoint, "--", "python", "program.py")
        assert done.returncode == 0, done.stderr
        arrived = {event_id(span.trace_id.hex(), span.span_id.hex()) for span in server.spans()}
        tags = [{tag.key: tag.value.string_value for tag in span.attributes} for span in server.spans()]
    assert {event.id for event in shell.events()} == arrived
    assert len(arrived) == 2
    assert {tag["cmb.run.id"] for tag in tags} == {only_run(shell).id}
    assert server.resource_attribute("service.name") == "program"


def test_the_standard_variables_name_the_otlp_server_too(shell: Shell) -> None:
    shell.program("with agent('engineer'):\n    pass\n")
    with OTLPServer() as server:
        done = shell.run("otel-cmb", "run", "--", "python", "program.py", OTEL_EXPORTER_OTLP_ENDPOINT=server.endpoint)
        assert done.returncode == 0, done.stderr
        assert [span.name for span in server.spans()] == ["invoke_agent engineer"]
    assert len(shell.events()) == 1


def test_a_dead_otlp_endpoint_costs_the_database_nothing(shell: Shell) -> None:
    shell.program("with agent('engineer'):\n    pass\n")
    done = shell.run("otel-cmb", "run", "--otlp-endpoint", f"http://127.0.0.1:{_closed_port()}", "--", "python", "program.py",
                     OTEL_EXPORTER_OTLP_TIMEOUT="1")
    assert done.returncode == 0
    assert [event.status for event in shell.events()] == ["completed"]
    assert only_run(shell).status == "completed"


def _closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


# -- what is instrumented ------------------------------------------------------------------------------------------


def test_verbose_says_which_instrumentor_is_used_for_which_framework(shell: Shell) -> None:
    done = shell.run("otel-cmb", "run", "--verbose", "--", "python", "-c", "pass")
    [line] = [line for line in done.stderr.splitlines() if line.startswith("otel-cmb: instruments ")]
    assert "ag2 by otel-cmb" in line
    quiet = shell.run("otel-cmb", "run", "--", "python", "-c", "pass")
    assert "instruments" not in quiet.stderr.replace("what is instrumented", "")


def test_frameworks_can_be_left_out(shell: Shell) -> None:
    done = shell.run("otel-cmb", "run", "--verbose", "--no-instrument", "ag2,openai", "--", *AG2)
    assert done.returncode == 0, done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith("otel-cmb: instruments ")]
    assert "ag2" not in line
    assert shell.events() == []


STAND_IN = """
class Agent:
    _instrument_default = False

    @classmethod
    def instrument_all(cls, instrument=True):
        cls._instrument_default = instrument
"""
"""As pydantic-ai 2.68 is switched on; it is not among the packages of the tests."""


@pytest.mark.parametrize("left_out", ["nothing", "pydantic_ai"])
def test_a_framework_with_its_own_instrumentation_is_told_to_use_it(shell: Shell, tmp_path: Path, left_out: str) -> None:
    """Once the program imports it, and not sooner."""
    (tmp_path / "pydantic_ai.py").write_text(STAND_IN)
    program = (
        "import sys; assert 'pydantic_ai' not in sys.modules; import pydantic_ai; print(pydantic_ai.Agent._instrument_default)"
    )
    done = shell.run("otel-cmb", "run", "--verbose", "--no-instrument", left_out, "--", "python", "-c", program,
                     PYTHONPATH=str(tmp_path))
    assert done.stdout == f"{left_out == 'nothing'}\n", done.stderr
    assert ("pydantic_ai by itself" in done.stderr) == (left_out == "nothing")


SILENT = {
    "crashed before its first agent did anything": (
        ("python", "program.py"), "import autogen\nraise RuntimeError('too early')\n", "autogen"),
    "no framework": (("python", "program.py"), "", "no agent framework was seen; `otel-cmb run --verbose`"),
    "its own run": (("python", "program.py"), "import otel_cmb\nwith otel_cmb.run(), agent('a'):\n    pass\n",
                    "the program makes runs of its own: otel-cmb runs"),
    "-E": (("python", "-E", "program.py"), "", "python -E leaves the environment alone"),
    "-S among others": (("python", "-W", "error", "-uS", "-c", "pass"), "", "leave -S out"),
    "-I of a script": (("sh", "-c", "python -I program.py"), "", "no Python program was traced"),
    "no Python": (("true",), "", "no Python program was traced"),
    "the program's own -E": (("python", "-c", "pass", "-E"), "", "no agent framework was seen"),
}


@pytest.mark.parametrize("case", SILENT)
def test_a_run_without_events_says_why(shell: Shell, case: str) -> None:
    command, text, said = SILENT[case]
    if "agent(" in text:
        shell.program(text)
    else:
        (shell.directory / "program.py").write_text(text, encoding="utf-8")
    done = shell.run("otel-cmb", "run", "--", *command)
    summary = done.stderr.splitlines()[-1]
    assert "0 events (" in summary
    assert said in summary
    assert ("no agent framework" in summary) == ("no agent framework" in said)
    assert ("imported, but no agent did anything" in summary) == (said == "autogen")
    assert not list(shell.state.rglob("notes-*"))


# -- wrong input: one sentence, exit code 2, the program does not start ------------------------------------------------


WRONG = {
    "a URL that is none": ("nonsense", "cannot be read; expected sqlite:///"),
    "another kind of database": ("mysql://root:secret@db/x", "supported are sqlite, postgresql+psycopg"),
    "an in-memory SQLite": ("sqlite://", "in-memory SQLite"),
    "an in-memory SQLite by name": ("sqlite:///:memory:", "in-memory SQLite"),
    "a directory that is not there": ("sqlite:////nowhere/at/all/x.db", "/nowhere/at/all"),
    "a directory for a file": ("sqlite:////tmp", "is a directory"),
    "a missing driver": ("postgresql+asyncpg://user:secret@host/x", "asyncpg"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_database_is_one_sentence_before_the_program_starts(shell: Shell, case: str) -> None:
    url, said = WRONG[case]
    done = shell.run("otel-cmb", "run", "--database-url", url, "--", "touch", "started")
    refused(shell, done, said)
    assert "secret" not in done.stderr


def test_a_driver_that_is_not_installed_is_named(shell: Shell) -> None:
    """As if psycopg were not there: a directory before site-packages that fails to import."""
    for name in ("psycopg", "psycopg2"):
        (shell.directory / f"{name}.py").write_text("raise ImportError('not here')\n", encoding="utf-8")
    done = shell.run("otel-cmb", "run", "--database-url", "postgresql://user:secret@host/x", "--", "touch", "started",
                     PYTHONPATH=str(shell.directory))
    refused(shell, done, "pip install 'otel-cmb[postgres]'")
    assert "secret" not in done.stderr


def test_a_file_that_is_no_database_is_left_alone(shell: Shell) -> None:
    text = "dear diary, today I measured the distance to NGC 4258\n" * 20
    (shell.directory / "diary.txt").write_text(text, encoding="utf-8")
    done = shell.run("otel-cmb", "run", "--database-url", "sqlite:///diary.txt", "--", "touch", "started")
    refused(shell, done, "diary.txt")
    assert (shell.directory / "diary.txt").read_text(encoding="utf-8") == text


def refused(shell: Shell, done: subprocess.CompletedProcess[str], said: str) -> None:
    assert done.returncode == 2, done.stderr
    assert not (shell.directory / "started").exists()
    assert done.stdout == ""
    [sentence] = done.stderr.splitlines()
    assert sentence.startswith("otel-cmb: ")
    assert said in sentence


def bound_by_permissions() -> None:
    """Before the command starts: root, too, may only do what the file modes say (Linux capabilities 1 and 2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in (1, 2):
        if libc.prctl(24, capability, 0, 0, 0) != 0 and os.getuid() == 0:  # PR_CAPBSET_DROP
            raise OSError(ctypes.get_errno(), "prctl")


def run_bound(shell: Shell) -> subprocess.CompletedProcess[str]:
    return bound(shell, "run", "--", "touch", shell.state / "started")


def bound(shell: Shell, *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([BIN / "otel-cmb", *map(str, words)], cwd=shell.directory, env=shell.environment(),
                          capture_output=True, text=True, timeout=30, check=False, preexec_fn=bound_by_permissions)


def test_a_file_that_cannot_be_read_where_nothing_may_be_written_says_how_it_can(shell: Shell) -> None:
    shell.program("with agent('engineer'):\n    pass\n")
    shell.run("otel-cmb", "run", "--", "python", "program.py")
    shell.directory.chmod(0o555)
    refused(shell, bound(shell, "runs"), "name the copy")
    with sqlite3.connect(shell.database) as writer:
        writer.execute("SELECT count(*) FROM execution_events").fetchone()
        listed = bound(shell, "runs")
    writer.close()
    assert listed.returncode == 0, listed.stderr


def test_a_directory_that_may_not_be_written_is_said_before_the_program_starts(shell: Shell) -> None:
    shell.state.mkdir()
    shell.directory.chmod(0o555)
    refused(shell, run_bound(shell), str(shell.directory))
    assert not (shell.state / "started").exists()


def test_a_state_directory_that_may_not_be_written_is_said_before_the_program_starts(shell: Shell) -> None:
    shell.state.mkdir(mode=0o555)
    refused(shell, run_bound(shell), "OTEL_EXPORTER_CMB_STATE_DIR")


def test_a_state_directory_that_is_a_file_is_said_before_the_program_starts(shell: Shell) -> None:
    (shell.directory / "state").write_text("", encoding="utf-8")
    done = shell.run("otel-cmb", "run", "--state-dir", "state", "--", "touch", "started")
    refused(shell, done, "OTEL_EXPORTER_CMB_STATE_DIR")


def test_a_wrong_setting_of_the_environment_is_named(shell: Shell) -> None:
    done = shell.run("otel-cmb", "run", "--", "touch", "started", OTEL_EXPORTER_CMB_BATCH_SIZE="many")
    refused(shell, done, "OTEL_EXPORTER_CMB_BATCH_SIZE: found 'many', expected a whole number")


def test_a_program_that_is_not_there_makes_no_run(shell: Shell) -> None:
    done = shell.run("otel-cmb", "run", "--", "no-such-program")
    refused(shell, done, "'no-such-program' was not found")
    assert not shell.database.exists()


def test_a_script_that_is_no_command_is_told_how_it_is_run(shell: Shell) -> None:
    (shell.directory / "program.py").write_text("", encoding="utf-8")
    done = shell.run("otel-cmb", "run", "program.py", "--fast")
    refused(shell, done, "a Python program is run by: otel-cmb run -- python program.py --fast")
    refused(shell, shell.run("otel-cmb", "run", "./program.py"), "./program.py may not be executed")


def test_an_option_that_is_none_is_named(shell: Shell) -> None:
    refused(shell, shell.run("otel-cmb", "run", "--tsk", "x", "--", "touch", "started"), "there is no option --tsk")


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:99999", "http://[::1", "foo bar", "http://:4317", "http://h:port"])
def test_an_otlp_endpoint_that_is_none_is_said_before_the_program_starts(shell: Shell, endpoint: str) -> None:
    done = shell.run("otel-cmb", "run", "--otlp-endpoint", endpoint, "--", "touch", "started")
    refused(shell, done, "--otlp-endpoint: found ")
    assert not shell.database.exists()


def test_the_tree_says_why_the_run_failed_and_what_it_cost_as_the_summary_does(shell: Shell) -> None:
    shell.program("""
        with agent("engineer") as span:
            span.set_attribute("gen_ai.usage.input_tokens", 1234)
            span.set_attribute("gen_ai.usage.cost", 0.00007)
        raise SystemExit(5)
    """)
    done = shell.run("otel-cmb", "run", "--", "python", "program.py")
    assert "1 event, 1,234 tokens, <$0.0001 in " in done.stderr
    shown = shell.run("otel-cmb", "show").stdout.splitlines()
    assert shown[0] == f"run {only_run(shell).id}  failed  exit code 5"
    assert "1 event · 1,234 tokens · <$0.0001" in shown


def test_a_program_that_may_not_be_run_is_a_failed_run(shell: Shell) -> None:
    program = shell.directory / "broken"
    program.write_text("#!/nowhere/interpreter\n", encoding="utf-8")
    program.chmod(0o755)
    done = shell.run("otel-cmb", "run", "--", "./broken")
    assert done.returncode == 127
    assert only_run(shell).status == "failed"


def test_no_program_at_all_says_how_to_write_it(shell: Shell) -> None:
    done = shell.run("otel-cmb", "run")
    assert done.returncode == 2
    assert "otel-cmb run" in done.stderr


# -- AG2, unchanged ------------------------------------------------------------------------------------------------


def test_the_ag2_team_lands_in_the_database_with_what_it_did(shell: Shell) -> None:
    done = shell.run("otel-cmb", "run", "--task", "age of the universe", "--", *AG2)
    assert done.returncode == 0, done.stderr
    assert "engineer: The age of the universe is 13.80 Gyr. TERMINATE" in done.stdout
    run = only_run(shell)
    assert (run.status, run.agent, run.model, run.task_description) == (
        "completed", "planner", "gpt-4o-mini", "age of the universe")
    events = shell.events()
    kinds = [event.event_type for event in events if event.event_subtype != "message"]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "info": 1, "agent_call": 10, "llm_call": 5, "tool_call": 2, "code_exec": 2, "file_gen": 2, "handoff": 5}
    failed, worked = [event for event in events if event.event_type == "code_exec"]
    assert (failed.status, worked.status) == ("failed", "completed")
    assert failed.inputs["code"].startswith("hubble, omega_matter = 67.4")
    assert "NameError" in failed.error_message
    assert worked.outputs["result"].startswith("age of the universe: 13.80")
    assert run.totals.tokens == sum(100 + n + 20 + n for n in range(1, 6))
    assert {event.node_id for event in events} == {"chat_1"}
    handoffs = [(event.inputs["from_agent"], event.inputs["to_agent"]) for event in events if event.event_type == "handoff"]
    assert handoffs[:2] == [("planner", "engineer"), ("engineer", "executor")]


def test_the_code_that_ag2_runs_prints_only_what_it_prints(shell: Shell) -> None:
    """The output of executed code is the code's, with the tracer's environment around it."""
    shell.run("otel-cmb", "run", "--", *AG2)
    worked = [event for event in shell.events() if event.event_type == "code_exec"][-1]
    assert worked.outputs == {"result": "age of the universe: 13.80 Gyr\n"}


def test_an_async_ag2_chat_with_a_legacy_executor_in_a_thread_is_one_run(shell: Shell) -> None:
    """Two chats at once, one async and one in a thread; code by the old `work_dir` configuration; a tool that fails."""
    shell.program("""
        import asyncio, sys, threading
        from autogen import AssistantAgent, UserProxyAgent
        from scripted_server import ScriptedServer, call, say

        SCRIPT = {
            "You write code": [say("```python\\nprint(6 * 7)\\n```"), say("TERMINATE")],
            "You use tools": [call("weigh", {"galaxy": "M31"}), say("TERMINATE")],
        }

        def pair(config, about, **proxy):
            assistant = AssistantAgent("assistant", system_message=about, llm_config=config)
            user = UserProxyAgent("user", human_input_mode="NEVER", max_consecutive_auto_reply=3,
                                  is_termination_msg=lambda m: "TERMINATE" in (m.get("content") or ""), **proxy)
            return assistant, user

        with ScriptedServer(SCRIPT) as server:
            config = {"config_list": [{"model": "gpt-4o-mini", "api_key": "none", "base_url": server.base_url}],
                      "cache_seed": None}
            coder, runner = pair(config, "You write code", code_execution_config={"work_dir": "work", "use_docker": False})
            scientist, hands = pair(config, "You use tools", code_execution_config=False)

            @hands.register_for_execution()
            @scientist.register_for_llm(description="weigh a galaxy")
            def weigh(galaxy: str) -> str:
                raise ValueError("too heavy: " + galaxy)

            thread = threading.Thread(target=lambda: runner.initiate_chat(coder, message="six times seven"))
            thread.start()
            asyncio.run(hands.a_initiate_chat(scientist, message="weigh it"))
            thread.join()
    """)
    done = shell.run("otel-cmb", "run", "--", "python", "program.py", PYTHONPATH=str(ROOT / "examples"))
    assert done.returncode == 0, done.stderr
    run = only_run(shell)
    assert run.status == "completed"
    events = shell.events()
    [code] = [event for event in events if event.event_type == "code_exec"]
    assert code.inputs == {"code": "print(6 * 7)"}
    assert "42" in code.outputs["result"]
    assert (code.status, code.meta["exit_code"]) == ("completed", 0)
    [tool] = [event for event in events if event.event_type == "tool_call"]
    assert (tool.inputs, tool.status) == ({"tool_name": "weigh", "arguments": {"galaxy": "M31"}}, "failed")
    assert "too heavy: M31" in tool.error_message
    assert {event.node_id for event in events} == {"chat_1", "chat_2"}
    assert sum(event.meta.get("tokens", 0) for event in events if event.meta) == sum(120 + 2 * n for n in range(1, 5))
    assert {event.status for event in events if event.event_type != "tool_call"} == {"completed"}


def test_what_ran_while_the_database_was_away_is_stored_when_it_is_back(
    shell: Shell, cuttable_postgresql: tuple[str, Proxy],
) -> None:
    """Run, node and events wait in the journal; `otel-cmb parked replay` brings them, with the times they had."""
    url, proxy = cuttable_postgresql
    shell.program("""
        import otel_cmb
        with otel_cmb.node("step_1"):
            with agent("engineer"):
                print("done")
    """)
    proxy.cut()
    quick = {"OTEL_EXPORTER_CMB_DATABASE_URL": url, "OTEL_EXPORTER_CMB_SHUTDOWN_TIMEOUT": "0.5",
             "OTEL_EXPORTER_CMB_CONNECT_TIMEOUT": "1"}
    done = shell.run("otel-cmb", "run", "--task", "in the dark", "--", "python", "program.py", **quick)
    assert (done.returncode, done.stdout) == (0, "done\n")
    assert "is away" in done.stderr
    proxy.restore()
    replayed = shell.run("otel-cmb", "parked", "replay", **quick)
    assert replayed.returncode == 0, replayed.stdout + replayed.stderr
    run = only_run(shell, url)
    assert (run.status, run.task_description) == ("completed", "in the dark")
    assert run.started_at < run.completed_at
    [event] = shell.events(url)
    assert (event.agent_name, event.node_id, event.status) == ("engineer", "step_1", "completed")

@pytest.mark.parametrize("command", ["show", "runs"])
def test_an_output_that_lacks_our_characters_gets_others(shell: Shell, command: str) -> None:
    """Terminals and pipes of Latin-1 or ASCII: a character they lack ended the command with a traceback."""
    shell.program("""
        with agent("planner"):
            pass
    """)
    shell.run("otel-cmb", "run", "--task", "Größe → 日", "--", "python", "program.py")
    told, as_json = (
        subprocess.run([BIN / "otel-cmb", command, *options], cwd=shell.directory, env=shell.environment(PYTHONIOENCODING="ascii"),
                       capture_output=True, timeout=60, check=True).stdout for options in ((), ("--json",)))
    assert "Gr??e > ?" in told.decode("ascii")
    assert "Größe → 日" in as_json.decode("utf-8")


@pytest.mark.parametrize(("words", "said"), [
    (["shwo"], "there is no command 'shwo'. Did you mean 'show'?"),
    (["program.py", "--fast"], "A program is run by: otel-cmb run -- python program.py --fast"),
    (["touch", "x"], "A program is run by: otel-cmb run -- touch x"),
    (["nothing-like-it"], "there is no command 'nothing-like-it'."),
])
def test_a_command_that_is_none_says_what_was_probably_meant(shell: Shell, words: list[str], said: str) -> None:
    (shell.directory / "program.py").write_text("", encoding="utf-8")
    done = shell.run("otel-cmb", *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert not (shell.directory / "x").exists()
