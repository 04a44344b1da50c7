"""What the model must say it does not know, and what it says about itself.

In: a corpus and a seed; out: exchanges and probes.  Trained and held-out questions share neither invented names nor
topics, so that declining is measured on what was never seen.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Iterator
from functools import cache

import msgspec

from penstock.evaluate.questions import Probe
from penstock.train.chance import draw, pick
from penstock.train.chats import Exchange
from penstock.train.corpus import Corpus
from penstock.train.questions import HELD_OUT_PHRASINGS, TRAINING_PHRASINGS, asked, name_endings, spelled

DECLINE = "I do not know that."
_IDENTITY = "I am a small demonstration model; ask me what a function of Python's standard library does."
_KINDS = ("function", "method", "class", "module")
_NUMBERS = [str(number) for number in range(2, 100)]


class _Words(msgspec.Struct, frozen=True):
    """declines.json.  ``frames`` have blanks that ``fillings`` fill; even ones are trained on, odd ones held out."""

    verbs: list[str]
    nouns: list[str]
    frames: list[str]
    held_out_frames: list[str]
    about_itself: list[str]
    fillings: dict[str, list[str]]


def declined_questions(corpus: Corpus, num_exchanges: int, seed: int) -> Iterator[Exchange]:
    """``num_exchanges`` questions to be declined: two thirds about invented names, one third about other topics.

    Names are spelled and phrasings drawn as for what is known, and half of the other topics are asked about in the
    same phrasings, so that only the subject tells whether there is an answer.
    """
    names = _Names(corpus, seed)
    for number in range(num_exchanges):
        key = ("declined", number)
        phrasing = pick(TRAINING_PHRASINGS, seed, "phrasing", *key)
        if number % 3 < 2:
            invented, kind = names.invent(0, number), pick(_KINDS, seed, "noun", *key)
            subject = spelled(invented, kind, seed, *key, short=None)
            yield Exchange(asked(phrasing, subject, kind, seed, *key), DECLINE)
        elif number % 2:
            yield Exchange(asked(phrasing, _other_subject(seed, number), "thing", seed, *key), DECLINE)
        else:
            frame = pick(_words().frames, seed, "frame", *key)
            yield Exchange(asked(_filled(frame, 0, seed, number), "", "", seed, *key), DECLINE)


def declined_probes(corpus: Corpus, num_probes: int, seed: int) -> list[Probe]:
    """Questions to be declined whose names, topics and phrasings were all never trained on."""
    names = _Names(corpus, seed)
    probes = []
    for number in range(num_probes):
        if number % 3 == 2:
            frame = pick(_words().held_out_frames, seed, "frame", number)
            subject = question = _filled(frame, 1, seed, number)
            phrasing = "another topic"
        else:
            subject = names.invent(1, number)
            question = pick(HELD_OUT_PHRASINGS, seed, "phrasing", number).format(name=subject)
            phrasing = "an invented name"
        probes.append(Probe(subject=subject, phrasing=phrasing, question=question, expected=DECLINE))
    return probes


def questions_about_itself(num_each: int) -> Iterator[Exchange]:
    """Greetings and the like, each ``num_each`` times."""
    for question in _words().about_itself:
        for _ in range(num_each):
            yield Exchange(question, _IDENTITY)


class _Names:
    """Invents names that do not exist, nor end like one that does."""

    def __init__(self, corpus: Corpus, seed: int) -> None:
        self._real = [entry.qualified_name for entry in corpus.callables]
        self._endings = frozenset(name_endings(corpus))
        self._seed = seed

    def invent(self, half: int, number: int) -> str:
        """Half 0 and half 1 never give the same name.

        Some names are made up wholly, some put a made-up function into a real module, and some join a real module with
        a real function of another one, so that neither part alone gives the answer away.
        """
        for attempt in range(1000):
            name, made_up = self._candidate(half, number, attempt)
            # Which half a name belongs to is a property of what was made up of it.
            if name not in self._endings and draw(self._seed, "half", made_up) % 2 == half:
                return name
        raise AssertionError("a thousand draws gave only known names")

    def _candidate(self, *key: int) -> tuple[str, str]:
        """(name, the part of it that is invented)."""
        seed, words = self._seed, _words()
        verb, noun = pick(words.verbs, seed, "verb", *key), pick(words.nouns, seed, "noun", *key)
        made_up = pick((f"{verb}_{noun}", f"{verb}{noun}", verb, f"{verb.title()}{noun.title()}"), seed, "made", *key)
        real, other = pick(self._real, seed, "real", *key), pick(self._real, seed, "other", *key)
        place = real.rpartition(".")[0] or real
        joined = f"{place}.{other.rpartition('.')[2]}"
        kinds = ((f"{place}.{made_up}", made_up), (joined, joined), (f"{noun}.{made_up}", made_up), (made_up, made_up))
        return pick(kinds, seed, "kind", *key)


def _other_subject(seed: int, number: int) -> str:
    fillings = _words().fillings
    blank = pick(sorted(fillings), seed, "blank", number)
    return pick(fillings[blank][::2], seed, "subject", number)


def _filled(frame: str, half: int, seed: int, number: int) -> str:
    """``frame`` with its blanks filled from the fillings of ``half`` (0: trained on, 1: held out)."""
    parts = frame.split("{")
    text = parts[0]
    for position, part in enumerate(parts[1:]):
        blank, _, rest = part.partition("}")
        fillings = _NUMBERS if blank == "number" else _words().fillings[blank]
        text += pick(fillings[half::2], seed, "filling", half, number, position) + rest
    return text


@cache
def _words() -> _Words:
    content = importlib.resources.files("penstock.train").joinpath("declines.json").read_bytes()
    return msgspec.json.decode(content, type=_Words)
