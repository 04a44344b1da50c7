"""Answers compared with what they should be, word for word.

In: probes and a function that answers questions; out: shares.  Knows no model: whoever calls decides who answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import msgspec


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """A question with its one right answer.  ``subject`` is asked about, ``phrasing`` groups probes of one kind."""

    subject: str
    phrasing: str
    question: str
    expected: str


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What was answered.  ``ended``: by the model itself, not by a limit."""

    text: str
    ended: bool


Ask = Callable[[Sequence[str]], Sequence[Answer]]


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """``hits`` of ``total``."""

    hits: int
    total: int
    share: float


class AnswerReport(msgspec.Struct, frozen=True, kw_only=True):
    """How many answers were exactly right, in all and per phrasing; how many refused; how many ended by themselves.

    ``subjects_all`` are those answered right in each of their probes; ``misses`` are the first few wrong ones.
    """

    exact: Share
    refused: Share
    ended: Share
    subjects_all: Share
    by_phrasing: dict[str, Share]
    misses: list[Miss]


class Miss(msgspec.Struct, frozen=True, kw_only=True):
    """One answer that was not the expected one."""

    question: str
    expected: str
    answered: str


def answer_report(
    probes: Sequence[Probe],
    ask: Ask,
    *,
    refusal: str,
    batch: int = 256,
    num_misses: int = 20,
    progress: Callable[[int], None] = lambda done: None,
) -> AnswerReport:
    """Ask every probe, ``batch`` at a time; an answer counts when it is the expected text and ended by itself.

    ``refusal`` is the answer that declines.  White space around an answer is not compared.
    ``progress`` sees how many have been answered.
    """
    answers: list[Answer] = []
    for begin in range(0, len(probes), batch):
        asked = [probe.question for probe in probes[begin : begin + batch]]
        answered = ask(asked)
        assert len(answered) == len(asked)
        answers += answered
        progress(len(answers))
    right = [
        answer.ended and answer.text.strip() == probe.expected for probe, answer in zip(probes, answers, strict=True)
    ]
    subjects: dict[str, bool] = {}
    for probe, is_right in zip(probes, right, strict=True):
        subjects[probe.subject] = subjects.get(probe.subject, True) and is_right
    phrasings = list(dict.fromkeys(probe.phrasing for probe in probes))
    wrong = [(probe, answer) for probe, answer, is_right in zip(probes, answers, right, strict=True) if not is_right]
    return AnswerReport(
        exact=share(right),
        refused=share(answer.text.strip() == refusal for answer in answers),
        ended=share(answer.ended for answer in answers),
        subjects_all=share(subjects.values()),
        by_phrasing={
            phrasing: share(hit for probe, hit in zip(probes, right, strict=True) if probe.phrasing == phrasing)
            for phrasing in phrasings
        },
        misses=[
            Miss(question=probe.question, expected=probe.expected, answered=answer.text)
            for probe, answer in wrong[:num_misses]
        ],
    )


def share(hits: Iterable[bool]) -> Share:
    """``hits`` counted; of nothing the share is 0."""
    counted = [bool(hit) for hit in hits]
    return Share(hits=sum(counted), total=len(counted), share=sum(counted) / len(counted) if counted else 0.0)
