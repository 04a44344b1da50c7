"""Clients that other people wrote drive the service unmodified: LangChain's chat model, the Vercel AI SDK."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field
from scripted import write_scripted_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

QUESTION = "What is the weather in Oslo?"
SCRIPTS = {
    "?": '<think>They want the weather.</think>I look.<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}'
    "</tool_call>",
    "N": "<think>No tool here: guess.</think>It is 3 °C and raining.",
    "R": "Three degrees, says the tool.",
}
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{% for call in m.tool_calls or [] %}"
    "<tool_call>{{ call.function.name }} {{ call.function.arguments.city }}</tool_call>{% endfor %}\n{% endfor %}"
    "{% if messages[-1].role == 'tool' %}R{% elif tools %}{{ messages[-1].content[-1] }}{% else %}N{% endif %}"
)
TEXT = "It is 3 °C and raining."
THINKING = "No tool here: guess."
SDK = Path(__file__).parent / "vercel_ai_sdk"


@pytest.fixture(scope="module")
def url(serve: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    directory: Path = tmp_path_factory.mktemp("model") / "scripted"
    directory.mkdir()
    marks = ("<think>", "</think>", "<tool_call>", "</tool_call>")
    write_scripted_checkpoint(directory, SCRIPTS, TEMPLATE, added=marks)
    return f"{serve(model=str(directory)).url}/v1"


class Weather(BaseModel):
    """Weather of a city."""

    city: str


class Person(BaseModel):
    """Somebody.  Nothing else is allowed: a model that has learnt nothing would name further fields without end."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=150)


@pytest.fixture(scope="module")
def langchain(url: str) -> Any:
    module = pytest.importorskip("langchain_openai", reason="LangChain comes with `make test-all`")
    return module.ChatOpenAI(model="scripted", base_url=url, api_key="none", temperature=0, max_retries=0)


def test_langchain_talks_and_streams(langchain: Any) -> None:
    """The answer, its chunks and its usage are the script's; reasoning stays out of the text."""
    answer = langchain.invoke(QUESTION)
    assert answer.content == TEXT
    assert answer.response_metadata["finish_reason"] == "stop"
    chunks = list(langchain.stream(QUESTION))
    assert "".join(chunk.content for chunk in chunks) == TEXT
    assert sum(bool(chunk.content) for chunk in chunks) > 3
    usage = answer.usage_metadata
    assert usage["input_tokens"] > 0 and usage["output_token_details"]["reasoning"] > 0
    assert [each.content for each in langchain.batch([QUESTION] * 3)] == [TEXT] * 3


def test_langchain_calls_tools(langchain: Any) -> None:
    """Bound tools are called, whole and streamed, and a tool's answer is read; a forced call is one."""
    bound = langchain.bind_tools([Weather.model_json_schema() | {"title": "weather"}])
    answer = bound.invoke(QUESTION)
    [call] = answer.tool_calls
    assert (call["name"], call["args"]) == ("weather", {"city": "Oslo"})
    pieces = list(bound.stream(QUESTION))
    whole = pieces[0]
    for piece in pieces[1:]:
        whole += piece
    assert [(made["name"], made["args"]) for made in whole.tool_calls] == [("weather", {"city": "Oslo"})]
    result = {"role": "tool", "tool_call_id": call["id"], "content": "3"}
    assert bound.invoke([("user", QUESTION), answer, result]).content == SCRIPTS["R"]

    forced = langchain.bind_tools([Weather.model_json_schema() | {"title": "weather"}], tool_choice="weather")
    [call] = forced.invoke("Good day").tool_calls
    assert call["name"] == "weather" and isinstance(call["args"]["city"], str)


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_langchain_gets_structured_output(langchain: Any, method: str) -> None:
    """with_structured_output gives an instance of the class that was asked for, however it asks."""
    person = langchain.with_structured_output(Person, method=method).invoke(QUESTION)
    assert isinstance(person, Person)
    assert len(person.name) <= 12 and 0 <= person.age <= 150


@pytest.fixture(scope="module")
def vercel(url: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """Runs a scenario of vercel_ai_sdk/drive.mjs; the SDK is installed from its lock."""
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        pytest.skip("the Vercel AI SDK needs node and npm (Debian: apt install nodejs npm)")
    home = tmp_path_factory.mktemp("sdk")
    for name in ("package.json", "package-lock.json", "drive.mjs"):
        shutil.copy(SDK / name, home)
    installed = subprocess.run(
        [npm, "ci", "--no-audit", "--no-fund"], cwd=home, capture_output=True, text=True, timeout=240, check=False
    )
    assert installed.returncode == 0, installed.stderr

    def run(scenario: str) -> Any:
        command = [node, "drive.mjs", scenario, url, "scripted"]
        done = subprocess.run(command, cwd=home, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.mark.parametrize("scenario", ["text", "text-streamed"])
def test_the_vercel_sdk_talks(vercel: Callable[[str], Any], scenario: str) -> None:
    """Text and reasoning are apart, usage counts both."""
    result = vercel(scenario)
    assert (result["text"], result["reasoning"]) == (TEXT, THINKING)
    assert result["finishReason"] == "stop"
    assert result["usage"]["inputTokens"] > 0
    assert 0 < result["usage"]["outputTokenDetails"]["reasoningTokens"] < result["usage"]["outputTokens"]


@pytest.mark.parametrize("scenario", ["tools", "tools-streamed"])
def test_the_vercel_sdk_calls_tools(vercel: Callable[[str], Any], scenario: str) -> None:
    """A tool is called with the arguments that the model wrote, after its text."""
    result = vercel(scenario)
    assert [(call["toolName"], call["input"]) for call in result["toolCalls"]] == [("weather", {"city": "Oslo"})]
    assert result["text"] == "I look." and result["finishReason"] == "tool-calls"
    if scenario == "tools-streamed":
        assert {"reasoning-delta", "text-delta", "tool-input-delta", "tool-call", "finish"} <= set(result["parts"])


@pytest.mark.parametrize("scenario", ["tools-required", "tools-named"])
def test_the_vercel_sdk_forces_tools(vercel: Callable[[str], Any], scenario: str) -> None:
    """Required and named calls are made, with arguments of the tool's schema."""
    [call] = vercel(scenario)["toolCalls"]
    assert call["toolName"] == "weather" and isinstance(call["input"]["city"], str)


def test_the_vercel_sdk_gets_an_object(vercel: Callable[[str], Any]) -> None:
    """Output.object gives what its schema says."""
    person = vercel("object")["object"]
    assert len(person["name"]) <= 12 and 0 <= person["age"] <= 150


def test_the_vercel_sdk_embeds(vercel: Callable[[str], Any]) -> None:
    """embedMany gets one vector of length one for each text."""
    vectors = vercel("embeddings")["embeddings"]
    assert len(vectors) == 2
    assert all(sum(x * x for x in vector) == pytest.approx(1.0, abs=1e-4) for vector in vectors)


def test_vercels_openai_provider_talks(vercel: Callable[[str], Any]) -> None:
    """The provider made for OpenAI itself works with another base URL."""
    assert vercel("openai-provider")["text"] == TEXT
