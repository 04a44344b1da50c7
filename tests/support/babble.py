"""Output under a grammar, drawn at random: what the most unhelpful model would write."""

from __future__ import annotations

import random

from penstock.text.grammar import GrammarConstraint, Grammars
from penstock.text.tokenizer import Tokenizer
from penstock.wire.engine import Grammar

MOST_TOKENS = 4000
_CLOSING = b'"}]:,'
_PLAIN = bytes(range(33, 127))


def allowed_ids(mask: bytes) -> list[int]:
    return [index * 8 + bit for index, byte in enumerate(mask) if byte for bit in range(8) if byte >> bit & 1]


def babble(
    tokenizer: Tokenizer,
    grammars: Grammars,
    grammar: Grammar,
    dice: random.Random,
    *,
    num_cuts: int = 0,
    wordy_tokens: int = 60,
) -> bytes:
    """A whole output: free for ``wordy_tokens``, then looking for its end.

    At ``num_cuts`` random moments the constraint is dropped and made anew from the tokens so far; the new one has to
    allow what the old one allowed.  Raises ``Problem`` for a grammar that is refused, AssertionError for one that
    never ends.
    """
    cuts = {dice.randrange(wordy_tokens) for _ in range(num_cuts)}
    single = {tokenizer.token_bytes(i): i for i in range(tokenizer.vocab_size) if len(tokenizer.token_bytes(i)) == 1}
    ways_out = [[i for byte in some if (i := single.get(bytes([byte]))) is not None] for some in (_CLOSING, _PLAIN)]
    stops = tokenizer.stop_token_ids or frozenset(tokenizer.special_token_ids)
    emitted: list[int] = []
    constraint = _follow(grammars, grammar, stops, emitted)
    while len(emitted) < MOST_TOKENS:
        mask = constraint.mask()
        if len(emitted) in cuts:
            cuts.remove(len(emitted))
            constraint.close()
            constraint = _follow(grammars, grammar, stops, emitted)
            assert constraint.mask() == mask, "a resumed output allows something else"
        assert mask is not None
        token_id = _choice(allowed_ids(mask), dice, stops, ways_out, len(emitted) >= wordy_tokens)
        if not constraint.advance(token_id):
            constraint.close()
            return b"".join(map(tokenizer.token_bytes, emitted))
        emitted.append(token_id)
    raise AssertionError(f"no end in {MOST_TOKENS} tokens")


def _follow(grammars: Grammars, grammar: Grammar, stops: frozenset[int], emitted: list[int]) -> GrammarConstraint:
    return grammars.constrain(grammar, stop_token_ids=stops, emitted_token_ids=list(emitted))


def _choice(
    allowed: list[int], dice: random.Random, stops: frozenset[int], ways_out: list[list[int]], hurry: bool
) -> int:
    assert allowed, "nothing is allowed"
    among = set(allowed)
    ends = sorted(among & stops)
    if ends and (hurry or dice.random() < 0.3):
        return ends[0]
    if hurry:
        closing, plain = ([i for i in way if i in among] for way in ways_out)
        if closing and dice.random() < 0.7:
            return closing[0]
        if plain:
            return dice.choice(plain)
    return dice.choice(allowed)
