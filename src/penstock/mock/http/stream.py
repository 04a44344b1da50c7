"""One answer, played on a connection as its script says: token by token, until it ends, is struck or is closed.

In: an attempt; out: bytes that were made beforehand.  A delta costs one timer and one write.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable

from penstock.config.mock import Fault
from penstock.mock import words
from penstock.mock.engine import Attempt, MockEngine, strikes
from penstock.wire import engine as protocol

_STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n"
_END = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def _delta(token_id: int) -> bytes:
    return chunk(protocol.encode_line(protocol.Delta(token_ids=[token_id], text=words.piece(token_id))))


_DELTAS = [_delta(token_id) for token_id in range(words.VOCABULARY)]


class Stream:
    """Plays one attempt on a connection, token by token, until it ends, is struck or is closed."""

    def __init__(self, attempt: Attempt, engine: MockEngine, transport: asyncio.Transport, done: Callable[[], None]):
        self.attempt = attempt
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
        line = protocol.encode_line(self.attempt.answer.accepted())
        self._transport.write(_STREAM_HEAD + chunk(line))
        self._engine.admit()

    def cancel(self) -> None:
        """End it as the abort verb does."""
        self._end(protocol.encode_line(self.attempt.answer.finished(cancelled=True)))

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
        delta = b"" if answer.is_over else self._next()
        if answer.is_over and (not delta or attempt.fault is None):
            self._end(protocol.encode_line(answer.finished()), before=delta)
            return
        self._transport.write(delta)
        self._timer = self._loop.call_later(self._engine.gap_s(attempt), self._step)

    def _next(self) -> bytes:
        answer = self.attempt.answer
        self._engine.num_tokens += 1
        token_id = answer.next_token()
        if answer.plain and self._delta_tokens == 1:
            return _DELTAS[token_id]
        token_ids = [token_id]
        while len(token_ids) < self._delta_tokens and not answer.is_over:
            token_ids.append(answer.next_token())
        self._engine.num_tokens += len(token_ids) - 1
        return chunk(protocol.encode_line(answer.delta(token_ids)))

    def _strike(self, fault: Fault) -> bool:
        """Carry it out; whether nothing more follows now."""
        self.attempt.fault = None
        if fault.kind == "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault.kind == "fail":
            self._end(protocol.encode_line(protocol.Failed(code=fault.code, message="The script says so.")))
        elif fault.kind == "end":
            self._end(b"")
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

    def _end(self, line: bytes, before: bytes = b"") -> None:
        self.close()
        self._transport.write(before + (chunk(line) if line else b"") + _END)
        self._done()
