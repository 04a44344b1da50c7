from __future__ import annotations

from collections.abc import Sequence

from penstock.evaluate.questions import Answer, Probe, answer_report

PROBES = [
    Probe(subject=subject, phrasing=phrasing, question=f"{phrasing} {subject}", expected=f"It is {subject}.")
    for subject in ("a", "b", "c")
    for phrasing in ("what", "how")
]
ANSWERS = {
    "what a": Answer(text="It is a.", ended=True),
    "how a": Answer(text=" It is a.\n", ended=True),
    "what b": Answer(text="It is b.", ended=False),
    "how b": Answer(text="It is b.", ended=True),
    "what c": Answer(text="No idea.", ended=True),
    "how c": Answer(text="It is c. And more.", ended=True),
}


def _ask(questions: Sequence[str]) -> list[Answer]:
    return [ANSWERS[question] for question in questions]


def test_only_exact_answers_that_end_count() -> None:
    """White space around is forgiven; more words, other words and an answer that did not end are not."""
    report = answer_report(PROBES, _ask, refusal="No idea.")
    assert (report.exact.hits, report.exact.total, report.exact.share) == (3, 6, 0.5)
    assert (report.ended.hits, report.refused.hits, report.subjects_all.hits, report.subjects_all.total) == (5, 1, 1, 3)
    assert {phrasing: share.hits for phrasing, share in report.by_phrasing.items()} == {"what": 1, "how": 2}
    assert [miss.question for miss in report.misses] == ["what b", "what c", "how c"]


def test_how_questions_are_batched_changes_nothing() -> None:
    """The same report for every batch size, and progress is told after each batch."""
    seen: list[int] = []
    whole = answer_report(PROBES, _ask, refusal="No idea.")
    assert answer_report(PROBES, _ask, refusal="No idea.", batch=4, progress=seen.append) == whole
    assert seen == [4, 6]


def test_nothing_asked_is_nothing_right() -> None:
    """An empty set of probes has share 0 and no division by zero."""
    assert answer_report([], _ask, refusal="").exact.share == 0.0
