"""Chat completions, the way out: the engine's events to OpenAI's chunks, or to one body.

In: (choice, events) in any interleaving; out: server-sent events as bytes, or one JSON body.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from penstock.wire import engine, sse
from penstock.wire.engine import Accepted, Delta, Event, Finished, TokenLogprob
from penstock.wire.openai.usage import Usage, total

_encode = msgspec.json.Encoder().encode
_LEAST_LOGPROB = -9999.0
"""What OpenAI shows for a probability of zero."""


class TopLogprob(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]


class Logprob(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class Logprobs(msgspec.Struct, frozen=True):
    content: list[Logprob]
    refusal: None = None


class ChunkDelta(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    role: str | None = None
    content: str | None = None


class ChunkChoice(msgspec.Struct, frozen=True):
    index: int
    delta: ChunkDelta
    logprobs: Logprobs | None = None
    finish_reason: str | None = None


class Chunk(msgspec.Struct, frozen=True):
    id: str
    object: str
    created: int
    model: str
    system_fingerprint: None
    choices: list[ChunkChoice]
    usage: Usage | None | msgspec.UnsetType = msgspec.UNSET


class Message(msgspec.Struct, frozen=True):
    role: str
    content: str
    refusal: None = None


class Choice(msgspec.Struct, frozen=True):
    index: int
    message: Message
    logprobs: Logprobs | None
    finish_reason: str


class Completion(msgspec.Struct, frozen=True):
    id: str
    object: str
    created: int
    model: str
    system_fingerprint: None
    choices: list[Choice]
    usage: Usage


def _logprobs(entries: Iterable[TokenLogprob]) -> Logprobs:
    return Logprobs(
        [
            Logprob(
                token=entry.text,
                logprob=_LEAST_LOGPROB if entry.logprob is None else entry.logprob,
                bytes=entry.bytes,
                top_logprobs=[TopLogprob(top.text, top.logprob, top.bytes) for top in entry.top],
            )
            for entry in entries
        ]
    )


class ChatStream:
    """Renders one streamed answer.  With ``include_usage`` every chunk carries ``usage``: null, but in the last."""

    def __init__(self, id: str, model: str, created: int, num_choices: int, *, include_usage: bool) -> None:
        self._id, self._model, self._created = id, model, created
        self._include_usage = include_usage
        self._usages: list[engine.Usage] = [engine.Usage(prompt=0)] * num_choices

    def push(self, index: int, events: list[Event]) -> bytes:
        """The frames that ``events`` of choice ``index`` become; may be empty."""
        return b"".join([self._frames(index, event) for event in events])

    def end(self) -> bytes:
        """After every choice finished: the usage if asked for, and the end mark."""
        if not self._include_usage:
            return sse.DONE
        return self._frame([], total(self._usages, len(self._usages))) + sse.DONE

    def _frames(self, index: int, event: Event) -> bytes:
        if isinstance(event, Delta):
            if not event.text and event.logprobs is None:
                return b""
            logprobs = None if event.logprobs is None else _logprobs(event.logprobs)
            return self._frame([ChunkChoice(index, ChunkDelta(content=event.text), logprobs)])
        if isinstance(event, Finished):
            self._usages[index] = event.usage
            held = self._frame([ChunkChoice(index, ChunkDelta(content=event.text))]) if event.text else b""
            return held + self._frame([ChunkChoice(index, ChunkDelta(), None, event.reason)])
        assert isinstance(event, Accepted), event
        return self._frame([ChunkChoice(index, ChunkDelta(role="assistant", content=""))])

    def _frame(self, choices: list[ChunkChoice], usage: Usage | None = None) -> bytes:
        chunk = Chunk(
            self._id,
            "chat.completion.chunk",
            self._created,
            self._model,
            None,
            choices,
            usage if self._include_usage else msgspec.UNSET,
        )
        return sse.frame(_encode(chunk))


class ChatBody:
    """Collects one answer that is not streamed."""

    def __init__(self, id: str, model: str, created: int, num_choices: int) -> None:
        self._id, self._model, self._created = id, model, created
        self._texts: list[list[str]] = [[] for _ in range(num_choices)]
        self._logprobs: list[list[TokenLogprob] | None] = [None] * num_choices
        self._finished: list[Finished | None] = [None] * num_choices

    def push(self, index: int, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, Delta):
                self._texts[index].append(event.text)
                if event.logprobs is not None:
                    entries = self._logprobs[index] = self._logprobs[index] or []
                    entries.extend(event.logprobs)
            elif isinstance(event, Finished):
                self._texts[index].append(event.text)
                self._finished[index] = event

    def body(self) -> bytes:
        """The whole answer; every choice must have finished."""
        finished = [event for event in self._finished if event is not None]
        assert len(finished) == len(self._texts), "a choice has not finished"
        choices = [
            Choice(
                index,
                Message("assistant", "".join(self._texts[index])),
                None if entries is None else _logprobs(entries),
                finished[index].reason,
            )
            for index, entries in enumerate(self._logprobs)
        ]
        usage = total([event.usage for event in finished], len(finished))
        return _encode(Completion(self._id, "chat.completion", self._created, self._model, None, choices, usage))
