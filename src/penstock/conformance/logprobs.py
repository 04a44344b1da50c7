"""Log-probabilities: one entry per token, its bytes, its alternatives, plain and streamed."""

from __future__ import annotations

import math
from typing import Any

from penstock.conformance.check import Check, answered, demand, error_of, unless_refused
from penstock.conformance.endpoint import Endpoint
from penstock.conformance.stream import streamed

_ASKED: dict[str, Any] = {"logprobs": True, "top_logprobs": 3, "max_tokens": 8}


async def scores_every_token(endpoint: Endpoint) -> str:
    answer = answered(unless_refused(await endpoint.chat(**_ASKED), "logprobs"))
    entries = _entries(answer["choices"][0])
    tokens = (answer.get("usage") or {}).get("completion_tokens", 0)
    # A token that ends the answer is counted and may have no entry.
    demand(tokens - 1 <= len(entries) <= tokens, f"{len(entries)} entries for {tokens} tokens")
    for entry in entries:
        value = entry.get("logprob")
        demand(isinstance(value, float | int) and math.isfinite(value) and value <= 0, f"an entry is {entry}")
        demand(isinstance(entry.get("token"), str), f"an entry is {entry}")
        alternatives = entry.get("top_logprobs")
        demand(isinstance(alternatives, list) and len(alternatives) == 3, f"alternatives are {alternatives}")
    said = b"".join(bytes(entry.get("bytes") or []) for entry in entries).decode("utf-8", "replace")
    text = answer["choices"][0]["message"].get("content") or ""
    demand(said.startswith(text) or text.startswith(said), f"the bytes say {said!r}, the text {text!r}")
    return f"{len(entries)} entries"


async def streams_the_scores(endpoint: Endpoint) -> str:
    plain = answered(unless_refused(await endpoint.chat(**_ASKED), "logprobs"))
    stream = await streamed(endpoint, what="logprobs", **_ASKED)
    joined = [entry["token"] for choice in stream.choices(0) if choice.get("logprobs") for entry in _entries(choice)]
    whole = [entry["token"] for entry in _entries(plain["choices"][0])]
    demand(joined == whole, f"streamed {joined}, plain {whole}")
    return f"{len(joined)} entries"


async def refuses_alternatives_alone(endpoint: Endpoint) -> str:
    unless_refused(await endpoint.chat(**_ASKED), "logprobs")
    reply = await endpoint.chat(logprobs=False, top_logprobs=3)
    demand(reply.status == 400, f"instead of 400 the answer is {reply}")
    error_of(reply)
    return "400"


def _entries(choice: dict[str, Any]) -> list[dict[str, Any]]:
    entries = (choice.get("logprobs") or {}).get("content")
    demand(isinstance(entries, list), f"logprobs are {choice.get('logprobs')!r}")
    assert isinstance(entries, list)
    return entries


CHECKS = (
    Check("logprob-plain", "Every token has its log-probability, bytes and three alternatives.", scores_every_token),
    Check("logprob-stream", "A stream brings the same entries.", streams_the_scores),
    Check("logprob-alone", "top_logprobs without logprobs is 400.", refuses_alternatives_alone),
)
