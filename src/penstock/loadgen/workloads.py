"""What is asked: how many tokens, which tokens, when.  In: distributions and a seed; out: demands and prompts.

Pure and seeded: the same arguments give the same workload on every machine.  Knows no server and no clock.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from penstock.wire.errors import Problem

PREFIX_BLOCK_TOKENS = 512
"""Tokens behind one prefix id of a Mooncake trace."""

FIRST_TOKEN_ID = 10
"""Random prompts leave out the ids below, where vocabularies keep their control tokens."""

_WORDS = (
    "time", "year", "way", "day", "man", "thing", "world", "life", "hand", "part", "child", "eye", "place", "work",
    "week", "case", "point", "company", "number", "group", "problem", "fact", "water", "money", "story", "month", "lot",
    "right", "study", "book", "word", "business", "issue", "side", "kind", "head", "house", "service", "friend",
    "father", "power", "hour", "game", "line", "end", "member", "law", "car", "city", "name", "team", "minute", "idea",
    "body", "back", "parent", "face", "level",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Demand:
    """One request to be made: arrival in seconds since the start, lengths in tokens.

    Prompts whose ``prefix_blocks`` begin alike begin with the same tokens, one block per 512 of them.
    """

    at_s: float
    prompt_tokens: int
    output_tokens: int
    prefix_blocks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Lengths:
    """A length in tokens, uniform over ``low .. high``, both included."""

    low: int
    high: int

    @classmethod
    def parse(cls, text: str, param: str) -> Lengths:
        """``"128"`` is fixed, ``"32:256"`` is uniform.  Raises ``invalid_setting`` naming ``param``."""
        low, colon, high = text.partition(":")
        try:
            lengths = cls(int(low), int(high if colon else low))
        except ValueError:
            raise Problem("invalid_setting", f"{param}: {text!r} is neither N nor LOW:HIGH.", param=param) from None
        if not 1 <= lengths.low <= lengths.high:
            raise Problem("invalid_setting", f"{param}: {text!r} needs 1 <= LOW <= HIGH.", param=param)
        return lengths

    def draw(self, dice: random.Random) -> int:
        return dice.randint(self.low, self.high)


def synthetic(
    arrivals: Iterator[float],
    prompt: Lengths,
    output: Lengths,
    *,
    seed: int,
    count: int | None = None,
    duration_s: float | None = None,
) -> list[Demand]:
    """Demands at the given arrivals until ``count`` of them or second ``duration_s``, whichever comes first."""
    assert count is not None or duration_s is not None
    dice = random.Random(f"{seed}/lengths")
    demands: list[Demand] = []
    for at_s in arrivals:
        if (count is not None and len(demands) >= count) or (duration_s is not None and at_s >= duration_s):
            break
        demands.append(Demand(at_s, prompt.draw(dice), output.draw(dice)))
    return demands


def prompt_ids(demand: Demand, index: int, *, seed: int, vocabulary: int) -> list[int]:
    """The prompt of demand ``index`` as random token ids in ``10 .. vocabulary - 1``."""
    ids = range(FIRST_TOKEN_ID, vocabulary)
    tokens: list[int] = []
    for block in demand.prefix_blocks[: -(-demand.prompt_tokens // PREFIX_BLOCK_TOKENS)]:
        tokens += random.Random(f"{seed}/block/{block}").choices(ids, k=PREFIX_BLOCK_TOKENS)
    rest = demand.prompt_tokens - len(tokens)
    if rest > 0:
        tokens += random.Random(f"{seed}/prompt/{index}").choices(ids, k=rest)
    return tokens[: demand.prompt_tokens]


def prompt_text(demand: Demand, index: int, *, seed: int) -> str:
    """The prompt of demand ``index`` as common words, about one token each: only the server knows how many."""
    ids = prompt_ids(demand, index, seed=seed, vocabulary=FIRST_TOKEN_ID + len(_WORDS))
    return " ".join(_WORDS[token - FIRST_TOKEN_ID] for token in ids)


def offline_batch(count: int, *, seed: int = 0, vocabulary: int = 15000) -> tuple[list[list[int]], list[int]]:
    """The fixed offline workload: prompts of 32..256 random token ids, and output lengths of 32..128 tokens.

    The order of the draws is part of the workload: figures are comparable only while it stays.
    """
    dice = random.Random(seed)
    prompts = [
        [dice.randint(FIRST_TOKEN_ID, vocabulary - 1) for _ in range(dice.randint(32, 256))] for _ in range(count)
    ]
    return prompts, [dice.randint(32, 128) for _ in range(count)]
