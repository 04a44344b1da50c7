"""What is reported of a trained model: how well it predicts, answers and declines.

In: a corpus, held-out text and two functions of the model; out: :class:`Measured`, which the model card shows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from penstock.evaluate.bits_per_byte import bits_per_byte
from penstock.evaluate.questions import AnswerReport, Ask, answer_report
from penstock.train.corpus import Corpus
from penstock.train.declines import DECLINE, declined_probes
from penstock.train.questions import held_out_probes, sample_probes
from penstock.train.tokens import Document

NUM_DECLINED_PROBES = 900


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """``known``: questions in held-out phrasings; ``unknown``: questions to be declined, none of them trained on."""

    bits_per_byte: float
    num_held_out_documents: int
    num_held_out_bytes: int
    num_callables: int
    num_callables_asked: int
    known: AnswerReport
    unknown: AnswerReport


def measure(
    corpus: Corpus,
    *,
    held_out: Sequence[Document],
    nats: Callable[[Sequence[Document]], Sequence[float]],
    ask: Ask,
    num_callables: int | None,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Measured:
    """Ask about ``num_callables`` callables (``None``: all), three held-out phrasings each, and decline probes.

    ``nats`` gives -ln p summed over each document; ``ask`` answers greedily; ``progress`` sees questions done and due.
    """
    probes = held_out_probes(corpus)
    if num_callables is not None:
        probes = sample_probes(probes, num_callables, seed)
    unknown = declined_probes(corpus, NUM_DECLINED_PROBES, seed)
    due = len(probes) + len(unknown)
    known_report = answer_report(probes, ask, refusal=DECLINE, progress=lambda done: progress(done, due))
    unknown_report = answer_report(
        unknown, ask, refusal=DECLINE, progress=lambda done: progress(len(probes) + done, due)
    )
    return Measured(
        bits_per_byte=bits_per_byte(held_out, nats),
        num_held_out_documents=len(held_out),
        num_held_out_bytes=sum(document.num_bytes for document in held_out),
        num_callables=len(corpus.callables),
        num_callables_asked=known_report.subjects_all.total,
        known=known_report,
        unknown=unknown_report,
    )
