"""Chat completions, the way out: the engine's events to OpenAI's chunks, or to one body.

In: (choice, events) in any interleaving; out: server-sent events as bytes, or one JSON body.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from penstock.wire import engine, sse
from penstock.wire.engine import Accepted, CallDelta, Delta, Event, Finished, Moved, TokenLogprob
from penstock.wire.openai.usage import Usage, total

_encode = msgspec.json.Encoder().encode
_MARK = "\0"
"""Stands for a text: behind an unescaped key it can be nothing else, whatever a model is called."""
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


class FunctionDelta(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    name: str | None = None
    arguments: str | None = None


class ToolCallDelta(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """``id``, ``type`` and the function's name come with a call's first delta."""

    index: int
    id: str | None = None
    type: str | None = None
    function: FunctionDelta


class ChunkDelta(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChunkChoice(msgspec.Struct, frozen=True):
    index: int
    delta: ChunkDelta
    logprobs: Logprobs | None = None
    finish_reason: str | None = None
    finish_detail: str | msgspec.UnsetType = msgspec.UNSET
    """Which limit of the caller's ended the choice; our own field, and only then."""


class Chunk(msgspec.Struct, frozen=True):
    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str | None
    choices: list[ChunkChoice]
    usage: Usage | None | msgspec.UnsetType = msgspec.UNSET


class Function(msgspec.Struct, frozen=True):
    name: str
    arguments: str


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    type: str = "function"
    function: Function


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """``content`` is null where there are calls and no text; parts that there are none of are left out."""

    role: str = "assistant"
    content: str | None
    refusal: None = None
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET
    tool_calls: list[ToolCall] | msgspec.UnsetType = msgspec.UNSET


class Choice(msgspec.Struct, frozen=True):
    index: int
    message: Message
    logprobs: Logprobs | None
    finish_reason: str
    finish_detail: str | msgspec.UnsetType = msgspec.UNSET


class Completion(msgspec.Struct, frozen=True):
    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str | None
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
        self._fingerprint: str | None = None
        self._include_usage = include_usage
        self._usages: list[engine.Usage] = [engine.Usage(prompt=0)] * num_choices
        self._around_text: list[tuple[bytes, bytes] | None] = [None] * num_choices

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
            if event.text and event.logprobs is None and not (event.reasoning or event.tool_calls):
                before, after = self._around_text[index] or self._frame_around(index)
                return before + _encode(event.text) + after
            logprobs = None if event.logprobs is None else _logprobs(event.logprobs)
            return self._parts(index, event, logprobs)
        if isinstance(event, Finished):
            self._usages[index] = event.usage
            return self._parts(index, event) + self._frame(
                [ChunkChoice(index, ChunkDelta(), None, event.reason, event.limit or msgspec.UNSET)]
            )
        assert isinstance(event, Accepted | Moved), event
        self._fingerprint = event.weights or None
        if isinstance(event, Moved):
            return b""
        return self._frame([ChunkChoice(index, ChunkDelta(role="assistant", content=""))])

    def _frame_around(self, index: int) -> tuple[bytes, bytes]:
        """What comes before and after the text in a frame that has nothing else: most frames are such ones."""
        frame = self._frame([ChunkChoice(index, ChunkDelta(content=_MARK))])
        before, mark, after = frame.partition(b'"content":' + _encode(_MARK))
        around = self._around_text[index] = before + mark.removesuffix(_encode(_MARK)), after
        return around

    def _parts(self, index: int, event: Delta | Finished, logprobs: Logprobs | None = None) -> bytes:
        """One chunk for all that the event adds; none for nothing."""
        calls = [_call_delta(call) for call in event.tool_calls]
        if not (event.text or event.reasoning or calls or logprobs):
            return b""
        # A chunk that only brings log-probabilities has an empty text, as others write it.
        content = event.text if event.text or not (event.reasoning or calls) else None
        delta = ChunkDelta(content=content, reasoning_content=event.reasoning or None, tool_calls=calls or None)
        return self._frame([ChunkChoice(index, delta, logprobs)])

    def _frame(self, choices: list[ChunkChoice], usage: Usage | None = None) -> bytes:
        chunk = Chunk(
            self._id,
            "chat.completion.chunk",
            self._created,
            self._model,
            self._fingerprint,
            choices,
            usage if self._include_usage else msgspec.UNSET,
        )
        return sse.frame(_encode(chunk))


class ChatBody:
    """Collects one answer that is not streamed."""

    def __init__(self, id: str, model: str, created: int, num_choices: int) -> None:
        self._id, self._model, self._created = id, model, created
        self._fingerprints: dict[str, None] = {}
        self._texts: list[list[str]] = [[] for _ in range(num_choices)]
        self._reasonings: list[list[str]] = [[] for _ in range(num_choices)]
        self._calls: list[list[CallDelta]] = [[] for _ in range(num_choices)]
        self._logprobs: list[list[TokenLogprob] | None] = [None] * num_choices
        self._finished: list[Finished | None] = [None] * num_choices

    def push(self, index: int, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, Delta | Finished):
                self._texts[index].append(event.text)
                self._reasonings[index].append(event.reasoning)
                self._calls[index] += event.tool_calls
            if isinstance(event, Finished):
                self._finished[index] = event
            elif isinstance(event, Accepted | Moved):
                self._fingerprints[event.weights] = None
            elif isinstance(event, Delta) and event.logprobs is not None:
                entries = self._logprobs[index] = self._logprobs[index] or []
                entries.extend(event.logprobs)

    def body(self) -> bytes:
        """The whole answer; every choice must have finished."""
        finished = [event for event in self._finished if event is not None]
        assert len(finished) == len(self._texts), "a choice has not finished"
        choices = [
            Choice(
                index,
                self._message(index),
                None if entries is None else _logprobs(entries),
                finished[index].reason,
                finished[index].limit or msgspec.UNSET,
            )
            for index, entries in enumerate(self._logprobs)
        ]
        usage = total([event.usage for event in finished], len(finished))
        fingerprint = "+".join(self._fingerprints) or None
        return _encode(Completion(self._id, "chat.completion", self._created, self._model, fingerprint, choices, usage))

    def _message(self, index: int) -> Message:
        text, reasoning = "".join(self._texts[index]), "".join(self._reasonings[index])
        calls = _whole_calls(self._calls[index])
        return Message(
            content=text if text or not calls else None,
            reasoning_content=reasoning or msgspec.UNSET,
            tool_calls=calls or msgspec.UNSET,
        )


def _call_delta(call: CallDelta) -> ToolCallDelta:
    if not call.name:
        return ToolCallDelta(index=call.index, function=FunctionDelta(arguments=call.arguments))
    function = FunctionDelta(name=call.name, arguments=call.arguments)
    return ToolCallDelta(index=call.index, id=call.id, type="function", function=function)


def _whole_calls(deltas: list[CallDelta]) -> list[ToolCall]:
    """Calls in order, each with all of its arguments."""
    arguments: dict[int, list[str]] = {}
    for delta in deltas:
        arguments.setdefault(delta.index, []).append(delta.arguments)
    return [
        ToolCall(id=delta.id, function=Function(delta.name, "".join(arguments[delta.index])))
        for delta in deltas
        if delta.name
    ]
