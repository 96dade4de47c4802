"""SQLite's log is copied into the file beside the writer, stays bounded, and nothing of it is left at the end."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest
from fault_support import agent_span, events

from otel_cmb import checkpoints, config
from otel_cmb.checkpoints import BESIDE_PAGES, Checkpoints
from otel_cmb.items import Item
from otel_cmb.store import Store


def test_a_long_log_is_copied_by_a_thread_and_only_then(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("PRAGMA journal_mode=WAL")
    writer.execute("PRAGMA wal_autocheckpoint=0")
    writer.execute("CREATE TABLE t (x)")
    writer.executemany("INSERT INTO t VALUES (?)", [("x" * 3000,)] * 200)
    log, size = Path(f"{path}-wal"), path.stat().st_size
    due = Checkpoints(str(path))
    due.after_commit(10)
    due.wait()
    assert path.stat().st_size == size, "a short log is left where it is"
    due.after_commit(BESIDE_PAGES)
    due.wait()
    assert path.stat().st_size > size + 200 * 3000
    assert log.stat().st_size > 200 * 3000, "the file of the log never shrinks"
    assert "otel-cmb-checkpoint" not in {thread.name for thread in threading.enumerate()}
    writer.close()


def test_a_file_that_is_gone_is_not_made_anew_and_nothing_is_raised(tmp_path: Path) -> None:
    due = Checkpoints(str(tmp_path / "gone.db"))
    due.after_commit(BESIDE_PAGES)
    due.wait()
    assert list(tmp_path.iterdir()) == []


def test_where_no_thread_can_be_had_the_commit_does_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", none)
    due = Checkpoints(str(tmp_path / "a.db"))
    due.after_commit(BESIDE_PAGES)
    due.wait()


def test_a_store_that_writes_much_copies_its_log_and_has_every_row(
    no_leaks: None, tmp_path: Path, state_dir: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checkpoints, "BESIDE_PAGES", 100)
    url = f"sqlite:///{tmp_path}/a b%20c.db"
    store = Store(config.load(database_url=url, on_missing_run="create", state_dir=str(state_dir)), str(state_dir))
    copied: list[int] = []
    monkeypatch.setattr(Checkpoints, "_copy", lambda self, do=Checkpoints._copy: (copied.append(1), do(self)))
    for trace in range(1, 40):
        store.write([Item(n, span=agent_span(trace, n, run="run", parent=None, start=n * 1000, name="x" * 500))
                     for n in range(1, 11)])
    store.close()
    assert len(copied) >= 5
    assert len(events(url)) == 390
    assert not list(tmp_path.glob("*-wal")), "the last connection to close leaves no log"
