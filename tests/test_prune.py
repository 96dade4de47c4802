"""`otel-cmb prune`: what is old goes, what is not stays, on SQLite and PostgreSQL."""

from __future__ import annotations

import json
import threading
import time
import uuid

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session
from support import application_schema
from support.commands import otel_cmb

from otel_cmb import clock, config, deleting, engines, open_reader, pipeline, retention, transactions
from otel_cmb.compat.cmbagent import EventCaptureManager
from otel_cmb.errors import ConfigurationError
from otel_cmb.event import Span, Stamp
from otel_cmb.journal_records import START

DAY = 86_400_000_000_000
OWN_TABLES = ("otel_cmb_spans", "otel_cmb_traces", "otel_cmb_search", "otel_cmb_waiting", "otel_cmb_contents",
              "otel_cmb_history")


@pytest.fixture(autouse=True)
def _fresh_pipelines():
    yield
    pipeline.forget_pipelines()


@pytest.fixture
def recorded(database_url, state_dir, monkeypatch):
    """Records a run of some days ago through the real pipeline; the database's engine and the runs' ids."""
    settings = config.load(database_url=database_url, state_dir=str(state_dir), on_missing_run="create")
    door = pipeline.get_pipeline(settings)

    def record(days, events=3, name=None):
        run_id = name or str(uuid.uuid4())
        at = time.time_ns() - int(days * DAY)
        monkeypatch.setattr(clock, "now_ns", lambda: at)
        door.accept_command({"do": "run_start", "id": run_id, "session": None, "mode": "m", "agent": "a", "model": "m",
                             "task": None, "meta": None, "at": at})
        trace = uuid.uuid4().hex
        spans = [Span(trace, f"{number + 1:016x}", "invoke_agent a", at + number, at + number + 10,
                      parent_span_id=f"{number:016x}" if number else None, stamp=Stamp(run_id=run_id), attributes={
                          "cmb.event.type": "file_gen" if number == 1 else "agent_call", "cmb.agent.name": f"a{number}",
                          "cmb.inputs": json.dumps({"file_path": "x", "file_type": "data", "message": number})})
                 for number in range(events)]
        spans.append(Span(
            trace, "f" * 16, "http get", at, at + 5, parent_span_id=f"{1:016x}", stamp=Stamp(run_id=run_id)))
        door.accept(spans)
        door.accept_command({"do": "run_end", "id": run_id, "status": "completed", "error": None, "at": at + 100})
        assert door.flush(30)
        monkeypatch.undo()
        return run_id

    record.settings = settings
    record.engine = engines.make_engine(settings)
    yield record
    record.engine.dispose()


def counted(engine, *tables):
    with engine.connect() as connection:
        return {table: connection.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar() for table in tables}


def ids(engine, table="workflow_runs"):
    with engine.connect() as connection:
        return set(connection.exec_driver_sql(f"SELECT id FROM {table}").scalars())


def prune(url, *arguments):
    done = otel_cmb("prune", "--json", "--database-url", url, *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_old_runs_go_with_all_that_is_theirs(recorded, database_url):
    old, young = recorded(100), recorded(10)
    before = counted(recorded.engine, "execution_events", "files", *OWN_TABLES)
    assert before["execution_events"] == 6
    report = prune(database_url, "--older-than", "90d")
    assert (report["runs"], report["events"], report["files"], report["dry_run"]) == ([old], 3, 1, False)
    assert ids(recorded.engine) == {young}
    after = counted(recorded.engine, "execution_events", "files", *OWN_TABLES)
    assert (after["execution_events"], after["files"]) == (3, 1)
    for table in OWN_TABLES[1:]:
        assert after[table] * 2 == before[table], table
    assert after["otel_cmb_spans"] == 1  # the writer itself forgets those of the old trace
    assert prune(database_url, "--older-than", "90d")["runs"] == []
    with recorded.engine.connect() as connection:
        events = connection.exec_driver_sql("SELECT run_id FROM execution_events").scalars().all()
    assert set(events) == {young}
    assert [run.id for run in open_reader(database_url).runs()] == [young]


def test_a_dry_run_deletes_nothing_and_makes_no_file(recorded, database_url, tmp_path):
    old = recorded(100)
    before = counted(recorded.engine, "workflow_runs", "execution_events", "files", *OWN_TABLES)
    report = prune(database_url, "--older-than", "90d", "--dry-run")
    assert (report["runs"], report["events"], report["files"], report["dry_run"]) == ([old], 3, 1, True)
    assert counted(recorded.engine, "workflow_runs", "execution_events", "files", *OWN_TABLES) == before
    for options in (["--dry-run"], [], ["--events"]):
        done = otel_cmb("prune", "--older-than", "90d", *options, "--database-url", f"sqlite:///{tmp_path}/none.db")
        assert done.returncode == 2
        assert not (tmp_path / "none.db").exists()


def test_the_newest_runs_are_kept_whatever_their_age(recorded, database_url):
    oldest, older, old = recorded(300), recorded(200), recorded(100)
    assert prune(database_url, "--older-than", "90d", "--keep-runs", "2")["runs"] == [oldest]
    assert ids(recorded.engine) == {older, old}
    assert prune(database_url, "--older-than", "90d", "--keep-runs", "5")["runs"] == []


def test_an_old_run_that_is_still_written_is_not_old(recorded, database_url):
    run_id = recorded(100)
    recorded(1, name=run_id)
    assert prune(database_url, "--older-than", "90d")["runs"] == []


def goes_on(recorded, days, *spans):
    """A run that began so long ago and has no end; its spans began (and ended) so many days ago."""
    run_id, trace = str(uuid.uuid4()), uuid.uuid4().hex
    door = pipeline.get_pipeline(recorded.settings)
    door.accept_command({"do": "run_start", "id": run_id, "session": None, "mode": "m", "agent": "a", "model": "m",
                         "task": None, "meta": None, "at": time.time_ns() - days * DAY})
    for number, (began, ended) in enumerate(spans, 1):
        span = Span(trace, f"{number:016x}", "invoke_agent a", time.time_ns() - int(began * DAY),
                    None if ended is None else time.time_ns() - int(ended * DAY), stamp=Stamp(run_id=run_id),
                    attributes={"cmb.event.type": "agent_call", "cmb.agent.name": f"a{number}"})
        if ended is None:
            door._intake.append([door._intake.body(START, span)])
        else:
            door.accept([span])
    assert door.flush(30)
    return run_id


def test_a_run_without_an_end_is_as_old_as_its_last_event(recorded, database_url, tmp_path):
    silent = goes_on(recorded, 100, (100, 100))
    written = goes_on(recorded, 100, (100, 99), (99, 1))
    empty = goes_on(recorded, 100)
    at_work = goes_on(recorded, 100, (100, 100), (99, None))
    elsewhere = str(tmp_path / "elsewhere")
    assert prune(database_url, "--older-than", "90d", "--dry-run", "--state-dir", elsewhere)["runs"] == sorted(
        {silent, empty, at_work}, key=[silent, empty, at_work].index)
    here = str(recorded.settings.state_dir)
    assert prune(database_url, "--older-than", "90d", "--dry-run", "--state-dir", here)["runs"] == []  # open in this process
    pipeline.forget_pipelines()
    assert prune(database_url, "--older-than", "90d", "--state-dir", here)["runs"] == [silent, empty, at_work]
    assert ids(recorded.engine) == {written}


def test_large_runs_go_in_bounded_transactions(recorded, monkeypatch):
    old = recorded(100, events=25)
    monkeypatch.setattr(deleting, "CHUNK", 4)
    commits, seen = [], []

    def committed(connection):
        commits.append(connection)

    sa.event.listen(sa.engine.Engine, "commit", committed)
    try:
        pruned = retention.prune_runs(
            recorded.settings, time.time_ns() - 90 * DAY, progress=lambda done, total: seen.append((done, total)))
    finally:
        sa.event.remove(sa.engine.Engine, "commit", committed)
    assert (pruned.runs, pruned.events) == ([old], 25)
    assert len(commits) >= 8
    assert seen == [(0, 1), (1, 1)]
    assert ids(recorded.engine, "execution_events") == set()


def test_an_interrupted_prune_is_continued(recorded, monkeypatch):
    old = recorded(100, events=10)
    monkeypatch.setattr(deleting, "CHUNK", 3)
    original, calls = retention._Work._delete, []

    def interrupted(self, connection, table, *rest):
        calls.append(table)
        if len(calls) > 4:
            raise KeyboardInterrupt
        return original(self, connection, table, *rest)

    monkeypatch.setattr(retention._Work, "_delete", interrupted)
    with pytest.raises(KeyboardInterrupt):
        retention.prune_runs(recorded.settings, time.time_ns() - 90 * DAY)
    monkeypatch.undo()
    assert ids(recorded.engine) == {old}
    assert 0 < len(ids(recorded.engine, "execution_events")) < 10
    assert retention.prune_runs(recorded.settings, time.time_ns() - 90 * DAY).runs == [old]
    assert ids(recorded.engine) == set()


def test_writers_go_on_meanwhile(recorded, database_url):
    """A prune waits for another writer's transaction instead of failing."""
    recorded(100)
    blocker = recorded.engine.connect()
    transactions.begin_write(blocker)
    if recorded.engine.dialect.name != "sqlite":
        transactions.lock_runs(blocker, ids(recorded.engine))

    def release():
        time.sleep(0.5)
        blocker.commit()

    thread = threading.Thread(target=release)
    thread.start()
    assert len(retention.prune_runs(recorded.settings, time.time_ns() - 90 * DAY).runs) == 1
    thread.join()
    blocker.close()


@pytest.fixture
def attached(database_url, state_dir, monkeypatch):
    """An application's database with events of its own and of ours, old and young."""
    app = application_schema.make(database_url)
    session_id = app.add_session()
    run_id = app.add_run(session_id)
    with Session(app.engine) as db:
        captor = EventCaptureManager(db, run_id, session_id)
        for days in (100, 1):
            at = time.time_ns() - days * DAY
            monkeypatch.setattr(clock, "now_ns", lambda at=at: at)
            captor.capture_tool_call("a", "t", {"days": days})
            captor.capture_file_generation("a", "x", "data")
            captor.capture_message("a", "b", "hello")
            captor.flush()
            monkeypatch.undo()
        captor.close()
    moment = sa.text("SELECT min(timestamp) FROM execution_events")
    with app.engine.begin() as connection:
        oldest = connection.execute(moment).scalar()
        app._insert(connection, "execution_events", id=str(uuid.uuid4()), run_id=run_id, session_id=session_id,
                    event_type="agent_call", execution_order=99, status="completed")
        aged = sa.text("UPDATE execution_events SET timestamp = :t WHERE execution_order = 99")
        connection.execute(aged, {"t": oldest})
    yield app
    app.engine.dispose()


def test_in_an_applications_database_only_our_events_go_and_only_on_request(attached, database_url):
    done = otel_cmb("prune", "--older-than", "90d", "--database-url", database_url)
    assert done.returncode == 2
    assert "--events" in done.stderr
    assert len(attached.rows("execution_events")) == 7
    would = prune(database_url, "--older-than", "90d", "--events", "--dry-run")
    assert (would["events"], would["files"], would["messages"]) == (3, 1, 1)
    report = prune(database_url, "--older-than", "90d", "--events")
    assert (report["events"], report["files"], report["messages"]) == (3, 1, 1)
    left = attached.rows("execution_events", "execution_order")
    assert len(left) == 4
    assert left[-1]["execution_order"] == 99
    assert [len(attached.rows(table)) for table in ("files", "messages", "workflow_runs")] == [1, 1, 1]


def test_what_the_application_added_to_our_events_stays(attached, database_url):
    oldest = attached.rows("execution_events", "timestamp")[0]
    with attached.engine.begin() as connection:
        attached._insert(connection, "files", id=str(uuid.uuid4()), run_id=oldest["run_id"], event_id=oldest["id"],
                         file_path="theirs", file_type="data", is_final_output=False)
        attached._insert(connection, "messages", run_id=oldest["run_id"], event_id=oldest["id"], sender="a", recipient="b",
                         content="theirs")
        attached._insert(connection, "execution_events", id=str(uuid.uuid4()), run_id=oldest["run_id"],
                         session_id=oldest["session_id"], parent_event_id=oldest["id"], event_type="info",
                         execution_order=100, status="completed")
    would = prune(database_url, "--older-than", "90d", "--events", "--dry-run")
    assert (would["events"], would["files"], would["messages"]) == (3, 1, 1)
    report = prune(database_url, "--older-than", "90d", "--events")
    assert (report["events"], report["files"], report["messages"]) == (3, 1, 1)
    assert [row["event_id"] for row in attached.rows("files") if row["file_path"] == "theirs"] == [None]
    assert [row["event_id"] for row in attached.rows("messages") if row["content"] == "theirs"] == [None]
    assert attached.rows("execution_events", "execution_order")[-1]["parent_event_id"] is None


def test_events_that_stay_become_roots_with_all_below_them(attached, database_url, monkeypatch):
    """old > older > young > younger, and a young one of the application below an old one of ours."""
    monkeypatch.setattr(deleting, "CHUNK", 1)
    [run] = attached.rows("workflow_runs")
    now, trace = time.time_ns(), uuid.uuid4().hex
    door = pipeline.get_pipeline(config.load(database_url=database_url))
    days = [100, 99, 2, 1, 1]
    door.accept([Span(trace, f"{n + 1:016x}", "invoke_agent", now - int(days[n] * DAY), now - int(days[n] * DAY) + 5,
                      parent_span_id=f"{n:016x}" if n else None, stamp=Stamp(run_id=run["id"]),
                      attributes={"cmb.event.type": "agent_call", "cmb.agent.name": f"n{n}"}) for n in range(5)])
    assert door.flush(30)
    rows = {row["agent_name"]: row for row in attached.rows("execution_events") if (row["agent_name"] or "")[:1] == "n"}
    assert [rows[f"n{n}"]["depth"] for n in range(5)] == [0, 1, 2, 3, 4]
    with attached.engine.begin() as connection:
        attached._insert(connection, "execution_events", id=str(uuid.uuid4()), run_id=run["id"], agent_name="n-theirs",
                         session_id=run["session_id"], parent_event_id=rows["n1"]["id"], event_type="info", depth=2,
                         execution_order=1000, status="completed")
    retention.prune_events(config.load(database_url=database_url), now - 90 * DAY)
    left = {row["agent_name"]: (row["parent_event_id"], row["depth"])
            for row in attached.rows("execution_events") if (row["agent_name"] or "")[:1] == "n"}
    assert left == {"n2": (None, 0), "n3": (rows["n2"]["id"], 1), "n4": (rows["n3"]["id"], 2), "n-theirs": (None, 2)}


def test_events_alone_are_not_for_our_own_database(recorded, database_url):
    recorded(100)
    done = otel_cmb("prune", "--older-than", "90d", "--events", "--database-url", database_url)
    assert done.returncode == 2
    assert "whole runs" in done.stderr


@pytest.mark.parametrize(("text", "seconds"), [("90d", 7_776_000), ("12h", 43_200), ("4w", 2_419_200), ("0s", 0)])
def test_ages(text, seconds):
    assert retention.duration_ns(text) == seconds * 1_000_000_000


@pytest.mark.parametrize("text", ["", "90", "d", "-1d", "1.5d", "90 days", "9999999d"])
def test_an_age_that_cannot_be_read_says_what_can(text):
    with pytest.raises(ConfigurationError, match="90d"):
        retention.duration_ns(text)


def test_a_bad_age_ends_with_code_2(sqlite_url):
    done = otel_cmb("prune", "--older-than", "soon", "--database-url", sqlite_url)
    assert done.returncode == 2
    assert "expected a number and a unit" in done.stderr
