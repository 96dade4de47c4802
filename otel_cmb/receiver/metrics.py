"""The receiver's and the pipeline's counters as Prometheus text (exposition format 0.0.4)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from otel_cmb.receiver.house import House

__all__ = ["CONTENT_TYPE", "render"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
RESULTS = ("received", "committed", "ignored", "merged", "refused", "parked", "pending", "lost")

_Sample = tuple[Mapping[str, str], float]


def _label(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _family(name: str, kind: str, help_text: str, samples: Iterable[_Sample]) -> list[str]:
    lines = [f"# HELP {name} {help_text}", f"# TYPE {name} {kind}"]
    for labels, value in samples:
        inside = ",".join(f'{key}="{_label(item)}"' for key, item in labels.items())
        text = str(int(value)) if value == int(value) else repr(value)
        lines.append(f"{name}{{{inside}}} {text}" if inside else f"{name} {text}")
    return lines


def _number(value: Any) -> float:
    """A counter, or the sum of one that is told apart by reason."""
    return float(sum(value.values())) if isinstance(value, Mapping) else float(value)


def _stat(stats: Any, name: str) -> Any:
    return stats.get(name, 0) if isinstance(stats, Mapping) else getattr(stats, name, 0)


def render(house: House) -> str:
    """All metrics. The accounting law in one family: received = ignored + merged + committed + refused + parked +
    pending + lost."""
    intake = house.intake
    stats = intake.pipeline.stats()
    parked = _stat(stats, "parked")
    lines = _family(
        "otel_cmb_spans_total", "counter", "Spans of this process, by what became of them.",
        [({"result": name}, _number(_stat(stats, name))) for name in RESULTS],
    )
    if isinstance(parked, Mapping):
        lines += _family(
            "otel_cmb_spans_parked", "gauge", "Spans kept in the journal because they cannot be stored yet, by reason.",
            [({"reason": str(reason)}, float(number)) for reason, number in sorted(parked.items())],
        )
    lines += _family(
        "otel_cmb_receiver_requests_total", "counter", "Requests, by door, signal and answer.",
        [
            ({"door": door, "signal": signal, "answer": situation}, number)
            for (door, signal, situation), number in sorted(intake.requests.items())
        ],
    )
    lines += _family(
        "otel_cmb_receiver_rejected_spans_total", "counter",
        "Spans rejected by partial_success: no usable ids, or another session than the token's.",
        [({}, intake.rejected_spans)],
    )
    lines += _family("otel_cmb_receiver_requests_inside", "gauge", "Requests being read or worked on.",
                     [({}, house.reading.inside)])
    lines += _family("otel_cmb_journal_bytes", "gauge", "Size of this process's journal.",
                     [({}, _number(_stat(stats, "journal_bytes")))])
    lines += _family("otel_cmb_database_up", "gauge", "1 while the database takes what is written, 0 while it is away.",
                     [({}, 0.0 if _stat(stats, "last_error") else 1.0)])
    lines += _family("otel_cmb_receiver_waiting_bytes", "gauge", "Bytes of requests waiting for their commit.",
                     [({}, intake.budget.used)])
    return "\n".join(lines) + "\n"
