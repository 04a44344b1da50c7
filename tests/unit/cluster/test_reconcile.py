"""The decision about one process, on virtual time."""

from __future__ import annotations

import msgspec
import pytest

from penstock.cluster.reconcile import Memory, Observed, Rules, decide
from penstock.wire.engine import Failed
from penstock.wire.errors import Problem
from penstock.wire.load import Load

RULES = Rules(
    backoff_s=1.0,
    backoff_max_s=8.0,
    served_backoff_max_s=4.0,
    healthy_s=60.0,
    crash_limit=3,
    first_answer_s=20.0,
    silence_s=5.0,
)


def seen(phase: str | None = None, *, started_at: float = 0.0, answered_at: float | None = None) -> Observed:
    load = None if phase is None else msgspec.convert({"phase": phase}, Load)
    return Observed(pid=7, started_at=started_at, answered_at=answered_at, load=load)


def ended(code: int = 1, problem: Problem | None = None, lines: tuple[str, ...] = ()) -> Observed:
    return Observed(pid=7, started_at=0.0, exit_code=code, problem=problem, last_lines=lines)


def crash(memory: Memory, now: float) -> Memory:
    return decide(ended(), RULES, memory, now)[1]


def test_a_step_without_an_end_is_a_hang() -> None:
    """An engine that answers, and whose step goes on for longer than it says any may, is killed; a slow one is not."""
    for age_s, do in ((69.0, "keep"), (71.0, "kill")):
        load = Load(phase="ready", step_age_s=age_s, step_limit_s=40.0)
        verdict, _ = decide(Observed(pid=7, started_at=0.0, answered_at=0.0, load=load), RULES, Memory(), 1.0)
        assert verdict.do == do, verdict.why


def test_what_is_not_there_is_started_and_the_start_is_counted() -> None:
    """The first decision is to start."""
    verdict, memory = decide(None, RULES, Memory(), 0.0)
    assert (verdict.do, verdict.why, memory.starts) == ("start", "first start", 1)


def test_the_delay_before_a_restart_doubles_up_to_its_maximum() -> None:
    """Failures in a row wait 1, 2, 4, 8, 8 s: exponential and bounded."""
    memory, delays = Memory(ready_since=0.0), []
    for _ in range(5):
        memory = msgspec.structs.replace(crash(memory, 100.0), futile=0)
        delays.append((memory.retry_at or 0.0) - 100.0)
    assert delays == [1.0, 2.0, 4.0, 8.0, 8.0]


def test_a_process_that_served_is_never_kept_waiting_long() -> None:
    """However often it was killed while ready, the delay stays at the smaller maximum: streams wait for it."""
    memory = Memory()
    for _ in range(20):
        memory = crash(msgspec.structs.replace(memory, ready_since=0.0), 100.0)
    assert memory.retry_at == 104.0


def test_a_restart_waits_until_its_time() -> None:
    """Just before the delay is over nothing happens, at its end the process is started."""
    memory = crash(Memory(starts=1, ready_since=0.0), 100.0)
    assert decide(None, RULES, memory, 100.9)[0].do == "keep"
    verdict, memory = decide(None, RULES, memory, 101.0)
    assert (verdict.do, memory.starts) == ("start", 2)


def test_health_for_long_enough_forgives_failures_and_shorter_does_not() -> None:
    """After 60 s of being ready the next delay is the first one again; after 59 s it goes on growing."""
    for healthy_s, delay_s in ((59.0, 4.0), (60.0, 1.0)):
        memory = Memory(starts=3, failures=2)
        for now in (10.0, 10.0 + healthy_s):
            _, memory = decide(seen("ready", answered_at=now), RULES, memory, now)
        assert crash(memory, 200.0).retry_at == 200.0 + delay_s


def test_being_unready_between_interrupts_health() -> None:
    """Time spent ready is counted without a gap."""
    memory = Memory(failures=2)
    for now, phase in ((0.0, "ready"), (50.0, "loading"), (51.0, "ready"), (70.0, "ready")):
        _, memory = decide(seen(phase, answered_at=now), RULES, memory, now)
    assert memory.failures == 2


def test_a_process_that_never_gets_ready_is_given_up_with_its_last_words() -> None:
    """At the limit the verdict carries the count, how it ended and the end of its log."""
    memory = crash(crash(Memory(starts=3), 0.0), 0.0)
    verdict, _ = decide(ended(-11, lines=("boom",)), RULES, memory, 0.0)
    assert verdict.do == "give_up"
    assert verdict.problem is not None
    assert verdict.problem.code == "internal_error"
    for words in ("3 times", "signal 11", "boom"):
        assert words in verdict.problem.message


def test_a_process_that_gets_ready_each_time_is_never_given_up() -> None:
    """Crashes under load are retried for ever: some of its work succeeds."""
    memory = Memory()
    for _ in range(50):
        _, memory = decide(seen("ready", answered_at=0.0), RULES, memory, 0.0)
        verdict, memory = decide(ended(-9), RULES, memory, 0.0)
        assert verdict.do == "keep"


@pytest.mark.parametrize(("code", "do"), [("checkpoint_invalid", "give_up"), ("internal_error", "keep")])
def test_only_what_the_caller_can_fix_ends_the_attempts_at_once(code: str, do: str) -> None:
    """A problem of the caller's kind would come again with every start; one of ours may pass."""
    assert decide(ended(78, Problem(code, "no")), RULES, Memory(), 0.0)[0].do == do


@pytest.mark.parametrize(("code", "do"), [("insufficient_memory", "give_up"), ("internal_error", "kill")])
def test_a_failed_load_is_given_up_or_tried_again_by_whose_fault_it_is(code: str, do: str) -> None:
    """The engine stays up in phase failed; the verdict carries its problem when the caller must act."""
    load = Load(phase="failed", problem=Failed(code=code, message="needs 3 of 2"))
    verdict, _ = decide(Observed(pid=7, started_at=0.0, answered_at=0.0, load=load), RULES, Memory(), 0.0)
    assert verdict.do == do
    assert "needs 3 of 2" in verdict.why


def test_silence_kills_and_a_starting_process_may_be_silent_longer() -> None:
    """A process that has answered may be silent for 5 s, one that has not yet for 20 s."""
    assert decide(seen("ready", answered_at=10.0), RULES, Memory(), 15.0)[0].do == "keep"
    verdict, _ = decide(seen("ready", answered_at=10.0), RULES, Memory(), 15.1)
    assert verdict.do == "kill"
    assert "5 s" in verdict.why
    assert decide(seen(), RULES, Memory(), 20.0)[0].do == "keep"
    assert decide(seen(), RULES, Memory(), 20.1)[0].do == "kill"
