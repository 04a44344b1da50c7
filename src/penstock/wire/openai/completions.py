"""Text completions, the way in: OpenAI's request to one engine request per prompt and choice.

In: a body; out: ``CompletionRequest`` and its ``GenerateRequest`` list, or a ``Problem`` that names the field.
Choice ``prompt * n + choice``, as OpenAI numbers them.
"""

from __future__ import annotations

import msgspec

from penstock.wire.engine import GenerateRequest
from penstock.wire.errors import Problem
from penstock.wire.openai import fields
from penstock.wire.openai.decode import decode_body
from penstock.wire.openai.fields import UNSET, Absent
from penstock.wire.openai.structured import grammar_of

_UNSUPPORTED = (*fields.SHARED_UNSUPPORTED, "suffix")
_DEFAULT_MAX_TOKENS = 16


class CompletionRequest(fields.Shared, kw_only=True, frozen=True):
    """``max_tokens`` is 16 if left out, as OpenAI has it."""

    prompt: str | list[str | int | list[int]]
    logprobs: int | None = None
    echo: bool | None = None
    best_of: int | None = None
    suffix: Absent = UNSET

    @property
    def prompts(self) -> list[str | list[int]]:
        """Texts or token ids; ``decode`` has checked that they are of one kind."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [[item for item in self.prompt if isinstance(item, int)]]
        return [item for item in self.prompt if not isinstance(item, int)]

    @property
    def num_choices(self) -> int:
        return len(self.prompts) * self.choices_per_prompt

    def beginning(self) -> bytes:
        """What continuations of one text share: its first characters, or token ids."""
        first = self.prompts[0]
        return first[:_BEGINNING].encode("utf-8", "surrogatepass") if isinstance(first, str) else _encode(first[:16])


_decoder = msgspec.json.Decoder(CompletionRequest)
_encode = msgspec.json.Encoder().encode
_BEGINNING = 64


def decode(body: bytes) -> CompletionRequest:
    """Decode and check one request body.  Raises ``Problem``."""
    request = decode_body(_decoder, body)
    fields.refuse_unsupported(request, _UNSUPPORTED)
    fields.check_shared(request)
    fields.check_max_tokens(
        request.max_tokens, "max_tokens", least=0 if request.echo else 1, min_tokens=request.min_tokens
    )
    if request.logprobs is not None and not 0 <= request.logprobs <= fields.MAX_TOP_LOGPROBS:
        raise fields.out_of_range("logprobs", request.logprobs, 0, fields.MAX_TOP_LOGPROBS)
    _check_best_of(request)
    _check_prompt(request.prompt)
    if request.num_choices > fields.MAX_CHOICES:
        message = f"prompt and n ask for {request.num_choices} choices; at most {fields.MAX_CHOICES} are allowed."
        raise Problem("invalid_value", message, param="prompt")
    return request


def _check_best_of(request: CompletionRequest) -> None:
    best_of = request.best_of
    if best_of is None or best_of == request.choices_per_prompt:
        return
    if best_of < request.choices_per_prompt:
        raise Problem("invalid_value", f"best_of is {best_of}, less than n, {request.n or 1}.", param="best_of")
    raise Problem("unsupported_parameter", "best_of greater than n is not supported by this release.", param="best_of")


def _check_prompt(prompt: str | list[str | int | list[int]]) -> None:
    if isinstance(prompt, str):
        return
    if not prompt:
        raise Problem("invalid_value", "prompt is empty; a text or token ids are needed.", param="prompt")
    kind = type(prompt[0])
    for index, item in enumerate(prompt):
        if type(item) is not kind:
            message = f"prompt[{index}] is of another kind than prompt[0]; texts, token ids and lists do not mix."
            raise Problem("invalid_type", message, param=f"prompt[{index}]")
        if isinstance(item, list):
            if not item:
                raise Problem("invalid_value", f"prompt[{index}] is empty.", param=f"prompt[{index}]")
            fields.check_token_ids(item, f"prompt[{index}]")
    if kind is int:
        fields.check_token_ids([item for item in prompt if isinstance(item, int)], "prompt")


def engine_requests(request: CompletionRequest, id: str, drawn_seed: int) -> list[GenerateRequest]:
    """One engine request per choice, ids ``{id}-{choice}``.

    With the caller's seed every prompt draws from the same seeds, whatever its company; with a drawn one all differ.
    """
    grammar = grammar_of(request)
    prompts, per_prompt = request.prompts, request.choices_per_prompt
    distinct = per_prompt if request.seed is not None else per_prompt * len(prompts)
    samplings = fields.samplings(request, drawn_seed, distinct)
    return [
        GenerateRequest(
            id=f"{id}-{index}",
            sampling=samplings[index % distinct],
            text=prompt if isinstance(prompt, str) else None,
            token_ids=None if isinstance(prompt, str) else prompt,
            max_tokens=_DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens,
            min_tokens=request.min_tokens or 0,
            ignore_eos=bool(request.ignore_eos),
            stop=fields.stops_of(request),
            stop_token_ids=request.stop_token_ids or [],
            logprobs=request.logprobs,
            echo=bool(request.echo),
            grammar=grammar,
        )
        for index, prompt in enumerate(prompt for prompt in prompts for _ in range(per_prompt))
    ]
