"""Text completions, the way out: the engine's events to OpenAI's chunks, or to one body.

In: (choice, events) in any interleaving; out: server-sent events as bytes, or one JSON body.
Chunks and bodies have one shape here, as OpenAI has it.
"""

from __future__ import annotations

import msgspec

from penstock.wire import engine, sse
from penstock.wire.engine import Accepted, Delta, Event, Failed, Finished, Moved, TokenLogprob
from penstock.wire.openai.usage import Usage, total

_encode = msgspec.json.Encoder().encode


class Logprobs(msgspec.Struct, frozen=True):
    """Aligned lists; ``text_offset`` counts characters from the choice's beginning."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class Choice(msgspec.Struct, frozen=True):
    index: int
    text: str
    logprobs: Logprobs | None
    finish_reason: str | None
    finish_detail: str | msgspec.UnsetType = msgspec.UNSET
    """As in chat's answers."""


class Completion(msgspec.Struct, frozen=True):
    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str | None
    choices: list[Choice]
    usage: Usage | None | msgspec.UnsetType = msgspec.UNSET


class _Offsets:
    """Turns log-probabilities into OpenAI's lists, counting characters over all calls."""

    def __init__(self) -> None:
        self._offset = 0

    def render(self, entries: list[TokenLogprob]) -> Logprobs:
        offsets = []
        for entry in entries:
            offsets.append(self._offset)
            self._offset += len(entry.text)
        return Logprobs(
            tokens=[entry.text for entry in entries],
            token_logprobs=[entry.logprob for entry in entries],
            top_logprobs=[_alternatives(entry) for entry in entries],
            text_offset=offsets,
        )


def _alternatives(entry: TokenLogprob) -> dict[str, float] | None:
    """The alternatives and the token itself: up to ``logprobs + 1`` of them, as OpenAI documents it."""
    if entry.logprob is None:
        return None
    return {top.text: top.logprob for top in entry.top} | {entry.text: entry.logprob}


class CompletionStream:
    """Renders one streamed answer.  With ``include_usage`` every chunk carries ``usage``: null, but in the last."""

    def __init__(
        self, id: str, model: str, created: int, num_choices: int, choices_per_prompt: int, *, include_usage: bool
    ) -> None:
        self._id, self._model, self._created = id, model, created
        self._fingerprint: str | None = None
        self._include_usage = include_usage
        self._choices_per_prompt = choices_per_prompt
        self._usages: list[engine.Usage] = [engine.Usage(prompt=0)] * num_choices
        self._offsets = [_Offsets() for _ in range(num_choices)]

    def push(self, index: int, events: list[Event]) -> bytes:
        """The frames that ``events`` of choice ``index`` become; may be empty."""
        return b"".join([self._frames(index, event) for event in events])

    def end(self) -> bytes:
        """After every choice finished: the usage if asked for, and the end mark."""
        if not self._include_usage:
            return sse.DONE
        return self._frame([], total(self._usages, self._choices_per_prompt)) + sse.DONE

    def _frames(self, index: int, event: Event) -> bytes:
        if isinstance(event, Finished):
            self._usages[index] = event.usage
            return self._frame([Choice(index, event.text, None, event.reason, event.limit or msgspec.UNSET)])
        if isinstance(event, Accepted | Moved):
            self._fingerprint = event.weights or None
        text, entries = _content(event)
        if not text and entries is None:
            return b""
        logprobs = None if entries is None else self._offsets[index].render(entries)
        return self._frame([Choice(index, text, logprobs, None)])

    def _frame(self, choices: list[Choice], usage: Usage | None = None) -> bytes:
        shown = usage if self._include_usage else msgspec.UNSET
        chunk = Completion(self._id, "text_completion", self._created, self._model, self._fingerprint, choices, shown)
        return sse.frame(_encode(chunk))


class CompletionBody:
    """Collects one answer that is not streamed."""

    def __init__(self, id: str, model: str, created: int, num_choices: int, choices_per_prompt: int) -> None:
        self._id, self._model, self._created = id, model, created
        self._choices_per_prompt = choices_per_prompt
        self._fingerprints: dict[str, None] = {}
        self._texts: list[list[str]] = [[] for _ in range(num_choices)]
        self._logprobs: list[list[TokenLogprob] | None] = [None] * num_choices
        self._finished: list[Finished | None] = [None] * num_choices

    def push(self, index: int, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, Finished):
                self._texts[index].append(event.text)
                self._finished[index] = event
                continue
            if isinstance(event, Accepted | Moved):
                self._fingerprints[event.weights] = None
            text, entries = _content(event)
            self._texts[index].append(text)
            if entries is not None:
                known = self._logprobs[index] = self._logprobs[index] or []
                known.extend(entries)

    def body(self) -> bytes:
        """The whole answer; every choice must have finished."""
        finished = [event for event in self._finished if event is not None]
        assert len(finished) == len(self._texts), "a choice has not finished"
        choices = [
            Choice(
                index,
                "".join(self._texts[index]),
                None if entries is None else _Offsets().render(entries),
                finished[index].reason,
                finished[index].limit or msgspec.UNSET,
            )
            for index, entries in enumerate(self._logprobs)
        ]
        usage = total([event.usage for event in finished], self._choices_per_prompt)
        fingerprint = "+".join(self._fingerprints) or None
        return _encode(Completion(self._id, "text_completion", self._created, self._model, fingerprint, choices, usage))


def _content(event: Event) -> tuple[str, list[TokenLogprob] | None]:
    """Text and scores of what an event adds: the echoed prompt, or new tokens."""
    assert not isinstance(event, Finished | Failed), event
    if isinstance(event, Accepted):
        return event.prompt_text or "", event.prompt_logprobs
    if isinstance(event, Moved):
        return "", None
    assert isinstance(event, Delta)
    return event.text, event.logprobs
