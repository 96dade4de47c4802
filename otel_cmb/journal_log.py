"""The log of a journal: appended records in numbered segments, read back in order whatever happened to the files.

    log-00000001   magic (4) | number (8) | length (4) | CRC-32 (4) | body, then the next record
    log-00000002   ...

A damaged stretch is skipped to the next whole record; the gap in the numbers says exactly how many were lost.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import threading
import zlib
from collections.abc import Sequence

from otel_cmb.journal_files import identity
from otel_cmb.journal_records import Record

__all__ = ["Log"]

MAGIC = b"\xc5CMB"
HEADER = struct.Struct("<4sQII")
_header, _crc32 = HEADER.pack, zlib.crc32
SEGMENT_BYTES = 8 * 1024 * 1024
MAX_RECORD = 256 * 1024 * 1024
READ_BYTES = 8 * 1024 * 1024
UNSYNCED = 2
"""Most full segments that are not synced: while the writer keeps up they are given back before anybody has to wait for a
disk to take them."""
CHUNK_BYTES = 512 * 1024
"""Read at once: about a batch of usual spans, so that a long backlog is not read many times over."""


class Log:
    """The segments of one journal. Appending is for any thread (under `lock`), reading for one, the writer's.

    `adopted`: of another process, or only looked at; its end is what the files say.
    """

    def __init__(self, segment_bytes: int = SEGMENT_BYTES, *, path: str = ""):
        self.path = path
        self.size = 0
        """Bytes of all segments."""
        self.last_seq = 0
        """Number of the newest record."""
        self.lock = threading.RLock()
        self._segment_bytes = segment_bytes
        self._adopted = bool(path)
        self._fd: int | None = None
        self._file: tuple[int, int] | None = None
        """Which file that is."""
        self._unsynced: list[tuple[int, int]] = []
        """Full segments, number and file, that :meth:`sync` has to sync as well."""
        self._segment = 0
        self._offset = 0
        self._oldest = 0
        """No older segment is there, as far as is known."""
        self._read: tuple[int, int] | None = None
        self._read_seq: int | None = None
        self._read_fd: tuple[int, int] | None = None
        if path:
            segments = self._segments()
            self._segment = segments[-1] if segments else 0
            self._offset = self._size(self._segment) if segments else 0
            self.size = sum(self._size(number) for number in segments)

    # -- append --------------------------------------------------------------------------------------------------------

    @property
    def begun(self) -> bool:
        """Whether there is a segment to append to."""
        return self._fd is not None

    def begin(self, path: str) -> None:
        """Make the first segment."""
        self.path = path
        self._roll()

    def roll_if_full(self) -> None:
        """Begin a new segment when this one has its size."""
        if self._offset >= self._segment_bytes:
            self._roll()

    def _roll(self) -> None:
        if len(self._unsynced) >= UNSYNCED:
            self._sync_full()
        previous = self._fd
        path = self._segment_path(self._segment + 1)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._file = identity(self._fd)
        self._segment += 1
        self._offset = 0
        if previous is not None:
            self._unsynced.append((self._segment - 1, previous))

    def holds(self) -> bool:
        """Whether the descriptor is still the segment's. A program that becomes a daemon closes all that it has, and the files
        that it opens next get their numbers."""
        return self._fd is None or identity(self._fd) == self._file

    def probably_holds(self) -> bool:
        """The same for a sixth of the time: no other file is written to just there. To be asked before a :meth:`write`."""
        try:
            return self._fd is None or (os.lseek(self._fd, 0, os.SEEK_CUR) == self._offset > 0) or self.holds()
        except OSError:
            return False

    def open_again(self) -> None:
        """Open the segment whose descriptor is not ours any more; none of the old ones is touched. Raises `OSError`."""
        self._unsynced.clear()
        self._read_fd = None
        fd = os.open(self._segment_path(self._segment), os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        if identity(fd) != self._file:
            os.close(fd)
            raise FileNotFoundError(2, "its segment was replaced")
        self._fd = fd
        self._offset = os.fstat(fd).st_size

    def _sync_full(self) -> None:
        while self._unsynced:
            fd = self._unsynced[0][1]
            os.fdatasync(fd)
            self._unsynced.pop(0)
            os.close(fd)

    def packed(self, bodies: Sequence[bytes]) -> bytes:
        """The next records as they lie on the disk."""
        parts = []
        for seq, body in enumerate(bodies, self.last_seq + 1):
            parts.append(_header(MAGIC, seq, len(body), _crc32(body)))
            parts.append(body)
        return b"".join(parts)

    def write(self, data: bytes, count: int) -> int:
        """Append `count` packed records, all or none; the number of the last one. Raises `OSError`."""
        assert self._fd is not None
        before = self._offset, self.size, self.last_seq
        try:
            size = len(data)
            written = os.write(self._fd, data)
            while written < size:  # a disk that is nearly full takes a part first, then says so
                written += os.write(self._fd, memoryview(data)[written:])
            self._offset += size
            self.size += size
            self.last_seq += count
        except BaseException:  # also Ctrl-C between the write and its bookkeeping
            self._offset, self.size, self.last_seq = before
            try:
                os.ftruncate(self._fd, self._offset)
            except OSError:  # what cannot be taken back is skipped by the reader
                self._offset = os.fstat(self._fd).st_size
            raise
        return self.last_seq

    def sync(self) -> None:
        """Return when everything appended is on the disk. Raises `OSError`."""
        self._sync_full()
        if self._fd is not None:
            os.fdatasync(self._fd)

    # -- read ----------------------------------------------------------------------------------------------------------

    @property
    def positioned(self) -> bool:
        """Whether it is known where to read next; :meth:`seek` says it."""
        return self._read is not None

    def seek(self, cursor: tuple[int, int, int] | None) -> None:
        """Read on from the cursor (segment, offset, number of the last record before it); from the start without one."""
        seq: int | None
        if cursor is not None:
            segment, offset, seq = cursor
        else:
            segments = self._segments()
            segment, offset = (segments[0] if segments else 1), 0
            seq = 0 if segment == 1 else None  # without a cursor only the first segment says where numbers begin
        self._read, self._read_seq = (segment, offset), seq

    def unseek(self) -> None:
        """The cursor is not what it was: it is asked for before the next reading."""
        self._read = None

    def count_from(self, cursor: tuple[int, int, int] | None) -> int:
        """How many records follow the cursor. The position of reading stays as it was."""
        mark, seq = self._read, self._read_seq
        self.seek(cursor)
        count = 0
        while batch := self.read(4096):
            count += len(batch)
        self._read, self._read_seq = mark, seq
        return count

    def read(self, limit: int, max_bytes: int = READ_BYTES) -> list[Record]:
        """The next records that were not read yet, in order."""
        assert self._read is not None
        records: list[Record] = []
        taken = 0
        while len(records) < limit and taken < max_bytes:
            segment, offset = self._read
            with self.lock:
                live, end = self._segment, self._offset
            if segment > live or (segment == live and offset >= end):
                break
            last = segment == live
            stop = end if segment == live else self._size(segment)
            if offset >= stop:
                self._read = (segment + 1, 0)
                continue
            chunk = self._pread(segment, offset, min(stop - offset, CHUNK_BYTES))
            found, consumed = self._parse(chunk, segment, offset, stop, limit - len(records))
            if consumed == 0:
                consumed = stop - offset  # unreadable
            records += found
            taken += consumed
            self._read = (segment, offset + consumed)
            if last and offset + consumed >= stop and (missing := self._missing_at_end(found, segment, offset, stop)):
                records.append(missing)
        return records

    def _missing_at_end(self, found: list[Record], segment: int, offset: int, stop: int) -> Record | None:
        """Damage after the last whole record shows in no gap of the numbers. A record that is merely cut short was never
        accepted: its writer died in the middle of it."""
        seq = self._read_seq or 0
        if not self._adopted:
            with self.lock:
                if self._offset != stop or seq >= self.last_seq:
                    return None
                lost = self.last_seq - seq
        else:
            begin = found[-1].end[1] if found else offset
            if begin >= stop or _is_cut_short(self._pread(segment, begin, stop - begin)):
                return None
            lost = 1
        self._read_seq = seq + lost
        return Record(seq + lost, b"", (segment, stop), lost - 1)

    def _parse(self, chunk: bytes, segment: int, base: int, stop: int, limit: int) -> tuple[list[Record], int]:
        """Whole records of the chunk that begins at `base`, and how much of it is done."""
        records: list[Record] = []
        position, header = 0, HEADER.size
        before = self._read_seq
        while len(records) < limit and position + header <= len(chunk):
            magic, seq, length, crc = HEADER.unpack_from(chunk, position)
            begin = position + header
            end = begin + length
            if base + end > stop and magic == MAGIC and length <= MAX_RECORD and base + len(chunk) >= stop:
                magic = b""  # says it is longer than what is there: damaged, or cut off by a crash
            if end > len(chunk) and magic == MAGIC and length <= MAX_RECORD:
                if position == 0:  # one record larger than the chunk
                    chunk = self._pread(segment, base, end)
                    if len(chunk) >= end:
                        continue
                else:
                    break
            body = chunk[begin:end]
            if magic != MAGIC or length > MAX_RECORD or zlib.crc32(body) != crc:
                following = chunk.find(MAGIC, position + 1)
                if following < 0:
                    if base + len(chunk) >= stop:
                        position = len(chunk)
                    else:
                        position = max(position + 1, len(chunk) - len(MAGIC))
                    break
                position = following
                continue
            gap = 0 if before is None or seq <= before else seq - before - 1
            before = self._read_seq = seq
            position = end
            records.append(Record(seq, body, (segment, base + end), gap))
        if position + HEADER.size > len(chunk) and base + len(chunk) >= stop:
            position = len(chunk)
        return records, position

    # -- files ---------------------------------------------------------------------------------------------------------

    def drop_before(self, segment: int) -> None:
        """Give back the segments whose records are all done."""
        if segment <= self._oldest:
            return
        kept = segment
        with self.lock:
            while self._unsynced and self._unsynced[0][0] < segment:
                os.close(self._unsynced.pop(0)[1])
        for number in self._segments():
            if number < segment:
                size = self._size(number)
                try:
                    os.unlink(self._segment_path(number))
                except OSError:
                    kept = min(kept, number)
                    continue
                with self.lock:
                    self.size -= size
        self._oldest = kept

    def close(self) -> None:
        """Close the files. What is appended next begins a journal of its own; the numbers go on."""
        self._leave_what_is_not_ours()
        self.close_reading()
        with contextlib.suppress(OSError):
            self._sync_full()
        for fd in self._files():
            os.close(fd)
        self._fd = None
        self._unsynced.clear()
        self.path = ""
        self._segment = self._offset = self._oldest = self.size = 0
        self._read, self._read_seq = None, None

    def close_reading(self) -> None:
        """Close the segment that is being read."""
        if self._read_fd is not None:
            os.close(self._read_fd[1])
            self._read_fd = None

    def forget(self) -> None:
        """In a forked child: close what was inherited."""
        self._leave_what_is_not_ours()
        for fd in [*self._files(), *([self._read_fd[1]] if self._read_fd else [])]:
            with contextlib.suppress(OSError):
                os.close(fd)

    def _leave_what_is_not_ours(self) -> None:
        if not self.holds():
            self._fd = self._read_fd = None
            self._unsynced.clear()

    def _files(self) -> list[int]:
        """What is open of what was written."""
        return [fd for _, fd in self._unsynced] + ([] if self._fd is None else [self._fd])

    def _segment_path(self, number: int) -> str:
        return os.path.join(self.path, f"log-{number:08d}")

    def _segments(self) -> list[int]:
        try:
            return sorted(int(name[4:]) for name in os.listdir(self.path) if name.startswith("log-"))
        except (FileNotFoundError, ValueError):
            return []

    def _size(self, number: int) -> int:
        try:
            return os.stat(self._segment_path(number)).st_size
        except FileNotFoundError:
            return 0

    def _pread(self, segment: int, offset: int, length: int) -> bytes:
        if self._read_fd is None or self._read_fd[0] != segment:
            self.close_reading()
            try:
                with self.lock:
                    if self._fd is not None and segment == self._segment:  # readable also when somebody removed the file
                        fd = fcntl.fcntl(self._fd, fcntl.F_DUPFD_CLOEXEC, 0)
                    else:
                        fd = os.open(self._segment_path(segment), os.O_RDONLY | os.O_CLOEXEC)
                self._read_fd = (segment, fd)
            except FileNotFoundError:
                return b""
        return os.pread(self._read_fd[1], length, offset)


def _is_cut_short(tail: bytes) -> bool:
    if len(tail) < HEADER.size:
        return MAGIC.startswith(tail[: len(MAGIC)])
    magic, _, length, _ = HEADER.unpack_from(tail)
    return bool(magic == MAGIC and HEADER.size + length > len(tail))
