"""All vocabularies, merged into the few dictionaries the mapper looks into.

The order of `VOCABULARIES` is the precedence: where two vocabularies carry the same field on one span, the earlier one
wins, field by field. Adding a vocabulary is adding its table to the list (and its test).
"""

from __future__ import annotations

import re

from otel_cmb.vocabulary import (
    ag2_0,
    ag2_1,
    agentops,
    beeai,
    cmb,
    crewai,
    dspy,
    genai,
    google_adk,
    haystack,
    laminar,
    langfuse,
    langgraph,
    langsmith,
    langwatch,
    llama_index,
    logfire,
    mastra,
    mcp,
    mlflow,
    openai_agents,
    openinference,
    openlit,
    pydantic_ai,
    smolagents,
    spring_ai,
    strands,
    traceloop,
    vercel_ai,
)
from otel_cmb.vocabulary.base import NEVER, Vocabulary

__all__ = ["ACTING", "DISCRIMINATORS", "FIELD_KEYS", "FIELD_OF", "NAMES", "OVERRIDES", "PRESENT", "VOCABULARIES", "Vocabulary"]

VOCABULARIES: tuple[Vocabulary, ...] = tuple(
    module.VOCABULARY
    for module in (
        cmb,
        ag2_0,
        ag2_1,
        genai,
        pydantic_ai,
        openinference,
        google_adk,
        langgraph,
        openai_agents,
        smolagents,
        crewai,
        llama_index,
        traceloop,
        vercel_ai,
        mcp,
        strands,
        logfire,
        haystack,
        spring_ai,
        mastra,
        langfuse,
        langsmith,
        mlflow,
        dspy,
        beeai,
        agentops,
        openlit,
        laminar,
        langwatch,
    )
)


def _merge_discriminators() -> tuple[tuple[str, dict[str, str]], ...]:
    """Ours first; then what says "this only repeats another span"; then the rest, by precedence."""
    merged: dict[str, dict[str, str]] = {}
    for vocabulary in VOCABULARIES:
        for key, kinds in vocabulary.discriminators:
            table = merged.setdefault(key, {})
            for value, kind in kinds.items():
                table.setdefault(value, kind)
    order = sorted(merged, key=lambda key: (not key.startswith("cmb."), any(kind != NEVER for kind in merged[key].values())))
    return tuple((key, merged[key]) for key in order)


def _merge_fields() -> dict[str, tuple[str, ...]]:
    merged: dict[str, list[str]] = {}
    for vocabulary in VOCABULARIES:
        for name, keys in vocabulary.fields.items():
            merged.setdefault(name, []).extend(key for key in keys if key not in merged.get(name, ()))
    return {name: tuple(keys) for name, keys in merged.items()}


DISCRIMINATORS = _merge_discriminators()
"""(key, {value: kind}), asked in this order."""

PRESENT: dict[str, str] = {key: kind for vocabulary in reversed(VOCABULARIES) for key, kind in vocabulary.present}
"""key -> kind."""

FIELD_KEYS = _merge_fields()
"""field -> its keys, best first."""

FIELD_OF: dict[str, tuple[str, int]] = {key: (name, rank) for name, keys in FIELD_KEYS.items() for rank, key in enumerate(keys)}
"""key -> (field, rank): what the mapper looks up once per attribute."""

OVERRIDES: tuple[tuple[re.Pattern[str], str, tuple[str, ...]], ...] = tuple(
    (re.compile(pattern, re.DOTALL), kind, vocabulary.scopes)
    for vocabulary in VOCABULARIES
    for pattern, kind in vocabulary.overrides
)
"""The same, outranking the discriminating keys."""

NAMES: tuple[tuple[re.Pattern[str], str, tuple[str, ...]], ...] = tuple(
    (re.compile(pattern, re.DOTALL), kind, vocabulary.scopes)
    for vocabulary in VOCABULARIES
    for pattern, kind in vocabulary.names
)
"""(pattern of the whole span name, kind, scopes it holds under), for spans without a discriminating key."""

ACTING: dict[str, tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]]] = {
    scope: (vocabulary.steps, vocabulary.told)
    for vocabulary in VOCABULARIES
    if vocabulary.steps or vocabulary.told
    for scope in vocabulary.scopes
}
"""scope -> (steps, told): who acts in a container, where no key says so."""
