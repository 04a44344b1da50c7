"""The reconciler over a simulated fleet: desired state, restarts, drain and end, on virtual time."""

from __future__ import annotations

import msgspec
import pytest
from controlled import Fleet

from penstock.cluster.actions import Finish, Kill, Start, Tell
from penstock.cluster.rollout import Member
from penstock.events.list import ReplicaChanged
from penstock.wire.engine import Failed
from penstock.wire.errors import Problem
from penstock.wire.load import Load


def test_the_model_is_known_before_anything_runs() -> None:
    """The first state names the model without replicas, so that its absence is 'not ready' and not 'unknown'."""
    fleet = Fleet()
    fleet.step()
    assert [model.name for model in fleet.states[0].models] == ["m"]
    assert fleet.states[0].models[0].replicas == []
    assert fleet.alive() == {"g", "e0", "e1"}


def test_ready_means_a_gateway_and_an_engine() -> None:
    """The service is ready with its first engine, and not ready without its gateway."""
    fleet = Fleet()
    fleet.step()
    fleet.answer("e0", "ready")
    fleet.step()
    assert not fleet.machine.state().ready
    fleet.answer("g", "ready")
    fleet.step()
    assert fleet.machine.state().ready


def test_a_quiet_service_publishes_nothing() -> None:
    """The version stays as long as the set of replicas does."""
    fleet = Fleet().all_ready()
    version = fleet.states[-1].version
    fleet.run(20.0)
    assert fleet.states[-1].version == version


def test_a_killed_replica_leaves_the_state_at_once_and_returns_with_its_next_life() -> None:
    """Its death is published with the step that saw it; backoff later it is started and listed again."""
    fleet = Fleet().all_ready()
    fleet.end("e0", -9)
    fleet.step()
    assert fleet.replicas() == ["e1"]
    fleet.run(0.8)
    assert "e0" not in fleet.seen
    fleet.run(0.6)
    assert fleet.replicas() == ["e0", "e1"]
    assert fleet.machine.state().members[1].restarts == 1


def test_every_death_is_told_with_the_end_of_the_log() -> None:
    """What the process last said reaches the person at the terminal, under its name."""
    fleet = Fleet().all_ready()
    fleet.seen["e0"] = msgspec.structs.replace(fleet.seen["e0"], exit_code=-11, last_lines=("Segmentation fault",))
    told = [action for action in fleet.step() if isinstance(action, Tell)]
    assert [(tell.id, tell.lines) for tell in told] == [("e0", ("Segmentation fault",))]
    assert "signal 11" in told[0].text


def test_a_hung_replica_is_killed_once_and_restarted() -> None:
    """A process that lives but does not answer is killed, then treated as any that ended."""
    fleet = Fleet().all_ready()
    pid = fleet.seen["e0"].pid
    hung = fleet.seen["e0"]
    fleet.run(5.5)
    fleet.seen["e0"] = hung
    actions = fleet.step()
    assert [action.id for action in actions if isinstance(action, Kill)] == ["e0"]
    fleet.run(3.0)
    assert fleet.seen["e0"].pid != pid


def test_a_load_that_the_caller_must_fix_ends_the_service_with_its_message() -> None:
    """Nothing is restarted; everything is stopped, and the problem is the engine's own."""
    fleet = Fleet(engines=1)
    fleet.step()
    problem = msgspec.to_builtins(Failed(code="checkpoint_invalid", message="model.norm.weight is missing"))
    problem.pop("type")
    fleet.seen["e0"] = msgspec.structs.replace(
        fleet.seen["e0"], answered_at=fleet.now, load=Load(phase="failed", problem=Failed(**problem))
    )
    fleet.run(3.0)
    assert fleet.finished is not None
    assert fleet.finished.problem is not None
    assert fleet.finished.problem.message == "model.norm.weight is missing"
    assert sum(isinstance(action, Start) for action in fleet.log) == 2


def test_a_crash_loop_before_the_first_readiness_ends_the_service() -> None:
    """After the limit the service ends with internal_error instead of restarting for ever."""
    fleet = Fleet(engines=1)
    for _ in range(400):
        fleet.step()
        if "e0" in fleet.seen and fleet.finished is None:
            fleet.end("e0", 1)
    assert fleet.finished is not None
    assert fleet.finished.problem is not None
    assert fleet.finished.problem.code == "internal_error"


def test_a_replica_that_is_given_up_does_not_end_the_ones_that_serve() -> None:
    """A checkpoint that vanished after the start leaves the other replica serving."""
    fleet = Fleet().all_ready()
    for _ in range(40):
        if "e0" in fleet.seen:
            fleet.seen["e0"] = msgspec.structs.replace(
                fleet.seen["e0"], exit_code=78, problem=Problem("source_not_found", "gone")
            )
        fleet.run(1.0)
    assert fleet.finished is None
    assert fleet.replicas() == ["e1"]
    assert fleet.machine.state().ready


def test_a_model_that_cannot_be_served_ends_the_service_though_another_one_is() -> None:
    """Whichever of two models loads first: what one of them lacks is told, and not hidden behind the other."""
    fleet = Fleet(engines=1, also=[Member(id="o0", kind="engine", socket="/o0", model="other")])
    fleet.step()
    fleet.answer("g", "ready")
    fleet.answer("o0", "ready")
    for _ in range(40):
        if "e0" in fleet.seen and fleet.finished is None:
            fleet.seen["e0"] = msgspec.structs.replace(
                fleet.seen["e0"], exit_code=78, problem=Problem("source_not_found", "gone")
            )
        fleet.run(1.0)
    assert fleet.finished is not None and fleet.finished.problem is not None
    assert fleet.finished.problem.code == "source_not_found"


def test_draining_refuses_first_and_stops_only_when_every_gateway_is_empty() -> None:
    """Engines live until the gateway has acknowledged the refusing state with nothing in flight."""
    fleet = Fleet().all_ready()
    fleet.in_flight = 3
    fleet.step()
    fleet.machine.request_stop()
    fleet.run(10.0)
    assert not fleet.states[-1].admitting
    assert fleet.alive() == {"g", "e0", "e1"}
    fleet.in_flight = 0
    fleet.run(1.0)
    assert fleet.finished == Finish(None)


def test_an_acknowledgement_of_an_older_state_does_not_end_the_drain() -> None:
    """A gateway that has not seen the refusing state may still admit, whatever it says is in flight."""
    fleet = Fleet().all_ready()
    fleet.acknowledging = False
    fleet.machine.request_stop()
    fleet.run(20.0)
    assert fleet.alive() == {"g", "e0", "e1"}


def test_a_drain_ends_at_its_bound() -> None:
    """Requests that do not finish are given up after drain_timeout_s, and no sooner."""
    fleet = Fleet().all_ready()
    fleet.in_flight = 1
    fleet.machine.request_stop()
    fleet.run(29.0)
    assert fleet.finished is None
    fleet.run(2.0)
    assert fleet.finished == Finish(None)


def test_a_second_request_to_stop_hurries() -> None:
    """The drain is cut short, and what ignores SIGTERM is killed after the hurried bound."""
    fleet = Fleet().all_ready()
    fleet.in_flight = 1
    fleet.obeys_terminate = False
    fleet.machine.request_stop()
    fleet.run(1.0)
    fleet.machine.request_stop()
    fleet.run(3.0)
    assert fleet.finished == Finish(None)
    assert {action.id for action in fleet.log if isinstance(action, Kill)} == {"g", "e0", "e1"}


def test_what_ignores_sigterm_is_killed_after_the_stop_bound() -> None:
    """Not before 10 s, not never."""
    fleet = Fleet().all_ready()
    fleet.obeys_terminate = False
    fleet.machine.request_stop()
    fleet.run(9.5)
    assert fleet.finished is None
    fleet.run(2.0)
    assert fleet.finished == Finish(None)


def test_an_engine_lost_during_the_drain_is_replaced() -> None:
    """Streams that wait for it can only end well on another engine."""
    fleet = Fleet(engines=1).all_ready()
    fleet.in_flight = 1
    fleet.step()
    fleet.machine.request_stop()
    fleet.run(1.0)
    fleet.end("e0", -9)
    fleet.run(3.0)
    assert "e0" in fleet.alive()
    assert not fleet.states[-1].admitting


def test_what_an_earlier_life_of_a_gateway_held_does_not_delay_the_drain() -> None:
    """A gateway that died took its requests along; its successor's word counts."""
    fleet = Fleet().all_ready()
    fleet.in_flight = 5
    fleet.step()
    fleet.end("g", -9)
    fleet.in_flight = 0
    fleet.run(3.0)
    fleet.machine.request_stop()
    fleet.run(1.0)
    assert fleet.finished == Finish(None)


def test_stopping_while_still_loading_waits_for_nothing() -> None:
    """Nothing was admitted, so nothing drains."""
    fleet = Fleet()
    fleet.acknowledging = False
    fleet.step()
    fleet.machine.request_stop()
    fleet.run(1.0)
    assert fleet.finished == Finish(None)


def test_phases_of_replicas_become_events() -> None:
    """Each change of phase is emitted once, with the restarts so far."""
    fleet = Fleet(engines=1).all_ready()
    fleet.end("e0", -9)
    fleet.run(2.0)
    seen = [(event.phase, event.restarts) for event in fleet.events if isinstance(event, ReplicaChanged)]
    assert seen == [("starting", 0), ("ready", 0), ("exited", 0), ("starting", 1)]


@pytest.mark.parametrize("stops", [1, 2])
def test_stopping_before_the_first_step_leaves_nothing_behind(stops: int) -> None:
    """A signal that comes before anything was started ends the service all the same."""
    fleet = Fleet()
    for _ in range(stops):
        fleet.machine.request_stop()
    fleet.run(5.0)
    assert fleet.finished == Finish(None)


def test_what_ends_the_service_is_told_once() -> None:
    """The reason is the problem of the end, and not also a message on the way."""
    fleet = Fleet(engines=1)
    fleet.step()
    fleet.seen["e0"] = msgspec.structs.replace(fleet.seen["e0"], exit_code=78, problem=Problem("source_not_found", "x"))
    fleet.run(3.0)
    assert fleet.finished is not None
    assert not any(isinstance(action, Tell) for action in fleet.log)
