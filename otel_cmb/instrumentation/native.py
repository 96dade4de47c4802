"""Frameworks that carry their own instrumentation and only wait to be told: switched on when the program imports them, so
that a program that does not use them pays nothing. What the program itself sets later stands."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import wrapt

__all__ = ["NATIVE", "Native"]

_log = logging.getLogger("otel_cmb")


@dataclass(frozen=True, slots=True)
class Native:
    """A framework, its module, and what switches its spans on: a call once the module is there, variables before."""

    name: str
    module: str
    distribution: str
    begin: Callable[[ModuleType], None] | None = None
    variables: tuple[str, ...] = ()

    def switch_on(self) -> None:
        for variable in self.variables:
            os.environ.setdefault(variable, "true")
        if self.begin is not None:
            wrapt.register_post_import_hook(self._imported, self.module)

    def _imported(self, module: ModuleType) -> None:
        try:
            if self.begin is not None:
                self.begin(module)
        except Exception as error:  # noqa: BLE001 - a framework of another version costs its spans, not the program
            _log.warning("otel-cmb: the instrumentation of %s could not be switched on: %s", self.distribution, error)


def _pydantic_ai(module: ModuleType) -> None:
    if not getattr(module.Agent, "_instrument_default", False):
        module.Agent.instrument_all()


NATIVE: tuple[Native, ...] = (
    # https://ai.pydantic.dev/logfire/#using-opentelemetry
    Native("pydantic_ai", "pydantic_ai", "pydantic-ai", _pydantic_ai),
    # https://learn.microsoft.com/semantic-kernel/concepts/enterprise-readiness/observability/
    Native("semantic_kernel", "semantic_kernel", "semantic-kernel",
           variables=("SEMANTICKERNEL_EXPERIMENTAL_GENAI_ENABLE_OTEL_DIAGNOSTICS_SENSITIVE",)),
)
