"""A replica whose answers keep failing is left out for a while."""

from __future__ import annotations

from penstock.policy.eject import HEALTHY, Health, after_failure, ejected, on_trial


def failing(incidents: int, code: str = "engine_lost") -> Health:
    health = HEALTHY
    for number in range(incidents):
        health = after_failure(health, code, began_at=10.0 * number, now=10.0 * number + 1)
    return health


def test_three_incidents_in_a_row_eject_and_more_eject_longer() -> None:
    """Two are chance; from three on a second, then two, four, at most thirty."""
    assert failing(2).until < 0
    spans = [failing(count).until - failing(count).failed_at for count in range(3, 12)]
    assert spans[:3] == [1.0, 2.0, 4.0] and max(spans) == 30.0


def test_many_losses_at_one_moment_are_one_incident() -> None:
    """A killed engine takes all its streams with it, which says nothing about the next one there."""
    health = HEALTHY
    for _ in range(50):
        health = after_failure(health, "engine_lost", began_at=1.0, now=2.0)
    assert health.incidents == 1


def test_what_is_not_the_replica_s_fault_does_not_count() -> None:
    """A refused request and a full engine are no incidents."""
    assert failing(9, "context_length_exceeded") == failing(9, "overloaded") == HEALTHY


def test_more_than_half_are_never_ejected() -> None:
    """When most fail, the fault is elsewhere, and the rest could not carry the load."""
    bad = Health(5, 100.0, 110.0)
    assert ejected({"a": bad, "b": HEALTHY}, 105.0) == {"a"}
    assert ejected({"a": bad, "b": HEALTHY}, 110.0) == frozenset()
    assert ejected({"a": bad, "b": bad, "c": HEALTHY}, 105.0) == frozenset()


def test_one_at_a_time_tries_whether_it_is_well() -> None:
    """When its time is over, a replica that is being tried is left to who tries it; a failure ejects for longer."""
    bad = failing(3)
    fleet = {"a": bad, "b": HEALTHY}
    assert not on_trial(bad, bad.until - 0.1) and on_trial(bad, bad.until) and not on_trial(failing(2), 1e9)
    assert ejected(fleet, bad.until) == frozenset()
    assert ejected(fleet, bad.until, frozenset("ab")) == {"a"}
    again = after_failure(bad, "engine_lost", began_at=bad.until, now=bad.until + 1)
    assert again.until - again.failed_at == 2.0 and not on_trial(again, again.failed_at)
