"""A controller over a simulated fleet on virtual time: driver, store and gateway in one object.

In: what happens to processes; out: what the controller did about it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from penstock.cluster.actions import Action, Finish, Forget, Kill, Publish, Start, Tell, Terminate
from penstock.cluster.controller import Controller, EndRules
from penstock.cluster.reconcile import Observed, Rules
from penstock.cluster.rollout import Member
from penstock.config.desired import Acknowledgement, DesiredState, Model
from penstock.events.list import Event
from penstock.wire.load import Load

RULES = Rules(backoff_s=1.0, crash_limit=3, first_answer_s=20.0, silence_s=5.0)
END = EndRules(drain_timeout_s=30.0, stop_timeout_s=10.0, hurried_stop_s=2.0)


class Fleet:
    """Driver, store and gateway in one: does what the machine says, and fails where it is told."""

    def __init__(self, engines: int = 2, also: Sequence[Member] = ()) -> None:
        members = [Member(id="g", kind="gateway", socket="/g")]
        members += [Member(id=f"e{n}", kind="engine", socket=f"/e{n}") for n in range(engines)]
        self.events: list[Event] = []
        models = [Model(name=member.model, replicas=[]) for member in also]
        members += also
        self.machine = Controller("m", 1, members, rules=RULES, end=END, emit=self.events.append, also=models)
        self.now = 0.0
        self.seen: dict[str, Observed] = {}
        self.states: list[DesiredState] = []
        self.acknowledged: dict[str, Acknowledgement] = {}
        self.in_flight = 0
        self.acknowledging = True
        self.obeys_terminate = True
        self.finished: Finish | None = None
        self.log: list[Action] = []
        self._pids = 100

    def step(self, advance_s: float = 0.1) -> list[Action]:
        self.now += advance_s
        actions = self.machine.step(self.seen, list(self.acknowledged.values()), self.now)
        for action in actions:
            self._do(action)
        self.log += actions
        gateway = self.seen.get("g")
        if self.acknowledging and gateway is not None and gateway.exit_code is None and self.states:
            name = f"g.{self.machine.state().members[0].restarts + 1}"
            self.acknowledged[name] = Acknowledgement(
                gateway=name, version=self.states[-1].version, in_flight=self.in_flight, at=self.now
            )
        return actions

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end and self.finished is None:
            for id, seen in self.seen.items():
                if seen.exit_code is None and seen.load is not None:
                    self.seen[id] = msgspec.structs.replace(seen, answered_at=self.now)
            self.step()

    def all_ready(self) -> Fleet:
        self.step()
        for id in list(self.seen):
            self.answer(id, "ready")
        self.step()
        return self

    def answer(self, id: str, phase: str, **more: Any) -> None:
        load = msgspec.convert({"phase": phase, **more}, Load)
        self.seen[id] = msgspec.structs.replace(self.seen[id], load=load, answered_at=self.now)

    def end(self, id: str, code: int) -> None:
        self.seen[id] = msgspec.structs.replace(self.seen[id], exit_code=code)

    def replicas(self) -> list[str]:
        return [replica.id for replica in self.states[-1].models[0].replicas]

    def alive(self) -> set[str]:
        return {id for id, seen in self.seen.items() if seen.exit_code is None}

    def _do(self, action: Action) -> None:
        match action:
            case Start(id, _):
                assert id not in self.seen, "started twice"
                self._pids += 1
                self.seen[id] = Observed(pid=self._pids, started_at=self.now)
            case Terminate(id):
                if self.obeys_terminate:
                    self.end(id, 0)
            case Kill(id):
                self.end(id, -9)
            case Forget(id):
                assert self.seen.pop(id).exit_code is not None, "forgot a living process"
            case Publish(models, admitting):
                version = self.states[-1].version + 1 if self.states else 1
                self.states.append(DesiredState(version=version, models=models, admitting=admitting))
                self.machine.published(self.states[-1])
            case Finish():
                assert not self.seen, "finished while something was left"
                self.finished = action
            case Tell():
                pass
