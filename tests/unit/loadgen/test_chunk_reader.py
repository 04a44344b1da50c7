"""The client's side of a stream."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.loadgen.stream import ChunkReader, api_base, error_of

STREAM = (
    b": a comment\n\n"
    b'data: {"id": "x", "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}\r\n\r\n'
    b'event: ping\ndata:{"choices": [{"delta": {"content": "h\xc3\xa9"}, "finish_reason": null}]}\n\n'
    b'data: {"choices": [{"text": "llo", "finish_reason": "stop"}]}\n\n'
    b'data: {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}\n\n'
    b"data: [DONE]\n\ndata: after the end\n\n"
)


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_cuts_do_not_matter(cuts: list[int]) -> None:
    """However the bytes are cut on their way, the chunks are the same."""
    reader = ChunkReader()
    edges = [0, *sorted(cuts), len(STREAM)]
    chunks = [chunk for a, b in itertools.pairwise(edges) for chunk in reader.feed(STREAM[a:b])]
    assert [chunk.text for chunk in chunks] == ["", "hé", "llo", ""]
    assert [chunk.finish_reason for chunk in chunks] == [None, None, "stop", None]
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 2
    assert reader.done


@pytest.mark.parametrize("line", [b"data: {\n", b"data: []\n", b'data: {"choices": 3}\n', b'data: {"choices": null}\n'])
def test_what_is_no_chunk_raises(line: bytes) -> None:
    """Anything but an object in OpenAI's shape is an error, never a chunk."""
    with pytest.raises(msgspec.DecodeError):
        ChunkReader().feed(line)


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b'{"error": {"message": "m", "code": "overloaded"}}', "overloaded"),
        (b'{"error": {"message": "m", "type": "BadRequestError", "code": 400}}', "400"),
        (b'{"error": {"message": "m", "type": "t"}}', "t"),
        (b'{"error": "m"}', "http_503"),
        (b"<html>\xff", "http_503"),
        (b"", "http_503"),
    ],
)
def test_every_refusal_has_a_name(body: bytes, name: str) -> None:
    """OpenAI's error gives its code, anything else the status."""
    assert error_of(503, body).name("http_503") == name


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "http://127.0.0.1:8000/", "http://127.0.0.1:8000/v1/"])
def test_addresses_may_be_short(url: str) -> None:
    """Scheme and version path are added where they are missing."""
    assert api_base(url) == "http://127.0.0.1:8000/v1"
