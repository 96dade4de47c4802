"""What the attributes of many rows have in common, stored once for all of them.

Three kinds of attribute say nothing of the one row, and are left out of it:

* a small value that is where it usually is (:data:`HELD`): a path;
* one of few values (:data:`FEW`): `{"value": value}`;
* a long value whose reference has no value of its own (:mod:`otel_cmb.refs`).

Spans of one kind have the same keys with values of the same types, so what has to be looked at is found out once for them
(:class:`_Plan`). What each of those attributes turned out to be, one after the other, is the *outcome*; rows with
the same outcome share one :class:`Common`, so that nothing has to be put together for it again.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

from otel_cmb.refs import MIN_TEXT, Form, Places, find, is_common

__all__ = ["FEW", "HELD", "Common", "split"]

HELD: dict[str, str] = {
    "cmb.run.id": "run_id",
    "gen_ai.request.model": "meta.model", "gen_ai.response.model": "meta.model", "llm.model_name": "meta.model",
    "gen_ai.provider.name": "meta.provider", "gen_ai.system": "meta.provider",
    "gen_ai.usage.input_tokens": "meta.prompt_tokens", "gen_ai.usage.output_tokens": "meta.completion_tokens",
    "gen_ai.usage.prompt_tokens": "meta.prompt_tokens", "gen_ai.usage.completion_tokens": "meta.completion_tokens",
    "llm.token_count.prompt": "meta.prompt_tokens", "llm.token_count.completion": "meta.completion_tokens",
    "llm.token_count.total": "meta.tokens", "gen_ai.usage.total_tokens": "meta.tokens",
    "gen_ai.usage.cost": "meta.cost_usd", "gen_ai.request.temperature": "meta.temperature",
    "gen_ai.tool.name": "inputs.tool_name", "tool.name": "inputs.tool_name",
    "gen_ai.tool.call.id": "meta.tool_call_id", "tool_call.id": "meta.tool_call_id",
    "gen_ai.tool.call.result": "outputs.result", "tool_response": "outputs.result",
    "gen_ai.conversation.id": "meta.conversation_id", "ag2.code_execution.exit_code": "meta.exit_code",
    "ag2.code_execution.output": "outputs.result", "error.type": "meta.error_type",
}
"""Where a small value usually is in the row: a column, or a column and a key."""

FEW = frozenset({
    "gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.system", "gen_ai.request.model", "gen_ai.response.model",
    "gen_ai.agent.name", "gen_ai.tool.name", "gen_ai.tool.type", "gen_ai.output.type", "gen_ai.response.finish_reasons",
    "ag2.span.type", "openinference.span.kind", "traceloop.span.kind", "llm.provider", "llm.system", "llm.model_name",
    "agent.name", "tool.name", "input.mime_type", "output.mime_type", "traceloop.workflow.name", "server.address",
    "gen_ai.agent.description", "gen_ai.tool.description", "error.type", "logfire.span_type", "logfire.json_schema",
})
"""Attributes with few different values in all of a database."""
_FEW_CHARS = 256
_MISSING, _HELD, _OWN = object(), object(), object()


class Common:
    """The references that rows with one outcome have in common (not to be changed), and the keys whose values stay."""

    __slots__ = ("kept", "refs", "shapes")

    def __init__(self, refs: dict[str, Any], kept: tuple[str, ...]) -> None:
        self.refs = dict(sorted(refs.items()))  # the same, whatever the order of a span's attributes
        self.kept = kept
        self.shapes: dict[tuple[int, int, int], tuple[Any, dict[str, Any]]] = {}
        """For :mod:`otel_cmb.rebuild`: the shapes they are part of."""


class _Plan:
    """What can become of attributes with these keys and values of these types."""

    __slots__ = ("keys", "steps")

    def __init__(self, kinds: Mapping[str, type]) -> None:
        self.keys = tuple(kinds)
        self.steps: list[tuple[str, type, str, str, bool]] = []
        """Key, type, column and key in the column where it usually is, whether it has few values. Without those that
        always stay: small ones of any other type."""
        for key, kind in kinds.items():
            contains = kind is list or kind is dict
            column, _, inner = HELD.get(key, "").partition(".") if not contains else ("", "", "")
            if column or contains or kind is str:
                self.steps.append((key, kind, column, inner, key in FEW and (kind is str or kind is list)))


_plans: dict[tuple[Any, ...], _Plan] = {}
_commons: dict[tuple[Any, ...], Common] = {}
_PLANS, _COMMONS, _KEYS = 256, 1024, 256
"""Bounds: plans, outcomes, and the attributes of a span whose plan is remembered."""


def split(attributes: dict[str, Any], places: Places, *, own: bool) -> tuple[dict[str, Any], dict[str, Any], Common]:
    """The attributes to store as they are, the references of this row only, and what it has in common with others.
    `own` as in :func:`otel_cmb.refs.pack`."""
    plan = _plan_of(attributes)
    row = places.row
    refs: dict[str, Any] = {}
    templates: dict[str, Any] = {}
    # One entry per step, so that equal outcomes mean equal references and equal keys that stay: None (it stays), _HELD,
    # _OWN (a reference of this row only), the text of few, a tuple with the one text of a list or with a path, a form.
    outcome: list[Any] = [plan]
    for key, kind, column, inner, few in plan.steps:
        value = attributes[key]
        if column:
            held = row.get(column, _MISSING)
            if inner:
                held = held.get(inner, _MISSING) if type(held) is dict else _MISSING
            if type(held) is kind and held == value and (
                kind is not float or (repr(held) == repr(value) and isfinite(value))  # -0.0, 0.0; JSON has no infinity
            ):
                outcome.append(_HELD)
                continue
        if few:
            if kind is str:
                if len(value) <= _FEW_CHARS:
                    outcome.append(value)
                    continue
            elif len(value) == 1 and type(value[0]) is str and len(value[0]) <= MIN_TEXT:
                outcome.append((value[0],))
                continue
        if kind is str and len(value) < MIN_TEXT:
            outcome.append(None)
            continue
        found = find(key, value, places, own=own)
        if type(found) is str:
            outcome.append((found,))
        elif type(found) is not dict:
            outcome.append(found)
        else:
            outcome.append(_OWN)
            (templates if is_common(found) else refs)[key] = found
    common = _common(plan, tuple(outcome), templates, refs)
    kept = attributes if len(common.kept) == len(attributes) else {key: attributes[key] for key in common.kept}
    return kept, refs, common


def _plan_of(attributes: dict[str, Any]) -> _Plan:
    kinds = (*attributes, *map(type, attributes.values()))
    plan = _plans.get(kinds)
    if plan is None:
        plan = _Plan({key: type(value) for key, value in attributes.items()})
        if len(attributes) <= _KEYS:
            if len(_plans) >= _PLANS:
                _plans.clear()
            _plans[kinds] = plan
    return plan


def _common(plan: _Plan, outcome: tuple[Any, ...], templates: dict[str, Any], own: dict[str, Any]) -> Common:
    """What the outcome means. `templates` of lists and objects are common too, but rare: they are not remembered."""
    common = None if templates else _commons.get(outcome)
    if common is not None:
        return common
    refs = dict(templates)
    for (key, kind, *_), said in zip(plan.steps, outcome[1:], strict=True):
        if said is _HELD:
            refs[key] = HELD[key]
        elif type(said) is str:
            refs[key] = {"value": said}
        elif type(said) is tuple:
            refs[key] = {"value": [*said]} if kind is list else said[0]
        elif type(said) is Form:
            refs[key] = said.reference
    common = Common(refs, tuple(key for key in plan.keys if key not in refs and key not in own))
    if not templates and len(plan.keys) <= _KEYS:
        if len(_commons) >= _COMMONS:
            _commons.clear()
        _commons[outcome] = common
    return common
