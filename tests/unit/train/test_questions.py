from __future__ import annotations

from collections import Counter

import pytest

from penstock.train.corpus import Corpus, Entry
from penstock.train.declines import DECLINE, declined_probes, declined_questions, questions_about_itself
from penstock.train.questions import (
    HELD_OUT_PHRASINGS,
    TRAINING_PHRASINGS,
    held_out_probes,
    sample_probes,
    training_questions,
)

NAMES = {
    "json": "module",
    "json.dumps": "function",
    "pickle.dumps": "function",
    "math.sqrt": "function",
    "collections.deque.append": "method",
    "len": "function",
}


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    entries = tuple(
        Entry(qualified_name=name, kind=kind, signature=None, first_sentence=f"It is {name}.", doc="")  # type: ignore[arg-type]
        for name, kind in NAMES.items()
    )
    return Corpus(
        python_version="3",
        documents=(),
        entries=entries,
        known_names=(*NAMES, "undocumented.sqrt_of"),
        num_documented=5,
        absent_modules=(),
        notice="",
    )


def test_each_entry_is_asked_as_often_as_wished(corpus: Corpus) -> None:
    """Each in that many different phrasings, and the answer is always exactly the first sentence."""
    exchanges = list(training_questions(corpus, 24, 1))
    assert len(set(TRAINING_PHRASINGS)) == len(TRAINING_PHRASINGS) >= 24
    assert Counter(exchange.answer for exchange in exchanges) == {entry.first_sentence: 24 for entry in corpus.entries}
    assert len({exchange.question for exchange in exchanges}) == len(exchanges)


def test_held_out_phrasings_are_never_trained_on(corpus: Corpus) -> None:
    """Three phrasings, of which no training question has the words around the name, whatever the name's spelling."""
    assert len(HELD_OUT_PHRASINGS) == 3
    asked = [exchange.question for seed in range(20) for exchange in training_questions(corpus, 70, seed)]
    asked += [exchange.question for exchange in declined_questions(corpus, 6000, 1)]
    for phrasing in HELD_OUT_PHRASINGS:
        before, _, after = phrasing.partition("{name}")
        assert not any(before in question and question.endswith(after) for question in asked)
        assert not any(phrasing.replace("{name}", "{noun} {name}") in other for other in TRAINING_PHRASINGS)


def test_an_ambiguous_name_is_always_asked_in_full(corpus: Corpus) -> None:
    """json.dumps and pickle.dumps are never called dumps alone; a name that is unique sometimes is."""
    asked = {e.question: e.answer for seed in range(100) for e in training_questions(corpus, 70, seed)}
    for question, answer in asked.items():
        if "dumps" in question:
            assert answer.removeprefix("It is ").partition(".")[0] in question
    assert asked["What is sqrt?"] == "It is math.sqrt."
    assert asked["What is deque.append?"] == "It is collections.deque.append."
    assert asked["What is `math.sqrt`?"] == asked["What is math.sqrt()?"] == asked["What is sqrt in math?"]


def test_only_the_subject_tells_what_is_declined(corpus: Corpus) -> None:
    """Openers, nouns, parentheses, quotes and phrasings of declined questions are those of answered ones."""
    answered = " ".join(exchange.question for exchange in training_questions(corpus, 70, 1))
    declined = " ".join(exchange.question for exchange in declined_questions(corpus, 6000, 1))
    for words in ("()", "`", " in ", "the method ", "the function ", "Quick question: ", "Thanks! ", "Summarise what "):
        assert words in answered and words in declined


def test_every_callable_has_three_probes_and_a_module_none(corpus: Corpus) -> None:
    """Probes ask with the qualified name; a sample takes all three of a callable or none."""
    probes = held_out_probes(corpus)
    assert Counter(probe.subject for probe in probes) == {name: 3 for name in NAMES if name != "json"}
    assert all(probe.subject in probe.question for probe in probes)
    assert set(Counter(probe.subject for probe in sample_probes(probes, 2, 1)).values()) == {3}
    assert len(sample_probes(probes, 2, 1)) == 6


def test_what_is_declined_does_not_exist(corpus: Corpus) -> None:
    """No invented name is a known one or the ending of one, and every answer declines."""
    exchanges = list(declined_questions(corpus, 3000, 1))
    assert len(exchanges) == 3000 and {exchange.answer for exchange in exchanges} == {DECLINE}
    endings = {name.rpartition(".")[2] for name in corpus.known_names}
    known = {phrasing.format(name=name, noun="function") for phrasing in TRAINING_PHRASINGS for name in endings}
    known |= {phrasing.format(name=name, noun="function") for phrasing in TRAINING_PHRASINGS for name in NAMES}
    known |= {question.replace(name, f"{name}()") for question in known for name in NAMES if name in question}
    assert not known & {exchange.question for exchange in exchanges}


def test_trained_and_held_out_declines_share_nothing(corpus: Corpus) -> None:
    """Neither a question nor an invented name of the probes is trained on."""
    trained = [exchange.question for exchange in declined_questions(corpus, 6000, 1)]
    probes = declined_probes(corpus, 900, 1)
    words = {word.strip("`?.;:(),") for question in trained for word in question.split()}
    invented = {probe.subject for probe in probes if probe.phrasing == "an invented name"}
    assert len(invented) > 400 and not invented & words
    assert not {probe.question for probe in probes} & set(trained)
    assert {probe.phrasing for probe in probes} == {"an invented name", "another topic"}
    assert {probe.expected for probe in probes} == {DECLINE}


def test_the_same_seed_asks_the_same(corpus: Corpus) -> None:
    """Questions are a function of corpus and seed."""
    for make in (
        lambda seed: list(training_questions(corpus, 9, seed)),
        lambda seed: declined_probes(corpus, 90, seed),
    ):
        assert make(1) == make(1) != make(2)


def test_greetings_are_answered_with_what_it_can_do() -> None:
    """One answer, which tells what to ask."""
    answers = {exchange.answer for exchange in questions_about_itself(2)}
    assert len(answers) == 1 and "standard library" in answers.pop()
