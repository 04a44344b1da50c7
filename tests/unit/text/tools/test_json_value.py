"""JSON checked while it streams, against Python's own reader."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from penstock.text.tools.json_value import JsonValue

_pieces = st.sampled_from(
    [
        *'{}[]",:\\ \n',
        "\\u00e9",
        "\\u00",
        "\\n",
        "\\x",
        "true",
        "tru",
        "null",
        "-",
        "0",
        "12",
        "1.5",
        "01",
        "1e",
        "1e+5",
        "NaN",
        "é",
    ]
)
_texts = st.lists(_pieces, max_size=12).map("".join)
_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


def is_one_list(text: str) -> bool:
    """Whether ``[text]`` is read as one whole value, to its last character."""
    value = JsonValue()
    return all(map(value.feed, f"[{text}]")) and value.complete


def python_agrees(text: str) -> bool:
    def refuse(word: str) -> None:
        raise ValueError(word)

    try:
        json.loads(f"[{text}]", strict=False, parse_constant=refuse)
    except ValueError:
        return False
    return True


@given(_texts)
@example('"\\u00g9"')
@example("01")
@example("-")
@example('{"a":1,}')
@example("[],")
def test_what_is_json_is_told_from_what_is_not(text: str) -> None:
    """Whatever is put between brackets, the verdict is that of the json module."""
    assert is_one_list(text) == python_agrees(text)


@given(_values, st.booleans())
def test_every_value_is_json(value: object, ascii: bool) -> None:
    """What Python writes is taken to its end, and nothing behind it."""
    text = json.dumps([value], ensure_ascii=ascii)
    scanned = JsonValue()
    assert all(map(scanned.feed, text)) and scanned.complete
    assert not any(map(scanned.feed, " ,]}x"))


@pytest.mark.parametrize(("text", "complete"), [("12,", True), ("-,", False), ("nul}", False), ("true ", True)])
def test_a_scalar_ends_with_what_follows(text: str, complete: bool) -> None:
    """A number or a word is known to be whole by the character behind it, which is not part of it."""
    value = JsonValue()
    assert [value.feed(char) for char in text] == [True] * (len(text) - 1) + [False]
    assert value.complete is complete
