"""Embeddings: one vector per input in its order, the same in either encoding, with its usage."""

from __future__ import annotations

import sys
from array import array
from base64 import b64decode
from typing import Any

from penstock.conformance.check import Check, answered, demand, error_of, unless_refused
from penstock.conformance.endpoint import Endpoint

_INPUTS = ["a river", "a dam", "a penstock"]
_CLOSE = 1e-3


async def embeds_in_order(endpoint: Endpoint) -> str:
    answer = await _embedded(endpoint, input=_INPUTS)
    vectors = _vectors(answer, len(_INPUTS))
    alone = _vectors(await _embedded(endpoint, input=_INPUTS[0]), 1)[0]
    demand(_differ(alone, vectors[0]) < _CLOSE, "the first vector is not that of the first input alone")
    usage = answer.get("usage") or {}
    demand(usage.get("prompt_tokens", 0) >= len(_INPUTS), f"usage is {usage}")
    demand(usage.get("total_tokens") == usage["prompt_tokens"], f"usage is {usage}")
    return f"{len(vectors)} vectors of {len(alone)}"


async def encodes_in_base64(endpoint: Endpoint) -> str:
    floats = _vectors(await _embedded(endpoint, input=_INPUTS[0], encoding_format="float"), 1)[0]
    packed = (await _embedded(endpoint, input=_INPUTS[0], encoding_format="base64"))["data"][0]["embedding"]
    demand(isinstance(packed, str), "encoding_format base64 is answered with numbers")
    numbers = array("f", b64decode(packed))
    if sys.byteorder == "big":
        numbers.byteswap()
    demand(_differ(floats, numbers.tolist()) < _CLOSE, "base64 and float say different numbers")
    return f"{len(floats)} numbers"


async def refuses_no_input(endpoint: Endpoint) -> str:
    await _embedded(endpoint, input=_INPUTS[0])
    reply = await endpoint.ask("POST", "/embeddings", {"model": endpoint.model, "input": []})
    demand(reply.status == 400, f"instead of 400 the answer is {reply}")
    error_of(reply)
    return "400"


async def _embedded(endpoint: Endpoint, **fields: Any) -> dict[str, Any]:
    reply = await endpoint.ask("POST", "/embeddings", {"model": endpoint.model, **fields})
    answer: dict[str, Any] = answered(unless_refused(reply, "/embeddings"))
    return answer


def _vectors(answer: dict[str, Any], count: int) -> list[list[float]]:
    items = answer.get("data")
    demand(isinstance(items, list) and len(items) == count, f"{count} inputs became {str(items)[:80]}")
    assert isinstance(items, list)
    indices = [item.get("index") for item in items]
    demand(indices == list(range(count)), f"indices are {indices}")
    vectors = [item.get("embedding") for item in items]
    demand(all(isinstance(vector, list) and vector for vector in vectors), f"a vector is {str(vectors[0])[:80]}")
    return vectors


def _differ(one: list[float], other: list[float]) -> float:
    """The largest difference; infinite for different lengths."""
    if len(one) != len(other):
        return float("inf")
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


CHECKS = (
    Check("embed-order", "Every input has its vector, in order, whatever its company.", embeds_in_order),
    Check("embed-base64", "base64 and float say the same numbers.", encodes_in_base64),
    Check("embed-empty", "No input is 400.", refuses_no_input),
)
