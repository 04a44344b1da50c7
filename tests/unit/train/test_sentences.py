from __future__ import annotations

import pytest

from penstock.train.sentences import first_sentence


@pytest.mark.parametrize(
    ("doc", "sentence"),
    [
        ("Return x.  More about it.", "Return x."),
        ("Return the\n    value of x.\n\nMore.", "Return the value of x."),
        ("Return the value of x\n\nMore.", "Return the value of x."),
        ("Return e.g. Zero or one.", "Return e.g. Zero or one."),
        ("Parse 'a.b.c' and 3.5 as is. Then stop.", "Parse 'a.b.c' and 3.5 as is."),
        ("D.clear() -> None.  Remove all items from D.", "Remove all items from D."),
        (
            "D.keys() -> a set-like object providing a view on D's keys",
            "A set-like object providing a view on D's keys.",
        ),
        ("S.find(sub[, start]) -> int\n\nReturn the lowest index.", "Return the lowest index."),
        ("addch([y, x,] ch, [attr])\nPaint the character ch.\n\nMore.", "Paint the character ch."),
        ("Is it so? Yes.", "Is it so?"),
    ],
)
def test_the_first_sentence_is_found(doc: str, sentence: str) -> None:
    """One line, ended by a mark, without the signature before it and what comes after."""
    assert first_sentence(doc) == sentence


@pytest.mark.parametrize(
    "doc",
    [
        "",
        "   \n ",
        "Quote.",
        "ArgSpec(args, varargs, keywords)",
        "Return one of the following:\n\n* this",
        "x = 1; y = 2; z = 3",
        "Grüße an alle Leser.",
        ">>> f(1) gives two",
        f"Return {'very ' * 40}much.",
        "| a | table |",
    ],
)
def test_what_is_not_worth_quoting_is_left_out(doc: str) -> None:
    """Nothing, one word, signatures, heads of lists, code, other alphabets, prompts, and what is too long."""
    assert first_sentence(doc) is None


def test_the_longest_allowed_is_the_callers_choice() -> None:
    """A sentence exactly as long as allowed is kept, a longer one is not cut but left out."""
    assert first_sentence("Return x now.", 13) == "Return x now."
    assert first_sentence("Return x now.", 12) is None
