"""Usage rows on their way to the database: appended to a file at once, moved into the ledger in batches.

In: rows; out: the same rows in the ledger, each exactly once.  The file is the queue: a killed process loses no row
that was added, a lost database costs disk and not memory, and what another process left behind is taken along.
A power failure may lose the rows of the last seconds: nothing is forced to disk before the database has it.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import threading
from pathlib import Path

import msgspec

from penstock.store.ledger import Ledger, UsageRow
from penstock.store.private import make_private
from penstock.wire.errors import Problem

_MOST_BYTES = 1 << 30
_SUFFIX = ".usage"
_log = logging.getLogger(__name__)
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(UsageRow).decode


class Spill:
    """One process's segments in ``directory``, which processes share.  A segment is locked while it is written to."""

    def __init__(self, directory: Path, name: str, ledger: Ledger) -> None:
        self.directory = directory
        self._name = name
        self._ledger = ledger
        self._number = 0
        self._file: int | None = None
        self._size = 0  # nobody else writes to the segment
        self._held: list[bytes] = []
        self._told: set[Path] = set()
        self._lock = threading.Lock()

    def add(self, row: UsageRow) -> None:
        """Append one row: one write, no waiting for a disk.  A full disk keeps it in memory until the next one."""
        line = _encode(row) + b"\n"
        with self._lock:
            self._held.append(line)
            self._write_held()

    def move(self, *, wait: bool = False) -> int:
        """Move every segment that nobody writes to into the ledger; how many rows.  Raises ``Problem``.

        ``wait``: also for those that another process writes to or moves at this moment, which takes it a second.
        """
        with self._lock:
            self._write_held()
            self._close_segment()
        moved = 0
        for path in sorted(self.directory.glob(f"*{_SUFFIX}")):
            moved += self._move_segment(path, wait and not path.name.startswith(f"{self._name}-"))
        return moved

    async def move_regularly(self, interval_s: float = 1.0) -> None:
        """Move once a second; while the database is away, wait for it."""
        away = False
        while True:
            try:
                await asyncio.to_thread(self.move)
                away = False
            except Problem as problem:
                if not away:
                    _log.warning("usage stays in %s: %s", self.directory, problem.message)
                away = True
            await asyncio.sleep(interval_s)

    def close(self) -> None:
        """Move what there is, or leave it to the next process."""
        try:
            self.move()
        except Problem as problem:
            _log.warning("usage stays in %s: %s", self.directory, problem.message)

    def _write_held(self) -> None:
        if not self._held:
            return
        try:
            if self._file is None:
                self._file = self._open_segment()
            data = b"".join(self._held)
            if os.write(self._file, data) < len(data):
                os.ftruncate(self._file, self._size)
                return
            self._size += len(data)
        except OSError:
            _log.exception("usage is kept in memory: %s cannot be written", self.directory)
            return
        self._held.clear()

    def _open_segment(self) -> int:
        make_private(self.directory)
        while True:
            self._number += 1
            path = self.directory / f"{self._name}-{self._number:08d}{_SUFFIX}"
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            fcntl.flock(file, fcntl.LOCK_EX)
            found = os.fstat(file)
            if found.st_nlink:
                self._size = found.st_size
                return file
            os.close(file)  # another process took it for an empty one that nobody writes to

    def _close_segment(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _move_segment(self, path: Path, wait: bool) -> int:
        try:
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return 0  # another process moved it
        except OSError as error:
            if path not in self._told:
                _log.error("usage in %s is not moved: %s", path, error.strerror)
            self._told.add(path)
            return 0
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                return 0
            rows = _rows_of(os.read(file, _MOST_BYTES), path)
            self._ledger.write(rows)
            path.unlink(missing_ok=True)
            return len(rows)
        finally:
            os.close(file)


def _rows_of(data: bytes, path: Path) -> list[UsageRow]:
    rows = []
    for line in data.splitlines():
        try:
            rows.append(_decode(line))
        except (msgspec.MsgspecError, UnicodeDecodeError):
            # A process that was killed inside its write has left half a line: of a request that nobody else knows of.
            # A disk may have bytes of its own, which must not keep the other rows from the ledger.
            _log.error("%s has a line that is no row of usage: %r", path, line[:200])
    return rows
