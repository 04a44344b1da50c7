"""The official client's embeddings, unmodified, against real services: an encoder, and a decoder by pooling."""

from __future__ import annotations

import base64
import http.client
import json
import math
import os
import re
import signal
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import torch
from openai import OpenAI
from seeded import write_seeded_checkpoint
from tiny_encoder import CONTEXT, HIDDEN, VOCAB_SIZE, letters, write_tiny_encoder
from transformers import AutoModelForCausalLM, BertModel

MODEL = "tiny-encoder"
BOUND = 1e-5


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / MODEL
    write_tiny_encoder(directory)
    return directory


@pytest.fixture(scope="module")
def service(serve, directory: Path):
    return serve(model=str(directory))


@pytest.fixture(scope="module")
def client(service) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def embed(client: OpenAI, input: Any, **fields: Any) -> list[list[float]]:
    answer = client.embeddings.create(model=MODEL, input=input, **fields)
    assert [item.index for item in answer.data] == list(range(len(answer.data)))
    return [item.embedding for item in answer.data]


def raw(service, body: bytes) -> tuple[int, Any]:
    request = urllib.request.Request(f"{service.url}/v1/embeddings", body, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def refused(client: OpenAI, input: Any, **fields: Any) -> Any:
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model=MODEL, input=input, **fields)
    body: Any = caught.value.body
    return body


def test_vectors_are_those_of_transformers(client: OpenAI, directory: Path) -> None:
    """Served, mean-pooled and normalised, a text has the vector that the reference computes for it."""
    model: Any = BertModel.from_pretrained(directory)
    with torch.inference_mode():
        hidden = model.eval()(torch.tensor([letters("penstock")])).last_hidden_state[0]
    expected = torch.nn.functional.normalize(hidden.mean(0), dim=0)
    found = embed(client, "penstock")[0]
    torch.testing.assert_close(torch.tensor(found), expected, rtol=0, atol=BOUND)


def test_every_form_of_input_is_the_same_text(client: OpenAI) -> None:
    """Text, token ids, and lists of either give one vector per input, in order, whatever the company."""
    one, other = letters("abc"), letters("zebra")
    first, second = embed(client, "abc")[0], embed(client, "zebra")[0]
    assert embed(client, one)[0] == pytest.approx(first, abs=BOUND)
    for input in (["abc", "zebra"], [one, other]):
        found = embed(client, input)
        assert found[0] == pytest.approx(first, abs=BOUND)
        assert found[1] == pytest.approx(second, abs=BOUND)
    assert first != pytest.approx(second, abs=0.01)


def test_base64_and_floats_are_the_same_numbers(service, client: OpenAI) -> None:
    """Both formats carry the same float32 bits; the client's own default is base64, the wire's is floats."""
    floats = embed(client, "abc", encoding_format="float")[0]
    packed: Any = embed(client, "abc", encoding_format="base64")[0]
    assert np.frombuffer(base64.b64decode(packed), "<f4").tolist() == floats == embed(client, "abc")[0]
    status, body = raw(service, json.dumps({"model": MODEL, "input": "abc"}).encode())
    assert (status, body["data"][0]["embedding"]) == (200, floats)


def test_dimensions_are_the_first_ones_at_unit_length(client: OpenAI) -> None:
    """A shortened vector is the beginning of the whole one, normalised again."""
    whole, short = np.array(embed(client, "abc")[0]), embed(client, "abc", dimensions=5)[0]
    assert (len(whole), len(short)) == (HIDDEN, 5)
    assert short == pytest.approx((whole[:5] / np.linalg.norm(whole[:5])).tolist(), abs=BOUND)
    assert math.fsum(number * number for number in short) == pytest.approx(1.0, abs=1e-6)


def test_usage_counts_the_tokens_of_all_inputs(service, client: OpenAI) -> None:
    """Prompt tokens are those of all inputs, special ones included, in the answer and in the metrics."""
    usage = client.embeddings.create(model=MODEL, input=["abc", "zebra"], user="somebody").usage
    assert usage.prompt_tokens == usage.total_tokens == len(letters("abc")) + len(letters("zebra"))
    lines = service.metrics().splitlines()
    assert any(line.startswith(f'penstock_prompt_tokens_total{{model="{MODEL}"') for line in lines)
    assert any('route="/v1/embeddings"' in line and 'outcome="finished"' in line for line in lines)


@pytest.mark.parametrize(
    ("input", "param"),
    [
        ("", "input"),
        ([], "input"),
        (["abc", ""], "input[1]"),
        ([[2, 7], []], "input[1]"),
        ([[2, 7], [2, VOCAB_SIZE]], "input[1]"),
        ([2, -1], "input[1]"),
        (["abc", [1]], "input[1]"),
        ([1, "abc"], "input[1]"),
        (["a"] * 2049, "input"),
    ],
)
def test_bad_input_is_named(client: OpenAI, input: Any, param: str) -> None:
    """What is empty, mixed, too many or no token is a 400 with the place."""
    body = refused(client, input)
    assert body["param"] == param
    assert body["code"] in ("invalid_value", "invalid_type")


def test_a_text_that_is_too_long_is_refused_and_never_cut(client: OpenAI) -> None:
    """One token more than the context is a 400 with the index and both lengths; the longest that fits is embedded."""
    longest = "a" * (CONTEXT - 2)
    body = refused(client, ["abc", longest + "a"])
    assert (body["code"], body["param"]) == ("context_length_exceeded", "input[1]")
    assert str(CONTEXT + 1) in body["message"] and f"{CONTEXT} tokens" in body["message"]
    assert embed(client, longest)[0] != pytest.approx(embed(client, longest[:-1] + "b")[0], abs=1e-6)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"dimensions": 0}, "dimensions"),
        ({"dimensions": HIDDEN + 1}, "dimensions"),
        ({"encoding_format": "int8"}, "encoding_format"),
        ({"truncate_prompt_tokens": 4}, "truncate_prompt_tokens"),
    ],
)
def test_what_is_not_done_is_refused(service, fields: dict[str, Any], param: str) -> None:
    """A size, a format or a cut that the model or this release does not have is a 400 that names it."""
    status, body = raw(service, json.dumps({"model": MODEL, "input": "abc"} | fields).encode())
    assert (status, body["error"]["param"]) == (400, param)


@pytest.mark.parametrize("text", [b'"\\ud800"', b'["ok", "a\\udfffb"]', b'"\xff"'])
def test_text_that_is_no_unicode_is_refused(service, text: bytes) -> None:
    """Lone surrogates and broken UTF-8 are 400s, and the service goes on."""
    status, body = raw(service, b'{"model": "tiny-encoder", "input": %b}' % text)
    assert status == 400, body
    assert raw(service, b'{"model": "tiny-encoder", "input": "fine"}')[0] == 200


def test_an_encoder_says_that_it_does_not_chat(client: OpenAI) -> None:
    """Chat and completions are 400s that say what this model answers."""
    for ask in (
        lambda: client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "hello"}]),
        lambda: client.completions.create(model=MODEL, prompt="hello"),
    ):
        with pytest.raises(openai.BadRequestError, match="/v1/embeddings") as caught:
            ask()
        assert caught.value.param == "model"


def test_a_full_request_and_its_neighbours(service, client: OpenAI) -> None:
    """2048 texts in one request, while others ask for one each: all get the vectors that they get alone."""
    words = [f"w{index % 97}" for index in range(2048)]
    alone = {word: embed(client, word)[0] for word in ("w0", "w5", "w96")}
    with ThreadPoolExecutor(9) as pool:
        full = pool.submit(embed, client, words)
        single = [pool.submit(embed, client, word) for word in alone for _ in range(5)]
        results = [future.result()[0] for future in single]
    found = full.result()
    assert len(found) == 2048
    for index in (0, 5, 96, 97, 2042):
        if words[index] in alone:
            assert found[index] == pytest.approx(alone[words[index]], abs=BOUND)
    for vector, word in zip(results, [word for word in alone for _ in range(5)], strict=True):
        assert vector == pytest.approx(alone[word], abs=BOUND)


def test_a_long_list_of_tokens_is_refused_by_its_length(service, client: OpenAI) -> None:
    """Two million token ids are a 400 like ninety-seven, and nobody else waits for them."""
    body = json.dumps({"model": MODEL, "input": [5] * 2_000_000}, separators=(",", ":")).encode()
    status, answer = raw(service, body)
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
    assert "2000000 tokens" in answer["error"]["message"]


def test_a_decoder_embeds_by_its_last_token(serve, tmp_path: Path) -> None:
    """By default a decoder's embedding is its last hidden state at unit length; and it still generates."""
    seeded = tmp_path / "seeded-1"
    write_seeded_checkpoint(seeded)
    service = serve(model=str(seeded))
    model: Any = AutoModelForCausalLM.from_pretrained(seeded)
    text = "The quick brown fox jumps over the lazy dog, again and again and again."
    with torch.inference_mode():
        hidden = model.eval()(torch.tensor([list(text.encode())]), output_hidden_states=True).hidden_states[-1][0]
    expected = torch.nn.functional.normalize(hidden[-1], dim=0)
    with OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        for _ in range(2):  # computed, then from the prefix cache
            found = client.embeddings.create(model="seeded-1", input=[text, "other"]).data[0].embedding
            torch.testing.assert_close(torch.tensor(found), expected, rtol=0, atol=1e-5)
        assert client.completions.create(model="seeded-1", prompt="The", max_tokens=3).choices[0].text
    assert 'penstock_cached_tokens_total{model="seeded-1",process="gateway-0"} 64.0' in service.metrics()


LONG = ["a" * (CONTEXT - 2)] * 2000


def engine_of(service) -> Any:
    return next(member for member in service.state()["members"] if member["kind"] == "engine")


@contextmanager
def held(service, body: bytes) -> Iterator[socket.socket]:
    """A connection that asked this of an engine, which was stopped as soon as it had texts in its queue."""
    head = f"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    pid = engine_of(service)["pid"]
    with socket.create_connection(("127.0.0.1", service.port)) as connection:
        connection.sendall(head + body)
        service.until(lambda: service.num_running() > 0, "texts in the engine's queue")
        os.kill(pid, signal.SIGSTOP)
        try:
            yield connection
        finally:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def test_a_client_that_leaves_frees_the_engine(service, client: OpenAI) -> None:
    """When its connection goes, the texts of a request leave the engine as cancelled, and others are served."""
    with held(service, json.dumps({"model": MODEL, "input": LONG}).encode()) as connection:
        connection.close()
        service.until(lambda: service.in_flight() == 0, "a gateway that holds nothing")
    service.until(lambda: service.num_running() == 0, "an empty queue")
    # As many as a request has in the queues at a time, less those that were ready just then.
    cancelled = re.search(r'sequences_total\{process="engine-0",reason="cancelled"\} (\d+)', service.metrics())
    assert cancelled is not None and 1 <= int(cancelled[1]) <= 64
    assert len(embed(client, "abc")) == 1


def test_a_killed_engine_costs_time_and_no_vector(service, client: OpenAI) -> None:
    """An engine that is killed in the middle of a request is started again, and the request gets all its vectors."""
    expected = embed(client, LONG[0])[0]
    pid = engine_of(service)["pid"]
    with held(service, json.dumps({"model": MODEL, "input": LONG}).encode()) as connection:
        os.kill(pid, signal.SIGKILL)
        response = http.client.HTTPResponse(connection)
        response.begin()
        found = [entry["embedding"] for entry in json.loads(response.read())["data"]]
    assert engine_of(service)["pid"] != pid
    assert len(found) == len(LONG)
    assert found[0] == pytest.approx(expected, abs=BOUND) and found[-1] == pytest.approx(expected, abs=BOUND)
