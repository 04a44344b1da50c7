"""How much is proposed: by what it brings, what it costs, and what speculation may lose."""

from __future__ import annotations

import random

import pytest

from penstock.policy.speculate import (
    Acceptance,
    Allowance,
    Candidate,
    chance,
    drafted,
    lengths,
    mix,
    plain,
    rows_to_catch_up,
    speculated,
    speculates,
)
from penstock.policy.step_time import StepModel, StepShape

LONE = StepShape(1, 100)


def machine(step_s: float, row_s: float) -> StepModel:
    """Steps of so many seconds, and so many more for each row."""
    return StepModel(rates=(step_s, row_s, 0.0, 0.0, 0.0), num_steps=100)


def known(
    model: StepModel, num_decodes: int = 1, seconds: float = 0.5, token_s: float = 0.0, row_s: float = 0.0
) -> Allowance:
    """With so many seconds to lose, where plain steps take what the model says."""
    step_s = model.seconds(StepShape(num_decodes, 0))
    return Allowance(
        seconds=seconds * step_s, plain_s=step_s, decodes=num_decodes, num_plain=50, token_s=token_s, row_s=row_s
    )


def lone(
    chance: float, model: StepModel, length: int = 8, most_rows: int = 99, seconds: float = 0.5, token_s: float = 0.0
) -> int:
    allowance = known(model, seconds=seconds, token_s=token_s)
    return lengths([Candidate(chance, length)], StepShape(1, 0), model, allowance, most_rows)[0]


def tokens_per_s(counts: list[int], candidates: list[Candidate], num_decodes: int, model: StepModel) -> float:
    tokens = num_decodes + sum(
        candidate.chance**depth
        for candidate, count in zip(candidates, counts, strict=True)
        for depth in range(1, count + 1)
    )
    return tokens / (model.seconds(StepShape(num_decodes, 0)) + model.rates[1] * sum(counts))


def watched(step_s: float = 1.0, count: int = 50) -> Allowance:
    """After so many plain steps of a lone stream."""
    allowance = Allowance()
    for _ in range(count):
        allowance = plain(allowance, machine(step_s, 0.0), LONE, step_s, settled=True)
    return allowance


def test_more_is_proposed_the_likelier_it_is_right_and_the_cheaper_a_row_is() -> None:
    """Where rows are as good as free everything is tried; where they cost as much as a step only what is sure."""
    assert [lone(c, machine(1.0, 1e-6)) for c in (0.9, 0.3)] == [8, 8]
    assert [lone(c, machine(1.0, 0.2)) for c in (0.95, 0.7, 0.4, 0.1)] == [8, 3, 1, 0]
    assert [lone(c, machine(0.0, 1.0)) for c in (0.95, 0.7)] == [0, 0]


def test_what_is_proposed_is_the_most_tokens_per_second_that_there_are() -> None:
    """Against every other way to share rows among a few sequences, up to the margin that a row has to bring more."""
    dice = random.Random(3)
    for _ in range(200):
        model = machine(1.0, dice.uniform(0.01, 0.5))
        candidates = [Candidate(dice.random(), dice.randint(1, 3)) for _ in range(3)]
        num_decodes = dice.randint(3, 6)
        counts = lengths(candidates, StepShape(num_decodes, 0), model, known(model, num_decodes), 99)
        assert all(count <= candidate.length for count, candidate in zip(counts, candidates, strict=True))
        ways = [[a, b, c] for a in range(4) for b in range(4) for c in range(4)]
        best = max(
            tokens_per_s(way, candidates, num_decodes, model)
            for way in ways
            if all(count <= candidate.length for count, candidate in zip(way, candidates, strict=True))
        )
        got = tokens_per_s(counts, candidates, num_decodes, model)
        assert got >= tokens_per_s([0, 0, 0], candidates, num_decodes, model)
        assert got >= best * 0.97


def test_rows_go_where_they_are_likeliest_to_bring_a_token() -> None:
    """Of two sequences the one that is better at it has its second token tried before the other's first."""
    model = machine(1.0, 0.01)
    assert lengths([Candidate(0.5, 8), Candidate(0.9, 8)], StepShape(2, 0), model, known(model, 2), 3) == [0, 3]


def test_no_more_rows_are_used_than_there_are() -> None:
    """The step's budget binds, down to none."""
    assert [lone(0.9, machine(1.0, 1e-6), most_rows=rows) for rows in (5, 1, 0, -1)] == [5, 1, 0, 0]


def test_what_is_not_worth_its_time_is_tried_when_there_is_time_to_lose() -> None:
    """Two tokens of the best candidate, once a step's time may be lost; else nothing."""
    model = machine(1.0, 0.5)
    two = [Candidate(0.1, 8), Candidate(0.2, 8)]
    assert lengths(two, StepShape(2, 0), model, known(model, 2, seconds=1.0), 99) == [0, 2]
    assert lengths(two, StepShape(2, 0), model, known(model, 2, seconds=0.9), 99) == [0, 0]
    assert lone(0.1, machine(1.0, 0.5), seconds=1.0, length=1) == 1


def test_a_mix_is_watched_before_it_speculates_and_between() -> None:
    """Four plain steps at first, and as many after every so many that speculate."""
    assert [speculates(watched(count=count)) for count in (0, 1, 3, 4)] == [False, False, False, True]
    allowance, asked = watched(count=4), []
    for _ in range(400):
        asked.append(speculates(allowance))
        if asked[-1]:
            allowance = speculated(allowance, machine(1.0, 0.0), LONE, 1.0, 1)
        else:
            allowance = plain(allowance, machine(1.0, 0.0), LONE, 1.0, settled=len(asked) > 1 and not asked[-2])
    runs = "".join("x" if speaks else "." for speaks in asked).split("....")
    assert [len(run) for run in runs] == [32, 56, 80, 96, 96, 20]


def test_what_a_step_took_longer_than_plain_ones_is_lost_and_what_it_brought_is_saved() -> None:
    """To the second: the share that is earned and the doubt about the mean apart."""
    before = watched()
    slower = speculated(before, machine(1.0, 0.0), LONE, 1.5, 0)
    assert before.seconds - slower.seconds == pytest.approx(0.5, abs=0.03)
    better = speculated(before, machine(1.0, 0.0), LONE, 1.5, 3)
    assert better.seconds - before.seconds == pytest.approx(2.5, abs=0.03)


def test_it_rests_when_it_has_lost_what_it_may_and_until_it_may_lose_a_step() -> None:
    """Two steps' time at first, then one step's, at a share of 1 % of the time."""
    allowance = watched(count=4)._replace(warming=0)
    for _ in range(4):
        assert speculates(allowance)
        allowance = speculated(allowance, machine(1.0, 0.0), LONE, 1.5, 0)
    assert allowance.is_resting and not speculates(allowance)
    rested = 0
    while not speculates(allowance):
        allowance = plain(allowance, machine(1.0, 0.0), LONE, 1.0, settled=rested > 0)
        rested += 1
    assert 90 < rested < 160


def test_a_stall_is_no_loss_unless_it_comes_again_and_again() -> None:
    """One in 64 steps is somebody else's doing, or as many as of the plain ones; what always takes long is not."""
    allowance = speculated(watched()._replace(warming=0), machine(1.0, 0.0), LONE, 30.0, 0)
    assert not allowance.is_resting
    again = speculated(allowance, machine(1.0, 0.0), LONE, 30.0, 0)
    assert again.is_resting and again.seconds == pytest.approx(allowance.seconds - 15, abs=0.05)
    for _ in range(10):
        allowance = plain(allowance, machine(1.0, 0.0), LONE, 30.0, settled=True)
    assert allowance.stall_rate > 0.1


def test_the_first_steps_that_speculate_are_charged_with_half_a_step_each() -> None:
    """However long they take, and no pardon is spent on them; the fifth is charged as any other."""
    allowance = watched()._replace(seconds=10.0, most=10.0)
    for _ in range(4):
        before, allowance = allowance, speculated(allowance, machine(1.0, 0.0), LONE, 8.0, 0)
        assert before.seconds - allowance.seconds == pytest.approx(0.5, abs=0.03)
        assert allowance.pardons > before.pardons
    after = speculated(allowance, machine(1.0, 0.0), LONE, 3.0, 0)
    assert allowance.seconds - after.seconds == pytest.approx(2.0, abs=0.03)


def test_what_drafting_takes_is_charged_to_the_last_second() -> None:
    """It is no stall, however long it takes."""
    before = watched()
    after = speculated(before, machine(1.0, 0.0), LONE, 101.0, 0, draft_s=100.0)
    assert before.seconds - after.seconds == pytest.approx(100.0, abs=0.03)


def test_what_a_step_leaves_for_the_next_to_do_again_is_lost_too() -> None:
    """A plain step behind one that speculated counts for speculation where it took longer, and not for plain ones."""
    before = watched()
    after = plain(before, machine(1.0, 0.0), LONE, 1.5, settled=False)
    assert before.seconds - after.seconds == pytest.approx(0.5, abs=0.03)
    assert after.plain_s == before.plain_s


def test_a_machine_that_changed_its_speed_is_measured_anew() -> None:
    """Four plain steps in a row of 1.4 times the time, on end: the mean is theirs, and what was put by is given up.

    As much by chance, where steps scatter so, changes neither.
    """
    model, before = machine(1.0, 0.0), watched()._replace(seconds=5.0, most=5.0, to_come=0)
    steady, scattered = before, before._replace(variance=0.25)
    for _ in range(4):
        steady = plain(steady, model, LONE, 1.4, settled=True)
        scattered = plain(scattered, model, LONE, 1.4, settled=True)
    assert steady.plain_s == pytest.approx(1.35, abs=0.05) and steady.num_plain == 4 and steady.to_come == 32
    assert steady.seconds == pytest.approx(1.0, abs=0.1)
    assert scattered.plain_s < 1.1 and scattered.num_plain > 50 and scattered.seconds == pytest.approx(5.0, abs=0.1)


def test_of_the_first_plain_steps_the_fastest_counts() -> None:
    """Buffers are made and caches are cold: what they take would hide a loss. One behind prompts is none of them."""
    model, allowance = machine(1.0, 0.0), Allowance()
    assert plain(allowance, model, LONE, 9.0, settled=False) == allowance
    for seconds in (1.6, 1.0, 0.8, 0.9):
        allowance = plain(allowance, model, LONE, seconds, settled=True)
    assert (allowance.plain_s, allowance.num_plain) == (0.8, 4)


def test_steps_that_scatter_are_doubted() -> None:
    """Of two means the one of scattered steps counts for less beside steps that speculate."""
    dice = random.Random(1)
    scattered = Allowance()
    for _ in range(50):
        scattered = plain(scattered, machine(1.0, 0.0), LONE, dice.uniform(0.5, 1.5), settled=True)
    assert scattered.error > 3 * watched().error > 0


def test_what_a_context_that_has_grown_takes_is_not_taken_for_plain_steps_doing() -> None:
    """The mean is carried to more decodes and to a shorter context, and to no longer one."""
    model = StepModel(rates=(1.0, 0.1, 1.0, 0.0, 0.0), num_steps=100)
    allowance = Allowance(plain_s=4.2, decodes=2, context=1024, num_plain=50)
    assert allowance.usual_s(model, StepShape(2, 1024)) == pytest.approx(4.2)
    assert allowance.usual_s(model, StepShape(2, 4096)) == pytest.approx(4.2)
    assert allowance.usual_s(model, StepShape(4, 1024)) == pytest.approx(4.2 * 2.4 / 2.2)
    assert allowance.usual_s(model, StepShape(2, 512)) == pytest.approx(4.2 * 1.7 / 2.2)


def test_mixes_are_told_apart_by_powers_of_two() -> None:
    """A lone stream's allowance is no other's."""
    assert [mix(count) for count in (1, 2, 3, 4, 7, 8, 16)] == [1, 2, 2, 3, 3, 4, 5]


def test_a_chance_is_learned_from_the_sequence_and_until_then_from_others() -> None:
    """Without any experience even odds; others' experience stands in for one's own, which soon counts more."""
    assert chance(Acceptance(), Acceptance()) == 0.5
    others = Acceptance()
    for _ in range(200):
        others = others.after(8, 0, of_many=True)
    assert chance(Acceptance(), others) < 0.05
    own = Acceptance().after(8, 8).after(8, 8)
    assert chance(own, others) > 0.85


def test_what_follows_a_wrong_token_says_nothing() -> None:
    """Of eight with two accepted, three were tried; of two with both accepted, two."""
    assert Acceptance().after(8, 2) == Acceptance(3.0, 2.0)
    assert Acceptance().after(2, 2) == Acceptance(2.0, 2.0)


def test_making_a_proposal_is_a_part_of_what_it_costs() -> None:
    """A draft model that takes half a step for a token makes few, nearly sure ones; a slow one none."""
    assert [lone(0.95, machine(1.0, 0.01), token_s=token_s) for token_s in (0, 0.5, 2)] == [8, 3, 0]


def test_a_draft_model_catches_up_as_far_as_there_is_time_to_lose() -> None:
    """Some rows while nobody knows what they take, then no more than may be lost, and no more than in one step."""
    model = machine(1.0, 0.2)
    assert rows_to_catch_up(1000, known(model, seconds=2.0)) == 16
    assert rows_to_catch_up(1000, known(model, seconds=2.0, row_s=0.04)) == 60
    assert rows_to_catch_up(20, known(model, seconds=2.0, row_s=0.05)) == 20
    assert rows_to_catch_up(1000, known(model, seconds=2.0, row_s=1e-6)) == 128
    assert rows_to_catch_up(1000, known(model, seconds=-1.0, row_s=0.05)) == 0


def test_what_drafting_takes_is_learned() -> None:
    """A first slow token is soon forgotten; rows are another thing."""
    learned = drafted(drafted(drafted(Allowance(), 4, 4, 40.0), 4, 4, 0.4), 4, 4, 0.8)
    assert learned.token_s == pytest.approx(0.125)
    assert drafted(Allowance(), 0, 100, 5.0).row_s == 0.05
