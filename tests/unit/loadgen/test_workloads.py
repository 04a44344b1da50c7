"""What is asked, from a seed."""

from __future__ import annotations

import itertools

import pytest

from penstock.loadgen.arrivals import poisson
from penstock.loadgen.workloads import (
    PREFIX_BLOCK_TOKENS,
    Demand,
    Lengths,
    offline_batch,
    prompt_ids,
    prompt_text,
    synthetic,
)
from penstock.wire.errors import Problem


def test_the_offline_workload_is_pinned() -> None:
    """Its draws never change, or published figures would stop being comparable."""
    prompts, lengths = offline_batch(16)
    assert (sum(map(len, prompts)), sum(lengths)) == (2687, 1288)
    assert prompts[0][:5] == [6321, 12428, 14595, 6900, 673]
    assert lengths[-3:] == [110, 48, 47]
    prompts, lengths = offline_batch(64)
    assert (sum(map(len, prompts)), sum(lengths)) == (9211, 5360)


def test_the_offline_workload_stays_in_the_vocabulary() -> None:
    """Token ids are below the given vocabulary and not among the lowest ten."""
    prompts, _ = offline_batch(8, vocabulary=300)
    ids = [token for prompt in prompts for token in prompt]
    assert min(ids) >= 10 and max(ids) < 300


def test_synthetic_stops_at_count_or_duration() -> None:
    """Whichever of the two limits comes first ends the workload."""
    fixed = Lengths(3, 3)
    by_count = synthetic(poisson(10.0, 1), fixed, fixed, seed=1, count=5)
    by_time = synthetic(poisson(10.0, 1), fixed, fixed, seed=1, count=5, duration_s=by_count[3].at_s)
    assert len(by_count) == 5
    assert by_time == by_count[:3]


def test_synthetic_lengths_cover_their_range() -> None:
    """Uniform lengths reach both ends and nothing beyond."""
    demands = synthetic(itertools.repeat(0.0), Lengths(2, 5), Lengths(7, 7), seed=0, count=300)
    assert {demand.prompt_tokens for demand in demands} == {2, 3, 4, 5}
    assert {demand.output_tokens for demand in demands} == {7}


@pytest.mark.parametrize("text", ["", "x", "0", "-3", "5:", "9:3", "1:2:3", "1.5"])
def test_bad_lengths_name_the_setting(text: str) -> None:
    """A length that is no length is an error with the setting's name."""
    with pytest.raises(Problem) as caught:
        Lengths.parse(text, "prompt_tokens")
    assert caught.value.param == "prompt_tokens"


def test_prompts_are_seeded_and_differ() -> None:
    """A prompt depends on seed and index alone, and has the length asked for."""
    demand = Demand(0.0, 40, 1)
    first = prompt_ids(demand, 0, seed=3, vocabulary=256)
    assert first == prompt_ids(demand, 0, seed=3, vocabulary=256)
    assert first != prompt_ids(demand, 1, seed=3, vocabulary=256)
    assert first != prompt_ids(demand, 0, seed=4, vocabulary=256)
    assert len(first) == 40 and min(first) >= 10 and max(first) < 256
    assert len(prompt_text(demand, 0, seed=3).split(" ")) == 40


def test_equal_prefix_blocks_give_equal_prefixes() -> None:
    """Prompts share exactly the tokens of the prefix blocks that they share."""
    block = PREFIX_BLOCK_TOKENS
    one = prompt_ids(Demand(0.0, 2 * block + 9, 1, (4, 5, 6)), 0, seed=0, vocabulary=256)
    two = prompt_ids(Demand(0.0, 3 * block, 1, (4, 5, 7)), 1, seed=0, vocabulary=256)
    cut = prompt_ids(Demand(0.0, block + 1, 1, (4, 5, 7)), 2, seed=0, vocabulary=256)
    assert one[: 2 * block] == two[: 2 * block]
    assert one[2 * block :] != two[2 * block : 2 * block + 9]
    assert cut == one[: block + 1]
    assert (len(one), len(two)) == (2 * block + 9, 3 * block)
