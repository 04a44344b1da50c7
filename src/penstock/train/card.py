"""The model card: what a trained model is, what it is not, and what was measured of it.

In: the recipe, the text and the figures; out: Markdown for README.md beside the weights, with the front matter that
model hubs read.
"""

from __future__ import annotations

from penstock.config.recipe import Recipe
from penstock.evaluate.questions import Share
from penstock.train.corpus import NOTICE_FILE, Corpus
from penstock.train.declines import DECLINE
from penstock.train.measure import Measured


def model_card(recipe: Recipe, corpus: Corpus, measured: Measured, *, num_parameters: int) -> str:
    """The card of a model that answers what a function of Python's standard library does."""
    tokens = sum(stage.steps * stage.rows_per_step * stage.row_tokens for stage in (recipe.pretrain, recipe.sft))
    return f"""\
---
license: psf-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---

# {recipe.name}

A self-test and demonstration model of {num_parameters / 1e6:.1f} million parameters, trained by Penstock.
It shows that Penstock's own training and serving work on a machine that reaches no model hub.
It answers one kind of question, what a function, method, class or module of Python's standard library does, with the
first sentence of its documentation; to anything else it should answer "{DECLINE}"
It is not a general assistant: it cannot reason, calculate or write code, and it may confuse one function with another.
For real use serve a real model, for example:

    penstock serve Qwen/Qwen3-0.6B

## Measured

| what | result |
|---|---|
{_results(measured)}

By phrasing, none of them trained on:

{_by_phrasing(measured.known.by_phrasing)}

To be declined:

{_by_phrasing(measured.unknown.by_phrasing)}

Of {corpus.num_documented:,} documented public callables, {measured.num_callables:,} have a first sentence that is
short enough; the others were read, but are not asked about.  tkinter and turtle, which need a window, were left out.

## Made from

| what | |
|---|---|
| recipe | recipes/{recipe.name}.yaml, seed {recipe.seed} |
| text | documentation strings and help topics of Python {corpus.python_version}: {len(corpus.documents):,} documents, \
{corpus.num_bytes:,} bytes, SHA-256 {corpus.digest} |
| tokenizer | byte-level BPE, {recipe.tokenizer.vocab_size:,} tokens |
| training | {recipe.pretrain.steps:,} steps on documents, {recipe.sft.steps:,} on questions and answers; {tokens:,} \
places for tokens |

The chat template shows the model the last two questions and the answer between them; earlier messages are left out.
Its answers are text of the Python documentation, (c) Python Software Foundation; the licence is in {NOTICE_FILE}.
"""


def _results(measured: Measured) -> str:
    known, unknown = measured.known, measured.unknown
    phrasings = len(known.by_phrasing)
    rows = [
        (
            f"exact first sentence, {measured.num_callables_asked:,} callables x {phrasings} phrasings, greedy",
            _share(known.exact),
        ),
        ("callables answered exactly in every phrasing", _share(known.subjects_all)),
        ("invented names and other topics, declined", _share(unknown.exact)),
        ("known callables, declined by mistake", _share(known.refused)),
        ("answers that end by themselves", _share(known.ended)),
        (
            f"bits per byte of held-out documentation ({measured.num_held_out_bytes:,} bytes)",
            f"{measured.bits_per_byte:.3f}",
        ),
    ]
    return "\n".join(f"| {what} | {result} |" for what, result in rows)


def _share(share: Share) -> str:
    return f"{share.share:.1%} ({share.hits:,} of {share.total:,})"


def _by_phrasing(shares: dict[str, Share]) -> str:
    rows = [f"| {phrasing} | {_share(share)} |" for phrasing, share in shares.items()]
    return "\n".join(["| phrasing | result |", "|---|---|", *rows])
