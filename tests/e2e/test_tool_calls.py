"""A model that calls tools, through the official client: streamed, whole, and across the death of its engine."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from scripted import write_scripted_checkpoint

PLACES = {f"place {n}": random.Random(n).random() for n in range(120)}
LONG = json.dumps({"city": "Zürich", "places": PLACES}, ensure_ascii=False)
SCRIPTS = {
    "A": '<think>They want the weather.</think>I look.\n<tool_call>\n{"name": "get_weather", "arguments": '
    '{"city": "Zürich"}}\n</tool_call>',
    "B": '<tool_call>{"name": "get_weather", "arguments": {"city": "Bern"}}</tool_call>\n'
    '<tool_call>{"name": "get_time", "arguments": {}}</tool_call>',
    "K": f'I look at many.<tool_call>{{"name": "get_weather", "arguments": {LONG}}}</tool_call>',
    "N": "I know of no tools.",
    "R": "It is 21 degrees.",
}
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{% for call in m.tool_calls or [] %}"
    "<tool_call>{{ call.function.name }} {{ call.function.arguments.city }} {{ call.id }}</tool_call>{% endfor %}\n"
    "{% endfor %}{% if messages[-1].role == 'tool' %}R{% elif tools %}{{ messages[-1].content[-1] }}"
    "{% else %}N{% endif %}"
)
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}}
    for name in ("get_weather", "get_time")
]


@pytest.fixture(scope="module")
def running(serve: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    directory: Path = tmp_path_factory.mktemp("model") / "caller"
    directory.mkdir()
    write_scripted_checkpoint(
        directory, SCRIPTS, TEMPLATE, special=("<tool_call>",), added=("<think>", "</think>", "</tool_call>")
    )
    return serve("--replicas", "2", model=str(directory))


@pytest.fixture(scope="module")
def client(running: Any) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def asking(letter: str, **fields: Any) -> dict[str, Any]:
    messages: list[Any] = [{"role": "user", "content": f"The weather, {letter}"}]
    return {"model": "caller", "messages": messages, "tools": TOOLS, "max_tokens": 2000} | fields


def ask(client: OpenAI, letter: str, **fields: Any) -> Any:
    return client.chat.completions.create(**asking(letter, **fields))


def streamed(client: OpenAI, letter: str, **fields: Any) -> Any:
    """The whole answer as the client's own helper adds up its chunks."""
    with client.chat.completions.stream(**asking(letter, **fields)) as stream:
        for _ in stream:
            pass
        return stream.get_final_completion()


def calls_of(answer: Any) -> list[tuple[str, Any]]:
    return [(c.function.name, json.loads(c.function.arguments)) for c in answer.choices[0].message.tool_calls or []]


def test_a_call_is_made_and_its_result_is_read(client: OpenAI) -> None:
    """Thinking, text and call are apart, whole and streamed; the call's result is answered in turn."""
    for answer in (ask(client, "A"), streamed(client, "A")):
        message = answer.choices[0].message
        assert (message.content, answer.choices[0].finish_reason) == ("I look.", "tool_calls")
        assert message.reasoning_content == "They want the weather."
        assert calls_of(answer) == [("get_weather", {"city": "Zürich"})]

    [call] = message.tool_calls
    result = {"role": "tool", "tool_call_id": call.id, "content": "21"}
    messages = [*asking("A")["messages"], message, result]
    final = ask(client, "", messages=messages).choices[0]
    assert (final.message.content, final.message.tool_calls, final.finish_reason) == ("It is 21 degrees.", None, "stop")


def test_several_calls(client: OpenAI) -> None:
    """Two calls have two ids and no text; with parallel_tool_calls false there is one."""
    for answer in (ask(client, "B"), streamed(client, "B")):
        assert calls_of(answer) == [("get_weather", {"city": "Bern"}), ("get_time", {})]
        assert not answer.choices[0].message.content
        assert len({call.id for call in answer.choices[0].message.tool_calls}) == 2
    for answer in (ask(client, "B", parallel_tool_calls=False), streamed(client, "B", parallel_tool_calls=False)):
        assert calls_of(answer) == [("get_weather", {"city": "Bern"})]
        assert answer.choices[0].finish_reason == "tool_calls"


def test_arguments_come_as_they_are_written(client: OpenAI) -> None:
    """The name comes first, and a long call in many pieces."""
    chunks = ask(client, "K", stream=True)
    parts = [part for chunk in chunks if chunk.choices for part in chunk.choices[0].delta.tool_calls or []]

    assert (parts[0].function.name, parts[0].type, bool(parts[0].id)) == ("get_weather", "function", True)
    assert len(parts) > 100
    assert not any(part.id or part.function.name for part in parts[1:])
    assert "".join(part.function.arguments or "" for part in parts) == LONG


def test_without_tools_nothing_is_a_call(client: OpenAI) -> None:
    """tool_choice none hides the tools from the model; text that looks like a call is text where none is offered."""
    assert ask(client, "A", tool_choice="none").choices[0].message.content == SCRIPTS["N"]
    assert ask(client, "A", tools=openai.omit).choices[0].message.content == SCRIPTS["N"]


def test_choices_and_log_probabilities(client: OpenAI) -> None:
    """Each of n choices has its own ids, and log-probabilities cover the tokens of calls."""
    answer = ask(client, "B", n=2, logprobs=True, seed=1)

    assert len({call.id for choice in answer.choices for call in choice.message.tool_calls}) == 4
    for choice in answer.choices:
        written = b"".join(bytes(entry.bytes) for entry in choice.logprobs.content)
        assert written.decode() == SCRIPTS["B"]


SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Zürich", "Bern"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
STRICT: list[Any] = [
    {"type": "function", "function": {"name": name, "parameters": SCHEMA, "strict": True}}
    for name in ("get_weather", "get_time")
]


@pytest.mark.parametrize("letter", ["A", "Z"])
@pytest.mark.parametrize("choice", ["required", "get_time"])
def test_a_call_can_be_required(client: OpenAI, letter: str, choice: str) -> None:
    """Whatever a model would rather say, after its thinking it calls, with arguments of the schema."""
    named: Any = choice if choice == "required" else {"type": "function", "function": {"name": choice}}
    fields: dict[str, Any] = {"tools": STRICT, "tool_choice": named, "parallel_tool_calls": False, "temperature": 1.0}
    for seed, make in enumerate((ask, streamed) * 3):
        answer = make(client, letter, seed=seed, **fields)
        [(name, arguments)] = calls_of(answer)
        jsonschema.validate(arguments, SCHEMA)
        assert choice in ("required", name)
        assert answer.choices[0].finish_reason == "tool_calls"
        assert not answer.choices[0].message.content
        if letter == "A":
            assert answer.choices[0].message.reasoning_content == "They want the weather."


def test_what_cannot_be_required_is_refused(client: OpenAI) -> None:
    """An impossible schema, a format beside a required call, tools for the template alone: the caller's mistakes."""
    broken = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": 1}}}]
    both: Any = {"response_format": {"type": "json_object"}, "tool_choice": "required"}
    smuggled: Any = {"extra_body": {"chat_template_kwargs": {"tools": []}}}
    for fields in ({"tools": broken, "tool_choice": "required"}, both, smuggled):
        with pytest.raises(openai.BadRequestError):
            ask(client, "A", **fields)


MANY: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "parameters": {
                "type": "object",
                "properties": {
                    "numbers": {
                        "type": "array",
                        "items": {"type": "integer", "minimum": 0, "maximum": 9},
                        "minItems": 150,
                        "maxItems": 150,
                    }
                },
                "required": ["numbers"],
                "additionalProperties": False,
            },
        },
    }
]


@pytest.mark.parametrize(
    ("fields", "name"),
    [({}, "get_weather"), ({"tools": MANY, "tool_choice": "required", "temperature": 1.5, "seed": 5}, "add")],
    ids=["written", "required"],
)
async def test_a_call_survives_its_engine(running: Any, fields: dict[str, Any], name: str) -> None:
    """SIGKILL in the midst of the arguments: the client gets the undisturbed call, once, with one id."""
    async with AsyncOpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        request: dict[str, Any] = asking("K", parallel_tool_calls=False, **fields)
        undisturbed, _ = await heard(await client.chat.completions.create(**request, stream=True))
        assert json.loads(undisturbed)
        before = num_resumes(running)
        while num_resumes(running) == before:
            stream = await client.chat.completions.create(**request, stream=True)
            arguments, names = await heard(stream, kill_after=20, running=running)

            assert names == [name]
            assert arguments == undisturbed


async def heard(stream: Any, kill_after: int = 0, running: Any = None) -> tuple[str, list[str]]:
    """Arguments and names of a stream's calls; with ``kill_after`` an engine is killed behind so many deltas."""
    arguments, names, num_parts = "", [], 0
    async for chunk in stream:
        for part in chunk.choices[0].delta.tool_calls or []:
            arguments += part.function.arguments or ""
            names += [part.function.name] if part.id else []
            num_parts += 1
            if num_parts == kill_after:
                kill_an_engine(running)
    return arguments, names


def num_resumes(running: Any) -> int:
    lines = [line for line in running.metrics().splitlines() if line.startswith("penstock_stream_resumes_total")]
    return sum(int(float(line.split()[-1])) for line in lines)


def kill_an_engine(running: Any) -> None:
    """Kill the engine that has work."""
    members = [m for m in running.state()["members"] if m["kind"] == "engine" and m["phase"] == "ready"]
    for member in [member for member in members if member.get("running")] or members:
        os.kill(member["pid"], signal.SIGKILL)
