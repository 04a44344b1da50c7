"""Usage of one OpenAI request, summed over the engine requests it became.

In: the engine's counts per choice; out: OpenAI's ``usage``.  A prompt counts once however many choices it has.
"""

from __future__ import annotations

import msgspec

from penstock.wire import engine


class PromptTokensDetails(msgspec.Struct, frozen=True):
    cached_tokens: int


class CompletionTokensDetails(msgspec.Struct, frozen=True):
    reasoning_tokens: int


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


def total(usages: list[engine.Usage], choices_per_prompt: int) -> Usage:
    """``usages`` in choice order; each run of ``choices_per_prompt`` shares one prompt."""
    firsts = usages[::choices_per_prompt]
    prompt = sum(usage.prompt for usage in firsts)
    output = sum(usage.output for usage in usages)
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=output,
        total_tokens=prompt + output,
        prompt_tokens_details=PromptTokensDetails(sum(usage.cached for usage in firsts)),
        completion_tokens_details=CompletionTokensDetails(sum(usage.reasoning for usage in usages)),
    )
