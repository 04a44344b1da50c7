"""Many jobs, one after another, as one compiled call: no interpreter between them.

In: jobs with their arguments; out: nothing, when the last is done.  Every thread goes through the list; in each job it
takes items until none is left, then waits for the others; a job that is not wanted is passed over.  The wait spins
briefly and then gives way, since on a busy machine the other thread may not be running at all.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from penstock.models.fast import simd
from penstock.models.fast.row_parts import ints_at
from penstock.models.fast.team import NEXT, NUM_ITEMS, Job, take

Ints = npt.NDArray[np.int64]

NUM_ARGUMENTS = 24
"""Of one job, its counters included."""

NOT_WANTED = -1
"""As a job's number of items: no thread goes there."""

_NUM_JOBS, _ADDRESSES, _ARGUMENTS, _GIVE_WAY, _TICKS, _COUNTING = range(2, 8)
_ARRIVED, _NUM_THREADS = NEXT, NUM_ITEMS
"""Arguments of the job that runs the others: its items are its threads."""

_SPINS = 4000


class Program:
    """A list of jobs, whose ``arguments`` [J, NUM_ARGUMENTS] may be changed between runs."""

    def __init__(self, jobs: Sequence[Job], arguments: Ints) -> None:
        self.arguments = arguments
        self._addresses = np.array([job.address for job in jobs], np.int64)
        self._ticks: Ints | None = None
        self._counting = np.zeros(1, np.int64)

    def count_into(self, ticks: Ints) -> None:
        """From now on the processor's ticks are added up in ``ticks`` [J], waiting for other threads included."""
        assert ticks.shape == self._addresses.shape
        self._ticks = ticks

    def run(self, num_threads: int, first: int = 0, end: int | None = None) -> None:
        """Jobs ``first`` .. ``end`` (all), by ``num_threads`` threads, or one where there are fewer to be had."""
        addresses, arguments = self._addresses[first:end], self.arguments[first:end]
        arguments[:, NEXT] = self._counting[:] = 0
        wanted = min(num_threads, torch.get_num_threads())
        _RUN.run(
            wanted if _is_whole(wanted) else 1,
            len(addresses),
            addresses.ctypes.data,
            arguments.ctypes.data,
            _give_way_at(),
            0 if self._ticks is None else self._ticks[first:].ctypes.data,
            self._counting.ctypes.data,
        )


@cache
def _is_whole(num_threads: int) -> bool:
    """Whether so many threads come when they are asked for: at a barrier one would wait for the others forever."""
    came = np.zeros(1, np.int64)
    _COUNT.run(num_threads, came.ctypes.data)
    return int(came[0]) == num_threads


@cache
def _give_way_at() -> int:
    """Where the system's sched_yield lies."""
    address = ctypes.cast(ctypes.CDLL(None).sched_yield, ctypes.c_void_p).value
    assert address is not None
    return address


@intrinsic
def _call(context, address, arguments):  # type: ignore[no-untyped-def]
    """Call the job at ``address`` with its arguments at ``arguments``."""

    def generate(_context, b, _signature, values):  # type: ignore[no-untyped-def]
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(64).as_pointer()])
        function = b.inttoptr(values[0], kind.as_pointer())
        b.call(function, [b.inttoptr(values[1], ir.IntType(64).as_pointer())])
        return _context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def _give_way(context, address):  # type: ignore[no-untyped-def]
    """sched_yield, which lies at ``address``."""

    def generate(_context, b, _signature, values):  # type: ignore[no-untyped-def]
        kind = ir.FunctionType(ir.IntType(32), [])
        b.call(b.inttoptr(values[0], kind.as_pointer()), [])
        return _context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def _arrive(context, block):  # type: ignore[no-untyped-def]
    """One more has arrived; what it wrote is seen by whoever sees that."""

    def generate(_context, b, _signature, values):  # type: ignore[no-untyped-def]
        return b.atomic_rmw("add", values[0], ir.Constant(ir.IntType(64), 1), "acq_rel")

    return types.int64(types.CPointer(types.int64)), generate


@intrinsic
def _arrived(context, block):  # type: ignore[no-untyped-def]
    """How many have arrived; a moment's rest for the core before that."""

    def generate(_context, b, _signature, values):  # type: ignore[no-untyped-def]
        name = "llvm.x86.sse2.pause"
        pause = b.module.globals.get(name)
        if pause is None:
            pause = ir.Function(b.module, ir.FunctionType(ir.VoidType(), []), name)
        b.call(pause, [])
        return b.load_atomic(values[0], "acquire", 8)

    return types.int64(types.CPointer(types.int64)), generate


@intrinsic
def _tick(context):  # type: ignore[no-untyped-def]
    """The processor's counter of ticks."""

    def generate(_context, b, _signature, _values):  # type: ignore[no-untyped-def]
        return simd.call(b, "llvm.readcyclecounter", ir.IntType(64), [])

    return types.int64(), generate


def _run(block: Any) -> None:
    """One thread's way through the jobs; the first to come counts ticks, if they are wanted."""
    addresses, ticks, num_jobs = ints_at(block[_ADDRESSES]), ints_at(block[_TICKS]), block[_NUM_JOBS]
    counts = block[_TICKS] != 0 and take(ints_at(block[_COUNTING])) == 0
    begin, due = _tick(), 0
    for i in range(num_jobs):
        arguments = block[_ARGUMENTS] + 8 * NUM_ARGUMENTS * i
        if ints_at(arguments)[NUM_ITEMS] == NOT_WANTED:  # as every thread finds: nobody waits for anybody
            continue
        _call(addresses[i], arguments)
        if block[_NUM_THREADS] > 1:
            _arrive(block)
            due, spins = due + block[_NUM_THREADS], 0
            while _arrived(block) < due:
                spins += 1
                if spins > _SPINS:
                    _give_way(block[_GIVE_WAY])
        if counts:
            end = _tick()
            ticks[i] += end - begin
            begin = end


_RUN = Job(_run)


def _count(block: Any) -> None:
    """One more at the address that is the job's only argument of its own."""
    take(ints_at(block[2]))


_COUNT = Job(_count)

JOBS = (_RUN, _COUNT)
