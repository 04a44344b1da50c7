"""Structured output through the whole service, with the official client and a model that babbles."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from typing import Any, Literal

import jsonschema
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

MODEL = "seeded-1"
CHAT: list[Any] = [{"role": "user", "content": "Say something."}]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
LONG_SCHEMA: dict[str, Any] = {"type": "string", "pattern": "^([a-z]{9}-){40}$"}
LONG_FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "words", "schema": LONG_SCHEMA}}
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}

DEEP_GRAMMAR = "\n".join(["start: r0", *(f'r{i}: r{i + 1} "a"' for i in range(3000)), 'r3000: "b"'])
"""Ends the process that compiles it, by exhausting its stack."""


@pytest.fixture(scope="module")
def client(service) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def chat(client: OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(
        model=MODEL, messages=CHAT, **({"max_tokens": 600, "temperature": 1.0, "seed": 1} | fields)
    )


@pytest.mark.parametrize("seed", range(3))
def test_a_schema_binds_plain_and_streamed_answers_alike(client: OpenAI, seed: int) -> None:
    """An answer under a schema is valid JSON of that schema, ends by itself, and streams as the same text."""
    whole = chat(client, response_format=FORMAT, seed=seed).choices[0]
    chunks = [chunk.choices[0] for chunk in chat(client, response_format=FORMAT, seed=seed, stream=True)]

    jsonschema.validate(json.loads(whole.message.content), SCHEMA)
    assert whole.finish_reason == chunks[-1].finish_reason == "stop"
    assert "".join(chunk.delta.content or "" for chunk in chunks) == whole.message.content


def test_an_answer_that_is_cut_says_so(client: OpenAI) -> None:
    """When max_tokens ends the text before the grammar does, the reason is length."""
    choice = chat(client, response_format=FORMAT, max_tokens=5).choices[0]

    assert choice.finish_reason == "length"
    assert choice.message.content.startswith("{")


class Answer(BaseModel):
    """What the client's own parser is to make of an answer."""

    colour: Literal["red", "green"]
    size: int | None


def test_the_clients_own_parser_takes_every_answer(client: OpenAI) -> None:
    """`chat.completions.parse` with a pydantic model gives an instance of it."""
    answer = client.chat.completions.parse(model=MODEL, messages=CHAT, response_format=Answer, max_tokens=400, seed=3)
    assert isinstance(answer.choices[0].message.parsed, Answer)


def test_text_completions_take_expressions_choices_and_grammars(client: OpenAI) -> None:
    """Other servers' fields bind text completions too."""

    def complete(**fields: Any) -> str:
        text: str = client.completions.create(model=MODEL, prompt="x", max_tokens=50, extra_body=fields).choices[0].text
        return text

    assert complete(structured_outputs={"regex": "[a-c]{4}-[0-9]+x"})[4] == "-"
    assert complete(structured_outputs={"choice": ["yes", "no"]}) in ("yes", "no")
    assert complete(guided_grammar='start: "a" ("b" | "c") "!"') in ("ab!", "ac!")
    assert complete(guided_choice=["é😀\n"]) == "é😀\n"
    assert isinstance(
        json.loads(complete(guided_json=json.dumps({"type": "integer", "maximum": 9, "minimum": 0}))), int
    )


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"response_format": {"type": "xml"}}, "invalid_value", "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "invalid_value", "response_format.json_schema.schema"),
        ({"response_format": FORMAT, "guided_regex": "a"}, "invalid_value", "guided_regex"),
        ({"guided_json": {"type": "text"}}, "grammar_invalid", "guided_json"),
        ({"guided_json": False}, "grammar_invalid", "guided_json"),
        ({"guided_grammar": DEEP_GRAMMAR}, "grammar_too_complex", "guided_grammar"),
    ],
)
def test_what_cannot_be_enforced_is_refused_by_name(
    client: OpenAI, fields: dict[str, Any], code: str, param: str
) -> None:
    """A wrong, impossible or hostile demand is a 400 that names the field."""
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, extra_body=fields)
    assert (caught.value.code, caught.value.param) == (code, param)


@pytest.mark.slow
async def test_answers_under_a_schema_survive_kills(serve) -> None:
    """Engines are killed while answers stream: each answer is still JSON of its schema, and none is lost."""
    running = serve("--replicas", "2")
    client = AsyncOpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0, timeout=120)

    async def answer(seed: int) -> str:
        stream = await client.chat.completions.create(
            model=MODEL, messages=CHAT, response_format=LONG_FORMAT, seed=seed, max_tokens=500, stream=True
        )
        choices = [chunk.choices[0] async for chunk in stream]
        assert choices[-1].finish_reason == "stop"
        return "".join(choice.delta.content or "" for choice in choices)

    undisturbed = [await answer(seed) for seed in range(2)]
    disturbed: list[str] = []
    for _ in range(20):
        answers = asyncio.gather(*(answer(seed) for seed in range(2)))
        await asyncio.sleep(0.15)
        for member in (await asyncio.to_thread(running.state))["members"]:
            if member["phase"] == "ready" and member["kind"] == "engine":
                os.kill(member["pid"], signal.SIGKILL)
                break
        disturbed += await answers
        if resumes(running) >= 2:
            break
    await client.close()

    assert resumes(running) >= 2
    for text in undisturbed + disturbed:
        jsonschema.validate(json.loads(text), LONG_SCHEMA)


def resumes(running) -> int:
    lines = [line for line in running.metrics().splitlines() if line.startswith("penstock_stream_resumes_total")]
    return sum(int(float(line.split()[-1])) for line in lines)
