"""A mock engine: which sequences run and wait, what goes wrong with them, and how it says that it is.  A machine.

In: requests, and ends of sequences; out: attempts to be played, and ``Load``.  The edge ``http/`` plays them on a
socket, ``sim/`` on virtual time.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from penstock.config.mock import Fault, MockScript
from penstock.events.list import SequenceEnded
from penstock.mock.answer import Answer
from penstock.mock.words import mix, share
from penstock.ports import Clock, Emit
from penstock.wire.engine import GenerateRequest
from penstock.wire.errors import Problem
from penstock.wire.load import Load, Progress

_PATIENCE = 10.0
"""So many times as long as the script says a token may take, as far as this engine's own word goes."""
_KV_BLOCK_TOKENS = 16


@dataclass(slots=True, eq=False)
class Attempt:
    """One request as it is being answered.  ``fault`` strikes once ``fault.after`` tokens of it have been sent."""

    id: str
    answer: Answer
    fault: Fault | None
    first_position: int
    running: bool = False
    cancelled: bool = False
    reason: str = "cancelled"
    """What it ended with; nobody has to say so when its connection is gone."""
    closed: bool = False
    begin: Callable[[], None] = lambda: None
    """Called when it gets a slot."""

    @property
    def num_sent(self) -> int:
        return self.answer.position - self.first_position


class MockEngine:
    """``num_attempts`` counts the generate requests that were ever taken; ``num_tokens`` those that were drawn.

    ``emit`` hears of every attempt that ends, with the tokens that this attempt drew.
    """

    def __init__(self, model: str, script: MockScript, clock: Clock, emit: Emit = lambda event: None) -> None:
        self.model = model
        self.script = script
        self.draining = False
        self.adapters: list[str] = []
        """Digests of what it pretends to have loaded."""
        self.num_attempts = 0
        self.num_tokens = 0
        self._clock = clock
        self._emit = emit
        self._born = clock.now()
        self._struck = [0] * len(script.faults)
        self._open: dict[str, list[Attempt]] = {}
        self._running = 0
        self._waiting: deque[Attempt] = deque()
        self._seed = mix(script.seed, 0)

    @property
    def num_open(self) -> int:
        return self._running + len(self._waiting)

    def fault(self, request_id: str, kinds: tuple[str, ...]) -> Fault | None:
        """The first fault of these kinds that strikes this attempt."""
        for number, fault in enumerate(self.script.faults):
            if fault.kind not in kinds or (fault.times is not None and self._struck[number] >= fault.times):
                continue
            if fault.share >= 1 or share(self._seed ^ zlib.crc32(request_id.encode()), number) < fault.share:
                self._struck[number] += 1
                return fault
        return None

    def open(self, request: GenerateRequest) -> Attempt:
        """Take a request.  Raises ``Problem``: draining, not ready, full, told to refuse, or not to be answered."""
        self.refuse_new()
        if request.adapter and request.adapter not in self.adapters:
            raise Problem("not_ready", "This engine does not have the adapter that was asked for.", retry_after_s=1.0)
        refusal = self.fault(request.id, ("refuse",))
        if refusal is not None:
            raise Problem(refusal.code, "The script of this mock engine refuses it.", retry_after_s=1.0)
        if len(self._waiting) >= self.script.max_waiting and self._running >= self.script.slots:
            raise Problem("overloaded", f"{len(self._waiting)} requests wait already.", retry_after_s=1.0)
        answer = Answer(request, self.script)
        self.num_attempts += 1
        fault = self.fault(request.id, ("break", "torn", "end", "fail", "garbage", "stall", "crash"))
        attempt = Attempt(request.id, answer, fault, first_position=answer.position)
        self._open.setdefault(request.id, []).append(attempt)
        self._waiting.append(attempt)
        return attempt

    def admit(self) -> None:
        """Give free slots to those that wait, in turn."""
        while self._waiting and self._running < self.script.slots:
            attempt = self._waiting.popleft()
            attempt.running = True
            self._running += 1
            attempt.begin()

    def close(self, attempt: Attempt) -> None:
        """It ended, however it ended; the second time nothing happens."""
        if attempt.closed:
            return
        attempt.closed = True
        self._emit(
            SequenceEnded(
                reason=attempt.reason,
                prompt_tokens=attempt.answer.num_prompt,
                cached_tokens=0,
                output_tokens=attempt.num_sent,
            )
        )
        attempts = self._open[attempt.id]
        attempts.remove(attempt)
        if not attempts:
            del self._open[attempt.id]
        if attempt.running:
            self._running -= 1
            self.admit()
        else:
            self._waiting.remove(attempt)

    def abort(self, request_id: str) -> list[Attempt]:
        """Mark what runs under this id as cancelled; whoever plays it ends it."""
        attempts = list(self._open.get(request_id, ()))
        for attempt in attempts:
            attempt.cancelled = True
        return attempts

    def first_delay_s(self, attempt: Attempt) -> float:
        """From its slot to its first token."""
        script = self.script
        prefill_s = 0.0
        if script.prefill_tokens_per_s is not None:
            prefill_s = (attempt.answer.num_prompt + attempt.first_position) / script.prefill_tokens_per_s
        return (script.ttft_s + prefill_s) * self._jitter(attempt)

    def gap_s(self, attempt: Attempt) -> float:
        """From its last token to the next."""
        return self.script.gap_s * self._jitter(attempt)

    def load_adapter(self, path: str) -> str:
        """Its digest, which is the folder's name's: nothing is read."""
        digest = f"{zlib.crc32(path.encode()):08x}"
        if digest not in self.adapters:
            self.adapters.append(digest)
        return digest

    def unload_adapter(self, digest: str) -> None:
        if digest in self.adapters:
            self.adapters.remove(digest)

    def refuse_new(self) -> None:
        """Raises ``Problem`` while it loads or drains."""
        if self.draining:
            raise Problem("draining", "This engine takes no new requests.", retry_after_s=1.0)
        if self._loaded_share() < 1:
            raise Problem("not_ready", "This engine is loading.", retry_after_s=1.0)

    def load(self) -> Load:
        """How it is, in the protocol's words."""
        progress = self._loaded_share()
        phase = "draining" if self.draining else "ready"
        load = Load(
            phase="ready",
            model=self.model,
            context_tokens=self.script.context_tokens,
            running=self._running,
            waiting=len(self._waiting),
            queued_tokens=sum(attempt.answer.num_prompt for attempt in self._waiting),
            step_time_s=self.script.gap_s,
            kv_blocks_total=self.script.kv_tokens // _KV_BLOCK_TOKENS,
            kv_block_tokens=_KV_BLOCK_TOKENS,
            exact=self.script.exact,
            weights=self.script.weights,
            vocabulary=self.script.vocabulary,
            adapters=list(self.adapters),
        )
        if progress < 1 and not self.draining:
            return msgspec.structs.replace(load, phase="loading", progress=progress, detail="pretending to load")
        return msgspec.structs.replace(load, phase=phase)

    def progress(self, request_ids: list[str]) -> Progress:
        """How far these requests are; a drawn token counts as a step."""
        open_attempts = {id: self._open[id][-1] for id in request_ids if id in self._open}
        return Progress(
            steps=self.num_tokens,
            step_limit_s=_PATIENCE * max(map(self._next_delay_s, open_attempts.values()), default=0.0),
            computed={
                id: attempt.answer.position if attempt.num_sent and attempt.running else None
                for id, attempt in open_attempts.items()
            },
        )

    def _next_delay_s(self, attempt: Attempt) -> float:
        return self.gap_s(attempt) if attempt.num_sent else self.first_delay_s(attempt)

    def _loaded_share(self) -> float:
        if not self.script.load_s:
            return 1.0
        return min((self._clock.now() - self._born) / self.script.load_s, 1.0)

    def _jitter(self, attempt: Attempt) -> float:
        spread = self.script.jitter
        if not spread:
            return 1.0
        return 1.0 + spread * (2.0 * share(attempt.answer.key ^ self._seed, attempt.answer.position) - 1.0)


def strikes(attempt: Attempt) -> Fault | None:
    """The fault that strikes now."""
    fault = attempt.fault
    return fault if fault is not None and attempt.num_sent >= fault.after else None
