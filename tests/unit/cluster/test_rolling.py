"""A rolling upgrade through the controller, its desired states and its actions, on virtual time."""

from __future__ import annotations

import msgspec
import pytest
from controlled import Fleet

from penstock.cluster.actions import Kill, Tell, Terminate
from penstock.cluster.rollout import Member
from penstock.policy.rollout import RolloutRules
from penstock.wire.errors import Problem

NEW = [Member(id=f"n{n}", kind="engine", socket=f"/n{n}") for n in range(2)]
RULES = RolloutRules(drain_timeout_s=5.0, prove_s=1.0)


def rolling(num_engines: int = 2) -> Fleet:
    fleet = Fleet(num_engines).all_ready()
    fleet.machine.upgrade("m", NEW[:num_engines], RULES, fleet.now)
    return fleet


def until_over(fleet: Fleet, *, limit_s: float = 60.0) -> None:
    """New engines get ready half a second after their start."""
    end = fleet.now + limit_s
    while fleet.machine.rollout is None or fleet.machine.rollout.state in ("rolling", "rolling_back"):
        assert fleet.now < end, fleet.machine.rollout
        for id, seen in fleet.seen.items():
            if seen.exit_code is None and seen.load is None and fleet.now - seen.started_at >= 0.5:
                fleet.answer(id, "ready")
        fleet.run(0.1)
    fleet.run(1.0)


def outcome(fleet: Fleet) -> tuple[str, int]:
    status = fleet.machine.rollout
    assert status is not None
    return status.state, status.num_replaced


@pytest.mark.parametrize("num_engines", [1, 2])
def test_each_replica_is_replaced_by_one_that_serves(num_engines: int) -> None:
    """New ones are listed and take work before old ones drain; drained ones end; then only the new are members."""
    fleet = rolling(num_engines)
    until_over(fleet)
    assert outcome(fleet) == ("done", num_engines)
    assert fleet.alive() == {"g", *(f"n{n}" for n in range(num_engines))}
    assert fleet.replicas() == [f"n{n}" for n in range(num_engines)]
    assert [member.id for member in fleet.machine.state().members] == ["g", *fleet.replicas()]
    for state in fleet.states:
        open_replicas = [replica for replica in state.models[0].replicas if not replica.draining]
        assert len(open_replicas) >= num_engines or state.version <= 2
    assert {action.id for action in fleet.log if isinstance(action, Terminate)} == {f"e{n}" for n in range(num_engines)}


def test_nothing_ends_before_the_gateway_acknowledged() -> None:
    """A gateway that does not say that it follows keeps the old replica alive."""
    fleet = rolling(1)
    fleet.acknowledging = False
    with pytest.raises(AssertionError):
        until_over(fleet, limit_s=20.0)
    assert fleet.alive() == {"g", "e0", "n0"}
    fleet.acknowledging = True
    until_over(fleet)
    assert fleet.alive() == {"g", "n0"}


def test_a_new_replica_takes_no_work_before_it_is_judged() -> None:
    """Until it is ready and speaks the same tokens it is listed as draining."""
    fleet = rolling(1)
    fleet.run(0.3)
    assert [(r.id, r.draining) for r in fleet.states[-1].models[0].replicas] == [("e0", False), ("n0", True)]


def test_one_that_exits_brings_the_old_one_back_and_does_not_end_the_service() -> None:
    """A problem that only its operator can mend ends the upgrade with its words, and nothing else."""
    fleet = rolling(1)
    fleet.run(0.2)
    problem = Problem("checkpoint_invalid", "model.norm.weight is missing")
    fleet.seen["n0"] = msgspec.structs.replace(fleet.seen["n0"], exit_code=78, problem=problem)
    until_over(fleet)
    assert outcome(fleet) == ("rolled_back", 0) and fleet.finished is None
    assert fleet.alive() == {"g", "e0"} and fleet.replicas() == ["e0"]
    told = [action.text for action in fleet.log if isinstance(action, Tell) and action.id == "upgrade"]
    assert any("rolled" in text or "n0: model.norm.weight" in text for text in told)


def test_a_crash_after_it_served_brings_back_what_had_ended() -> None:
    """The second new replica dies: the first place is started again from the old source before its new one goes."""
    fleet = rolling(2)
    while "n1" not in fleet.seen:
        for id, seen in fleet.seen.items():
            if seen.load is None:
                fleet.answer(id, "ready")
        fleet.run(0.1)
    assert "e0" not in fleet.alive()
    fleet.end("n1", -11)
    until_over(fleet)
    assert outcome(fleet) == ("rolled_back", 0)
    assert fleet.alive() == {"g", "e0", "e1"} and set(fleet.replicas()) == {"e0", "e1"}


def test_a_replica_that_does_not_end_is_killed() -> None:
    """One that ignores being asked to end is ended."""
    fleet = rolling(1)
    fleet.obeys_terminate = False
    until_over(fleet)
    assert [action.id for action in fleet.log if isinstance(action, Kill)] == ["e0"]
    assert fleet.alive() == {"g", "n0"}


def test_an_old_replica_that_dies_while_it_drains_is_not_started_again() -> None:
    """It was to end anyway."""
    fleet = rolling(1)
    while not any(replica.id == "e0" and replica.draining for replica in fleet.states[-1].models[0].replicas):
        for id, seen in fleet.seen.items():
            if seen.load is None:
                fleet.answer(id, "ready")
        fleet.run(0.1)
    fleet.end("e0", -9)
    until_over(fleet)
    assert outcome(fleet) == ("done", 1)
    assert fleet.machine.state().members[-1].id == "n0" and "e0" not in fleet.seen


def test_another_upgrade_waits_for_the_first_and_none_begins_at_the_end() -> None:
    """Two at once are a conflict; so is one of a service that shuts down."""
    fleet = rolling(2)
    with pytest.raises(Problem, match="under way"):
        fleet.machine.upgrade("m", NEW, RULES, fleet.now)
    until_over(fleet)
    fleet.machine.upgrade("m", [Member(id=f"m{n}", kind="engine", socket=f"/m{n}") for n in range(2)], RULES, fleet.now)
    until_over(fleet)
    assert fleet.alive() == {"g", "m0", "m1"}
    fleet.machine.request_stop()
    fleet.run(0.2)
    with pytest.raises(Problem, match="shutting down"):
        fleet.machine.upgrade("m", NEW, RULES, fleet.now)


def test_another_model_is_left_alone() -> None:
    """Of two models one is upgraded: the engine of the other goes on serving, under its own name."""
    other = Member(id="o", kind="engine", socket="/o", model="other")
    fleet = Fleet(1, also=[other]).all_ready()
    fleet.machine.upgrade("m", NEW[:1], RULES, fleet.now)
    until_over(fleet)
    assert outcome(fleet) == ("done", 1) and fleet.alive() == {"g", "n0", "o"}
    served = {model.name: [replica.id for replica in model.replicas] for model in fleet.states[-1].models}
    assert served == {"m": ["n0"], "other": ["o"]}
    fleet.machine.upgrade("other", [msgspec.structs.replace(NEW[1], model="other")], RULES, fleet.now)
    until_over(fleet)
    assert outcome(fleet) == ("done", 1) and fleet.alive() == {"g", "n0", "n1"}


def test_a_service_that_is_stopped_in_the_middle_ends_everything() -> None:
    """Old and new processes are gone, and nobody is left over."""
    fleet = rolling(2)
    fleet.run(0.3)
    fleet.machine.request_stop()
    fleet.run(60.0)
    assert fleet.finished is not None and fleet.finished.problem is None and fleet.seen == {}


def test_an_upgrade_that_somebody_stops_goes_back() -> None:
    """And one that is over cannot be stopped."""
    fleet = rolling(2)
    fleet.run(0.3)
    fleet.machine.stop_upgrade("operator stopped it")
    until_over(fleet)
    assert outcome(fleet) == ("rolled_back", 0) and fleet.alive() == {"g", "e0", "e1"}
    with pytest.raises(Problem, match="No upgrade"):
        fleet.machine.stop_upgrade("again")
