"""How many threads a step gets: what lately did best, tried again now and then."""

from __future__ import annotations

from penstock.engine.cpu.thread_choice import ThreadChoice


def run(choice: ThreadChoice, num_steps: int, seconds: dict[int, float], num_rows: int = 1) -> list[int]:
    """The threads of ``num_steps`` steps that take ``seconds`` by number of threads."""
    taken = []
    for _ in range(num_steps):
        threads = choice.threads(num_rows)
        choice.took(num_rows, threads, seconds[threads])
        taken.append(threads)
    return taken


def test_both_are_tried_and_the_faster_one_stays() -> None:
    """After a trial of the other nearly all steps are computed the faster way, whichever that is."""
    for seconds in ({2: 0.5e-3, 1: 0.6e-3}, {2: 0.6e-3, 1: 0.5e-3}):
        taken = run(ThreadChoice(2), 200, seconds)
        assert set(taken[:10]) == {1, 2}
        assert taken.count(min(seconds, key=seconds.__getitem__)) > 185


def test_a_prompt_is_no_trial_where_decodes_were_faster_with_all_threads() -> None:
    """What pays for few rows is taken to pay for many; the first steps of every size up have all threads."""
    choice = ThreadChoice(2)
    run(choice, 100, {2: 0.5e-3, 1: 0.8e-3})
    for num_rows in (16, 512):
        assert run(choice, 60, {2: 1e-3 * num_rows, 1: 1.8e-3 * num_rows}, num_rows).count(1) == 0


def test_a_prompt_on_a_disturbed_machine_is_tried_with_one_thread() -> None:
    """Where one thread did better for few rows, or the first steps stall, the second choice is tried at once."""
    choice = ThreadChoice(2)
    run(choice, 100, {2: 5e-3, 1: 0.8e-3})
    assert run(choice, 40, {2: 2.0, 1: 0.9}, 512).count(1) >= 36
    choice = ThreadChoice(2)
    run(choice, 100, {2: 0.5e-3, 1: 0.8e-3})
    run(choice, 3, {2: 0.5, 1: 0.9}, 512)
    taken = run(choice, 40, {2: 4.0, 1: 0.9}, 512)
    assert taken[:2] == [2, 1] and taken.count(1) >= 30


def test_a_disturbed_machine_gets_one_thread_and_all_when_it_is_quiet_again() -> None:
    """A neighbour on one core stops both threads at every barrier; soon one thread is used, and later two again."""
    choice = ThreadChoice(2)
    run(choice, 100, {2: 0.5e-3, 1: 0.6e-3})
    disturbed = run(choice, 30, {2: 30e-3, 1: 0.7e-3})
    assert disturbed[:2] == [2, 1]
    assert disturbed[2:].count(1) >= 26
    assert run(choice, 5000, {2: 0.5e-3, 1: 0.6e-3})[-100:].count(2) > 90


def test_a_step_that_stalls_does_not_change_what_is_best() -> None:
    """Thirty times a step's time, once in fifty: two threads stay, which are far ahead otherwise."""
    choice = ThreadChoice(2)
    run(choice, 100, {2: 2.4e-3, 1: 3.9e-3})
    taken = []
    for _ in range(20):
        taken += run(choice, 1, {2: 72e-3, 1: 117e-3})
        taken += run(choice, 49, {2: 2.4e-3, 1: 3.9e-3})
    assert taken.count(1) <= 10


def test_a_choice_that_was_wrong_is_soon_taken_back() -> None:
    """After a disturbance of a few steps two threads are back within a hundred, be the first trial a part of it."""
    for length in (4, 10, 30):
        choice = ThreadChoice(2)
        run(choice, 1000, {2: 2.4e-3, 1: 3.9e-3})
        assert run(choice, length, {2: 72e-3, 1: 4e-3})[-1] == 1
        assert run(choice, 200, {2: 2.4e-3, 1: 3.9e-3}).count(1) < 100


def test_steps_that_stall_again_and_again_count_for_what_they_take() -> None:
    """A neighbour stops every fifth step of two threads for twelve steps' time: one thread, until it has gone."""
    choice = ThreadChoice(2)
    run(choice, 100, {2: 2.4e-3, 1: 3.9e-3})
    disturbed = []
    for _ in range(400):
        disturbed += run(choice, 4, {2: 2.4e-3, 1: 3.9e-3})
        disturbed += run(choice, 1, {2: 29e-3, 1: 3.9e-3})
    assert disturbed[200:].count(1) > 0.8 * len(disturbed[200:])
    assert run(choice, 1000, {2: 2.4e-3, 1: 3.9e-3})[-500:].count(2) > 490


def test_a_first_step_that_came_slowly_does_not_decide_for_long() -> None:
    """The first of a kind find their kernels cold: within some tens of steps the faster choice is back."""
    choice = ThreadChoice(2)
    run(choice, 1, {2: 0.9e-3, 1: 0.65e-3})
    assert run(choice, 100, {2: 0.48e-3, 1: 0.65e-3}).count(1) < 30


def test_steps_that_grow_are_not_taken_for_a_worse_choice() -> None:
    """The chunks of a long prompt take three times as long at its end, with one thread as with two."""
    choice, taken = ThreadChoice(2), list[int]()
    for _ in range(5):
        for chunk in range(40):
            grown = 1 + chunk / 20
            taken += run(choice, 1, {2: grown, 1: 1.8 * grown}, num_rows=512)
    assert taken.count(1) <= 3


def test_what_is_far_behind_is_looked_at_seldom() -> None:
    """A trial of what takes twice as long costs less than a part in two hundred."""
    taken = run(ThreadChoice(2), 2000, {2: 10e-3, 1: 20e-3}, num_rows=16)
    assert 1 < taken.count(1) <= 9


def test_sizes_are_judged_apart() -> None:
    """What is best for a lone row says nothing about sixteen."""
    choice = ThreadChoice(2)
    run(choice, 50, {2: 2e-3, 1: 1e-3}, num_rows=1)
    run(choice, 50, {2: 1e-3, 1: 2e-3}, num_rows=16)
    assert (choice.threads(1), choice.threads(16)) == (1, 2)


def test_one_core_has_no_choice() -> None:
    """There is nothing to try."""
    assert set(run(ThreadChoice(1), 100, {1: 1.0})) == {1}
