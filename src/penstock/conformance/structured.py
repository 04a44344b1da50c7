"""Structured output: an answer is what the schema says, streamed too, and a schema that is none is refused."""

from __future__ import annotations

from functools import partial
from typing import Any

import msgspec

from penstock.conformance.check import Check, answered, demand, ending, error_of, unless_refused
from penstock.conformance.endpoint import Endpoint
from penstock.conformance.stream import Stream, streamed

_SCHEMA = {
    "type": "object",
    "properties": {"deep": {"type": "boolean"}, "unit": {"enum": ["metre", "foot"]}},
    "required": ["deep", "unit"],
    "additionalProperties": False,
}


def _format(schema: Any) -> dict[str, Any]:
    named = {"name": "river", "schema": schema, "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": named}, "max_tokens": 160, "temperature": 1}


async def keeps_the_schema(endpoint: Endpoint) -> str:
    choice = await ending(partial(_plain, endpoint), lambda choice: choice.get("finish_reason"))
    return _keeps(choice["message"].get("content"))


async def streams_the_schema(endpoint: Endpoint) -> str:
    return _keeps((await ending(partial(_streamed, endpoint), lambda stream: stream.reason)).text())


async def refuses_a_wrong_schema(endpoint: Endpoint) -> str:
    await _plain(endpoint, seed=1)
    reply = await endpoint.chat(**_format({"type": "no-such-type"}))
    demand(reply.status == 400, f"instead of 400 the answer is {reply}")
    error_of(reply)
    return "400"


async def _plain(endpoint: Endpoint, seed: int) -> dict[str, Any]:
    """The one choice of a plain answer."""
    reply = unless_refused(await endpoint.chat(**_format(_SCHEMA), seed=seed), "json_schema")
    choice: dict[str, Any] = answered(reply)["choices"][0]
    return choice


async def _streamed(endpoint: Endpoint, seed: int) -> Stream:
    return await streamed(endpoint, what="json_schema", **_format(_SCHEMA), seed=seed)


def _keeps(text: Any) -> str:
    try:
        value = msgspec.json.decode(text or "")
    except msgspec.DecodeError:
        value = None
    kept = isinstance(value, dict) and value.keys() == {"deep", "unit"}
    demand(kept and isinstance(value["deep"], bool) and value["unit"] in ("metre", "foot"), f"the text is {text!r}")
    return str(text)


CHECKS = (
    Check("schema-kept", "An answer under a JSON schema is an instance of it.", keeps_the_schema),
    Check("schema-stream", "So is a streamed one.", streams_the_schema),
    Check("schema-wrong", "A schema that is none is 400.", refuses_a_wrong_schema),
)
