"""One answer, played on a connection as its script says: token by token, until it ends, is struck or is closed.

In: an attempt and a dialect; out: bytes, mostly made beforehand.  A delta costs one timer and one write.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable

from penstock.config.mock import Fault
from penstock.mock.engine import Attempt, MockEngine, strikes
from penstock.mock.http.dialect import Dialect, chunk
from penstock.wire import engine as protocol


class Stream:
    """Plays one attempt on a connection, token by token, until it ends, is struck or is closed."""

    def __init__(
        self,
        attempt: Attempt,
        dialect: Dialect,
        engine: MockEngine,
        transport: asyncio.Transport,
        done: Callable[[], None],
    ) -> None:
        self.attempt = attempt
        self._dialect = dialect
        self.paused = False
        self._engine = engine
        self._transport = transport
        self._done = done
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._delta_tokens = engine.script.tokens_per_delta
        attempt.begin = self._begin

    def accept(self) -> None:
        """Send the head and the first line, and wait for a slot."""
        self._transport.write(self._dialect.accepted(self.attempt.answer.accepted()))
        self._engine.admit()

    def cancel(self) -> None:
        """End it as the abort verb does."""
        self._end(self.attempt.answer.finished(cancelled=True))

    def close(self) -> None:
        """Nobody listens any more."""
        if self._timer is not None:
            self._timer.cancel()
        self._engine.close(self.attempt)

    def resume(self) -> None:
        self.paused = False
        if self._timer is None and self.attempt.running:
            self._timer = self._loop.call_later(0, self._step)

    def _begin(self) -> None:
        self._timer = self._loop.call_later(self._engine.first_delay_s(self.attempt), self._step)

    def _step(self) -> None:
        """One delta, or the end, or what goes wrong."""
        self._timer = None
        attempt, answer = self.attempt, self.attempt.answer
        if self.paused or attempt.closed or self._transport.is_closing():
            return
        fault = strikes(attempt)
        if fault is not None and self._strike(fault):
            return
        was_over = answer.is_over
        delta = b"" if was_over else self._next()
        if answer.is_over and (was_over or attempt.fault is None):
            self._end(answer.finished(), before=delta)
            return
        self._transport.write(delta)
        self._timer = self._loop.call_later(self._engine.gap_s(attempt), self._step)

    def _next(self) -> bytes:
        answer = self.attempt.answer
        self._engine.num_tokens += 1
        token_id = answer.next_token()
        if answer.plain and self._delta_tokens == 1:
            return self._dialect.token(token_id)
        token_ids = [token_id]
        while len(token_ids) < self._delta_tokens and not answer.is_over:
            token_ids.append(answer.next_token())
        self._engine.num_tokens += len(token_ids) - 1
        return self._dialect.delta(answer.delta(token_ids))

    def _strike(self, fault: Fault) -> bool:
        """Carry it out; whether nothing more follows now."""
        self.attempt.fault = None
        if fault.kind == "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault.kind == "fail":
            self._end(protocol.Failed(code=fault.code, message="The script says so."))
        elif fault.kind == "end":
            self._end(None)
        elif fault.kind == "garbage":
            self._transport.write(chunk(b'{"type":"surprise","token_ids":"none"}\n'))
            return False
        elif fault.kind == "stall":
            if fault.seconds is not None:
                self._timer = self._loop.call_later(fault.seconds, self._step)
        else:
            if fault.kind == "torn":
                self._transport.write(chunk(b'{"type":"delta","token_ids":[1],"te'))
            self._transport.close()
        return True

    def _end(self, event: protocol.Finished | protocol.Failed | None, before: bytes = b"") -> None:
        self.attempt.reason = event.reason if isinstance(event, protocol.Finished) else "failed"
        self.close()
        self._transport.write(before + self._dialect.end(event))
        self._done()
