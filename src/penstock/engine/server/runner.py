"""Turns the loop: one step at a time in one worker thread, commits on the event loop's thread.

In: a loop and an executor; out: nothing, until stopped.  Torch releases the interpreter lock inside a step, so sockets
are served meanwhile; text work happens between steps, where it does not compete with the step's threads.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor

from penstock.engine.loop import Loop
from penstock.engine.sequence import Executor, Sequence
from penstock.wire.errors import Problem

_log = logging.getLogger(__name__)


class Runner:
    """Drives a loop.  Everything but ``executor.execute`` runs on the event loop's thread."""

    def __init__(self, loop: Loop, executor: Executor) -> None:
        self.loop = loop
        self.step_time_s = 0.0
        """Exponentially smoothed seconds per step."""
        self._executor = executor
        self._work = asyncio.Event()

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
                while await self._step(thread):
                    pass

    async def _step(self, thread: ThreadPoolExecutor) -> bool:
        plan = self.loop.plan()
        if plan is None:
            return False
        try:
            result = await asyncio.get_running_loop().run_in_executor(thread, self._executor.execute, plan)
        except Exception as error:
            _log.exception("step %d with %d sequences raised", plan.step, len(plan.sequences))
            message = f"The engine could not compute a step: {type(error).__name__}."
            self.loop.fail(plan, error if isinstance(error, Problem) else Problem("internal_error", message))
            return True
        self.step_time_s += 0.1 * (result.seconds - self.step_time_s) if self.step_time_s else result.seconds
        self.loop.commit(plan, result)
        return True
