"""Thinking, apart from the answer: where it begins and ends, whatever the pieces it arrives in."""

from __future__ import annotations

import pytest
from cuts import cut, places, texts_of
from hypothesis import example, given
from hypothesis import strategies as st

from penstock.text.reasoning import MARKS, Passage, ThinkingSplitter, find_marks, passage_after

THINK = MARKS["think"]


def split(pieces: list[str], passage: Passage = Passage.UNDECIDED) -> tuple[str, str]:
    """(reasoning, answer) of an output that came in ``pieces``."""
    splitter = ThinkingSplitter(THINK, passage)
    parts = [*map(splitter.push, pieces), splitter.flush()]
    return "".join(part[0] for part in parts), "".join(part[1] for part in parts)


@pytest.mark.parametrize(
    ("passage", "text", "reasoning", "answer"),
    [
        (Passage.UNDECIDED, "<think>\nhm\nyes\n</think>\n\nHi.", "hm\nyes", "Hi."),
        (Passage.UNDECIDED, "\n<think>hm</think>Hi.", "hm", "Hi."),
        (Passage.UNDECIDED, "<think>\n\n</think>\n\nHi.", "", "Hi."),
        (Passage.UNDECIDED, "Hi, <think> is a mark.", "", "Hi, <think> is a mark."),
        (Passage.UNDECIDED, "<thin ice>", "", "<thin ice>"),
        (Passage.UNDECIDED, "<thi", "", "<thi"),
        (Passage.UNDECIDED, "  indented", "", "  indented"),
        (Passage.UNDECIDED, "Hi.</think>", "", "Hi.</think>"),
        (Passage.UNDECIDED, "<think>never closed", "never closed", ""),
        (Passage.THINKING, "hm</think>\n\n  Hi.\n", "hm", "  Hi.\n"),
        (Passage.THINKING, "\nhm\n\n</thi", "hm\n\n</thi", ""),
        (Passage.THINKING, "a</think>b</think>c", "a", "b</think>c"),
        (Passage.THINKING, "a</think><think>b</think>c", "a", "<think>b</think>c"),
        (Passage.THINKING, "<think>a</think>c", "<think>a", "c"),
        (Passage.ANSWER, "<think>a</think>", "", "<think>a</think>"),
        (Passage.ANSWER, "\n\nHi.", "", "\n\nHi."),
    ],
)
def test_thinking_is_what_the_beginning_opens_up_to_the_first_closing_mark(
    passage: Passage, text: str, reasoning: str, answer: str
) -> None:
    """Marks elsewhere are text, and the line breaks beside the marks are nobody's."""
    assert split([text], passage) == (reasoning, answer)
    assert split(list(text), passage) == (reasoning, answer)


@given(texts_of("<think>", "</think>", "<thi", "nk>", "</", "\n\n"), places, st.sampled_from(Passage))
@example("<think></think>", [3, 10], Passage.UNDECIDED)
def test_the_pieces_do_not_matter(text: str, ends: list[int], passage: Passage) -> None:
    """However an output is cut, reasoning and answer are the same."""
    assert split(cut(text, ends), passage) == split([text], passage)


@given(texts_of("<think>", "</think>", "\n"), st.sampled_from(Passage))
def test_nothing_is_lost_but_marks_and_the_line_breaks_beside_them(text: str, passage: Passage) -> None:
    """What was written comes out, once and in order, less one pair of marks."""
    bare = "".join(split([text], passage)).replace("\n", "")
    marks = [THINK.open] * (passage is Passage.UNDECIDED) + [THINK.close] * (passage is not Passage.ANSWER)
    expected = text.replace("\n", "")
    allowed = {expected, expected.lstrip().replace(THINK.open, "", 1), expected.replace(THINK.close, "", 1)}
    allowed.add(expected.lstrip().replace(THINK.open, "", 1).replace(THINK.close, "", 1))
    assert bare in (allowed if marks else {expected})


def test_reasoning_is_sent_as_it_comes() -> None:
    """Only what may still be a mark or a line break before one waits."""
    splitter = ThinkingSplitter(THINK, Passage.THINKING)
    assert [splitter.push(piece) for piece in ["hm", "\n", "so", " </", "b", "</think>x"]] == [
        ("hm", ""),
        ("", ""),
        ("\nso", ""),
        (" ", ""),
        ("</b", ""),
        ("", "x"),
    ]


@pytest.mark.parametrize(
    ("prompt", "continued", "passage"),
    [
        ("<|im_start|>assistant\n", None, Passage.UNDECIDED),
        ("<|im_start|>assistant\n<think>\n", None, Passage.THINKING),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", None, Passage.ANSWER),
        ("<|im_start|>user\nwhat is <think>?<|im_end|>\n<|im_start|>assistant\n", None, Passage.UNDECIDED),
        ("<|im_start|>assistant\n<think>\nso far", "<think>\nso far", Passage.THINKING),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\nOnce", "Once", Passage.ANSWER),
        ("<|im_start|>assistant\n<think>a</think>Once", "<think>a</think>Once", Passage.ANSWER),
        ("<|im_start|>assistant\n<think>\n", "", Passage.THINKING),
    ],
)
def test_the_end_of_the_prompt_tells_where_the_answer_begins(
    prompt: str, continued: str | None, passage: Passage
) -> None:
    """A template may have opened or closed the thinking, and a message that goes on is where its text is."""
    assert passage_after(prompt, THINK, continued) is passage


@pytest.mark.parametrize(
    ("template", "tokens", "name"),
    [
        ("{{ content.split('</think>')[-1] }}", set(), "think"),
        ("{{ content }}", {"<think>", "</think>"}, "think"),
        ("{{ content }}", {"<think>"}, None),
        ("{{ '[THINK]' + x + '[/THINK]' }}", set(), "mistral"),
        ("{{ content }}", set(), None),
    ],
)
def test_marks_are_found_in_the_template_or_the_vocabulary(template: str, tokens: set[str], name: str | None) -> None:
    """A closing mark in the template, or both marks as tokens."""
    assert find_marks(template, tokens.__contains__) == (None if name is None else MARKS[name])
