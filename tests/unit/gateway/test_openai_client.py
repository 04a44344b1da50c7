"""The official client, unmodified, against a real gateway and scripted engines."""

from __future__ import annotations

from collections.abc import AsyncIterator

import openai
import pytest

MESSAGES = [{"role": "user", "content": "one two three"}]


@pytest.fixture
async def world(start_world):
    return await start_world(1)


@pytest.fixture
async def client(world) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{world.url}/v1", api_key="none", max_retries=0) as client:
        yield client


async def test_chat_answers_whole(client, world, script):
    """A chat completion has OpenAI's shape, the engine's text and usage, and one terminal event."""
    answer = await client.chat.completions.create(model="org/m", messages=MESSAGES, seed=5, max_tokens=4)
    assert answer.id.startswith("chatcmpl-")
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content == script.text(5, 4)
    assert answer.choices[0].finish_reason == "length"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (3, 4, 7)
    assert answer.usage.prompt_tokens_details.cached_tokens == 1
    [ended] = world.ended
    assert (ended.outcome, ended.status, ended.output_tokens, ended.prompt_tokens) == ("finished", 200, 4, 3)
    assert ended.ttft_s is not None and ended.tpot_s is not None
    assert await world.in_flight() == 0


async def test_chat_streams(client, script):
    """A stream begins with the role, carries the text, ends with the reason and then the usage."""
    stream = await client.chat.completions.create(
        model="org/m", messages=MESSAGES, seed=5, max_tokens=4, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == script.text(5, 4)
    assert chunks[-2].choices[0].finish_reason == "length"
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 4


@pytest.mark.parametrize("stream", [False, True])
async def test_chat_logprobs(client, stream):
    """Log-probabilities come one per token, with the asked number of alternatives, streamed or not."""
    asked = {"model": "org/m", "messages": MESSAGES, "max_tokens": 3, "logprobs": True, "top_logprobs": 2}
    if stream:
        chunks = [chunk async for chunk in await client.chat.completions.create(**asked, stream=True)]
        found = [entry for chunk in chunks for c in chunk.choices if c.logprobs for entry in c.logprobs.content]
    else:
        found = (await client.chat.completions.create(**asked)).choices[0].logprobs.content
    assert len(found) == 3
    assert all(entry.logprob == -0.25 and len(entry.top_logprobs) == 2 for entry in found)


@pytest.mark.parametrize("stream", [False, True])
async def test_n_choices(client, script, stream):
    """``n`` gives as many choices with distinct seeds, and the first is what n=1 gives."""
    asked = {"model": "org/m", "messages": MESSAGES, "max_tokens": 3, "n": 3, "seed": 9}
    texts: dict[int, str] = {}
    if stream:
        async for chunk in await client.chat.completions.create(**asked, stream=True):
            for choice in chunk.choices:
                texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
    else:
        answer = await client.chat.completions.create(**asked)
        texts = {choice.index: choice.message.content for choice in answer.choices}
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 9)
    assert texts[0] == script.text(9, 3)
    assert len(set(texts.values())) == 3 and set(texts) == {0, 1, 2}


@pytest.mark.parametrize("prompt", ["a b", ["a b", "c d"], [1, 2], [[1, 2], [3, 4]]])
async def test_completion_prompts(client, world, prompt):
    """Prompts are texts or token ids, single or lists; every one becomes its own choice."""
    answer = await client.completions.create(model="org/m", prompt=prompt, max_tokens=2)
    several = not isinstance(prompt, str) and not isinstance(prompt[0], int)
    assert [choice.index for choice in answer.choices] == list(range(2 if several else 1))
    assert answer.usage.prompt_tokens == (4 if several else 2)
    sent = world.engines[0].requests
    assert {request.text for request in sent} | {tuple(request.token_ids or ()) for request in sent} >= (
        {prompt} if isinstance(prompt, str) else set()
    )


async def test_completion_echo_and_logprobs(client, script):
    """Echo puts the prompt and its scores before the output; offsets run over both."""
    answer = await client.completions.create(model="org/m", prompt="a b", max_tokens=2, echo=True, logprobs=1, seed=3)
    [choice] = answer.choices
    assert choice.text == "a b" + script.text(3, 2)
    assert choice.logprobs.token_logprobs == [None, -0.25, -0.25]
    assert choice.logprobs.top_logprobs[0] is None and len(choice.logprobs.top_logprobs[1]) == 2
    assert choice.logprobs.text_offset[:2] == [0, 3]


async def test_completion_streams(client, script):
    """A streamed text completion joins to the same text."""
    stream = await client.completions.create(
        model="org/m", prompt="a", max_tokens=5, seed=4, stream=True, logprobs=0, echo=True
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks) == "a" + script.text(4, 5)
    assert chunks[-1].choices[0].finish_reason == "length"


async def test_every_sampling_field_reaches_the_engine(client, world):
    """No sampling field is dropped on the way."""
    await client.chat.completions.create(
        model="org/m",
        messages=MESSAGES,
        temperature=0.5,
        top_p=0.9,
        presence_penalty=0.1,
        frequency_penalty=0.2,
        logit_bias={"7": -100},
        stop=["x", "y"],
        max_completion_tokens=3,
        max_tokens=9,
        seed=-1,
        extra_body={"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "min_tokens": 2, "ignore_eos": True},
    )
    [request] = world.engines[0].requests
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.9, 5, 0.1)
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty) == (0.1, 0.2, 1.1)
    assert sampling.logit_bias == {7: -100}
    assert (request.stop, request.max_tokens, request.min_tokens, request.ignore_eos) == (["x", "y"], 3, 2, True)
    assert 0 <= sampling.seed < 2**63


async def test_errors_are_the_clients_exceptions(client, world):
    """Unknown models, unsupported and wrong fields raise what the client's users expect, with code and param."""
    with pytest.raises(openai.NotFoundError) as missing:
        await client.chat.completions.create(model="nope", messages=MESSAGES)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as audio:
        voice = {"format": "wav", "voice": "alloy"}
        await client.chat.completions.create(model="org/m", messages=MESSAGES, audio=voice)
    assert (audio.value.code, audio.value.param) == ("unsupported_parameter", "audio")
    with pytest.raises(openai.BadRequestError) as wrong:
        await client.chat.completions.create(model="org/m", messages=[{"role": "user", "content": 3}])
    assert (wrong.value.code, wrong.value.param) == ("invalid_type", "messages[0].content")
    assert [event.outcome for event in world.ended] == ["rejected"] * 3


async def test_models(client):
    """Models are listed and found by ids that contain slashes; others are 404."""
    [card] = [card async for card in client.models.list()]
    assert (card.id, card.created, card.object) == ("org/m", 7, "model")
    assert (await client.models.retrieve("org/m")).id == "org/m"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("org/x")


async def test_engine_problems_keep_their_words(client, world, make_behaviour):
    """What the engine refuses reaches the client with the engine's code."""
    world.engines[0].behave = lambda request: make_behaviour(refuse="context_length_exceeded")
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(model="org/m", messages=MESSAGES, stream=stream)
        assert caught.value.code == "context_length_exceeded"
    assert [event.outcome for event in world.ended] == ["rejected"] * 2
