"""What the engine protocol's verbs do, without HTTP.

In: decoded requests; out: streams, token ids, load.  Rendering and tokenising run in a thread, so that neither a slow
template nor a long prompt holds up the streams that are running.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from penstock.engine.adapters import Adapter, Adapters
from penstock.engine.prefix import prefix_root
from penstock.engine.sequence import Sequence
from penstock.engine.server.booted import Booted
from penstock.engine.server.embed import Embedding, input_ids, pooling_of
from penstock.engine.server.prompt import check_ids, prompt_of, tokens_of
from penstock.engine.server.runner import Runner
from penstock.engine.server.stream import TextStream
from penstock.text.answer import AnswerParser
from penstock.text.grammar import GrammarConstraint
from penstock.wire.embedding import Embedded, EmbedRequest
from penstock.wire.engine import Accepted, GenerateRequest, LoadAdapter, LoadedAdapter, UnloadAdapter
from penstock.wire.errors import Problem
from penstock.wire.load import Load, Phase, Progress, ProgressRequest
from penstock.wire.tokenization import Detokenized, DetokenizeRequest, Tokenized, TokenizeRequest

_LONG_TEXT_CHARS = 256 * 1024
"""From here on a tokenisation counts in tenths of a second and of a gigabyte."""

R = TypeVar("R", EmbedRequest, GenerateRequest, TokenizeRequest)
T = TypeVar("T")


@dataclass(slots=True)
class Opened:
    """A stream under way.  ``sequence_id`` is unique per attempt, where the request's id is not."""

    stream: TextStream
    sequence_id: str
    constraint: GrammarConstraint | None = None


class Service:
    """The verbs of one booted engine.  ``itl_target_s``: what streams of priority 0 and better aim at."""

    def __init__(
        self, booted: Booted, runner: Runner, *, model: str, max_waiting: int, itl_target_s: float | None = None
    ) -> None:
        self._booted = booted
        self._runner = runner
        self._model = model
        self._max_waiting = max_waiting
        self._itl_target_s = itl_target_s
        self._attempts = itertools.count()
        self._open: defaultdict[str, set[str]] = defaultdict(set)
        self._embeddings: dict[str, Embedding] = {}
        self._long_text = asyncio.Lock()
        self._compiling = asyncio.Lock()
        self._adapting = asyncio.Lock()

    @property
    def num_open(self) -> int:
        """Requests whose streams are not closed."""
        return len(self._open)

    async def generate(self, request: GenerateRequest) -> Opened:
        """Queue a request.  Raises a ``Problem`` when it cannot be rendered, does not fit, or too many wait."""
        if not self._booted.generates:
            message = f"{self._model} is an encoder: it answers /v1/embeddings and generates no text."
            raise Problem("invalid_value", message, param="model")
        self._refuse_overload()
        adapter = self._adapter(request.adapter)
        prompt_ids, answer = await self._beside(lambda request: prompt_of(request, self._booted, self._model), request)
        max_tokens = self._checked_max_tokens(request, len(prompt_ids))
        constraint = await self._constraint(request, answer)
        stream = self._stream(request, prompt_ids, answer)
        opened = Opened(stream, f"{request.id}#{next(self._attempts)}", constraint)
        sequence = self._sequence(request, opened, prompt_ids, max_tokens)
        sequence.adapter = adapter
        stream.accept()
        if self._is_complete(request, stream, max_tokens):
            stream.finish("length", None, 0)
        else:
            self._open[request.id].add(opened.sequence_id)
            self._runner.submit(sequence)
        return opened

    async def embed(self, request: EmbedRequest, accept: Callable[[Accepted], Awaitable[None]]) -> Embedded:
        """Embed every input of a request; ``accept`` is awaited before the first is computed.

        Being cancelled aborts what still runs.  Raises ``Problem`` as generate.
        """
        self._refuse_overload()
        pooling = pooling_of(request, self._booted)
        adapter = self._adapter(request.adapter)
        inputs = await self._beside(lambda request: input_ids(request, self._booted), request)
        await accept(Accepted(prompt_tokens=sum(map(len, inputs))))
        embedding = Embedding(f"{request.id}#{next(self._attempts)}", inputs, pooling, request, adapter, self._runner)
        self._open[request.id].add(embedding.id)
        self._embeddings[embedding.id] = embedding
        try:
            return await embedding.run()
        finally:
            del self._embeddings[embedding.id]
            self._forget(request.id, embedding.id)

    def close(self, request_id: str, opened: Opened) -> None:
        """The stream's reader is done or gone: whatever still runs is aborted."""
        self._runner.abort(opened.sequence_id)
        if opened.constraint is not None:
            opened.constraint.close()
        self._forget(request_id, opened.sequence_id)

    def abort(self, request_id: str) -> None:
        for attempt in list(self._open.get(request_id, ())):
            if attempt in self._embeddings:
                self._embeddings[attempt].abort()
            else:
                self._runner.abort(attempt)

    def progress(self, request: ProgressRequest) -> Progress:
        computed = {
            id: max((done for done in map(self._runner.loop.decoded, self._open[id]) if done is not None), default=None)
            for id in request.ids
            if id in self._open
        }
        return Progress(steps=self._runner.num_steps, step_limit_s=self._runner.step_limit_s, computed=computed)

    async def tokenize(self, request: TokenizeRequest) -> Tokenized:
        return await self._beside(self._tokenized, request)

    async def detokenize(self, request: DetokenizeRequest) -> Detokenized:
        return await asyncio.to_thread(self._detokenized, request)

    async def load_adapter(self, request: LoadAdapter) -> LoadedAdapter:
        """Read it beside the steps.  Raises ``Problem`` for one that does not fit the model, the room or its digest."""
        adapters = self._adapters()
        async with self._adapting:
            if adapters.get(request.digest) is not None:
                return LoadedAdapter(digest=request.digest)
            adapters.check_room()
            adapter = await asyncio.to_thread(adapters.read, Path(request.path))
            if request.digest and adapter.digest != request.digest:
                message = (
                    f"{request.path} holds another adapter now ({adapter.digest}) than the {request.digest} asked for"
                )
                raise Problem("conflict", f"{message}; load it under a name of its own.")
            adapters.add(adapters.get(adapter.digest) or adapter)
        return LoadedAdapter(digest=adapter.digest)

    def unload_adapter(self, request: UnloadAdapter) -> None:
        self._adapters().drop(request.digest)

    def _adapters(self) -> Adapters:
        if self._booted.adapters is None:
            raise Problem("invalid_value", f"{self._model} takes no adapters.", param="model")
        return self._booted.adapters

    def _adapter(self, digest: str) -> Adapter | None:
        """What a sequence keeps: an adapter that is dropped meanwhile is still its own."""
        return self._adapters().find(digest) if digest else None

    async def _beside(self, work: Callable[[R], T], request: R) -> T:
        """``work(request)`` in a thread.  Long texts take turns: short ones find a free thread, memory is bounded."""
        if _num_chars(request) < _LONG_TEXT_CHARS:
            return await asyncio.to_thread(work, request)
        async with self._long_text:
            return await asyncio.to_thread(work, request)

    def _refuse_overload(self) -> None:
        if len(self._runner.loop.scheduler.waiting) >= self._max_waiting:
            message = f"{self._max_waiting} requests are waiting already."
            raise Problem("overloaded", message, retry_after_s=max(1.0, 100 * self._runner.step_time_s))

    def _forget(self, request_id: str, attempt: str) -> None:
        attempts = self._open.get(request_id)
        if attempts is not None:
            attempts.discard(attempt)
            if not attempts:
                del self._open[request_id]

    async def _constraint(self, request: GenerateRequest, answer: AnswerParser) -> GrammarConstraint | None:
        """Compile one grammar at a time, so that a flood of slow ones leaves threads to everybody else.

        ``answer`` has seen the prompt and no output yet.
        """
        grammar = request.grammar
        if request.tool_use is not None:
            grammar = self._booted.answers.grammar(self._booted.tokenizer, request.tool_use, grammar)
        if grammar is None:
            return None
        async with self._compiling:
            return await asyncio.to_thread(
                self._booted.grammars.constrain,
                grammar,
                stop_token_ids=self._stop_token_ids(request),
                emitted_token_ids=request.emitted_token_ids,
                thinking=answer.thinking,
            )

    def _tokenized(self, request: TokenizeRequest) -> Tokenized:
        tokenizer, token_ids = self._booted.tokenizer, tokens_of(request, self._booted, self._model)
        texts = [tokenizer.token_text(token_id) for token_id in token_ids]
        return Tokenized(token_ids=token_ids, token_texts=texts, context_tokens=self._booted.context_tokens)

    def _detokenized(self, request: DetokenizeRequest) -> Detokenized:
        check_ids(request.token_ids, self._booted, "tokens")
        return Detokenized(text=self._booted.tokenizer.decode(request.token_ids, skip_special_tokens=False))

    def load(self, phase: Phase) -> Load:
        scheduler, pool = self._runner.loop.scheduler, self._runner.loop.scheduler.pool
        return Load(
            phase=phase,
            progress=1.0,
            model=self._model,
            context_tokens=self._booted.context_tokens,
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            queued_tokens=self._runner.loop.num_queued_tokens,
            kv_blocks_total=pool.num_blocks,
            kv_blocks_cached=pool.num_cached,
            kv_blocks_used=pool.num_used,
            kv_block_tokens=scheduler.rules.block_tokens,
            step_time_s=self._runner.step_time_s,
            step_age_s=self._runner.step_age_s,
            step_limit_s=self._runner.step_limit_s,
            weights_bytes=self._booted.weights_bytes,
            kv_bytes=self._booted.kv_bytes,
            generates=self._booted.generates,
            exact=self._booted.exact,
            quantization=self._booted.quantization,
            weights=self._booted.weights,
            vocabulary=self._booted.vocabulary,
            adapters=[] if self._booted.adapters is None else self._booted.adapters.digests,
        )

    def _stream(self, request: GenerateRequest, prompt_ids: list[int], answer: AnswerParser) -> TextStream:
        call_id: Callable[[int], str] = str
        if request.tool_use is not None:
            call_id = partial(self._booted.answers.call_id, request.tool_use)
        return TextStream(request, prompt_ids, self._booted.tokenizer, answer, call_id)

    def _checked_max_tokens(self, request: GenerateRequest, num_prompt: int) -> int:
        context, room = self._booted.context_tokens, self._booted.context_tokens - num_prompt
        wanted = request.max_tokens if request.max_tokens is not None else max(1, room)
        if wanted > room:
            asked = (
                f"and {request.max_tokens} tokens of output were asked for"
                if request.max_tokens
                else "before any output"
            )
            why = self._booted.context_limit
            message = f"The prompt has {num_prompt} tokens {asked}; {why} holds {context} tokens."
            raise Problem("context_length_exceeded", message, param="max_tokens" if room > 0 else "prompt")
        if len(request.emitted_token_ids) > wanted:
            message = f"{len(request.emitted_token_ids)} emitted tokens exceed max_tokens {wanted}."
            raise Problem("invalid_value", message, param="emitted_token_ids")
        return wanted

    def _stop_token_ids(self, request: GenerateRequest) -> frozenset[int]:
        own = frozenset(request.stop_token_ids)
        return own if request.ignore_eos else own | self._booted.tokenizer.stop_token_ids

    def _sequence(self, request: GenerateRequest, opened: Opened, prompt_ids: list[int], max_tokens: int) -> Sequence:
        return Sequence(
            id=opened.sequence_id,
            token_ids=prompt_ids + request.emitted_token_ids,
            num_prompt_tokens=len(prompt_ids),
            max_tokens=max_tokens,
            sampling=request.sampling,
            sink=opened.stream,
            min_tokens=request.min_tokens,
            stop_token_ids=self._stop_token_ids(request),
            constraint=opened.constraint,
            prefix_root=prefix_root(cache_salt=request.cache_salt, adapter=request.adapter),
            tenant=request.tenant,
            weight=request.weight,
            priority=request.priority,
            itl_target_s=self._itl_target_s if request.priority <= 0 else None,
            waits=opened.stream.waits,
            num_logprobs=request.logprobs,
            score_prompt=request.echo and request.logprobs is not None,
        )

    def _is_complete(self, request: GenerateRequest, stream: TextStream, max_tokens: int) -> bool:
        """A resumed request may have been cut just before its terminal event."""
        emitted = request.emitted_token_ids
        return stream.is_over or (bool(emitted) and len(emitted) >= max_tokens)


def _num_chars(request: EmbedRequest | GenerateRequest | TokenizeRequest) -> int:
    """Length of the text that is to become tokens; of messages, what their contents have."""
    if isinstance(request, EmbedRequest):
        return sum(map(len, request.texts or ()))
    if request.messages is None:
        return len(request.text or "")
    return sum(len(content) for message in request.messages if isinstance(content := message.get("content"), str))
