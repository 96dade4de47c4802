"""`otel-cmb run -- python program.py`: one run in the database around an unchanged program."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TextIO
from urllib.parse import unquote, urlsplit

import click
from click.core import ParameterSource

from otel_cmb import clock, config
from otel_cmb.cli.options import database_options
from otel_cmb.cli.run_signals import Witness, forwarding
from otel_cmb.cli.run_summary import summary, why_silent
from otel_cmb.config import Settings, safe_url
from otel_cmb.context import ENVIRONMENT, NODE_ID, RUN_ID, SESSION_ID, STEP_ID
from otel_cmb.database_url import check_url
from otel_cmb.errors import CMBError, ConfigurationError, RunNotFoundError
from otel_cmb.faults import Fault, classify
from otel_cmb.instrumentation import AUTO, EXCLUDED, VERBOSE, managed_names
from otel_cmb.instrumentation.chat_names import NUMBERS, begin_numbers, end_numbers
from otel_cmb.notes import NOTES, begin_notes, taken_notes
from otel_cmb.pipeline import Pipeline, get_pipeline, state_directory

SETTLE_SECONDS = 10.0
"""Longest wait at the end for the program's last spans to be written."""

AWAY_SECONDS = 0.5
"""The same while the database is away: all is in the journal, and waiting brings nothing."""

RUN = ENVIRONMENT[RUN_ID]
RESOURCE = "OTEL_RESOURCE_ATTRIBUTES"
OF_A_NEW_RUN = ("task", "mode", "agent", "model", "session")
"""Options that say something about the run that is made."""


@dataclass(frozen=True)
class Target:
    """The run that the program writes into."""

    id: str
    made: bool
    """By this command, which then ends it."""
    name: str = ""
    """As it was given: its id, or an application's alias."""
    numbers: str | None = None
    """Where the processes of the run count their chats."""


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--task", default=None, help="What the run is for; shown wherever the run is.")
@click.option("--mode", default="one_shot", show_default=True, help="one_shot, planning_control, deep_research, ...")
@click.option("--agent", default=None, help="Main agent; if not given, the first that calls a model or has answered.")
@click.option("--model", default=None, help="Main model; the first model seen if not given.")
@click.option("--session", default=None, help="Id of a session, or the name of one that is found or made.")
@click.option("--run", "run_id", default=None, envvar=RUN, metavar="RUN",
              help="Write into this run, which exists; who made it ends it. Else $OTEL_CMB_RUN_ID, else a new run.")
@click.option("--otlp-endpoint", default=None, help="Send the same spans there too, e.g. Jaeger at http://127.0.0.1:4317.")
@click.option("--on-missing-run", type=click.Choice(["park", "create", "fail"]), default=None,
              help="For spans that name another run that is not in the database.")
@click.option("--record", type=click.Choice(["agents", "all"]), default=None, help="Agent spans only, or every span.")
@click.option("--no-instrument", default="", metavar="NAMES", help="Frameworks not to instrument, separated by commas.")
@click.option("--state-dir", default=None, help="Directory of the journals.")
@click.option("--verbose", is_flag=True, help="Say on stderr which instrumentor is used for which framework.")
@database_options
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_context
def run(
    context: click.Context, task: str | None, mode: str, agent: str | None, model: str | None, session: str | None,
    run_id: str | None, otlp_endpoint: str | None,
    on_missing_run: str | None, record: str | None, no_instrument: str, state_dir: str | None, verbose: bool,
    database_url: str | None, schema: str | None, command: tuple[str, ...],
) -> None:
    """Auto-instrument a program; its agents' doings become rows of one run.

    The program's output and exit code are passed through. The summary goes to stderr.

    \b
    otel-cmb run -- python my_agents.py
    otel-cmb run --task "measure H0" --otlp-endpoint http://127.0.0.1:4317 -- python my_agents.py --fast
    otel-cmb run --run 3f0c1c0e-6c0e-4c0f-9d43-0d8f7a4f5a11 -- python second_part.py
    """
    settings = config.load(
        database_url=database_url, schema=schema, on_missing_run=on_missing_run, record=record, state_dir=state_dir)
    _check_options(context, run_id)
    otlp = _otlp(otlp_endpoint) if otlp_endpoint else {}
    arguments = _resolved(command)
    check_url(settings)
    _check_state_dir(settings)
    pipeline = get_pipeline(settings)
    answers = _check_database(pipeline)
    target = _target(pipeline, settings, run_id, answers)
    if target.made:
        pipeline.accept_command({
            "do": "run_start", "id": target.id, "session": session, "mode": mode, "agent": agent, "model": model,
            "task": task or " ".join(command), "meta": {"command": list(command)}, "at": clock.now_ns()})
        pipeline.remember_open("run", target.id)
        if answers:
            pipeline.flush(settings.connect_timeout)
    environment = _environment(settings, target, otlp, no_instrument, verbose, arguments)
    notes = begin_notes(state_directory(settings))
    if notes is not None:
        environment[NOTES] = notes
    try:
        code, failure = _execute(arguments, environment, settings, target.id)
    finally:
        end_numbers(target.numbers)
        seen = taken_notes(notes)
    _finish(pipeline, settings, target, failure, why_silent(arguments, seen))
    sys.exit(code)


def _check_options(context: click.Context, run_id: str | None) -> None:
    """An existing run is what it is."""
    said = [name for name in OF_A_NEW_RUN if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    if run_id and said:
        by = RUN if context.get_parameter_source("run_id") is ParameterSource.ENVIRONMENT else "--run"
        raise ConfigurationError(
            f"--{said[0]} describes a new run, but {by} names an existing one, {run_id}; leave --{said[0]} out, or "
            + (f"unset {RUN}" if by == RUN else "leave --run out"))


def _target(pipeline: Pipeline, settings: Settings, run_id: str | None, answers: bool) -> Target:
    """The run that is named, checked; else a new one. Raises :class:`ConfigurationError` where it does not exist. While
    the database is away a name is taken as it is: spans of a run that is not there are parked, not lost."""
    if not run_id:
        run_id = str(uuid.uuid4())
        return Target(run_id, made=True, numbers=begin_numbers(state_directory(settings), run_id))
    if not answers:
        return Target(run_id, made=False, name=run_id)
    try:
        return Target(pipeline.check_run(run_id)[0], made=False, name=run_id)
    except RunNotFoundError as error:
        if settings.on_missing_run != "create":
            raise ConfigurationError(f"{error}; --on-missing-run create makes it") from None
        return Target(run_id, made=True, name=run_id)


def _resolved(command: Sequence[str]) -> list[str]:
    """The command with its program found; a plain `python` is the Python that otel-cmb is installed in."""
    arguments = list(command)
    if arguments[0] == "--":
        arguments = arguments[1:]
    if not arguments:
        raise ConfigurationError("no program given; write: otel-cmb run -- python my_agents.py")
    if arguments[0] in ("python", "python3"):
        return [sys.executable, *arguments[1:]]
    beside = os.path.join(os.path.dirname(sys.executable), arguments[0])
    found = shutil.which(arguments[0]) or (beside if os.access(beside, os.X_OK) and os.sep not in arguments[0] else None)
    if found is None:
        raise ConfigurationError(_not_found(arguments))
    return [found, *arguments[1:]]


def _not_found(arguments: Sequence[str]) -> str:
    name = arguments[0]
    if name.startswith("-"):
        return f"there is no option {name}; see: otel-cmb run --help (the program and its own options come after --)"
    if os.path.isfile(name):
        python = f"; a Python program is run by: otel-cmb run -- python {shlex.join(arguments)}" if name.endswith(".py") else ""
        return f"{name} may not be executed (chmod +x){python}"
    return f"program {name!r} was not found; expected a command on PATH or a path to a file"


def _check_state_dir(settings: Settings) -> None:
    try:
        os.makedirs(settings.state_dir, mode=0o700, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"state directory {settings.state_dir} cannot be made: {error.strerror}; set "
            "OTEL_EXPORTER_CMB_STATE_DIR or --state-dir to a writable directory") from None
    if not os.access(settings.state_dir, os.W_OK | os.X_OK):
        raise ConfigurationError(
            f"state directory {settings.state_dir} is not writable; set OTEL_EXPORTER_CMB_STATE_DIR or --state-dir to one "
            "that is")


def _check_database(pipeline: Pipeline) -> bool:
    """Whether the database answers. What can never work ends here, before the program starts; a server that is away is
    an outage."""
    try:
        pipeline.connect()
    except CMBError as error:
        raise ConfigurationError(str(error)) from error
    except Exception as error:
        verdict = classify(error)
        where = safe_url(pipeline.settings.database_url)
        if verdict.fault is not Fault.OUTAGE:
            raise ConfigurationError(f"{where} cannot be used: {verdict.reason}; see `otel-cmb db check`") from error
        click.echo(f"otel-cmb: {where} is away ({verdict.reason}); the program runs, its spans wait in the journal", err=True)
        return False
    return True


def _environment(
    settings: Settings, target: Target, otlp: Mapping[str, str], no_instrument: str, verbose: bool, arguments: Sequence[str],
) -> dict[str, str]:
    """The program's environment: stock auto-instrumentation with our exporter; frameworks by :mod:`instrumentation`."""
    environment = dict(os.environ)
    bootstrap = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "instrumentation", "bootstrap")
    paths = [bootstrap, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    to_jaeger = otlp or environment.get("OTEL_EXPORTER_OTLP_ENDPOINT") or environment.get(
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    disabled = [name for name in environment.get("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", "").split(",") if name]
    environment.update({
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        AUTO: "program",
        RUN: target.id,
        "OTEL_TRACES_EXPORTER": "cmb,otlp" if to_jaeger else "cmb",
        "OTEL_METRICS_EXPORTER": environment.get("OTEL_METRICS_EXPORTER", "none"),
        "OTEL_LOGS_EXPORTER": environment.get("OTEL_LOGS_EXPORTER", "none"),
        "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": ",".join([*disabled, *managed_names()]),
        EXCLUDED: ",".join(filter(None, [environment.get(EXCLUDED, ""), *disabled, no_instrument])),
        "OTEL_EXPORTER_CMB_DATABASE_URL": _absolute(settings),
        "OTEL_EXPORTER_CMB_STATE_DIR": settings.state_dir,
        "OTEL_EXPORTER_CMB_ON_MISSING_RUN": settings.on_missing_run,
        "OTEL_EXPORTER_CMB_RECORD": settings.record,
    })
    if os.environ.get(RUN) not in (target.id, target.name or target.id):
        for name in (ENVIRONMENT[SESSION_ID], ENVIRONMENT[NODE_ID], ENVIRONMENT[STEP_ID], NUMBERS):
            environment.pop(name, None)  # they belong to another run
    if attributes := environment.get(RESOURCE):
        environment[RESOURCE] = _of_this_run(attributes, target)
    environment.pop("OTEL_CONFIG_FILE", None)  # it says other exporters
    environment.pop(NOTES, None)  # of a command around this one
    if target.numbers:
        environment[NUMBERS] = target.numbers
    if settings.schema:
        environment["OTEL_EXPORTER_CMB_SCHEMA"] = settings.schema
    defaults = {
        "OTEL_PYTHON_DISTRO": "distro", "OTEL_PYTHON_CONFIGURATOR": "configurator", "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "2048",
        "OTEL_SERVICE_NAME": _service_name(arguments),
    }
    for name, value in defaults.items():
        environment.setdefault(name, value)
    environment.update(otlp)
    if verbose:
        environment[VERBOSE] = "1"
    return environment


def _of_this_run(attributes: str, target: Target) -> str:
    """Resource attributes without a run and a session: the command says them, and what a resource says would outrank it. A
    node or step of another run goes with that run."""
    pairs = [(pair.partition("=")[0].strip(), pair) for pair in attributes.split(",")]
    own = any(key == RUN_ID and unquote(pair.partition("=")[2].strip()) in (target.id, target.name) for key, pair in pairs)
    other = not own and any(key == RUN_ID for key, _ in pairs)
    dropped = {RUN_ID, SESSION_ID} | ({NODE_ID, STEP_ID} if other else set())
    return ",".join(pair for key, pair in pairs if key not in dropped)


def _absolute(settings: Settings) -> str:
    """The URL as the program must see it: a program that changes its directory still writes the same SQLite file."""
    url = check_url(settings)
    return url.render_as_string(hide_password=False)


def _service_name(arguments: Sequence[str]) -> str:
    scripts = [argument for argument in arguments[1:] if argument.endswith(".py")]
    return os.path.splitext(os.path.basename(scripts[0] if scripts else arguments[0]))[0]


def _otlp(endpoint: str) -> dict[str, str]:
    """What sends the spans to this endpoint too. Raises :class:`ConfigurationError` where it is none."""
    try:
        split = urlsplit(endpoint if "://" in endpoint else f"http://{endpoint}")
        port = split.port
    except ValueError:  # a port that is no number, or too large; a bracket that is not closed
        split, port = urlsplit(""), None
    if not (split.hostname or split.scheme == "unix") or any(map(str.isspace, endpoint)):
        raise ConfigurationError(
            f"--otlp-endpoint: found {safe_url(endpoint)!r}, expected http://HOST:PORT or https://HOST:PORT, e.g. "
            "http://127.0.0.1:4317 (gRPC) or http://127.0.0.1:4318 (HTTP)")
    http = port == 4318 or split.path not in ("", "/")
    found = {
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf" if http else "grpc",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": split.geturl(),
        "OTEL_EXPORTER_OTLP_TRACES_INSECURE": "false" if split.scheme == "https" else "true",
    }
    if http and split.path in ("", "/"):
        found["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"] = split.geturl().rstrip("/") + "/v1/traces"
    return found


def _execute(
    arguments: Sequence[str], environment: Mapping[str, str], settings: Settings, run_id: str,
) -> tuple[int, str | None]:
    """Run the program; its exit code as a shell would give it, and why it counts as failed."""
    with Witness() as witness:
        try:
            process = subprocess.Popen(arguments, env=dict(environment))  # noqa: S603 - running the user's command is the job
        except OSError as error:
            click.echo(f"otel-cmb: {arguments[0]} cannot be started: {error.strerror}", err=True)
            return 127, f"cannot be started: {error.strerror}"
        with forwarding(process, witness), _progress(settings, run_id):
            code = process.wait()
    if code < 0:
        name = signal.Signals(-code).name
        return 128 - code, f"ended by {name}"
    return code, None if code == 0 else f"exit code {code}"


@contextlib.contextmanager
def _progress(settings: Settings, run_id: str) -> Iterator[None]:
    """Events so far, live, where a terminal watches: in its title, and on a line where the program's output goes elsewhere."""
    if not _is_terminal(sys.stderr) or os.environ.get("TERM") == "dumb":
        yield
        return
    stop = threading.Event()
    line = not _is_terminal(sys.stdout)

    def watch() -> None:
        from otel_cmb.reader import open_reader

        while not stop.wait(0.5):
            with contextlib.suppress(Exception), open_reader(settings.database_url, schema=settings.schema) as reader:
                while not stop.wait(0.5):
                    totals = reader.run(run_id).totals
                    text = f"otel-cmb: {totals.events if totals is not None else 0} events"
                    sys.stderr.write(f"\033]0;{text}\007" + (f"\r\033[K{text}" if line else ""))
                    sys.stderr.flush()

    thread = threading.Thread(target=watch, name="otel-cmb-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(2)
        sys.stderr.write("\033]0;\007" + ("\r\033[K" if line else ""))
        sys.stderr.flush()


def _is_terminal(stream: TextIO | None) -> bool:
    """Whether somebody watches; a standard stream that is closed is none."""
    return stream is not None and stream.isatty()


def _finish(pipeline: Pipeline, settings: Settings, target: Target, failure: str | None, silence: str) -> None:
    """Write what the program left in its journal, end the run, and say in one line what is stored."""
    patience = SETTLE_SECONDS
    try:
        pipeline.replay()
    except Exception as error:  # noqa: BLE001 - whatever it is, the spans stay in the journal and the summary says so
        patience = AWAY_SECONDS if classify(error).fault is Fault.OUTAGE else patience
    if target.made:
        pipeline.accept_command({
            "do": "run_end", "id": target.id, "status": "failed" if failure else "completed", "error": failure,
            "at": clock.now_ns()})
    pipeline.flush(patience)
    left = pipeline.left_behind()
    said = summary(settings, target.id, left, made=target.made, failure=failure, silence=silence)
    click.echo(said, err=True)
    pipeline.shutdown(1.0)
