"""Stop strings across chunks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.text.stop import StopMatcher
from penstock.wire.errors import Problem

STOPS = st.lists(st.text("ab", min_size=1, max_size=5), max_size=4)
CHUNKS = st.lists(st.text("abé", max_size=6), max_size=12)


def _reference(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The first end at which any stop string is complete, the longest of those."""
    for end in range(len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            stop = max(complete, key=len)
            return text[: end - len(stop)], stop
    return text, None


@given(STOPS, CHUNKS)
def test_any_chunking_gives_what_the_whole_text_gives(stops: list[str], chunks: list[str]) -> None:
    """Emitted text and matched stop string are those of a search over the whole text."""
    matcher = StopMatcher(stops)
    emitted, found = "", None
    for chunk in chunks:
        text, found = matcher.push(chunk)
        emitted += text
    emitted += matcher.flush()
    assert (emitted, found) == _reference("".join(chunks), stops)


@given(STOPS, CHUNKS)
def test_only_a_possible_beginning_is_held_back(stops: list[str], chunks: list[str]) -> None:
    """After each push, what is held is the longest suffix that begins some stop string, and no longer."""
    matcher = StopMatcher(stops)
    seen, emitted = "", ""
    for chunk in chunks:
        text, found = matcher.push(chunk)
        if found is not None:
            return
        seen, emitted = seen + chunk, emitted + text
        held = seen[len(emitted) :]
        beginnings = {stop[:length] for stop in stops for length in range(len(stop) + 1)} | {""}
        assert held == max((seen[at:] for at in range(len(seen) + 1) if seen[at:] in beginnings), key=len)


def test_a_match_ends_the_text_for_good() -> None:
    """After a match nothing more is emitted, and the stop string itself never was."""
    matcher = StopMatcher(["END", "\n\n"])
    assert matcher.push("one\n") == ("one", None)
    assert matcher.push("two E") == ("\ntwo ", None)
    assert matcher.push("ND three") == ("", "END")
    assert matcher.push("four") == ("", "END")
    assert matcher.flush() == ""


def test_a_long_stop_string_costs_no_more_per_character() -> None:
    """A stop string of 100,000 characters that almost matches all the time is matched within seconds."""
    matcher = StopMatcher(["a" * 100_000 + "b"])
    emitted = "".join(matcher.push("a" * 1_000)[0] for _ in range(150))
    assert len(emitted) == 50_000
    assert matcher.push("b") == ("", "a" * 100_000 + "b")


def test_an_empty_stop_string_is_refused() -> None:
    """An empty stop string would match everywhere and is a mistake of the caller."""
    with pytest.raises(Problem) as refused:
        StopMatcher(["a", ""])
    assert (refused.value.code, refused.value.param) == ("invalid_value", "stop")
