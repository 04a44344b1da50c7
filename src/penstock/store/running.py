"""What requests that still run have used so far, in memory that outlives the process: a killed gateway's is not lost.

In: a request's row as it begins, and its counts whenever they grow; out: rows of requests that a killed process ran.
Slots of a file that is mapped into memory: a count is one store and no system call, and SIGKILL leaves it there.
What cannot be kept here, because the disk is full or a row too long, is as lost as it would be without.
"""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from penstock.cost.money import Rate, cost_nusd
from penstock.store.ledger import Ledger, UsageRow
from penstock.store.private import make_private

_SUFFIX = ".running"
_SLOT_BYTES = 2048
_FIRST_SLOTS = 64
_LENGTH = struct.Struct("<Q")
"""Of the row, which follows the counts; 0: the slot is free.  Written last and cleared first."""
_COUNT = struct.Struct("<Q")
_COUNTS = struct.Struct("<4Q")
_OUTPUT_AT = _LENGTH.size + 2 * _COUNT.size
_HEAD_BYTES = _LENGTH.size + _COUNTS.size
_log = logging.getLogger(__name__)


class _Begun(msgspec.Struct, frozen=True):
    row: UsageRow
    rate: Rate


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Begun).decode


class Running:
    """One process's slots in ``directory``, for one thread.  The file is locked for as long as the process lives."""

    def __init__(self, directory: Path, name: str) -> None:
        self._path = directory / f"{name}{_SUFFIX}"
        self._file: int | None = None
        self._map: mmap.mmap | None = None
        self._free: list[int] = []
        self._told = False

    def begin(self, row: UsageRow, rate: Rate) -> int | None:
        """Where its counts go, which so far are 0; ``None`` where it cannot be kept."""
        said = _encode(_Begun(row, rate))
        if len(said) > _SLOT_BYTES - _HEAD_BYTES or not (self._free or self._grow()):
            return None
        slot = self._free.pop()
        assert self._map is not None
        _COUNTS.pack_into(self._map, slot + _LENGTH.size, 0, 0, 0, 0)
        self._map[slot + _HEAD_BYTES : slot + _HEAD_BYTES + len(said)] = said
        _LENGTH.pack_into(self._map, slot, len(said))
        return slot

    def count(self, slot: int, prompt: int, cached: int, output: int, reasoning: int) -> None:
        """All that it has used until now, in tokens."""
        assert self._map is not None
        _COUNTS.pack_into(self._map, slot + _LENGTH.size, prompt, cached, output, reasoning)

    def count_output(self, slot: int, output: int) -> None:
        """The same where only that has grown."""
        assert self._map is not None
        _COUNT.pack_into(self._map, slot + _OUTPUT_AT, output)

    def end(self, slot: int) -> None:
        """Its row is written elsewhere."""
        assert self._map is not None
        _LENGTH.pack_into(self._map, slot, 0)
        self._free.append(slot)

    def close(self) -> None:
        """Nothing runs any more."""
        if self._map is not None:
            self._map.close()
        if self._file is not None:
            self._path.unlink(missing_ok=True)
            os.close(self._file)
        self._map = self._file = None

    def _grow(self) -> bool:
        """Twice as many slots.  Their blocks are taken now: a store into a hole of a full disk would kill us."""
        size = 0 if self._map is None else len(self._map)
        larger = max(2 * size, _FIRST_SLOTS * _SLOT_BYTES)
        try:
            if self._file is None:
                self._file = self._open()
            os.posix_fallocate(self._file, 0, larger)
            self._map = mmap.mmap(self._file, larger)
        except OSError as error:
            if not self._told:
                _log.error("what runs is not kept for the case of a kill: %s: %s", self._path, error.strerror)
            self._told = True
            return False
        self._free.extend(range(larger - _SLOT_BYTES, size - _SLOT_BYTES, -_SLOT_BYTES))
        return True

    def _open(self) -> int:
        make_private(self._path.parent)
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(file, fcntl.LOCK_EX)
        return file


def recover(directory: Path, ledger: Ledger) -> int:
    """Write what killed processes ran into the ledger; how many rows.  Raises ``Problem`` as the ledger does.

    To be called when all that they had written of ended requests is there already: such a row counts, and not ours.
    """
    rows = 0
    for path in sorted(directory.glob(f"*{_SUFFIX}")):
        with _unlocked(path) as file:
            if file is not None:
                lost = list(_rows(os.pread(file, os.fstat(file).st_size, 0)))
                ledger.write(lost)
                path.unlink(missing_ok=True)
                rows += len(lost)
    return rows


@contextmanager
def _unlocked(path: Path) -> Iterator[int | None]:
    """The file, where no process that lives writes to it."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        yield None  # another process was faster
        return
    except OSError as error:
        _log.error("what a killed process ran is left in %s: %s", path, error.strerror)
        yield None
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield file
    except BlockingIOError:
        yield None
    finally:
        os.close(file)


def _rows(data: bytes) -> Iterator[UsageRow]:
    for slot in range(0, len(data) - _SLOT_BYTES + 1, _SLOT_BYTES):
        (length,) = _LENGTH.unpack_from(data, slot)
        if not 0 < length <= _SLOT_BYTES - _HEAD_BYTES:
            continue
        prompt, cached, output, reasoning = _COUNTS.unpack_from(data, slot + _LENGTH.size)
        try:
            begun = _decode(data[slot + _HEAD_BYTES : slot + _HEAD_BYTES + length])
            counted = msgspec.structs.asdict(begun.row) | {
                "prompt_tokens": prompt,
                "cached_tokens": cached,
                "output_tokens": output,
                "reasoning_tokens": reasoning,
                "cost_nusd": cost_nusd(begun.rate, prompt, cached, output),
            }
            yield msgspec.convert(counted, UsageRow)  # counts that no column takes are no row either
        except (msgspec.MsgspecError, UnicodeDecodeError):
            _log.error("a slot of what ran holds no row")
