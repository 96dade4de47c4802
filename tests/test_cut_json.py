"""JSON that a limit cut off: what it says before the cut, and that nothing else is taken for it."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from mapping_support import events, one, span

from otel_cmb.cut_json import uncut
from otel_cmb.mapper_results import error_result, exit_code_of, mapping_before_cut

WHOLE = {"type": "tool", "n": [1, -2.5e3, True, None, {"a": "b"}, []], "e": {}, "text": 'exit "x" \\ é😀\n', "z": "end"}


@pytest.mark.parametrize("ascii_only", [True, False])
def test_wherever_it_is_cut_what_is_said_was_there(ascii_only: bool) -> None:
    """Every value before the cut is as it was; with `half`, the last text may be the beginning of what it was."""
    text = json.dumps(WHOLE, ensure_ascii=ascii_only)
    for end in range(text.index(",") + 1, len(text)):
        for half in (True, False):
            found = uncut(text[:end], half=half)
            assert isinstance(found, dict), text[:end]
            for key, value in found.items():
                if isinstance(value, str):
                    assert WHOLE[key].startswith(value) if half else WHOLE[key] == value  # type: ignore[attr-defined]
                elif key == "n":
                    assert value == [] or value[:4] == WHOLE["n"][: len(value[:4])]  # type: ignore[index]


@pytest.mark.parametrize(
    "text",
    [
        "", "x", "{", "[", "[exit code: 3]", "[exit", "{not json", "[1, 2] [exit", '{"a":1}}', '{"a" 1', "[}", '{"a":1} tail',
        "[INFO] x, y", '["a:"b', '{"a": foo, "b":"c', '{"a": 1}',
    ],
)  # fmt: skip
def test_what_was_not_cut_off_stays_the_text(text: str) -> None:
    assert uncut(text, half=True) == text


def test_hostile_texts_take_linear_time() -> None:
    began = time.process_time()
    blank = " \n" * 100_000
    for text in (
        '{"a":' * 50_000, '["' + "\\" * 400_000, '["' + '","' * 200_000, "[" + "1," * 200_000, "[" * 400_000, '["' * 100_000,
        f"[{blank}x", f'{{"a":1,{blank}x', f'{{"a":{blank}x', f'{{"a"{blank}:{blank}1{blank}x', f'["a"{blank},{blank}"b"{blank}x',
        f'["{blank}"x', f'{{"{blank}" x', f'{{"a":"{blank}" x', f'["{blank}" "{blank}"x', f'["{blank}"' + "\\" * 3,
    ):
        uncut(text, half=True)
    assert time.process_time() - began < 3


def test_a_result_that_was_cut_off_still_says_that_the_call_failed() -> None:
    dump = json.dumps({"type": "tool", "data": {"content": "exitcode: 1 (execution failed)\n" + "x" * 90, "id": None}})
    assert exit_code_of(dump[:100]) == 1
    assert error_result(json.dumps([False, {"role": "tool", "content": "no such constant " * 9}])[:80])
    event = one(span(1, None, {"openinference.span.kind": "TOOL", "tool.name": "run_code", "output.value": dump[:100]}))
    assert (event.event_type, event.status, event.meta["exit_code"]) == ("code_exec", "failed", 1)


def test_a_name_that_the_cut_went_through_names_nobody() -> None:
    metadata = '{"langgraph_step": 1, "langgraph_node": "planner", "lc_agent_name": "plan'
    assert mapping_before_cut(metadata) == {"langgraph_step": 1, "langgraph_node": "planner"}
    attributes: dict[str, Any] = {"openinference.span.kind": "LLM", "metadata": metadata}
    assert events(span(1, None, attributes))[0].agent_name == "planner"
