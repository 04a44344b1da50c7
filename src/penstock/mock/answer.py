"""One attempt at one sequence: what is said next, and how it ends.  A machine: no clock, no socket.

In: a request and the script; out: the protocol's events, one at a time.  Emitted tokens are held against what this
request draws: a gateway that resumes with others is told so, instead of getting a wrong answer.
"""

from __future__ import annotations

import zlib

from penstock.config.mock import MockScript
from penstock.mock.words import key_of, piece, prompt_bytes, token_bytes, token_of
from penstock.text.stop import StopMatcher
from penstock.wire.engine import (
    Accepted,
    Delta,
    Finished,
    FinishReason,
    GenerateRequest,
    TokenLogprob,
    TopLogprob,
    Usage,
)
from penstock.wire.errors import Problem


class Answer:
    """``plain``: every delta is its token's piece and nothing else, so that it can be looked up.

    Raises ``Problem`` where a real engine would: an empty prompt, one that does not fit, what it cannot enforce.
    """

    def __init__(self, request: GenerateRequest, script: MockScript) -> None:
        prompt = prompt_bytes(request)
        self.request = request
        self.key = key_of(request, prompt) ^ zlib.crc32(f"{script.weights}{request.adapter}".encode())
        self._exact = script.exact
        self._last: int | None = None
        self.num_prompt = len(request.token_ids) if request.token_ids is not None else len(prompt)
        self.plain = not request.stop and request.logprobs is None
        self.position = len(request.emitted_token_ids)
        self._limit, self._reason = _length(request, script, self.num_prompt)
        self._prompt = prompt
        self._stops = StopMatcher(request.stop)
        self._stopped_by: str | int | None = None
        if self.position:
            self._replay(request.emitted_token_ids)

    @property
    def is_over(self) -> bool:
        return self.position >= self._limit or self._stopped_by is not None

    def accepted(self) -> Accepted:
        """The first event; the prompt with it where ``echo`` asks for it."""
        if not self.request.echo:
            return Accepted(prompt_tokens=self.num_prompt)
        text = self._prompt.decode("utf-8", "replace")
        ids = self.request.token_ids if self.request.token_ids is not None else list(self._prompt)
        scores = None
        if self.request.logprobs is not None:
            scores = [_score(token_id, None if n == 0 else -1.0, []) for n, token_id in enumerate(ids)]
        return Accepted(prompt_tokens=self.num_prompt, prompt_text=text, prompt_token_ids=ids, prompt_logprobs=scores)

    def next_token(self) -> int:
        """Draw one more."""
        token_id = self._last = token_of(self.key, self.position)
        self.position += 1
        if token_id in self.request.stop_token_ids:
            self._stopped_by = token_id
        return token_id

    def delta(self, token_ids: list[int]) -> Delta:
        """These tokens, just drawn, and the text that they complete."""
        text = "".join(map(self._text, token_ids))
        logprobs = None
        if self.request.logprobs is not None:
            logprobs = [_score(token_id, -0.25, self._others(token_id)) for token_id in token_ids]
        return Delta(token_ids=token_ids, text=text, logprobs=logprobs)

    def finished(self, cancelled: bool = False) -> Finished:
        """The terminal event, with what was held back."""
        usage = Usage(prompt=self.num_prompt, output=self.position)
        if cancelled:
            return Finished(reason="cancelled", usage=usage)
        held = self._stops.flush()
        if self._stopped_by is not None:
            return Finished(reason="stop", usage=usage, text=held, stop=self._stopped_by)
        if self._last is not None and piece(self._last) == "":
            held += "\ufffd"
        return Finished(reason=self._reason, usage=usage, text=held)

    def _replay(self, emitted: list[int]) -> None:
        for position, token_id in enumerate(emitted):
            if self._exact and token_of(self.key, position) != token_id:
                message = f"Token {position} that was emitted is {token_id}, which this request never draws."
                raise Problem("invalid_value", message, param="emitted_token_ids")
            self._text(token_id)
        self._last = emitted[-1]

    def _text(self, token_id: int) -> str:
        text, stop = self._stops.push(piece(token_id))
        if stop is not None:
            self._stopped_by = stop
        return text

    def _others(self, token_id: int) -> list[TopLogprob]:
        ids = [token_id, *(256 + number for number in range(max((self.request.logprobs or 0) - 1, 0)))]
        ids = ids[: self.request.logprobs or 0]
        return [
            TopLogprob(other, token_bytes(other).decode("utf-8", "replace"), -0.25 - rank, list(token_bytes(other)))
            for rank, other in enumerate(ids)
        ]


def _length(request: GenerateRequest, script: MockScript, num_prompt: int) -> tuple[int, FinishReason]:
    """How many tokens it has at most, and the reason it then ends with."""
    if request.grammar is not None or request.tool_use is not None:
        raise Problem("unsupported_parameter", "A mock engine has no grammar and calls no tools.", param="tools")
    if num_prompt == 0:
        raise Problem("invalid_value", "The prompt has no tokens; give at least one.", param="prompt")
    room = script.context_tokens - num_prompt
    most = room if request.max_tokens is None else request.max_tokens
    if room < 1 or most > room:
        message = f"{num_prompt} prompt tokens and {most} more do not fit into {script.context_tokens}."
        raise Problem("context_length_exceeded", message, param="max_tokens")
    own = most if request.ignore_eos else max(script.output_tokens, request.min_tokens)
    return (own, "stop") if own < most else (most, "length")


def _score(token_id: int, logprob: float | None, top: list[TopLogprob]) -> TokenLogprob:
    raw = token_bytes(token_id)
    return TokenLogprob(token_id, raw.decode("utf-8", "replace"), logprob, list(raw), top)
