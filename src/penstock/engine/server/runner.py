"""Turns the loop: one step at a time in one worker thread, commits on the event loop's thread.

In: a loop and an executor; out: nothing, until stopped.  Torch releases the interpreter lock inside a step, so sockets
are served meanwhile; text work happens between steps, where it does not compete with the step's threads.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from concurrent.futures import ThreadPoolExecutor

from penstock.engine.loop import Loop
from penstock.engine.sequence import Executor, Sequence
from penstock.wire.errors import Problem

_PATIENCE = 10.0
"""A step that takes so many times as long as the slowest ones did, token for token, is out of the ordinary."""
_FORGET = 0.98
"""What a step leaves of the slowest one before it: compiling and cold memory slow the first ones down."""
_UNMEASURED_S = 600.0
_log = logging.getLogger(__name__)


class Runner:
    """Drives a loop.  Everything but ``executor.execute`` runs on the event loop's thread."""

    def __init__(self, loop: Loop, executor: Executor) -> None:
        self.loop = loop
        self.step_time_s = 0.0
        """Exponentially smoothed seconds per step."""
        self.num_steps = 0
        self._slowest_s_per_token = 0.0
        self._began: float | None = None
        self._num_planned = 0
        self._executor = executor
        self._work = asyncio.Event()
        self._turned_at = 0.0

    @property
    def step_age_s(self) -> float:
        """How long the present step has been going; 0 between steps."""
        return 0.0 if self._began is None else asyncio.get_running_loop().time() - self._began

    @property
    def step_limit_s(self) -> float:
        """The most that the present step should take, or one of a single token; generous before any was measured."""
        if not self.num_steps:
            return _UNMEASURED_S
        return _PATIENCE * self._slowest_s_per_token * max(self._num_planned, 1)

    def submit(self, sequence: Sequence) -> None:
        self.loop.submit(sequence)
        self._work.set()

    def abort(self, sequence_id: str) -> None:
        self.loop.abort(sequence_id)

    async def run(self) -> None:
        """Step while there is work, sleep while there is none; ends by cancellation, after the step under way."""
        with ThreadPoolExecutor(1, thread_name_prefix="step") as thread:
            while True:
                await self._work.wait()
                self._work.clear()
                self._turned_at = time.perf_counter()
                while await self._step(thread):
                    pass

    async def _step(self, thread: ThreadPoolExecutor) -> bool:
        plan = self.loop.plan()
        if plan is None:
            return False
        loop = asyncio.get_running_loop()
        self._began, self._num_planned = loop.time(), plan.num_tokens * plan.rounds
        try:
            result = await loop.run_in_executor(thread, self._executor.execute, plan)
        except Exception as error:
            _log.exception("step %d with %d sequences raised", plan.step, len(plan.sequences))
            message = f"The engine could not compute a step: {type(error).__name__}."
            self.loop.fail(plan, error if isinstance(error, Problem) else Problem("internal_error", message))
            self._turned_at = time.perf_counter()
            return True
        finally:
            self._began, self._num_planned = None, 0
        self.num_steps += 1
        seconds_per_token = result.seconds / (plan.num_tokens * result.num_rounds)
        self._slowest_s_per_token = max(self._slowest_s_per_token * _FORGET, seconds_per_token)
        turn_s = self._turn_s(result.num_rounds)
        self.loop.commit(plan, dataclasses.replace(result, seconds=turn_s, between_s=turn_s - result.seconds))
        return True

    def _turn_s(self, rounds: int) -> float:
        """Seconds since the step before: all that lies between two tokens of a stream, and not the computing alone."""
        now = time.perf_counter()
        seconds, self._turned_at = now - self._turned_at, now
        each_s = seconds / rounds
        self.step_time_s += 0.1 * (each_s - self.step_time_s) if self.step_time_s else each_s
        return seconds
