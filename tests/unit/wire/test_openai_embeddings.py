"""OpenAI's embeddings: bodies in, engine requests, vectors out."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest

from penstock.wire.embedding import Embedded
from penstock.wire.errors import Problem
from penstock.wire.openai.embeddings import MAX_INPUTS, answer, decode, engine_request


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "input": "text"} | fields).encode()


@pytest.mark.parametrize(
    ("input", "texts", "token_ids"),
    [
        ("text", ["text"], None),
        (["a", "b"], ["a", "b"], None),
        ([1, 2], None, [[1, 2]]),
        ([[1, 2], [3]], None, [[1, 2], [3]]),
        ([0], None, [[0]]),
    ],
)
def test_every_form_becomes_one_engine_request(input: Any, texts: Any, token_ids: Any) -> None:
    """A text, token ids, and lists of either keep their order and their kind."""
    request = engine_request(decode(body(input=input, dimensions=3)), "id")
    assert (request.texts, request.token_ids, request.num_dimensions) == (texts, token_ids, 3)


def test_as_many_inputs_as_openai_takes() -> None:
    """2048 inputs make one request; ids of one prompt are one input, however many they are."""
    assert len(engine_request(decode(body(input=["a"] * 2048)), "id").texts or []) == 2048
    assert engine_request(decode(body(input=[1] * 4096)), "id").token_ids == [[1] * 4096]


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"input": None}, "invalid_type", "input"),
        ({"input": {}}, "invalid_type", "input"),
        ({"input": [None]}, "invalid_type", "input[0]"),
        ({"input": [True]}, "invalid_type", "input[0]"),
        ({"input": [1.5]}, "invalid_type", "input[0]"),
        ({"input": [[["a"]]]}, "invalid_type", "input[0][0]"),
        ({"input": [1 << 31]}, "invalid_value", "input[0]"),
        ({"input": [[1], [1 << 80]]}, "invalid_value", "input[1][0]"),
        ({"input": [[1], 2]}, "invalid_type", "input[1]"),
        ({"input": [1, [2]]}, "invalid_type", "input[1]"),
        ({"input": [""]}, "invalid_value", "input[0]"),
        ({"input": ["a"] * (MAX_INPUTS + 1)}, "invalid_value", "input"),
        ({"input": [[1]] * (MAX_INPUTS + 1)}, "invalid_value", "input"),
        ({"dimensions": -1}, "invalid_value", "dimensions"),
        ({"dimensions": "8"}, "invalid_type", "dimensions"),
        ({"encoding_format": "hex"}, "invalid_value", "encoding_format"),
        ({"truncate_prompt_tokens": -1}, "unsupported_parameter", "truncate_prompt_tokens"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], code: str, param: str) -> None:
    """Each mistake has its code and the place."""
    with pytest.raises(Problem) as caught:
        decode(body(**fields))
    assert (caught.value.code, caught.value.param) == (code, param)


def test_null_means_left_out() -> None:
    """Optional fields that are null are as if they were not there."""
    request = decode(body(encoding_format=None, dimensions=None, user=None, truncate_prompt_tokens=None))
    assert (request.encoding_format, request.dimensions) == (None, None)


def test_both_formats_carry_the_engine_s_bits() -> None:
    """base64 passes as the engine wrote it; floats are those numbers, exactly."""
    numbers = [0.1, -1.0, 3e-39, 65504.0]
    packed = struct.pack("<4f", *numbers)
    vector = base64.b64encode(packed).decode()
    embedded = Embedded(vectors=[vector, vector], prompt_tokens=7)
    as_text: Any = json.loads(answer(decode(body(encoding_format="base64")), embedded))
    as_floats: Any = json.loads(answer(decode(body()), embedded))
    assert [item["embedding"] for item in as_text["data"]] == [vector, vector]
    assert as_floats["data"][1]["embedding"] == list(struct.unpack("<4f", packed))
    for found in (as_text, as_floats):
        assert found["object"] == "list" and found["model"] == "m"
        assert [(item["object"], item["index"]) for item in found["data"]] == [("embedding", 0), ("embedding", 1)]
        assert found["usage"] == {"prompt_tokens": 7, "total_tokens": 7}


def test_a_model_s_name_is_quoted() -> None:
    """A name with quotes in it is still one JSON string."""
    request = decode(json.dumps({"model": 'a"b', "input": "x"}).encode())
    assert json.loads(answer(request, Embedded(vectors=[], prompt_tokens=0)))["model"] == 'a"b'
