"""The embedding verb: the inputs of one request through the loop, and their vectors together.

In: a request; out: :class:`~penstock.wire.embedding.Embedded`, or a ``Problem`` that names the input at fault.
Only a few inputs of a request are in the queues at a time, so that a large one leaves others their turn.
"""

from __future__ import annotations

import asyncio
import dataclasses
from base64 import b64encode

from penstock.engine.adapters import Adapter
from penstock.engine.prefix import prefix_root
from penstock.engine.sequence import Pooling, Sequence, TokenScore
from penstock.engine.server.booted import Booted
from penstock.engine.server.runner import Runner
from penstock.wire.embedding import Embedded, EmbedRequest
from penstock.wire.engine import FinishReason, Sampling
from penstock.wire.errors import Problem

_NUM_QUEUED = 64
"""Inputs of one request in the queues: short texts enough to fill a step, and the next ones come at its commit."""
_NO_SAMPLING = Sampling(seed=0)


def pooling_of(request: EmbedRequest, booted: Booted) -> Pooling:
    """The model's pooling with the request's size.  Raises ``Problem`` for a size that the model does not have."""
    wanted, size = request.num_dimensions, booted.embedding_size
    if wanted is not None and not 1 <= wanted <= size:
        message = f"dimensions is {wanted}; this model's embeddings have {size}, so 1 to {size} are possible."
        raise Problem("invalid_value", message, param="dimensions")
    return dataclasses.replace(booted.pooling, num_dimensions=wanted)


def input_ids(request: EmbedRequest, booted: Booted) -> list[list[int]]:
    """Token ids of every input, checked.  For a worker thread.  Raises ``Problem`` that names the first bad input."""
    if request.texts is None:
        inputs = request.token_ids or []
    else:
        inputs = [_encoded(text, index, booted) for index, text in enumerate(request.texts)]
    for index, token_ids in enumerate(inputs):
        _check_vocabulary(token_ids, index, booted.vocab_size)
        _check_length(len(token_ids), index, booted)
    return inputs


def _encoded(text: str, index: int, booted: Booted) -> list[int]:
    try:
        return booted.tokenizer.encode(text)
    except Problem as problem:
        raise Problem(problem.code, f"input[{index}]: {problem.message}", param=f"input[{index}]") from None


def _check_vocabulary(token_ids: list[int], index: int, vocab_size: int) -> None:
    for wrong in (min(token_ids, default=0), max(token_ids, default=0)):
        if not 0 <= wrong < vocab_size:
            message = f"input[{index}] has the token id {wrong}, which is not in the vocabulary of {vocab_size} tokens."
            raise Problem("invalid_value", message, param=f"input[{index}]")


def _check_length(num_tokens: int, index: int, booted: Booted) -> None:
    if num_tokens == 0:
        raise Problem("invalid_value", f"input[{index}] has no tokens; give at least one.", param=f"input[{index}]")
    if num_tokens > booted.context_tokens:
        limit = f"{booted.context_limit} holds {booted.context_tokens} tokens"
        message = f"input[{index}] has {num_tokens} tokens; {limit}.  It is not cut: split the text."
        raise Problem("context_length_exceeded", message, param=f"input[{index}]")


class Embedding:
    """One request's inputs under way.  Made, run and aborted on the event loop's thread."""

    def __init__(
        self,
        id: str,
        inputs: list[list[int]],
        pooling: Pooling,
        request: EmbedRequest,
        adapter: Adapter | None,
        runner: Runner,
    ) -> None:
        self.id = id
        self._inputs = inputs
        self._pooling = pooling
        self._request = request
        self._adapter = adapter
        self._root = prefix_root(cache_salt=request.cache_salt, adapter=request.adapter)
        self._runner = runner
        self._vectors = [""] * len(inputs)
        self._num_submitted = 0
        self._num_cached = 0
        self._queued: dict[str, Sequence] = {}
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> Embedded:
        """The vectors of all inputs; being cancelled aborts them.  Raises the ``Problem`` of the first that failed."""
        try:
            for _ in range(min(_NUM_QUEUED, len(self._inputs))):
                self._submit_next()
            await self._done
        finally:
            for sequence_id in list(self._queued):
                self._runner.abort(sequence_id)
        return Embedded(
            vectors=self._vectors, prompt_tokens=sum(map(len, self._inputs)), cached_tokens=self._num_cached
        )

    def abort(self) -> None:
        """End it from outside; unless it just ended, :meth:`run` raises."""
        self.failed(Problem("draining", "The engine cancelled the request."))

    def failed(self, problem: Problem) -> None:
        """One input could not be computed, so there is no answer."""
        if not self._done.done():
            self._done.set_exception(problem)

    def finished(self, index: int, sequence_id: str, num_cached: int) -> None:
        """Input ``index`` has its vector."""
        sequence = self._queued.pop(sequence_id)
        assert sequence.pooled is not None, "finished without a vector"
        self._vectors[index] = b64encode(sequence.pooled).decode()
        self._num_cached += num_cached
        if self._done.done():
            return
        if self._num_submitted < len(self._inputs):
            self._submit_next()
        elif not self._queued:
            self._done.set_result(None)

    def _submit_next(self) -> None:
        index = self._num_submitted
        self._num_submitted += 1
        token_ids, sequence_id = self._inputs[index], f"{self.id}.{index}"
        sequence = self._queued[sequence_id] = Sequence(
            id=sequence_id,
            token_ids=token_ids,
            num_prompt_tokens=len(token_ids),
            max_tokens=0,
            sampling=_NO_SAMPLING,
            sink=_InputSink(self, index, sequence_id),
            prefix_root=self._root,
            adapter=self._adapter,
            tenant=self._request.tenant,
            weight=self._request.weight,
            priority=self._request.priority,
            pooling=self._pooling,
        )
        self._runner.submit(sequence)


@dataclasses.dataclass(slots=True)
class _InputSink:
    """The :class:`~penstock.engine.sequence.TokenSink` of one input."""

    embedding: Embedding
    index: int
    sequence_id: str

    def prompt_scored(self, scores: list[TokenScore]) -> None:
        raise AssertionError("nobody asked for scores")

    def push(self, token_id: int, score: TokenScore | None) -> bool:
        raise AssertionError("an embedding has no output")

    def finish(self, reason: FinishReason, stop_token_id: int | None, num_cached_tokens: int) -> None:
        if reason == "cancelled":
            self.embedding.abort()
        else:
            self.embedding.finished(self.index, self.sequence_id, num_cached_tokens)

    def fail(self, problem: Problem) -> None:
        self.embedding.failed(problem)
