"""From tokens to the protocol's events, for one request.

In: tokens as the loop commits them; out: Accepted, Deltas, and one Finished or Failed, for whoever reads the stream.
Tokens become text, the text ends at a stop string, and what is left of it becomes the parts of an answer.
What has been sent as text depends on the token ids alone, so replaying emitted ids restores the state exactly.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from penstock.engine.sequence import TokenScore
from penstock.text.answer import AnswerParser, Parts
from penstock.text.detokenize import Detokenizer
from penstock.text.stop import StopMatcher
from penstock.text.tokenizer import Tokenizer
from penstock.wire.engine import (
    Accepted,
    CallDelta,
    Delta,
    Event,
    Failed,
    Finished,
    FinishReason,
    GenerateRequest,
    TokenLogprob,
    TopLogprob,
    Usage,
    Waits,
    failed,
)
from penstock.wire.errors import Problem


class TextStream:
    """A :class:`~penstock.engine.sequence.TokenSink` that an HTTP response drains.

    ``answer`` reads the parts of the text, and ``call_id`` gives a call with this index its id.
    Held events are bounded by ``max_tokens``; those of one step are drained together.
    """

    def __init__(
        self,
        request: GenerateRequest,
        prompt_ids: list[int],
        tokenizer: Tokenizer,
        answer: AnswerParser | None = None,
        call_id: Callable[[int], str] = str,
    ) -> None:
        self._request = request
        self._prompt_ids = prompt_ids
        self._tokenizer = tokenizer
        self._answer = answer or AnswerParser()
        self._call_id = call_id
        self.waits = Waits()
        """What its sequence waited for, as the scheduler keeps it."""
        self._detokenizer = Detokenizer(tokenizer, prompt_ids, self._answer.shown)
        self._stops = StopMatcher(request.stop)
        self._stopped_by: str | None = None
        self._num_output = 0
        self._num_reasoning = 0
        self._prompt_scores: list[TokenScore] = []
        self._events: list[Event] = []
        self._wake = asyncio.Event()
        for token_id in request.emitted_token_ids:
            self._parts_of(token_id)

    @property
    def is_over(self) -> bool:
        """A stop string or the one call that was allowed ended the text (a resumed request may start that way)."""
        return self._stopped_by is not None or self._answer.is_over

    async def drain(self) -> list[Event]:
        """Wait for events and take all there are."""
        await self._wake.wait()
        self._wake.clear()
        events, self._events = self._events, []
        return events

    def accept(self) -> None:
        """Announce the request, unless its prompt is still to be scored: then the last score announces it."""
        if not (self._scores_prompt and len(self._prompt_ids) > 1):
            self._announce()

    def prompt_scored(self, scores: list[TokenScore]) -> None:
        self._prompt_scores += scores
        if len(self._prompt_scores) == len(self._prompt_ids) - 1:
            self._announce()

    def push(self, token_id: int, score: TokenScore | None) -> bool:
        parts = self._parts_of(token_id)
        logprobs = [self._logprob(score)] if score is not None else None
        self._put(
            Delta(
                token_ids=[token_id],
                text=parts.text,
                reasoning=parts.reasoning,
                tool_calls=self._calls(parts),
                logprobs=logprobs,
            )
        )
        return self.is_over

    def finish(self, reason: FinishReason, stop_token_id: int | None, num_cached_tokens: int) -> None:
        held = ""
        if self._stopped_by is None:
            held, self._stopped_by = self._stops.push(self._detokenizer.flush())
            if self._stopped_by is None:
                held += self._stops.flush()
        if stop_token_id is not None:
            self._num_output += 1
        usage = Usage(
            prompt=len(self._prompt_ids),
            cached=num_cached_tokens,
            output=self._num_output,
            reasoning=self._num_reasoning,
        )
        stop = self._stopped_by if self._stopped_by is not None else stop_token_id
        before, last = self._answer.push(held), self._answer.flush()
        if self.is_over and reason == "length":
            reason = "stop"
        if self._answer.is_calls and reason == "stop":
            reason = "tool_calls"
        self._put(
            Finished(
                reason=reason,
                usage=usage,
                text=before.text + last.text,
                reasoning=before.reasoning + last.reasoning,
                tool_calls=[*self._calls(before), *self._calls(last)],
                stop=stop,
                waits=self.waits if self.waits.queued_s or self.waits.preemptions else None,
            )
        )

    def fail(self, problem: Problem) -> None:
        self._put(failed(problem))

    @property
    def _scores_prompt(self) -> bool:
        return self._request.echo and self._request.logprobs is not None

    def _put(self, event: Event) -> None:
        self._events.append(event)
        self._wake.set()

    def _parts_of(self, token_id: int) -> Parts:
        self._num_output += 1
        text = self._detokenizer.push(token_id)
        # A stop string counts only behind min_tokens, so text before that is not looked at.
        if self._num_output > self._request.min_tokens:
            text, self._stopped_by = self._stops.push(text)
        may_think = self._answer.may_think
        parts = self._answer.push(text)
        if may_think and self._answer.has_thought:
            # Thinking comes first, so all tokens so far are of it.
            self._num_reasoning = self._num_output
        return parts

    def _calls(self, parts: Parts) -> list[CallDelta]:
        return [
            CallDelta(
                index=part.index,
                id=self._call_id(part.index) if part.name else "",
                name=part.name,
                arguments=part.arguments,
            )
            for part in parts.calls
        ]

    def _announce(self) -> None:
        echo = self._request.echo
        scores = None
        if self._scores_prompt:
            first = self._entry(self._prompt_ids[0], None, [])
            scores = [first, *map(self._logprob, self._prompt_scores)]
        self._put(
            Accepted(
                prompt_tokens=len(self._prompt_ids),
                prompt_text=self._tokenizer.decode(self._prompt_ids) if echo else None,
                prompt_token_ids=self._prompt_ids if echo else None,
                prompt_logprobs=scores,
            )
        )

    def _logprob(self, score: TokenScore) -> TokenLogprob:
        return self._entry(score.token_id, score.logprob, score.top)

    def _entry(self, token_id: int, logprob: float | None, top: list[tuple[int, float]]) -> TokenLogprob:
        alternatives = []
        for other, other_logprob in top:
            data = self._tokenizer.token_bytes(other)
            alternatives.append(TopLogprob(other, data.decode(errors="replace"), other_logprob, list(data)))
        data = self._tokenizer.token_bytes(token_id)
        return TokenLogprob(token_id, data.decode(errors="replace"), logprob, list(data), alternatives)


def is_terminal(event: Event) -> bool:
    """Whether a stream ends with this event."""
    return isinstance(event, Finished | Failed)
