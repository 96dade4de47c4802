"""The questions a person asks when events are missing, answered from the database and the journals. Changes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Engine, text

from otel_cmb.accounting import Totals
from otel_cmb.binding import Binding, bind
from otel_cmb.bookkeeping import CONTENT_GIVEN_UP
from otel_cmb.config import Settings, safe_url
from otel_cmb.diagnosis_open import NOBODY, QUIET, THEIRS, Open, open_events, open_runs
from otel_cmb.dialects import SQLITE
from otel_cmb.engines import make_engine
from otel_cmb.errors import CMBError, RunNotFoundError
from otel_cmb.faults import classify
from otel_cmb.journal import journals, read_only_summary
from otel_cmb.journal_records import NO_SPAN, PROCESS_DIED
from otel_cmb.owners import DIED, LIVING
from otel_cmb.pipeline import state_directory

__all__ = ["Check", "Diagnosis", "diagnose"]

EXAMPLES = 5


@dataclass(slots=True)
class Check:
    """One question, its answer, and what to do if the answer is bad."""

    name: str
    ok: bool
    answer: str
    advice: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return {"check": self.name, "ok": self.ok, "answer": self.answer, "advice": self.advice, **self.details}


@dataclass(slots=True)
class Diagnosis:
    """All checks of one database on this host."""

    database: str
    checks: list[Check] = field(default_factory=list)

    @property
    def healthy(self) -> bool:
        return all(check.ok for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        """For `--json`: `checks`, and the accounting of this host under its own names."""
        found: dict[str, Any] = {"database": self.database, "healthy": self.healthy,
                                 "checks": [check.as_dict() for check in self.checks]}
        for check in self.checks:
            if check.name in ("accounting", "run"):
                found[check.name] = check.details
        return found


def diagnose(settings: Settings, run: str | None = None) -> Diagnosis:
    """Ask everything; `run` (an id, an alias, `latest`) adds the questions about one run. An unreachable database is an
    answer, not an error; a wrong setting raises :class:`ConfigurationError`."""
    diagnosis = Diagnosis(safe_url(settings.database_url))
    engine = None
    try:
        engine = make_engine(settings, read_only=True)
        with engine.connect() as connection:
            binding = bind(connection, settings, create=False, read_only=True)
            kind = "made by otel-cmb" if binding.owned else "the application's"
            diagnosis.checks.append(Check("database", True, f"reachable, {binding.dialect}, its tables are {kind}",
                                          details={"owned": binding.owned}))
            diagnosis.checks += _database_checks(connection, binding)
            diagnosis.checks += _open_checks(connection, binding, settings)
    except CMBError as error:
        diagnosis.checks.append(Check("database", False, str(error)))
    except Exception as error:  # noqa: BLE001 - whatever the driver says is the answer
        diagnosis.checks.append(Check("database", False, f"cannot be read: {classify(error).reason}",
                                      "is the server running, and are URL and rights right?"))
    diagnosis.checks.append(_accounting(settings))
    if run is not None:
        diagnosis.checks += _run_checks(settings, engine, run)
    if engine is not None:
        engine.dispose()
    return diagnosis


def _database_checks(connection: Connection, binding: Binding) -> list[Check]:
    return [
        _foreign_keys(connection, binding),
        *(_count(connection, binding, *question) for question in _QUESTIONS),
    ]


# name, what is counted, SQL with {table} for the qualified names, advice
_QUESTIONS: tuple[tuple[str, str, str, str], ...] = (
    ("started_at", "runs without started_at",
     "SELECT id FROM {workflow_runs} WHERE started_at IS NULL AND status <> 'draft'",
     "set started_at when a run is created: screens that sort by it cannot find these runs"),
    ("orphans_run", "events whose run does not exist",
     "SELECT e.id FROM {execution_events} e LEFT JOIN {workflow_runs} r ON r.id = e.run_id WHERE r.id IS NULL",
     "they were written without foreign keys; no screen shows them. Make the run, or delete them"),
    ("orphans_session", "events whose session does not exist",
     "SELECT e.id FROM {execution_events} e LEFT JOIN {sessions} s ON s.id = e.session_id WHERE s.id IS NULL",
     "they were written without foreign keys; make the session, or delete them"),
    ("orphans_node", "events whose node does not exist in their run",
     ("SELECT e.id FROM {execution_events} e LEFT JOIN {dag_nodes} n ON n.id = e.node_id AND n.run_id = e.run_id "
      "WHERE e.node_id IS NOT NULL AND n.id IS NULL"),
     "the node's screen will not show them; make the node, or set node_id to NULL"),
    ("session_differs", "events whose session is not their run's",
     "SELECT e.id FROM {execution_events} e JOIN {workflow_runs} r ON r.id = e.run_id WHERE e.session_id <> r.session_id",
     "the session of an event is that of its run"),
)


_REPLAY = "`otel-cmb parked replay`"
_ELSEWHERE = (
    "in no journal of this host: where their process ran on another host, or with another --state-dir, " + _REPLAY
    + " there closes them; where its state directory is gone, nothing of ours will, but SQL does: ")
_RUNNING = {
    DIED: f"of a process that died: {_REPLAY} closes them",
    LIVING: "of a living process: they end with what it does",
    THEIRS: "of the application itself",
    NOBODY: _ELSEWHERE + "UPDATE execution_events SET status = 'failed', error_message = 'process ended before the span did' "
    "WHERE status = 'running' AND run_id = '...'. Keep the state directory where it outlives the process",
}
_EXECUTING = {
    DIED: f"of a process that died, or could not write their end: {_REPLAY} ends them",
    QUIET: "of a trace whose root never came, or made by on_missing_run=create: `otel-cmb serve` ends them after quiet_time, "
    f"{_REPLAY} now",
    NOBODY: _ELSEWHERE + "UPDATE workflow_runs SET status = 'failed', completed_at = CURRENT_TIMESTAMP WHERE id = '...'",
}


def _open_checks(connection: Connection, binding: Binding, settings: Settings) -> list[Check]:
    """What goes on although it should have ended."""
    if "workflow_runs" not in binding.tables:
        return []
    summaries = [read_only_summary(path) for path in journals(state_directory(settings))]
    events = open_events(connection, binding, summaries)
    runs = open_runs(connection, binding, settings, summaries)
    runs.found.pop(LIVING, None)
    return [
        _open("running", "events still running although their run has ended, or their process has died",
              events, events.wrong, _RUNNING),
        # a process on another host may be busy for hours without a span that ends: only what is sure is bad
        _open("executing", "runs of otel-cmb that go on although their process has died, or nothing has come for an hour",
              runs, bool(runs.found.keys() - {NOBODY}), _EXECUTING),
    ]


def _open(name: str, what: str, found: Open, wrong: bool, words: Mapping[str, str]) -> Check:
    n, examples = len(found.all), found.all[:EXAMPLES]
    answer = f"{what}: {n}" + (f", e.g. {', '.join(examples)}" if examples else "")
    return Check(name, not wrong, answer, found.advice(words), {
        "count": n, "examples": examples, "whose": {whose: len(rows) for whose, rows in found.found.items()}})


def _count(connection: Connection, binding: Binding, name: str, what: str, sql: str, advice: str) -> Check:
    missing = [table for table in ("workflow_runs", "sessions", "dag_nodes", "execution_events")
               if "{" + table + "}" in sql and table not in binding.tables]
    if missing:
        return Check(name, True, f"{what}: not asked, there is no table {', '.join(missing)}")
    query = sql.format(**{table: info.qualified for table, info in binding.tables.items()})
    n = int(connection.execute(text(f"SELECT count(*) FROM ({query}) AS found")).scalar() or 0)
    examples = [str(row[0]) for row in connection.execute(text(f"{query} LIMIT {EXAMPLES}"))] if n else []
    answer = f"{what}: {n}" + (f", e.g. {', '.join(examples)}" if examples else "")
    return Check(name, n == 0, answer, advice if n else "", {"count": n, "examples": examples})


def _foreign_keys(connection: Connection, binding: Binding) -> Check:
    if binding.dialect == SQLITE:
        broken = connection.exec_driver_sql("PRAGMA foreign_key_check").fetchmany(100)
        declared = connection.exec_driver_sql("PRAGMA foreign_key_list('execution_events')").fetchall()
        answer = ("foreign keys are enforced on every connection of otel-cmb; SQLite asks each connection of other programs "
                  "to switch them on")
    else:
        broken = []
        declared = connection.execute(text(
            "SELECT conname FROM pg_constraint WHERE contype = 'f' AND conrelid = to_regclass(:name)"),
            {"name": binding.tables["execution_events"].qualified}).fetchall()
        answer = "foreign keys are enforced by the server"
    if not declared:
        return Check("foreign_keys", False, "execution_events declares no foreign keys: nothing stops events of runs that "
                     "do not exist (otel-cmb checks the run itself)", "declare them; `otel-cmb db check` shows the SQL")
    if broken:
        tables = Counter(str(row[0]) for row in broken)
        where = ", ".join(f"{n} in {table}" for table, n in tables.items())
        return Check("foreign_keys", False, f"rows that break foreign keys: {where}",
                     "some program writes without PRAGMA foreign_keys=ON", {"broken": dict(tables)})
    return Check("foreign_keys", True, answer)


def _accounting(settings: Settings) -> Check:
    """Received = ignored + merged + committed + pending + parked + lost, over all processes of this host."""
    directory = state_directory(settings)
    counts: Counter[str] = Counter(Totals(directory).read())
    parked: Counter[str] = Counter()
    pending = living = content = 0
    for path in journals(directory):
        summary = read_only_summary(path)
        living += summary.alive
        counts.update(summary.counts)
        for item in summary.parked:
            content += item.reason == NO_SPAN
            if item.span_id is None or item.reason == PROCESS_DIED:
                continue
            if item.reason == "unsettled":
                pending += 1
            else:
                parked[item.reason] += 1
        pending += summary.pending
    lost = {name.partition(":")[2]: n for name, n in counts.items() if name.startswith("lost:") and n}
    results = {name: counts[name] for name in ("committed", "merged", "ignored")}
    received = sum(results.values()) + pending + sum(parked.values()) + sum(lost.values())
    details: dict[str, Any] = {"received": received, **results, "pending": pending, "parked": dict(parked), "lost": lost,
                               "refused": counts["refused"], "journals_in_use": living,
                               "content_waiting": content, CONTENT_GIVEN_UP: counts[CONTENT_GIVEN_UP]}
    shares = " + ".join(f"{name} {n}" for name, n in {
        **results, "pending": pending, "parked": sum(parked.values()), "lost": sum(lost.values())}.items())
    parts = [f"received {received} = {shares}"]
    parts += [f"parked {reason}: {n}" for reason, n in parked.most_common()]
    parts += [f"LOST {reason}: {n}" for reason, n in lost.items()]
    if content:
        parts.append(f"log records whose span has not come: {content}")
    if counts[CONTENT_GIVEN_UP]:
        parts.append(f"log records whose span never came, given up: {counts[CONTENT_GIVEN_UP]}")
    advice = "otel-cmb parked list says why; otel-cmb parked replay tries again" if parked or (pending and not living) else ""
    return Check("accounting", not parked and not lost and not (pending and not living), "; ".join(parts), advice, details)


def _run_checks(settings: Settings, engine: Engine | None, name: str) -> list[Check]:
    from otel_cmb.reader import open_reader

    if engine is None:
        return []
    try:
        if name == "latest":
            with open_reader(settings.database_url, schema=settings.schema, state_dir=settings.state_dir) as reader:
                name = reader.resolve(name)
    except CMBError as error:
        return [Check("run", False, str(error))]
    waiting = Counter(
        item.reason for path in journals(state_directory(settings)) for item in read_only_summary(path).parked
        if item.run_id == name and item.span_id is not None)
    in_journals = f"; {sum(waiting.values())} of its spans are parked" if waiting else ""
    try:
        with open_reader(settings.database_url, schema=settings.schema, state_dir=settings.state_dir) as reader:
            try:
                run = reader.run(name)
            except RunNotFoundError as error:
                alias = reader.alias(name)
                advice = f"use {alias}, or let otel-cmb find it by itself (it does)" if alias else (
                    "give the whole id, or create and commit the run before its events, with this very id")
                return [Check("run", False, f"{error}{in_journals}", advice,
                              {"exists": False, "alias_of": alias, "parked": dict(waiting)})]
            events = reader.events(run.id)
    except CMBError as error:
        return [Check("run", False, str(error))]
    statuses = Counter(event.status for event in events)
    types = Counter(event.event_type for event in events)
    checks = [Check(
        "run", True,
        f"run {run.id} exists, {run.status}, session {run.session_id}: {len(events)} event(s)"
        + (f" ({', '.join(f'{n} {kind}' for kind, n in types.most_common())})" if types else "") + in_journals,
        details={"exists": True, "id": run.id, "status": run.status, "events": len(events), "types": dict(types),
                 "statuses": dict(statuses), "parked": dict(waiting)})]
    if run.started_at is None:
        checks.append(Check("run_started_at", False, f"run {run.id} has no started_at",
                            "screens that look for the newest run cannot find it"))
    if run.died:
        checks.append(Check("run_died", False, f"run {run.id} goes on in the database, but its process has died",
                            f"{_REPLAY} finishes it: what waits is stored, what was running ends as failed"))
    if waiting:
        checks.append(Check("run_parked", False, ", ".join(f"{n} × {reason}" for reason, n in waiting.most_common()),
                            "otel-cmb parked list --json says why"))
    return checks
