"""What the application's code hands over, loosely typed: made what its own queries expect to read back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from otel_cmb.payload import text_of, to_json
from otel_cmb.sums import summable

__all__ = ["meta_of", "name_of", "said"]


def said(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """What was said: a key with nothing to say is absent, for the application sums over these."""
    if metadata and not isinstance(metadata, Mapping):
        metadata = {"metadata": metadata}
    return {str(key): value for key, value in (metadata or {}).items() if value is not None}


def name_of(agent: Any) -> str:
    """An agent's name as a person writes it; also of the agent itself."""
    if agent is None:
        return ""
    name = getattr(agent, "name", None)
    return name if isinstance(name, str) else text_of(agent)


def meta_of(meta: Mapping[str, Any]) -> dict[str, str]:
    """The attribute that carries `meta`, if there is any."""
    return {"cmb.meta": to_json(summable(meta))} if meta else {}
