from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from penstock.evaluate.questions import Answer
from penstock.train.card import model_card
from penstock.train.corpus import Corpus, Entry
from penstock.train.declines import DECLINE
from penstock.train.measure import NUM_DECLINED_PROBES, Measured, measure
from penstock.train.recipe_file import load_recipe
from penstock.train.tokens import Document

RECIPE = Path(__file__).parents[3] / "recipes" / "pydoc.yaml"
CORPUS = Corpus(
    python_version="3.11.7",
    documents=("json.dumps\nSerialize.",),
    entries=tuple(
        Entry(qualified_name=name, kind="function", signature=None, first_sentence=f"It is {name}.", doc="")
        for name in ("json.dumps", "json.loads", "math.sqrt", "len")
    ),
    known_names=("json.dumps", "json.loads", "math.sqrt", "len"),
    num_documented=5,
    absent_modules=(),
    notice="PSF",
)


def _ask(questions: Sequence[str]) -> list[Answer]:
    """Knows all but sqrt, wherever they are asked about, and declines the rest."""
    known = {
        entry.qualified_name: entry.first_sentence for entry in CORPUS.entries if entry.qualified_name != "math.sqrt"
    }
    return [
        Answer(
            text=next((text for name, text in known.items() if f" {name} " in question), DECLINE),
            ended=True,
        )
        for question in questions
    ]


def _measure(num_callables: int | None = None) -> Measured:
    return measure(
        CORPUS,
        held_out=[Document([0, 5, 0], [False, True, True], 4)],
        nats=lambda documents: [4.0 for _ in documents],
        ask=_ask,
        num_callables=num_callables,
        seed=1,
    )


def test_every_figure_is_of_its_own_questions() -> None:
    """Known callables, declines by mistake and rightful declines are counted apart; each callable is asked thrice."""
    measured = _measure()
    assert (measured.known.exact.hits, measured.known.exact.total) == (9, 12)
    assert (measured.known.refused.hits, measured.known.subjects_all.hits) == (3, 3)
    assert (measured.unknown.exact.hits, measured.unknown.exact.total) == (NUM_DECLINED_PROBES, NUM_DECLINED_PROBES)
    assert measured.bits_per_byte == pytest.approx(1.4427, abs=1e-4)
    assert _measure(2).num_callables_asked == 2


def test_the_card_says_what_the_model_is_and_is_not() -> None:
    """A demonstration model, its figures, its text's licence, and a real model beside it."""
    card = model_card(load_recipe(RECIPE), CORPUS, _measure(), num_parameters=5_900_000)
    for words in (
        "self-test and demonstration model of 5.9 million parameters",
        "not a general assistant",
        "penstock serve Qwen/Qwen3-0.6B",
        "75.0% (9 of 12)",
        "| bits per byte of held-out documentation (4 bytes) | 1.443 |",
        "Python 3.11.7",
        "PSF-LICENSE.txt",
        "Python Software Foundation",
    ):
        assert words in card
    assert all(len(line.split("|")) == 4 for line in card.splitlines() if line.startswith("|"))
