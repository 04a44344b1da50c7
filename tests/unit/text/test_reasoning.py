"""Thinking, apart from the answer: where it begins and ends, whatever the pieces it arrives in."""

from __future__ import annotations

import pytest
from cuts import cut, places, texts_of
from hypothesis import example, given
from hypothesis import strategies as st

from penstock.text.reasoning import MARKS, Phase, ThinkingSplitter, find_marks, phase_after

THINK = MARKS["think"]


def split(pieces: list[str], phase: Phase = Phase.UNDECIDED) -> tuple[str, str]:
    """(reasoning, answer) of an output that came in ``pieces``."""
    splitter = ThinkingSplitter(THINK, phase)
    parts = [*map(splitter.push, pieces), splitter.flush()]
    return "".join(part[0] for part in parts), "".join(part[1] for part in parts)


@pytest.mark.parametrize(
    ("phase", "text", "reasoning", "answer"),
    [
        (Phase.UNDECIDED, "<think>\nhm\nyes\n</think>\n\nHi.", "hm\nyes", "Hi."),
        (Phase.UNDECIDED, "\n<think>hm</think>Hi.", "hm", "Hi."),
        (Phase.UNDECIDED, "<think>\n\n</think>\n\nHi.", "", "Hi."),
        (Phase.UNDECIDED, "Hi, <think> is a mark.", "", "Hi, <think> is a mark."),
        (Phase.UNDECIDED, "<thin ice>", "", "<thin ice>"),
        (Phase.UNDECIDED, "<thi", "", "<thi"),
        (Phase.UNDECIDED, "  indented", "", "  indented"),
        (Phase.UNDECIDED, "Hi.</think>", "", "Hi.</think>"),
        (Phase.UNDECIDED, "<think>never closed", "never closed", ""),
        (Phase.THINKING, "hm</think>\n\n  Hi.\n", "hm", "  Hi.\n"),
        (Phase.THINKING, "\nhm\n\n</thi", "hm\n\n</thi", ""),
        (Phase.THINKING, "a</think>b</think>c", "a", "b</think>c"),
        (Phase.THINKING, "a</think><think>b</think>c", "a", "<think>b</think>c"),
        (Phase.THINKING, "<think>a</think>c", "<think>a", "c"),
        (Phase.ANSWER, "<think>a</think>", "", "<think>a</think>"),
        (Phase.ANSWER, "\n\nHi.", "", "\n\nHi."),
    ],
)
def test_thinking_is_what_the_beginning_opens_up_to_the_first_closing_mark(
    phase: Phase, text: str, reasoning: str, answer: str
) -> None:
    """Marks elsewhere are text, and the line breaks beside the marks are nobody's."""
    assert split([text], phase) == (reasoning, answer)
    assert split(list(text), phase) == (reasoning, answer)


@given(texts_of("<think>", "</think>", "<thi", "nk>", "</", "\n\n"), places, st.sampled_from(Phase))
@example("<think></think>", [3, 10], Phase.UNDECIDED)
def test_the_pieces_do_not_matter(text: str, ends: list[int], phase: Phase) -> None:
    """However an output is cut, reasoning and answer are the same."""
    assert split(cut(text, ends), phase) == split([text], phase)


@given(texts_of("<think>", "</think>", "\n"), st.sampled_from(Phase))
def test_nothing_is_lost_but_marks_and_the_line_breaks_beside_them(text: str, phase: Phase) -> None:
    """What was written comes out, once and in order, less one pair of marks."""
    bare = "".join(split([text], phase)).replace("\n", "")
    marks = [THINK.open] * (phase is Phase.UNDECIDED) + [THINK.close] * (phase is not Phase.ANSWER)
    expected = text.replace("\n", "")
    allowed = {expected, expected.lstrip().replace(THINK.open, "", 1), expected.replace(THINK.close, "", 1)}
    allowed.add(expected.lstrip().replace(THINK.open, "", 1).replace(THINK.close, "", 1))
    assert bare in (allowed if marks else {expected})


def test_reasoning_is_sent_as_it_comes() -> None:
    """Only what may still be a mark or a line break before one waits."""
    splitter = ThinkingSplitter(THINK, Phase.THINKING)
    assert [splitter.push(piece) for piece in ["hm", "\n", "so", " </", "b", "</think>x"]] == [
        ("hm", ""),
        ("", ""),
        ("\nso", ""),
        (" ", ""),
        ("</b", ""),
        ("", "x"),
    ]


@pytest.mark.parametrize(
    ("prompt", "continued", "phase"),
    [
        ("<|im_start|>assistant\n", None, Phase.UNDECIDED),
        ("<|im_start|>assistant\n<think>\n", None, Phase.THINKING),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", None, Phase.ANSWER),
        ("<|im_start|>user\nwhat is <think>?<|im_end|>\n<|im_start|>assistant\n", None, Phase.UNDECIDED),
        ("<|im_start|>assistant\n<think>\nso far", "<think>\nso far", Phase.THINKING),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\nOnce", "Once", Phase.ANSWER),
        ("<|im_start|>assistant\n<think>a</think>Once", "<think>a</think>Once", Phase.ANSWER),
        ("<|im_start|>assistant\n<think>\n", "", Phase.THINKING),
    ],
)
def test_the_end_of_the_prompt_tells_where_the_answer_begins(prompt: str, continued: str | None, phase: Phase) -> None:
    """A template may have opened or closed the thinking, and a message that goes on is where its text is."""
    assert phase_after(prompt, THINK, continued) is phase


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
