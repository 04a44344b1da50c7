"""Tools: a required call is whole, streams in parts that clients can join, and a wrong choice is refused."""

from __future__ import annotations

from functools import partial
from typing import Any

import msgspec

from penstock.conformance.check import Check, answered, demand, ending, error_of, unless_refused
from penstock.conformance.endpoint import Endpoint
from penstock.conformance.stream import Stream, streamed

_PARAMETERS = {
    "type": "object",
    "properties": {"unit": {"enum": ["metre", "foot"]}},
    "required": ["unit"],
    "additionalProperties": False,
}
_TOOLS = [{"type": "function", "function": {"name": "depth", "description": "How deep.", "parameters": _PARAMETERS}}]
_ASKED: dict[str, Any] = {"tools": _TOOLS, "tool_choice": "required", "max_tokens": 160, "temperature": 1}


async def calls_a_tool(endpoint: Endpoint) -> str:
    choice = await ending(partial(_plain, endpoint), lambda choice: choice.get("finish_reason"))
    calls = choice["message"].get("tool_calls")
    demand(isinstance(calls, list) and calls, f"the message is {choice['message']}")
    for call in calls:
        demand(isinstance(call.get("id"), str) and call["id"], f"a call without id: {call}")
        demand(call.get("type") == "function", f"a call's type: {call}")
        _arguments(call["function"]["name"], call["function"]["arguments"])
    reason = choice.get("finish_reason")
    demand(reason == "tool_calls", f"finish_reason is {reason!r}")
    return f"{len(calls)} calls"


async def streams_a_call(endpoint: Endpoint) -> str:
    stream = await ending(partial(_streamed, endpoint), lambda stream: stream.reason)
    calls: dict[int, list[dict[str, Any]]] = {}
    for delta in stream.deltas():
        for part in delta.get("tool_calls") or []:
            demand(isinstance(part.get("index"), int), f"a part without index: {part}")
            calls.setdefault(part["index"], []).append(part)
    demand(calls, f"no call is streamed, but {stream.text()!r}")
    for first, *later in calls.values():
        head = (first.get("id"), first.get("type"), (first.get("function") or {}).get("name"))
        demand(head[0] and head[1] == "function" and head[2], f"the first part of a call is {first}")
        for part in later:
            demand("type" not in part or part["type"] == "function", f"a later part has a type that is none: {part}")
            demand(not (part.get("function") or {}).get("name"), f"a later part names the function again: {part}")
        texts = [(part.get("function") or {}).get("arguments") or "" for part in (first, *later)]
        _arguments(str(head[2]), "".join(texts))
    demand(stream.reasons() == ["tool_calls"], f"finish reasons are {stream.reasons()}")
    return f"{len(calls)} calls in {sum(map(len, calls.values()))} parts"


async def refuses_an_unknown_tool(endpoint: Endpoint) -> str:
    await _plain(endpoint, seed=1)
    wrong = {"type": "function", "function": {"name": "nobody"}}
    reply = await endpoint.chat(**(_ASKED | {"tool_choice": wrong}))
    demand(reply.status == 400, f"instead of 400 the answer is {reply}")
    error_of(reply)
    return "400"


async def _plain(endpoint: Endpoint, seed: int) -> dict[str, Any]:
    """The one choice of a plain answer."""
    reply = unless_refused(await endpoint.chat(**_ASKED, seed=seed), "tool_choice: required")
    choice: dict[str, Any] = answered(reply)["choices"][0]
    return choice


async def _streamed(endpoint: Endpoint, seed: int) -> Stream:
    return await streamed(endpoint, what="tool_choice: required", **_ASKED, seed=seed)


def _arguments(name: str, text: str) -> None:
    demand(name == "depth", f"the call names {name!r}")
    try:
        value = msgspec.json.decode(text)
    except msgspec.DecodeError:
        value = None
    demand(value in ({"unit": "metre"}, {"unit": "foot"}), f"the arguments are {text!r}")


CHECKS = (
    Check("tool-call", "A required call has id, type, name and arguments of the schema.", calls_a_tool),
    Check("tool-stream", "A streamed call's first part has id, type and name, later ones arguments.", streams_a_call),
    Check("tool-unknown", "A tool_choice that names no tool is 400.", refuses_an_unknown_tool),
)
