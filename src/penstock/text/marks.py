"""Marks in text that arrives in pieces: how much of an ending may still become one.

In: text and the marks looked for; out: a count of characters.
"""

from __future__ import annotations

from collections.abc import Iterable


def num_held(text: str, marks: Iterable[str]) -> int:
    """Length of the longest ending of ``text`` that begins one of ``marks`` without being complete."""
    return max((_num_begun(text, mark) for mark in marks), default=0)


def _num_begun(text: str, mark: str) -> int:
    longest = min(len(text), len(mark) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(mark[:size])), 0)
