"""The journal alone: what was appended is read again, whatever happened to its files."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from otel_cmb import journal_files
from otel_cmb.errors import JournalError
from otel_cmb.journal import Journal, JournalFullError, Parked, Progress, adoptable, journals, read_only_summary
from otel_cmb.journal_log import HEADER
from otel_cmb.journal_records import NO_SPAN
from otel_cmb.standby import Standby


def make(directory: Path, **options: int) -> Journal:
    return Journal(str(directory), **{"max_bytes": 1 << 30, **options})


def abandon(journal: Journal) -> str:
    """What SIGKILL leaves: the files, and a lock nobody holds."""
    path = journal.path
    journal._state.close()
    journal.forget()
    return path


def adopted(directory: Path) -> Journal:
    (journal,) = adoptable(str(directory))
    return journal


def bodies(journal: Journal) -> list[bytes]:
    return [record.body for record in journal.read(100_000)]


def lost(journal: Journal) -> int:
    """Records the journal says are missing or unreadable."""
    journal.rewind()
    return sum(record.gap + (not record.body) for record in journal.read(100_000))


def test_records_come_back_in_order_and_again_after_a_rewind(state_dir: Path) -> None:
    journal = make(state_dir)
    assert journal.append([b"one", b"two"]) == 2
    assert journal.append([b"three"]) == 3
    assert bodies(journal) == [b"one", b"two", b"three"]
    assert bodies(journal) == []
    journal.rewind()
    first = journal.read(1)
    journal.advance(Progress(done=first[0]))
    journal.rewind()
    assert bodies(journal) == [b"two", b"three"]
    assert journal.backlog() == 2
    assert not journal.close()
    assert len(journals(str(state_dir))) == 1


def test_a_done_journal_is_removed(state_dir: Path) -> None:
    journal = make(state_dir)
    journal.append([b"one"])
    journal.advance(Progress(done=journal.read(9)[0]))
    assert journal.close()
    assert journals(str(state_dir)) == []


def test_a_living_journal_is_not_adopted_a_dead_one_is(state_dir: Path) -> None:
    journal = make(state_dir)
    journal.append([b"one"])
    assert list(adoptable(str(state_dir))) == []
    abandon(journal)
    again = adopted(state_dir)
    assert bodies(again) == [b"one"]
    again.close()


@pytest.mark.parametrize("victim", [0, 5, 9])
def test_a_damaged_record_is_counted_and_the_others_arrive(state_dir: Path, victim: int) -> None:
    journal = make(state_dir)
    for n in range(10):
        journal.append([b"record %d" % n])
    path = Path(abandon(journal)) / "log-00000001"
    data = bytearray(path.read_bytes())
    size = HEADER.size + len(b"record 0")
    data[victim * size + HEADER.size + 2] ^= 0xFF
    path.write_bytes(data)
    again = adopted(state_dir)
    found = [body for body in bodies(again) if body]
    assert found == [b"record %d" % n for n in range(10) if n != victim]
    assert lost(again) == 1
    again.close()


def test_damage_over_headers_and_bodies_costs_only_what_it_touches(state_dir: Path) -> None:
    journal = make(state_dir)
    for n in range(100):
        journal.append([b"%d " % n * 50])
    path = Path(abandon(journal)) / "log-00000001"
    data = bytearray(path.read_bytes())
    data[3000:3700] = os.urandom(700)
    path.write_bytes(data)
    again = adopted(state_dir)
    found = len([body for body in bodies(again) if body])
    assert 90 <= found < 100
    assert found + lost(again) == 100
    again.close()


def test_damage_at_the_end_of_a_living_journal_is_counted(state_dir: Path) -> None:
    journal = make(state_dir)
    journal.append([b"one", b"two", b"three"])
    path = Path(journal.path) / "log-00000001"
    with path.open("r+b") as file:
        file.seek(-2, os.SEEK_END)
        file.write(b"XX")
    assert [body for body in bodies(journal) if body] == [b"one", b"two"]
    assert lost(journal) == 1
    journal.close()


def test_a_record_cut_short_by_a_crash_was_never_accepted(state_dir: Path) -> None:
    journal = make(state_dir)
    journal.append([b"one", b"two" * 100])
    path = Path(abandon(journal)) / "log-00000001"
    os.truncate(path, path.stat().st_size - 50)
    again = adopted(state_dir)
    assert bodies(again) == [b"one"]
    assert lost(again) == 0
    assert again.backlog() == 1
    again.close()


def test_the_files_may_be_removed_under_a_living_process(state_dir: Path) -> None:
    journal = make(state_dir)
    journal.append([b"one"])
    for name in os.listdir(journal.path):
        os.unlink(os.path.join(journal.path, name))
    os.rmdir(journal.path)
    journal.append([b"two"])
    assert bodies(journal) == [b"one", b"two"]
    journal.close()


def test_a_small_cap_is_not_reached_by_what_is_done(state_dir: Path) -> None:
    journal = make(state_dir, max_bytes=1 << 20)
    for _ in range(100):
        journal.append([b"x" * 50_000])
        journal.advance(Progress(done=journal.read(9)[-1]))
    assert journal.size < 600_000
    assert journal.close()


def test_full_segments_are_synced_with_the_last_one_and_given_back_without(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    real = os.fdatasync

    def fdatasync(fd: int) -> None:
        synced.append(os.fstat(fd).st_ino)
        real(fd)

    monkeypatch.setattr("otel_cmb.journal_log.os.fdatasync", fdatasync)
    journal = make(state_dir, max_bytes=8 * 4096)  # segments of 4 KiB

    def files() -> set[int]:
        return {path.stat().st_ino for path in Path(journal.path).glob("log-*")}

    for n in range(6):
        journal.append([b"%d" % n * 2100])
        journal.append([b"%d" % n * 2100])
        assert len(journal._log._unsynced) <= 2
    assert 2 <= len(set(synced)) < 6  # not more than two wait
    journal.sync()
    assert set(synced) == files()
    assert len(synced) == 6
    journal.append([b"x" * 4100])
    journal.append([b"y"])  # in a segment of its own
    before = len(synced)
    records = journal.read(100)
    journal.advance(Progress(done=records[-1]))
    assert len(files()) == 1
    assert journal._log._unsynced == []
    assert len(synced) == before
    open_files = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")]
    assert sum(path.startswith(journal.path + "/log-") for path in open_files) <= 2
    assert not any("(deleted)" in path and journal.path in path for path in open_files)
    assert journal.close()


def test_over_the_cap_nothing_is_taken_and_what_is_there_stays(state_dir: Path) -> None:
    journal = make(state_dir, max_bytes=1 << 20)
    taken = 0
    with pytest.raises(JournalFullError, match="cap"):
        for taken in range(1000):  # noqa: B007
            journal.append([b"x" * 10_000])
    assert len(bodies(journal)) == taken == 104
    journal.close()


def test_what_is_parked_counts_against_the_cap(state_dir: Path) -> None:
    journal = make(state_dir, max_bytes=1 << 20)
    journal.append([b"x" * 500_000])
    record = journal.read(1)[0]
    journal.advance(Progress(done=record, park=[Parked(record.seq, "no_run", record.body, span_id="1")]))
    assert journal.size > 900_000
    journal.advance(Progress(unpark=[record.seq]))
    assert journal.size < 600_000
    journal.close()


def test_no_room_for_the_log_raises_and_leaves_nothing_half_written(state_dir: Path) -> None:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            journal = make(state_dir)
            journal.append([b"x" * 5_000])
            resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, resource.RLIM_INFINITY))
            try:
                journal.append([b"y" * 5_000])
            except JournalError:
                journal.append([b"z" * 500])
                assert [body[:1] for body in bodies(journal)] == [b"x", b"z"]
                assert lost(journal) == 0
                code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0


def test_what_is_done_is_given_back_although_the_disk_has_no_room_to_note_it(state_dir: Path) -> None:
    journal = make(state_dir)
    journal.append([b"one", b"two", b"three"])
    path = journal.path
    one, two, three = journal.read(9)
    journal.advance(Progress(done=one, opened=[("run", "r", b"")], counts={"committed": 1}))
    journal._state.connect().execute("PRAGMA max_page_count=1")
    opened = [("event", str(n), b"x" * 10_000) for n in range(9)]
    journal.advance(Progress(done=two, opened=opened, park=[Parked(two.seq, "no_run", b"x")], counts={"committed": 2}))
    assert not journal._state.empty
    journal.advance(Progress(
        done=three, unpark=[two.seq], closed=[("run", "r"), *((kind, id_) for kind, id_, _ in opened)], counts={"lost": 1}))
    assert journal._state._unsaved, "there was room"
    assert journal.counts() == {"committed": 3, "lost": 1}
    assert journal.close()
    assert not os.path.exists(path)


def test_a_state_that_cannot_be_written_now_is_written_later(state_dir: Path) -> None:
    journal = make(state_dir)
    journal.append([b"one", b"two"])
    one, two = journal.read(9)
    journal.advance(Progress(counts={"committed": 1}))
    journal._state.connect().execute("PRAGMA max_page_count=1")
    big = Parked(one.seq, "no_run", b"x" * 100_000, span_id="1")
    journal.advance(Progress(done=one, park=[big]))
    assert journal.parked_counts() == {"no_run": 1}
    assert journal.cursor_seq() == 1
    journal._state.connect().execute("PRAGMA max_page_count=100000")
    journal.advance(Progress(done=two, counts={"committed": 1}))
    assert [parked.seq for parked in journal.parked()] == [1]
    assert journal.counts() == {"committed": 2}
    assert journal.cursor_seq() == 2
    journal.close()


def test_a_state_that_is_no_database_any_more_is_put_aside_and_the_log_done_again(state_dir: Path) -> None:
    journal = make(state_dir)
    journal.append([b"one", b"two"])
    journal.advance(Progress(done=journal.read(2)[1]))
    path = Path(abandon(journal))
    (path / "state.db-wal").unlink(missing_ok=True)
    (path / "state.db").write_bytes(b"nothing of SQLite's" * 500)
    again = adopted(state_dir)
    assert bodies(again) == [b"one", b"two"]
    assert list(path.glob("state.db.damaged-*"))
    again.close()


def test_parked_rows_are_saved_from_a_damaged_state(state_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal = make(state_dir)
    journal.append([b"one"])
    record = journal.read(1)[0]
    parked = [Parked(n, "no_run", b"x" * 2000, span_id=str(n)) for n in range(1, 200)]
    journal.advance(Progress(done=record, park=parked))
    journal._state.connect().execute("PRAGMA wal_checkpoint(TRUNCATE)")
    path = Path(abandon(journal)) / "state.db"
    data = bytearray(path.read_bytes())
    data[200 * 4096 // 2 + 100 : 200 * 4096 // 2 + 4000] = b"\xff" * 3900
    path.write_bytes(data)
    again = adopted(state_dir)
    saved = len(again.parked())
    again.rewind()
    assert saved == 199 or bodies(again) == [b"one"]  # all of them, or the log is done again
    assert saved > 20
    again.close()


def test_a_look_from_outside_changes_nothing_of_a_damaged_state(state_dir: Path) -> None:
    journal = make(state_dir)
    journal.append([b"e one"])
    (Path(journal.path) / "state.db").write_bytes(b"nothing of SQLite's" * 500)
    read_only_summary(journal.path)
    assert not list(Path(journal.path).glob("*damaged*"))
    journal.close()


def test_a_clock_that_went_back_does_not_keep_parked_rows_waiting(state_dir: Path) -> None:
    journal = make(state_dir)
    journal.append([b"one"])
    record = journal.read(1)[0]
    journal.advance(Progress(done=record, park=[
        Parked(1, "a", b"", due=1000.0), Parked(2, "b", b"", due=1010.0), Parked(3, "c", b"", due=5000.0),
        Parked(4, "d", b"", due=None)]))
    assert [parked.reason for parked in journal.parked(due_before=1000.0)] == ["a", "c"]
    journal.close()


def test_the_owner_that_lost_its_new_journal_to_an_adopter_makes_another(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    import fcntl

    real, seen = fcntl.flock, []

    def flock(fd: int, how: int) -> None:
        if not seen:  # between the opening of the lock file and its locking: adopted, found empty, removed
            seen.append(fd)
            path = os.readlink(f"/proc/self/fd/{fd}")
            os.unlink(path)
            os.rmdir(os.path.dirname(path))
        real(fd, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    journal = make(state_dir)
    journal.append([b"one"])
    assert bodies(journal) == [b"one"]
    assert os.path.exists(journal.path)
    journal.close()


def test_ctrl_c_in_the_middle_of_an_append_leaves_a_journal_that_goes_on(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    journal = make(state_dir)
    journal.append([b"one"])
    real = os.write

    def write(fd: int, data: bytes) -> int:
        real(fd, data)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(KeyboardInterrupt):
        journal.append([b"two"])
    monkeypatch.setattr(os, "write", real)
    journal.append([b"three"])
    assert bodies(journal) == [b"one", b"three"]
    assert lost(journal) == 0
    journal.close()


def test_a_question_that_waited_for_the_close_makes_no_file(
    state_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    journal = make(state_dir)
    journal.append([b"one"])
    journal.advance(Progress(park=[Parked(7, "no_run", b"seven")]))
    answers: list[list[Parked]] = []
    with journal._state.lock:
        asking = threading.Thread(target=lambda: answers.append(journal.parked()))
        asking.start()
        time.sleep(0.05)
        assert not journal.close()
    asking.join(5)
    assert answers == [[]]
    assert not (tmp_path / "state.db").exists()


@pytest.mark.parametrize("name", ["a#b", "a?b", "a%41b", "a b ü"])
def test_a_journal_is_looked_at_wherever_it_is(tmp_path: Path, name: str) -> None:
    journal = make(tmp_path / name)
    first, _ = journal.append([b"one", b"two"]), journal.read(1)
    journal.advance(Progress(counts={"committed": 7}))
    assert read_only_summary(journal.path).counts == {"committed": 7}
    assert os.listdir(tmp_path) == [name]
    assert first == 2


def test_files_that_were_closed_under_its_hands_are_open_again(state_dir: Path, tmp_path: Path) -> None:
    journal = make(state_dir)
    journal.append([b"one"])
    journal.advance(Progress(counts={"committed": 1}))
    assert not journal.taken_away()
    fd, lock = journal._log._fd, journal._lock_fd
    assert fd is not None
    assert lock is not None
    stranger = os.open(tmp_path / "theirs", os.O_RDWR | os.O_CREAT)
    os.dup2(stranger, fd)
    os.dup2(stranger, lock)
    assert journal.append([b"two"]) == 2
    assert journal.taken_away()
    assert not journal.taken_away()
    assert bodies(journal) == [b"one", b"two"]
    assert journal.counts() == {"committed": 1}
    os.write(fd, b"still open")
    assert (tmp_path / "theirs").read_bytes() == b"still open"
    assert not list(adoptable(str(state_dir)))  # the lock is held again
    journal.close()
    os.write(fd, b", and not closed")
    for one in {stranger, fd, lock}:
        os.close(one)


def test_a_journal_that_another_process_took_meanwhile_is_touched_no_more(state_dir: Path, tmp_path: Path) -> None:
    journal = make(state_dir)
    journal.append([b"one"])
    journal.advance(Progress(counts={"committed": 1}))
    fd, lock = journal._log._fd, journal._lock_fd
    assert fd is not None
    assert lock is not None
    stranger = os.open(tmp_path / "theirs", os.O_RDWR | os.O_CREAT)
    os.dup2(stranger, fd)
    os.dup2(stranger, lock)  # closes the lock: whoever comes now may take it
    code = f"""
import sys
from otel_cmb.journal import adoptable
[journal] = adoptable({str(state_dir)!r})
print("taken", flush=True)
sys.stdin.readline()
print([record.body for record in journal.read(10)], journal.counts())
"""
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "taken\n"
    for _ in range(2):
        with pytest.raises(JournalError):
            journal.append([b"two"])
    assert journal.taken_away()
    assert journal.gone
    assert not journal.taken_away()
    found, _ = other.communicate("\n")
    assert found == "[b'one'] {'committed': 1}\n"
    journal.abandon()
    assert (tmp_path / "theirs").read_bytes() == b""
    for one in {stranger, fd, lock}:
        os.close(one)


def test_a_lock_that_is_removed_while_it_is_taken_again_is_not_held(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    journal = make(state_dir)
    journal.append([b"one"])
    lock, real = Path(journal.path) / "lock", fcntl.flock

    def flock(fd: int, how: int) -> None:
        lock.unlink()  # by an adopter that has written everything
        real(fd, how)

    assert journal._lock_fd is not None
    os.close(journal._lock_fd)
    journal._lock_fd = None
    before = os.listdir("/dev/fd")
    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(FileNotFoundError):
        journal_files.take_again(journal.path, None)
    assert os.listdir("/dev/fd") == before
    journal.close()


def test_content_that_has_waited_for_long_is_tried_rarely(state_dir: Path) -> None:
    journal, standby = make(state_dir), Standby()
    journal.append([b"l one"])
    parked = [
        Parked(1, NO_SPAN, b"l one", since=1_000.0, due=5_000.0), Parked(2, "run_not_found", b"e", since=1_000.0, due=5_000.0),
        Parked(3, NO_SPAN, b"l two", since=9_000.0, due=9_500.0)]
    for log in (journal, standby):
        log.advance(Progress(park=list(parked)))
        assert [one.seq for one in log.parked(due_before=3_000.0)] == [2, 3]  # the clock went backwards for them
        assert [one.seq for one in log.parked(due_before=5_000.0)] == [1, 2, 3]


def test_a_file_of_a_kept_connection_lends_its_number_to_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A forked child keeps the parent's connection for ever, and SQLite knows its file by that number, also when it is gone."""
    journal = make(tmp_path)
    journal.append([b"one"])
    [record] = journal.read(9)
    journal.advance(Progress(done=record, park=[Parked(record.seq, "no_run", record.body, span_id="1")]))
    state = os.stat(Path(journal.path) / "state.db")
    never: set[tuple[int, int]] = set()
    monkeypatch.setattr(journal_files, "_never_again", never)
    monkeypatch.setattr("otel_cmb.journal_state.keep_for_ever", lambda _: None)
    connection = journal._state._connection
    journal._state.forget()
    assert never == {(state.st_dev, state.st_ino)}
    assert connection is not None
    connection.close()
    journal.close()

    taken, real = iter([True, False]), journal_files.identity

    def identity(fd: int) -> tuple[int, int] | None:
        found = real(fd)
        if found is not None and next(taken):
            never.add(found)
        return found

    monkeypatch.setattr(journal_files, "identity", identity)
    path = tmp_path / "new.db"
    journal_files.make_private(str(path))
    made = path.stat()
    assert (made.st_dev, made.st_ino) not in never
    assert made.st_mode & 0o777 == 0o600
    assert made.st_nlink == 1
    assert [name for name in os.listdir(tmp_path) if name.startswith("new.db")] == ["new.db"]
    journal_files.make_private(str(path))
    assert path.stat().st_ino == made.st_ino
