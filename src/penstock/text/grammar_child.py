"""The process in which grammars are compiled and followed, apart from the engine.

In: requests on sockets, in order; out: for each, which tokens may come next, or why not.
A caller's grammar runs native code that Python cannot interrupt and that a hostile one can make slow, large or crash:
here the kernel ends it, the engine's other sequences go on, and their states are replayed.
Argued in docs/decisions/008-grammars-in-their-own-process.md.
"""

from __future__ import annotations

import mmap
import os
import resource
import signal
import socket
import struct
import sys
import time
from collections import OrderedDict

import msgspec
from llguidance import LLMatcher, LLTokenizer

from penstock.text.grammar_messages import (
    REQUEST_CPU_S,
    Advance,
    Allowed,
    Close,
    Died,
    Open,
    Refused,
    Reply,
    Request,
    Unknown,
    Vocabulary,
    receive,
    send,
)
from penstock.text.grammar_source import compiled, problem_of
from penstock.wire.engine import Grammar
from penstock.wire.errors import Problem

_MEMORY_BYTES = 2 << 30
_STEP_CPU_S = 0.02
_SPARE_CPU_S = 0.5
"""What a sequence may use beyond ``_STEP_CPU_S`` a token, altogether."""
_KEPT_CPU_S = 0.25
"""What of it is not for looking ahead, so that no output ends for having been looked ahead for."""
_AHEAD_CPU_S = 0.005
"""A request that took longer looks ahead no further: what might come is worth no more."""
_KEPT_MATCHERS = 64
_BUSY = struct.Struct("q")


class _Gtokenizer:
    """A vocabulary as llguidance takes it.  It tokenises nothing: masks need the tokens' bytes alone."""

    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.eos_token_id = len(vocabulary.tokens)
        self.tokens = [*vocabulary.tokens, b""]
        self.special_token_ids = [*vocabulary.special_ids, self.eos_token_id]
        self.is_tokenizer_wrapper = True

    def __call__(self, text: bytes | str) -> list[int]:
        return []


class Worker:
    """The sessions of one worker process."""

    def __init__(self, tokenizer: LLTokenizer) -> None:
        self._tokenizer = tokenizer
        self._fresh: OrderedDict[Grammar, LLMatcher] = OrderedDict()
        self._open: dict[int, tuple[LLMatcher, bytes, float]] = {}
        """By session: its matcher, the mask of what may come next, and the processor time it may still use."""

    def answer(self, request: Request) -> Reply | None:
        """Do one request."""
        if isinstance(request, Close):
            self._open.pop(request.session, None)
            return None
        if isinstance(request, Advance) and request.session not in self._open:
            return Unknown(request.session)
        begin = time.process_time()
        try:
            if isinstance(request, Open):
                matcher, left = self._started(request.grammar), _SPARE_CPU_S
                self._replay(matcher, request.token_ids)
                begin = time.process_time()
                mask = self._mask(matcher)
            else:
                matcher, mask, left = self._open.pop(request.session)
                for token_id in request.token_ids:
                    matcher.consume_token(token_id)
                if request.token_ids:
                    mask = self._mask(matcher)
                left += _STEP_CPU_S * len(request.token_ids)
            if not any(mask):
                raise Problem("grammar_invalid", "The grammar allows no text that this model's vocabulary can spell.")
            left = min(left - (time.process_time() - begin), _SPARE_CPU_S)
            if left < 0:
                raise Problem("grammar_too_complex", "Following the grammar takes too long.")
        except Problem as problem:
            return Refused(request.session, problem.code, problem.message)
        further: list[bytes] = []
        if isinstance(request, Advance) and request.ahead and left > _KEPT_CPU_S:
            before = time.process_time()
            further = self._further(matcher, mask, request.ahead, begin)
            left -= time.process_time() - before
        self._open[request.session] = matcher, mask, left
        return Allowed(request.session, mask, further)

    def _mask(self, matcher: LLMatcher) -> bytes:
        mask: bytes = matcher.compute_bitmask()
        _check(matcher)
        return mask if matcher.is_accepting() else _without(mask, self._tokenizer.eos_token)

    def _further(self, matcher: LLMatcher, mask: bytes, ahead: list[int], begin: float) -> list[bytes]:
        """Masks behind tokens that may come, on a copy: whatever goes wrong there has not happened."""
        further: list[bytes] = []
        copy = matcher.deep_copy()
        for token_id in ahead:
            late = time.process_time() - begin > _AHEAD_CPU_S
            if late or token_id >= self._tokenizer.eos_token or not mask[token_id // 8] >> token_id % 8 & 1:
                break
            try:
                copy.consume_token(token_id)
                mask = self._mask(copy)
            except Problem:
                break
            further.append(mask)
        return further

    def _started(self, grammar: Grammar) -> LLMatcher:
        """A matcher at its start; those used last are kept, and copies share what they computed until they differ."""
        fresh = self._fresh.get(grammar)
        if fresh is None:
            fresh = self._fresh[grammar] = compiled(self._tokenizer, grammar)
            if len(self._fresh) > _KEPT_MATCHERS:
                self._fresh.popitem(last=False)
        self._fresh.move_to_end(grammar)
        return fresh.deep_copy()

    def _replay(self, matcher: LLMatcher, token_ids: list[int]) -> None:
        taken = matcher.try_consume_tokens(token_ids)
        if taken < len(token_ids):
            _check(matcher)
            raise Problem("invalid_value", f"Emitted token {taken}, {token_ids[taken]}, does not fit the grammar.")


def _without(mask: bytes, token_id: int) -> bytes:
    """The library allows the end of a text wherever a special token may come next, also where it may not end."""
    result = bytearray(mask)
    result[token_id // 8] &= ~(1 << token_id % 8)
    return bytes(result)


def _check(matcher: LLMatcher) -> None:
    if (problem := problem_of(matcher)) is not None:
        raise problem


class _Role:
    """One worker's channel, and the session it is busy with, which its parent reads when it has died."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        self._busy = mmap.mmap(-1, _BUSY.size)

    @property
    def busy_with(self) -> int | None:
        session = int(_BUSY.unpack(self._busy[:])[0])
        return session if session >= 0 else None

    @busy_with.setter
    def busy_with(self, session: int | None) -> None:
        self._busy[:] = _BUSY.pack(-1 if session is None else session)

    def work(self, vocabulary: LLTokenizer) -> None:
        """Answer until the other side closes.  Requests run under an alarm that nothing here handles: it kills."""
        worker = Worker(vocabulary)
        decode = msgspec.msgpack.Decoder(Request).decode
        while (frame := receive(self.channel)) is not None:
            request = decode(frame)
            self.busy_with = request.session
            signal.setitimer(signal.ITIMER_PROF, REQUEST_CPU_S)
            reply = worker.answer(request)
            signal.setitimer(signal.ITIMER_PROF, 0.0)
            self.busy_with = None
            if reply is not None:
                send(self.channel, msgspec.msgpack.encode(reply))

    def fork(self, vocabulary: LLTokenizer) -> int:
        """A worker's process id."""
        self.busy_with = None
        pid = os.fork()
        if pid:
            return pid
        status = 1
        try:
            self.work(vocabulary)
            status = 0
        finally:
            os._exit(status)


def main() -> None:
    """Build the vocabulary once, then keep one worker alive on each channel (descriptors given as arguments).

    Ends with its workers when the other side closes, and when one dies over nothing, since what it had read is lost.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    vocabulary = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Vocabulary)
    tokenizer = LLTokenizer(_Gtokenizer(vocabulary), slices=LLTokenizer.json_slices())  # type: ignore[arg-type]
    roles = [_Role(socket.socket(fileno=int(descriptor))) for descriptor in sys.argv[1:]]
    workers = {role.fork(tokenizer): role for role in roles}
    try:
        while workers:
            pid, status = os.wait()
            role = workers.pop(pid)
            session = role.busy_with
            if not os.WIFSIGNALED(status) and os.WEXITSTATUS(status) == 0:
                continue
            if session is None:
                break
            ended_by = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
            send(role.channel, msgspec.msgpack.encode(Died(session, ended_by)))
            workers[role.fork(tokenizer)] = role
    except OSError:  # the other side is gone
        pass
    finally:
        for pid in workers:
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
