"""From logits to tokens: filters, penalties and the draw."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stepwise import NoSink
from torch import Tensor

from penstock.engine.cpu.defaults import SamplingDefaults
from penstock.engine.cpu.sampler import Sampler
from penstock.engine.sequence import Constraint, Sequence
from penstock.wire.engine import Sampling

VOCAB = 40


class Allows:
    """A constraint that allows these tokens now, ``then`` others behind them, and later any of all."""

    def __init__(self, *token_ids: int, then: tuple[int, ...] | None = None, num_known: int = 99) -> None:
        """``num_known``: masks that it can tell at a time."""
        self._masks: list[bytes | None] = [_bits(token_ids), _bits(token_ids if then is None else then)]
        self._num_known = num_known

    @property
    def foresees(self) -> bool:
        return self._num_known > 1

    def foresee(self, token_ids: list[int]) -> None: ...

    def masks(self, token_ids: list[int]) -> list[bytes | None]:
        return [self._masks[min(depth, 1)] for depth in range(1 + len(token_ids))][: self._num_known]

    def mask(self) -> bytes | None:
        return self._masks[0]

    def advance(self, token_id: int) -> bool:
        return True


def _bits(token_ids: tuple[int, ...]) -> bytes:
    return bytes(sum(1 << i % 8 for i in token_ids if i // 8 == byte) for byte in range(8))


def sequence(
    sampling: Sampling,
    *,
    prompt: list[int] | None = None,
    output: list[int] | None = None,
    min_tokens: int = 0,
    stop_token_ids: frozenset[int] = frozenset(),
    constraint: Constraint | None = None,
) -> Sequence:
    prompt = [0] if prompt is None else prompt
    return Sequence(
        id="",
        token_ids=prompt + (output or []),
        num_prompt_tokens=len(prompt),
        max_tokens=100,
        sampling=sampling,
        sink=NoSink(),
        min_tokens=min_tokens,
        stop_token_ids=stop_token_ids,
        constraint=constraint,
    )


def greedy(logits: list[float], **changes: object) -> int:
    """The token of one greedy row whose sampling or sequence has ``changes``."""
    of_sampling = {key: value for key, value in changes.items() if key in Sampling.__struct_fields__}
    of_sequence = {key: value for key, value in changes.items() if key not in of_sampling}
    sampling = Sampling(**{"seed": 0, "temperature": 0.0, **of_sampling})  # type: ignore[arg-type]
    return Sampler(SamplingDefaults()).sample(torch.tensor([logits]), [sequence(sampling, **of_sequence)])[0]  # type: ignore[arg-type]


def logs(*probabilities: float) -> list[float]:
    return [math.log(p) for p in probabilities]


def test_greedy_takes_the_first_of_equals() -> None:
    """Among equal logits, frequent in bf16, the lowest id wins."""
    assert greedy([0.0, 3.0, 3.0, 1.0]) == 1
    wide = torch.zeros(70_000)
    wide[[31, 69_999, 40_000]] = 1.0
    assert greedy(wide.tolist()) == 31


@pytest.mark.parametrize("temperature", [1e-300, 1e-9, 1e-4, 1e4, 1e300])
def test_extreme_temperatures_draw_a_token(temperature: float) -> None:
    """The coldest temperatures take the best token and the hottest ones some token."""
    token = greedy([1.0, 5.0, 2.0, 4.9], temperature=temperature)
    assert token == 1 if temperature < 1 else 0 <= token < 4


def test_repetition_penalty_counts_prompt_and_output() -> None:
    """Tokens of prompt or output are divided by the penalty where positive, multiplied where negative."""
    assert greedy([4.0, 3.0, 3.9, 1.0], repetition_penalty=2.0, prompt=[0, 0], output=[2]) == 1
    assert greedy([-1.0, -1.5, -9.0, -9.0], repetition_penalty=2.0, prompt=[0], output=[]) == 1


def test_presence_and_frequency_count_the_output_only() -> None:
    """OpenAI's penalties look at what was generated: once for presence, per occurrence for frequency."""
    logits = [4.0, 3.0, 0.0, 0.0]
    assert greedy(logits, presence_penalty=1.5, prompt=[0, 0, 0]) == 0
    assert greedy(logits, presence_penalty=1.5, output=[0]) == 1
    assert greedy(logits, frequency_penalty=0.6, output=[0]) == 0
    assert greedy(logits, frequency_penalty=0.6, output=[0, 0]) == 1


def test_logit_bias_is_added_and_unknown_ids_change_nothing() -> None:
    """A bias moves its token; an id outside the vocabulary moves none, the last one least of all."""
    assert greedy([4.0, 3.0, 0.0, 3.5], logit_bias={1: 2.0}) == 1
    assert greedy([4.0, 3.0, 0.0, 3.5], logit_bias={-1: 100.0, 4: 100.0}) == 0


def test_stop_tokens_are_barred_before_min_tokens() -> None:
    """A stop token cannot come before min_tokens were generated, not even biased, and can afterwards."""
    stops = frozenset({0, 999})
    barred = {"min_tokens": 2, "stop_token_ids": stops, "logit_bias": {0: 50.0}}
    assert greedy([4.0, 3.0], output=[1], **barred) == 1
    assert greedy([4.0, 3.0], output=[1, 1], **barred) == 0


def test_only_allowed_tokens_are_drawn() -> None:
    """A mask bars whatever it does not allow, the best token and the most biased one too."""
    logits = [9.0, 1.0, 3.0, 2.0]
    assert greedy(logits, constraint=Allows(1, 3)) == 3
    assert greedy(logits, constraint=Allows(1, 3), logit_bias={1: 5.0, 2: 100.0}) == 1
    for at in range(50):
        hot = {"temperature": 2.0, "seed": at, "top_k": 3, "top_p": 0.9, "min_p": 0.01}
        assert greedy(logits, constraint=Allows(1, 3), **hot) in (1, 3)


def test_a_mask_shorter_than_the_logits_bars_the_rest() -> None:
    """Rows of the model beyond the tokenizer's vocabulary are never allowed."""
    assert greedy([0.0] * 70 + [9.0] * 30, constraint=Allows(5)) == 5


def test_a_constraint_counts_for_more_than_min_tokens() -> None:
    """Where only a stop token is allowed it comes, even before min_tokens."""
    # Not token 0, which is also what a row with everything barred would give.
    assert greedy([5.0, 1.0], constraint=Allows(1), min_tokens=3, stop_token_ids=frozenset({1})) == 1


def test_logits_are_left_as_they_are() -> None:
    """Penalties work on a copy: scores are taken from what the model said."""
    logits = torch.tensor([[4.0, 3.0, 2.0]])
    before = logits.clone()
    sampling = Sampling(seed=0, repetition_penalty=2.0, logit_bias={0: -100.0}, top_p=0.9)
    Sampler(SamplingDefaults()).sample(logits, [sequence(sampling)])
    assert torch.equal(logits, before)


samplings = st.builds(
    Sampling,
    seed=st.integers(-(2**63), 2**63 - 1),
    temperature=st.sampled_from([None, 0.0, 0.3, 1.0, 2.0]),
    top_p=st.sampled_from([None, 0.3, 0.9, 1.0]),
    top_k=st.sampled_from([None, -1, 0, 1, 5]),
    min_p=st.sampled_from([None, 0.0, 0.1]),
    repetition_penalty=st.sampled_from([None, 1.0, 1.3]),
    presence_penalty=st.sampled_from([0.0, 1.0]),
    frequency_penalty=st.sampled_from([0.0, -0.5]),
    logit_bias=st.sampled_from([None, {3: 5.0}]),
)


@settings(deadline=None)
@given(rows=st.lists(st.tuples(samplings, st.integers(0, 5)), min_size=1, max_size=8), source=st.integers(0, 1000))
def test_company_does_not_change_a_token(rows: list[tuple[Sampling, int]], source: int) -> None:
    """A row draws the same token alone, in company, and in company in another order."""
    generator = torch.Generator().manual_seed(source)
    logits = torch.randn(len(rows), VOCAB, generator=generator) * 3
    output = torch.randint(VOCAB, (5,), generator=generator).tolist()
    sequences = [sequence(sampling, output=output[:length]) for sampling, length in rows]
    sampler = Sampler(SamplingDefaults(temperature=0.7, top_k=20))
    together = sampler.sample(logits, sequences)
    alone = [sampler.sample(logits[i : i + 1], [sequences[i]])[0] for i in range(len(rows))]
    backwards: Tensor = logits.flip(0)
    assert together == alone == sampler.sample(backwards, sequences[::-1])[::-1]


@pytest.mark.parametrize("vocab", [50_000])
def test_company_does_not_change_a_token_of_a_large_vocabulary(vocab: int) -> None:
    """The same holds where torch splits rows over threads and vector widths."""
    logits = torch.randn(5, vocab, generator=torch.Generator().manual_seed(0))
    sequences = [sequence(Sampling(seed=i, top_p=0.95 if i % 2 else None)) for i in range(5)]
    sampler = Sampler(SamplingDefaults())
    together = sampler.sample(logits, sequences)
    assert together == [sampler.sample(logits[i : i + 1], [sequences[i]])[0] for i in range(5)]


def verified(logits: Tensor, one: Sequence, proposal: list[int]) -> list[int]:
    return Sampler(SamplingDefaults()).verify(logits, [one], [proposal])[0]


def one_by_one(logits: Tensor, one: Sequence, num_tokens: int) -> list[int]:
    """The sampler's own way to as many tokens: row by row, each behind the tokens before it."""
    prompt, output = list(one.token_ids), list[int]()
    for row in logits[:num_tokens]:
        again = sequence(
            one.sampling,
            prompt=prompt,
            output=list(output),
            min_tokens=one.min_tokens,
            stop_token_ids=one.stop_token_ids,
        )
        output += Sampler(SamplingDefaults()).sample(row[None], [again])
    return output


SAMPLINGS = st.builds(
    Sampling,
    seed=st.integers(0, 1 << 40),
    temperature=st.sampled_from([0.0, 0.4, 1.0]),
    top_p=st.sampled_from([None, 0.7]),
    top_k=st.sampled_from([None, 3]),
    min_p=st.sampled_from([None, 0.2]),
    repetition_penalty=st.sampled_from([None, 1.3]),
    presence_penalty=st.sampled_from([0.0, 1.5]),
    frequency_penalty=st.sampled_from([0.0, 0.7]),
    logit_bias=st.sampled_from([None, {0: 3.0, 5: -4.0}]),
)


@settings(max_examples=300, deadline=None)
@given(SAMPLINGS, st.integers(0, 1 << 30), st.integers(0, 4), st.integers(0, 4))
def test_what_is_proposed_changes_no_token(sampling: Sampling, seed: int, num_right: int, num_wrong: int) -> None:
    """However a row is sampled: right proposals bring the tokens that come one by one, and a wrong one ends them.

    So their distribution is the sampler's, and seeds mean the same with speculation and without.
    """
    logits = torch.randn(9, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3
    one = sequence(sampling, prompt=[1, 2], min_tokens=3, stop_token_ids=frozenset({4, 7}))
    expected = one_by_one(logits, one, num_right + 1)
    proposal = expected[:num_right] + [(expected[-1] + 1 + i) % VOCAB for i in range(num_wrong)]
    assert verified(logits, one, proposal) == expected


def test_drawn_pairs_have_their_probabilities_whatever_is_proposed() -> None:
    """Over 6,000 seeds the pairs behind a proposal that is right 3 times of 10 pass a chi-square test at 1 in 1,000."""
    first, second = [0.3, 0.5, 0.2], [0.6, 0.1, 0.3]
    logits = torch.tensor([logs(*first), logs(*second)])
    counts: Counter[tuple[int, ...]] = Counter()
    for seed in range(6000):
        drawn = verified(logits, sequence(Sampling(seed=seed, temperature=1.0)), [0])
        assert len(drawn) == 1 + (drawn[0] == 0)
        counts[tuple(drawn)] += 1
    expected = {(0, token): 0.3 * p for token, p in enumerate(second)} | {(1,): 0.5, (2,): 0.2}
    chi_square = sum((counts[pair] - 6000 * p) ** 2 / (6000 * p) for pair, p in expected.items())
    assert counts.keys() == expected.keys()
    assert chi_square < 18.47  # 4 degrees of freedom


def test_sequences_of_a_step_are_verified_each_by_its_own_rules() -> None:
    """Greedy and drawn ones, with proposals and without, keep to their rows."""
    logits = torch.randn(6, VOCAB, generator=torch.Generator().manual_seed(0))
    best = logits.argmax(-1).tolist()
    several = [
        sequence(Sampling(seed=0, temperature=0.0)),
        sequence(Sampling(seed=1, temperature=0.0), constraint=Allows(6)),
        sequence(Sampling(seed=2, temperature=0.0), output=[3]),
    ]
    drawn = Sampler(SamplingDefaults()).verify(logits, several, [[best[0], 39], [], [best[4]]])
    assert drawn == [[best[0], best[1]], [6], [best[4], best[5]]]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_each_row_of_a_proposal_is_sampled_under_its_own_mask(temperature: float) -> None:
    """What was proposed decides how far it is looked at, never what is drawn."""
    logits = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(1))
    constrained = sequence(Sampling(seed=1, temperature=temperature), constraint=Allows(5, 6, then=(7, 8)))
    first = verified(logits, constrained, [])[0]
    second = verified(logits, constrained, [first])[1]
    assert first in (5, 6) and second in (7, 8)
    assert verified(logits, constrained, [11 - first, second]) == [first]
    assert verified(logits, constrained, [first, 15 - second]) == [first, second]
    assert verified(logits, constrained, [first, second])[:2] == [first, second]


def test_a_row_whose_mask_is_not_known_is_not_sampled() -> None:
    """However right what was proposed is: the token comes with the next step."""
    logits = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(1))
    one = sequence(Sampling(seed=1, temperature=0.0), constraint=Allows(5, then=(7,), num_known=1))
    assert verified(logits, one, [5, 7]) == [5]
