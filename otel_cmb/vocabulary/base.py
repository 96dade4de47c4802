"""What a vocabulary is: one naming scheme for agent spans, as data.

A table says which keys carry which of our fields and which value of its discriminator means which kind of act. It has
no code: `otel_cmb.vocabulary` merges all tables into the few dictionaries the mapper looks into.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = [
    "AGENT",
    "APPROVAL",
    "CODE",
    "CONTAINER",
    "ERROR",
    "EVENT_TYPES",
    "FILE",
    "HANDOFF",
    "LLM",
    "NEVER",
    "PLAIN",
    "SPEAKER",
    "TOOL",
    "Vocabulary",
]

# Kinds of act. Those that are event types carry the type's name.
AGENT = "agent_call"
TOOL = "tool_call"
CODE = "code_exec"
LLM = "llm_call"
HANDOFF = "handoff"
APPROVAL = "approval_requested"
FILE = "file_gen"
ERROR = "error"
CONTAINER = "info"
"""Conversation, workflow, chain, graph: it holds the acts of others."""
SPEAKER = "speaker"
"""A choice of the next speaker: a handoff if it changes the speaker, else a container."""
PLAIN = "plain"
"""No act of an agent: an event (`info`) only when everything is recorded."""
NEVER = "never"
"""A record that repeats another span (usage, pending spans, merged tools): never an act, and nothing it repeats is told
or counted; a row (`info`) only when everything is recorded."""

EVENT_TYPES = frozenset({AGENT, TOOL, CODE, LLM, HANDOFF, APPROVAL, FILE, ERROR, CONTAINER})


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """One naming scheme. `source` is where version `version` of it is defined or was observed."""

    name: str
    version: str
    source: str
    discriminators: tuple[tuple[str, Mapping[str, str]], ...] = ()
    """Keys whose value says the kind, in order; a value not in the mapping says nothing."""
    present: tuple[tuple[str, str], ...] = ()
    """Keys whose mere presence says the kind, asked before every discriminator."""
    fields: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Our field name -> the keys that carry it, best first."""
    names: tuple[tuple[str, str], ...] = ()
    """Regular expression of a whole span name -> kind, for spans that have no discriminating key (yet). A group
    `agent`, `tool` or `model` carries that field."""
    overrides: tuple[tuple[str, str], ...] = ()
    """Regular expression of a whole span name -> kind that outranks the discriminators."""
    scopes: tuple[str, ...] = ()
    """If given, `names` and `overrides` hold only under these instrumentation scopes (prefixes)."""
    steps: tuple[tuple[str, str], ...] = ()
    """Under exactly these scopes: end of a container's span name -> the graph node it is."""
    told: tuple[tuple[str, str], ...] = ()
    """Under exactly these scopes: what stands before and after the name of the agent in the text of what went into or
    came out of a container; the last such place counts."""
