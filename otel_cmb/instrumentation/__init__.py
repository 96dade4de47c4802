"""Switching instrumentation on: once per framework, by the best instrumentor that is installed.

Several vendors register instrumentors for the same framework, under the same entry-point name; loading all of them
records every act twice. :data:`FRAMEWORKS` says which one is taken.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
from collections.abc import Collection
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from otel_cmb.instrumentation.native import NATIVE
from otel_cmb.notes import MODULE, TRACED, note

__all__ = ["FRAMEWORKS", "Framework", "instrument_frameworks", "managed_names", "post_instrument"]

_log = logging.getLogger("otel_cmb")
GROUP = "opentelemetry_instrumentor"
AUTO = "OTEL_CMB_AUTO"
"""Set by `otel-cmb run`."""

VERBOSE = "OTEL_CMB_VERBOSE"
"""Set by `otel-cmb run --verbose`: say on stderr what is instrumented by what."""

EXCLUDED = "OTEL_CMB_DISABLED_INSTRUMENTATIONS"
"""Frameworks that are not to be instrumented, separated by commas; `*` for none at all."""


@dataclass(frozen=True, slots=True)
class Framework:
    """A framework, the module that shows it is installed, and the distributions that instrument it, best first."""

    name: str
    module: str
    distributions: tuple[str, ...]
    entry_points: tuple[str, ...]


def _vendors(name: str, *more: str) -> tuple[str, ...]:
    """Distributions for a framework: conventions' own first, then OpenInference, then Traceloop."""
    return (f"opentelemetry-instrumentation-genai-{name}", *more, f"openinference-instrumentation-{name}",
            f"opentelemetry-instrumentation-{name}")


FRAMEWORKS: tuple[Framework, ...] = (
    Framework("ag2", "autogen", ("otel-cmb", "openinference-instrumentation-ag2", "openinference-instrumentation-autogen"),
              ("otel_cmb_ag2", "ag2", "autogen")),
    Framework("openai", "openai", _vendors("openai", "opentelemetry-instrumentation-openai-v2"), ("openai",)),
    Framework("anthropic", "anthropic", _vendors("anthropic"), ("anthropic",)),
    Framework("google_genai", "google.genai", (
        "opentelemetry-instrumentation-google-genai", "openinference-instrumentation-google-genai",
        "opentelemetry-instrumentation-google-generativeai"), ("google_genai", "google_generativeai", "google-genai")),
    # Graph nodes and tools of LangGraph are visible with OpenInference; the conventions' own sees only the LLM calls.
    Framework("langchain", "langchain_core", (
        "openinference-instrumentation-langchain", "opentelemetry-instrumentation-langchain",
        "opentelemetry-instrumentation-genai-langchain"), ("langchain",)),
    Framework("openai_agents", "agents", (
        "openinference-instrumentation-openai-agents", "opentelemetry-instrumentation-openai-agents",
        "opentelemetry-instrumentation-genai-openai-agents"), ("openai_agents", "openai-agents")),
    Framework("smolagents", "smolagents", (
        "openinference-instrumentation-smolagents", "opentelemetry-instrumentation-genai-smolagents"), ("smolagents",)),
    Framework("crewai", "crewai", ("openinference-instrumentation-crewai", "opentelemetry-instrumentation-crewai"),
              ("crewai",)),
    Framework("llama_index", "llama_index", (
        "openinference-instrumentation-llama-index", "opentelemetry-instrumentation-llamaindex"),
        ("llama_index", "llama-index", "llamaindex")),
    Framework("dspy", "dspy", _vendors("dspy"), ("dspy",)),
    Framework("agno", "agno", _vendors("agno"), ("agno",)),
    Framework("haystack", "haystack", _vendors("haystack"), ("haystack",)),
    Framework("bedrock", "boto3", ("openinference-instrumentation-bedrock", "opentelemetry-instrumentation-bedrock"),
              ("bedrock",)),
    Framework("litellm", "litellm", ("openinference-instrumentation-litellm",), ("litellm",)),
    Framework("mcp", "mcp", ("openinference-instrumentation-mcp", "opentelemetry-instrumentation-mcp"), ("mcp",)),
)


def managed_names() -> tuple[str, ...]:
    """Entry-point names that :func:`instrument_frameworks` decides about: the stock loader is told to leave them."""
    return tuple(dict.fromkeys(name for framework in FRAMEWORKS for name in framework.entry_points))


def instrument_frameworks(excluded: Collection[str] = ()) -> dict[str, str]:
    """Instrument every installed framework once; which distribution was taken for which. Never raises.

    `excluded` and `OTEL_CMB_DISABLED_INSTRUMENTATIONS` name frameworks to leave alone (`*`: all).
    """
    left_out = {name.strip() for name in os.environ.get(EXCLUDED, "").split(",") if name.strip()} | set(excluded)
    if "*" in left_out:
        return {}
    registered: dict[str, list[EntryPoint]] = {}
    for entry_point in entry_points(group=GROUP):
        if entry_point.dist is not None:
            registered.setdefault(_normal(entry_point.dist.name), []).append(entry_point)
    taken: dict[str, str] = {}
    for framework in FRAMEWORKS:
        if framework.name in left_out or not _installed(framework.module):
            continue
        for distribution in framework.distributions:
            if any(_switch_on(entry_point) for entry_point in registered.get(distribution, ())
                   if entry_point.name in framework.entry_points):
                taken[framework.name] = distribution
                break
    for native in NATIVE:
        if native.name not in left_out and _installed(native.module):
            native.switch_on()
            taken[native.name] = "itself"
    said = ", ".join(f"{name} by {by}" for name, by in taken.items()) or "no framework"
    _log.info("otel-cmb instruments %s", said)
    if os.environ.get(VERBOSE):
        _say(f"otel-cmb: instruments {said}")
    return taken


def _say(line: str) -> None:
    if sys.stderr is not None:  # the program's may be closed
        sys.stderr.write(f"{line}\n")


def _switch_on(entry_point: EntryPoint) -> bool:
    try:
        instrumentor = entry_point.load()()
        if not getattr(instrumentor, "is_instrumented_by_opentelemetry", False):
            instrumentor.instrument()
    except Exception as error:  # noqa: BLE001 - a vendor's instrumentor that fails costs its spans, not the program
        _log.warning("otel-cmb: instrumentor %s (%s) failed: %s", entry_point.name, entry_point.value, error)
        return False
    return bool(getattr(instrumentor, "is_instrumented_by_opentelemetry", True))


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _normal(name: str) -> str:
    return name.lower().replace("_", "-")


def post_instrument() -> None:
    """Entry point `opentelemetry_post_instrument`: where `cmb` is among the exporters, a processor of the same pipeline
    gives live rows, context and the journal; the exporter leaves to it what it has. Never raises."""
    try:
        _add_processors()
        if os.environ.get(AUTO):
            note(TRACED)
            for name in instrument_frameworks():
                _note_import(name)
    except Exception:  # noqa: BLE001 - the program runs on, untraced, and the log says why
        _log.exception("otel-cmb: auto-instrumentation could not be completed; the program goes on")


def _note_import(name: str) -> None:
    """Let `otel-cmb run` know when the program imports this framework: one that is imported and does nothing was seen."""
    import wrapt

    modules = {framework.name: framework.module for framework in FRAMEWORKS} | {native.name: native.module for native in NATIVE}
    wrapt.register_post_import_hook(lambda _module: note(MODULE + modules[name]), modules[name])


def _add_processors() -> None:
    from otel_cmb.errors import ConfigurationError
    from otel_cmb.exporter import exporters
    from otel_cmb.processor import CMBSpanProcessor
    from otel_cmb.setup import install_processor

    provider = trace.get_tracer_provider()
    if not isinstance(provider, TracerProvider):
        return
    for exporter in list(exporters):
        try:
            processor = CMBSpanProcessor(**exporter.keywords)
        except ConfigurationError as error:
            _log.error("otel-cmb: %s", error)
            continue
        install_processor(provider, processor)
        exporter.leave_to_processor()
