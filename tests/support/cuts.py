"""Texts cut into pieces in every way: what a parser of streams has to be blind to."""

from __future__ import annotations

from hypothesis import strategies as st


def cut(text: str, places: list[int]) -> list[str]:
    """``text`` in pieces that end at ``places``."""
    ends = sorted({min(place, len(text)) for place in places} | {len(text)})
    return [text[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


def texts_of(*pieces: str) -> st.SearchStrategy[str]:
    """Texts made of a parser's marks, of what is nearly one, and of anything."""
    part = st.sampled_from(pieces) | st.text(max_size=3) | st.sampled_from(["\n", " ", "<", "[", "{", "é", "🙂"])
    return st.lists(part, max_size=12).map("".join)


places = st.lists(st.integers(0, 80), max_size=8)
