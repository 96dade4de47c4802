"""Our counts as OpenTelemetry metrics, where a meter provider is configured; without one nothing is measured.

The `otel.sdk.exporter.*` names are those of the semantic conventions for SDK metrics (v1.36, development); what they have
no word for is `otel_cmb.spans`, the accounting law by `result` and `reason`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Observation

from otel_cmb._version import __version__
from otel_cmb.accounting import Stats

__all__ = ["watch"]

COMPONENT = "otel_cmb_span_exporter"


class _Counted(Protocol):
    def stats(self) -> Stats: ...


_installed: list[Any] = []
"""The instruments, kept: they are made once for a process and look at whatever pipelines there are."""


def watch(pipelines: Callable[[], Sequence[_Counted]]) -> None:
    """Report the counts of these pipelines. Called again it does nothing; it asks nothing of a meter provider that is
    not there, and finds one that is set later."""
    if _installed:
        return
    _installed.append(pipelines)
    meter = metrics.get_meter("otel_cmb", __version__)

    def by(read: Callable[[Stats], Iterable[tuple[int, dict[str, str]]]]) -> Callable[[CallbackOptions], Iterator[Observation]]:
        def callback(_options: CallbackOptions) -> Iterator[Observation]:
            for n, pipeline in enumerate(pipelines()):
                named = {"otel.component.type": COMPONENT, "otel.component.name": f"{COMPONENT}/{n}"}
                for value, attributes in read(pipeline.stats()):
                    yield Observation(value, {**named, **attributes})

        return callback

    _installed.extend((
        meter.create_observable_counter(
            "otel.sdk.exporter.span.exported", [by(_exported)], "{span}",
            "Spans whose fate is final: stored (no error.type), or not, with the reason as error.type"),
        meter.create_observable_up_down_counter(
            "otel.sdk.exporter.span.inflight", [by(_inflight)], "{span}", "Spans in the journal that are not stored yet"),
        meter.create_observable_up_down_counter(
            "otel_cmb.spans", [by(_results)], "{span}", "Spans by result; received is the sum of the others"),
    ))


def _exported(stats: Stats) -> Iterator[tuple[int, dict[str, str]]]:
    yield stats.committed + stats.merged + stats.ignored, {}
    if stats.refused:
        yield stats.refused, {"error.type": "refused"}
    for reason, n in stats.lost.items():
        yield n, {"error.type": reason}


def _inflight(stats: Stats) -> Iterator[tuple[int, dict[str, str]]]:
    yield stats.pending, {}


def _results(stats: Stats) -> Iterator[tuple[int, dict[str, str]]]:
    for result in ("received", "committed", "merged", "ignored", "pending", "refused"):
        yield getattr(stats, result), {"result": result}
    for result, reasons in (("parked", stats.parked), ("lost", stats.lost)):
        for reason, n in reasons.items():
            yield n, {"result": result, "reason": reason}
