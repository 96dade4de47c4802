"""The public names: what is exported is there, what is there is exported, and the signatures are those documented."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import otel_cmb
from otel_cmb import errors

PUBLIC = {
    "CMBError", "CMBSpanExporter", "CMBSpanProcessor", "ConfigurationError", "DatabaseURLError", "DatabaseUnavailableError",
    "JournalError", "RunNotFoundError", "SchemaError", "SessionMismatchError", "__version__", "agent_call", "approval",
    "attach", "code_exec", "configure", "error", "file_gen", "handoff", "llm_call", "message", "node", "open_reader", "run",
    "step", "tool_call", "traced_agent", "traced_tool",
}

# What people write, from the design: names in order, with their defaults.
SIGNATURES = {
    "configure": "database_url=None, otlp_endpoint=None, service_name=None, instrument=True, **settings",
    "run": "mode='one_shot', agent='unknown', model='unknown', task=None",
    "attach": "run_id, node_id=None, step_id=None",
    "node": "node_id, node_type='agent'",
    "step": "step_id, goal=None",
    "agent_call": "name, message",
    "tool_call": "name, arguments=None",
    "code_exec": "code, language='python'",
    "llm_call": "model, messages=None",
    "approval": "prompt",
    "file_gen": "file_path, file_type, size_bytes=None, agent_name=None",
    "handoff": "from_agent, to_agent, context=None, reason=None",
    "message": "sender, recipient, content, tokens=None",
    "error": "error_message, error_type=None, agent_name=None",
    "open_reader": "database_url=None",
    "CMBSpanExporter": "database_url=None, **settings",
    "CMBSpanProcessor": "database_url=None, **settings",
}


def test_all_is_exactly_what_is_public() -> None:
    assert set(otel_cmb.__all__) == PUBLIC
    assert sorted(otel_cmb.__all__, key=str) == sorted(PUBLIC)


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_public_name_is_there_and_explained(name: str) -> None:
    value = getattr(otel_cmb, name)
    assert name == "__version__" or inspect.getdoc(value)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"otel_cmb.*nothing_like_it"):
        otel_cmb.nothing_like_it  # noqa: B018
    assert set(dir(otel_cmb)) == PUBLIC


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_begin_as_documented(name: str) -> None:
    parameters = [
        parameter.replace(annotation=inspect.Parameter.empty) for parameter in
        inspect.signature(getattr(otel_cmb, name)).parameters.values()
    ]
    wanted = inspect.signature(eval(f"lambda {SIGNATURES[name]}: None")).parameters  # the names are ours
    for parameter, expected in zip(parameters, wanted.values(), strict=False):
        assert parameter.name == expected.name
        if expected.default is not inspect.Parameter.empty:
            assert parameter.default == expected.default, parameter.name
    assert len(parameters) >= len(wanted)


def test_the_error_tree_is_the_one_drawn_and_all_of_it_is_public() -> None:
    classes = {name: value for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert classes.keys() == {name for name in PUBLIC if name.endswith("Error")}
    for name, value in classes.items():
        assert issubclass(value, errors.CMBError)
        assert name in (errors.__doc__ or "")
    assert issubclass(errors.RunNotFoundError, ValueError)
    assert issubclass(errors.DatabaseURLError, errors.ConfigurationError)


def test_the_api_as_people_write_it_passes_a_type_checker() -> None:
    """tests/typing_api.py is checked, not run: what autocompletion and mypy say to users of the package."""
    pytest.importorskip("mypy", reason="mypy is in the extra `dev`; .ci/run checks this file by itself")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-error-summary", "--config-file", "", "--strict", "--follow-imports", "silent",
         str(Path(__file__).parent / "typing_api.py")],
        capture_output=True, text=True, check=False, timeout=110, cwd=Path(__file__).parent.parent)
    assert done.returncode == 0, done.stdout + done.stderr
