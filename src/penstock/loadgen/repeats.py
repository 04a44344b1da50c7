"""Prompts and answers that repeat themselves much, little and never as they seem to, to try speculation on.

In: a kind, a count and a vocabulary; out: token ids.  Pure and seeded.
"""

from __future__ import annotations

import random
from typing import Literal, NamedTuple, get_args

from penstock.loadgen.workloads import FIRST_TOKEN_ID

Kind = Literal["quoting", "random", "misleading"]
KINDS: tuple[Kind, ...] = get_args(Kind)
PROMPT_TOKENS, ANSWER_TOKENS = 256, 256
_AGREEING = 3
"""Tokens that a look-up goes by; a misleading text goes on otherwise behind any that many."""
_FEW = 6


class Exchange(NamedTuple):
    """A prompt, and the answer that it gets."""

    prompt: list[int]
    answer: list[int]


def exchanges(kind: Kind, count: int, *, seed: int = 0, vocabulary: int = 15000) -> list[Exchange]:
    """``quoting``: passages of the prompt of 12 to 48 tokens between a few others, as a summary or an edit has them.

    ``random``: nothing ever repeats.  ``misleading``: everything does, and goes on in another way than the last time.
    """
    make = {"quoting": _quoting, "random": _random, "misleading": _misleading}[kind]
    dice = random.Random(seed)
    return [make(dice, vocabulary) for _ in range(count)]


def passages(token_ids: list[int], count: int) -> list[Exchange]:
    """A text cut into prompts and what follows them; from its start again where it is too short."""
    size = PROMPT_TOKENS + ANSWER_TOKENS
    text = token_ids * (1 + size * count // max(1, len(token_ids)))
    cut = [text[i * size : (i + 1) * size] for i in range(count)]
    return [Exchange(part[:PROMPT_TOKENS], part[PROMPT_TOKENS:]) for part in cut]


def _tokens(dice: random.Random, count: int, vocabulary: int) -> list[int]:
    return [dice.randrange(FIRST_TOKEN_ID, vocabulary) for _ in range(count)]


def _random(dice: random.Random, vocabulary: int) -> Exchange:
    return Exchange(_tokens(dice, PROMPT_TOKENS, vocabulary), _tokens(dice, ANSWER_TOKENS, vocabulary))


def _quoting(dice: random.Random, vocabulary: int) -> Exchange:
    prompt, answer = _tokens(dice, PROMPT_TOKENS, vocabulary), list[int]()
    while len(answer) < ANSWER_TOKENS:
        answer += _tokens(dice, dice.randint(1, 6), vocabulary)
        begin = dice.randrange(PROMPT_TOKENS - 48)
        answer += prompt[begin : begin + dice.randint(12, 48)]
    return Exchange(prompt, answer[:ANSWER_TOKENS])


def _misleading(dice: random.Random, vocabulary: int) -> Exchange:
    few = _tokens(dice, _FEW, vocabulary)
    text = dice.choices(few, k=PROMPT_TOKENS)
    followed = {tuple(text[i - _AGREEING : i]): text[i] for i in range(_AGREEING, len(text))}
    for _ in range(ANSWER_TOKENS):
        last = tuple(text[-_AGREEING:])
        token_id = dice.choice([token_id for token_id in few if token_id != followed.get(last)] or few)
        followed[last] = token_id
        text.append(token_id)
    return Exchange(text[:PROMPT_TOKENS], text[PROMPT_TOKENS:])
