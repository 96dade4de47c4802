"""The line that `otel-cmb run` ends with."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from otel_cmb import config
from otel_cmb.config import Settings, safe_url
from otel_cmb.errors import ConfigurationError, RunNotFoundError
from otel_cmb.faults import classify
from otel_cmb.notes import MODULE, RUN_MADE, TRACED

__all__ = ["summary", "why_silent"]

PYTHON = re.compile(r"python[\d.]*(\.exe)?")
NOT_TRACED = "EIS"
"""Flags of Python by which it leaves PYTHONPATH, or what is in it, alone."""

WITH_VALUE = "cmWX"
"""Flags that take a value; after `-c` and `-m` come the program's own."""


def why_silent(arguments: Sequence[str], notes: set[str] | None) -> str:
    """Why a program makes no events, as far as its command line and what it let us know tell (`None`: it could not)."""
    flag = _untraced_flag(arguments)
    if notes is not None and TRACED not in notes:
        if flag:
            return f"python {flag} leaves the environment alone, by which the program would have been traced; leave {flag} out"
        return "no Python program was traced; other programs are not, nor is Python with -E, -I or -S"
    if notes and RUN_MADE in notes:
        return "the program makes runs of its own: otel-cmb runs"
    modules = sorted(word.removeprefix(MODULE) for word in notes or () if word.startswith(MODULE))
    if modules:
        return f"{', '.join(modules)} {'were' if len(modules) > 1 else 'was'} imported, but no agent did anything"
    return "no agent framework was seen; `otel-cmb run --verbose` says what is instrumented"


def _untraced_flag(arguments: Sequence[str]) -> str | None:
    """The flag by which this Python is told to start without us."""
    if not PYTHON.fullmatch(os.path.basename(arguments[0])):
        return None
    words = iter(arguments[1:])
    for word in words:
        if not word.startswith("-") or word in ("-", "--") or word.startswith("--"):
            return None
        for place, letter in enumerate(word[1:], 1):
            if letter in NOT_TRACED:
                return f"-{letter}"
            if letter in WITH_VALUE:
                if letter in "cm":
                    return None
                if place == len(word) - 1:
                    next(words, None)
                break
    return None


def _to_be_told(settings: Settings) -> str:
    """What the next command has to be told to find the same database; nothing where it finds that by itself."""
    try:
        found = config.load().database_url
    except ConfigurationError:
        found = ""
    if found == settings.database_url:
        return ""
    # A server's URL has a password, which is not said; the line has named the rest.
    return f" --database-url {shlex.quote(settings.database_url) if settings.database_url.startswith('sqlite') else '...'}"


def summary(
    settings: Settings, run_id: str, left: Mapping[str, int], *, made: bool, failure: str | None, silence: str,
) -> str:
    """What is stored of the run and what is not, and the command that shows it. `silence`: why there may be no events."""
    from otel_cmb.reader import open_reader

    where, told = safe_url(settings.database_url), _to_be_told(settings)
    next_step = f"otel-cmb show {run_id}{told}"
    try:
        with open_reader(settings.database_url, schema=settings.schema) as reader:
            counts = f"{_counted(reader.run(run_id), silence)} in {where}"
    except Exception as error:  # noqa: BLE001 - the summary of a database that is away
        next_step = f"otel-cmb parked replay{told} writes what is in the journal when it can be"
        # What the driver said: what the reader made of it names the database once more.
        why = "the run is not there yet" if isinstance(error, RunNotFoundError) else classify(error.__cause__ or error).reason
        counts = f"{where} cannot be {'written' if isinstance(error, RunNotFoundError) else 'read'} now ({why})"
    if made:
        parts = [f"otel-cmb: run {run_id} {f'failed ({failure})' if failure else 'completed'}: {counts}"]
    else:
        parts = [f"otel-cmb: written into run {run_id}, in all {counts}"]
        if failure:
            parts.append(f"the program failed ({failure})")
    waiting = sum(left.values())
    if waiting:
        reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(left.items()))
        wait = "spans wait" if waiting > 1 else "span waits"
        parts.append(f"{waiting} {wait} in the journal ({reasons}): otel-cmb parked list{told}")
    else:
        parts.append(next_step)
    return "; ".join(parts)


def _counted(found: Any, silence: str) -> str:
    """In the words of `otel-cmb show`."""
    from otel_cmb.cli.tree import money  # with rich: not before the program starts

    totals = found.totals
    if totals is None or not totals.events:
        return f"0 events ({silence})"
    text = f"{totals.events:,} event{'' if totals.events == 1 else 's'}"
    if totals.failures:
        text += f", {totals.failures:,} failed"
    if totals.tokens:
        text += f", {totals.tokens:,} tokens"
    if totals.cost_usd:
        text += f", {money(totals.cost_usd)}"
    return text
