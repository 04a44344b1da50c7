"""The reconciler: which processes should run, what they are told, and how the service ends.

In: what the driver observed, what gateways acknowledged, the time; out: actions.  Deterministic, without I/O.
The desired state lists the replicas that live; gateways ask each whether it is ready, sooner than we could tell them.
Requests are refused before anything that may hold one is stopped.
Argued in docs/decisions/003-processes-and-desired-state.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from penstock.cluster.actions import Action, Finish, Publish, Tell
from penstock.cluster.catalogue import Catalogue
from penstock.cluster.life import Life
from penstock.cluster.reconcile import Observed, Rules
from penstock.cluster.rollout import Member, Rollout, RolloutStatus
from penstock.cluster.state import ServiceState, Stage
from penstock.config.desired import Acknowledgement, Balance, DesiredState, Model, Replica
from penstock.config.names import Name
from penstock.events.list import ReplicaChanged
from penstock.policy.rollout import ReplicaView, RolloutRules
from penstock.ports import Emit
from penstock.wire.errors import Problem


class EndRules(msgspec.Struct, frozen=True, kw_only=True):
    """How the service ends.  Seconds: for requests to finish, for processes to exit, and the latter when hurried."""

    drain_timeout_s: float = 30.0
    stop_timeout_s: float = 10.0
    hurried_stop_s: float = 2.0


class Engine(msgspec.Struct, frozen=True, kw_only=True):
    """One life of an engine that is ready."""

    id: str
    socket: str
    pid: int
    started_at: float


class Controller:
    """The machine.  Call :meth:`step` often; it never waits."""

    def __init__(
        self,
        model: str,
        created: int,
        members: Sequence[Member],
        *,
        rules: Rules,
        end: EndRules,
        emit: Emit,
        balance: Balance = "least-tokens",
        max_concurrent: int = 0,
        also: Sequence[Model] = (),
        names: Mapping[str, Name] | None = None,
    ) -> None:
        """``also``: further models, without their replicas.  Raises ``Problem`` where the names do not fit them.

        What changes in ``catalogue`` holds from the next step on.
        """
        first = Model(name=model, replicas=[], created=created, balance=balance, max_concurrent=max_concurrent)
        self.catalogue = Catalogue([first, *also], names or {})
        self._model = model
        self._lives = [Life(member) for member in members]
        self._rules = rules
        self._end = end
        self._emit = emit
        self._stage: Stage = "serving"
        self._stop_requests = 0
        self._deadline: float | None = None
        self._problem: Problem | None = None
        self._desired = DesiredState()
        self._rollout: Rollout | None = None
        self._left: dict[str, Life] = {}
        self.awaits_adapters = False
        """Some that the service begins with are still to be loaded: it is not ready before."""
        self._is_followed = False

    def give_up(self, problem: Problem) -> None:
        """End the service by this problem, with the next step."""
        self._problem = self._problem or problem

    def ready_engines(self, model: str) -> list[Engine]:
        """As they were at the last step."""
        return [
            Engine(id=life.member.id, socket=life.member.socket, pid=seen.pid, started_at=seen.started_at)
            for life in self._lives
            if self._is_of(life.member, model) and (seen := life.seen) is not None and seen.ready
        ]

    def request_stop(self) -> None:
        """Drain and end; asked for again: hurry.  Takes effect with the next step."""
        self._stop_requests += 1

    def upgrade(self, model: str, new: Sequence[Member], rules: RolloutRules, now: float) -> None:
        """Begin to replace a model's engines by as many new ones, with the next step.  Raises ``Problem``."""
        if self._rollout is not None and not self._rollout.is_over:
            raise Problem("conflict", "An upgrade is under way already.")
        if self._stage != "serving" or self._stop_requests:
            raise Problem("draining", "The service is shutting down.")
        self._rollout = Rollout(self.engines(model), new, rules, now)

    def stop_upgrade(self, why: str) -> None:
        """Go back to the old engines.  Raises ``Problem`` ``conflict`` where nothing is under way."""
        if self._rollout is None or self._rollout.is_over:
            raise Problem("conflict", "No upgrade is under way.")
        self._rollout.stop(why)

    def engines(self, model: str) -> list[Member]:
        """The engines that are to serve this model."""
        return [life.member for life in self._lives if self._is_of(life.member, model) and life.duty == "serve"]

    def _is_of(self, member: Member, model: str) -> bool:
        return member.kind == "engine" and (member.model or self._model) == model

    @property
    def rollout(self) -> RolloutStatus | None:
        """The present upgrade, or the last one."""
        return None if self._rollout is None else self._rollout.status

    @property
    def is_followed(self) -> bool:
        """At the last step every gateway routed by what is wanted now."""
        return self._is_followed and self._models() == self._desired.models

    def published(self, state: DesiredState) -> None:
        """The last :class:`Publish` has become ``state``."""
        self._desired = state

    def state(self) -> ServiceState:
        """A picture of the last step."""
        members = [life.state(life.member.model or self._model) for life in self._lives]
        serving = {member.kind for member in members if member.phase == "ready"}
        ready = self._stage == "serving" and serving == {"engine", "gateway"} and not self.awaits_adapters
        return ServiceState(stage=self._stage, ready=ready, desired=self._desired, members=members)

    def step(
        self, seen: Mapping[str, Observed], acknowledgements: Sequence[Acknowledgement], now: float
    ) -> list[Action]:
        """What to do now.  Everything returned is to be done, in order."""
        for life in self._lives:
            life.seen = seen.get(life.id)
        actions: list[Action] = []
        if self._stage == "stopping":  # from an earlier step, so that what that one started has been observed
            actions += self._stop(now)
        elif self._stage != "stopped":
            actions += self._roll(acknowledgements, now)
            for life in list(self._lives):
                actions += self._reconcile(life, now) if life.is_wanted else self._let_go(life, now)
            self._is_followed = self._settled(acknowledgements)
            actions += self._publish()
            self._advance(acknowledgements, now)
        self._note_phases()
        return actions

    def _roll(self, acknowledgements: Sequence[Acknowledgement], now: float) -> list[Action]:
        """Duties as the upgrade has them now; who gets one becomes a member."""
        rollout = self._rollout
        if rollout is None or rollout.is_over:
            return []
        before = rollout.status
        duties = rollout.step(self._replica_view, self._settled(acknowledgements), now)
        lives = {life.id: life for life in self._lives}
        for member in rollout.members:
            duty = duties.get(member.id, "leave")
            if member.id in lives:
                lives[member.id].duty = duty
            elif duty in ("warm", "serve"):
                self._left.pop(member.id, None)
                self._lives.append(Life(member, duty))
        after = rollout.status
        return [] if before.why == after.why else [Tell("upgrade", after.why)]

    def _replica_view(self, member: Member) -> ReplicaView:
        for life in self._lives:
            if life.id == member.id:
                return life.replica_view()
        left = self._left.get(member.id)
        return ReplicaView(id=member.id) if left is None else left.replica_view()

    def _let_go(self, life: Life, now: float) -> list[Action]:
        """End a replica that is replaced; when it is gone it is no member any more."""
        is_gone, actions = life.let_go(now, self._end.stop_timeout_s)
        if is_gone:
            self._lives.remove(life)
            self._left[life.id] = life
        return actions

    def _reconcile(self, life: Life, now: float) -> list[Action]:
        verdict, actions, told = life.reconcile(self._rules, now)
        if verdict.do == "give_up" and not self._others_serve(life) and not self._on_trial(life.member):
            self._problem = self._problem or verdict.problem
        ends_all = verdict.problem is not None and verdict.problem is self._problem  # and is then told as the end
        return actions if ends_all else actions + told

    def _on_trial(self, member: Member) -> bool:
        """What an upgrade starts must not end the service that it was to upgrade."""
        return self._rollout is not None and not self._rollout.is_over and member in self._rollout.members

    def _others_serve(self, life: Life) -> bool:
        # A checkpoint that vanished must not end the replicas that hold it in memory; those of another model do not
        # make up for it.
        alike = (life.member.kind, life.member.model)
        return any(
            (other.member.kind, other.member.model) == alike and other is not life and other.is_ready
            for other in self._lives
        )

    def _models(self) -> list[Model]:
        return self.catalogue.told(self._living)

    def _publish(self) -> list[Action]:
        models, admitting = self._models(), self._stage == "serving" and self._stop_requests == 0
        wanted = (models, self.catalogue.names, admitting)
        if wanted == (self._desired.models, self._desired.names, self._desired.admitting):
            return []
        return [Publish(models, admitting, dict(self.catalogue.names))]

    def _living(self, model: str) -> list[Replica]:
        return [
            Replica(id=life.id, socket=life.member.socket, draining=life.duty != "serve")
            for life in self._lives
            if self._is_of(life.member, model) and life.seen is not None
        ]

    def _advance(self, acknowledgements: Sequence[Acknowledgement], now: float) -> None:
        if self._problem is not None:
            self._stage, self._deadline = "stopping", None
        elif self._stop_requests and self._stage == "serving":
            self._stage, self._deadline = "draining", now + self._end.drain_timeout_s
        elif self._stage == "draining":
            assert self._deadline is not None
            if self._stop_requests > 1 or now >= self._deadline or self._drained(acknowledgements):
                self._stage, self._deadline = "stopping", None

    def _settled(self, acknowledgements: Sequence[Acknowledgement]) -> bool:
        """Every gateway routes by the duties as they are."""
        last_words = self._last_words(acknowledgements)
        return self._models() == self._desired.models and all(
            last.version >= self._desired.version for last in last_words
        )

    def _drained(self, acknowledgements: Sequence[Acknowledgement]) -> bool:
        return not self._desired.admitting and all(
            last.version >= self._desired.version and last.in_flight == 0 for last in self._last_words(acknowledgements)
        )

    def _last_words(self, acknowledgements: Sequence[Acknowledgement]) -> list[Acknowledgement]:
        """Of the gateways that live and have spoken: a silent one routes by no state, so it cannot hold a request."""
        said = {a.gateway: a for a in acknowledgements}
        living = [
            gateway_name(life.id, life.memory.starts)
            for life in self._lives
            if life.member.kind == "gateway" and life.seen is not None and life.seen.exit_code is None
        ]
        return [said[name] for name in living if name in said]

    def _stop(self, now: float) -> list[Action]:
        if self._deadline is None:
            hurried = self._stop_requests > 1
            self._deadline = now + (self._end.hurried_stop_s if hurried else self._end.stop_timeout_s)
        elif self._stop_requests > 1:
            self._deadline = min(self._deadline, now + self._end.hurried_stop_s)
        actions = [action for life in self._lives for action in life.end(now, self._deadline)]
        if all(life.seen is None for life in self._lives):
            self._stage = "stopped"
            actions.append(Finish(self._problem))
        return actions

    def _note_phases(self) -> None:
        for life in self._lives:
            phase = life.present_phase
            if phase != life.phase:
                life.phase = phase
                if life.member.kind == "engine":
                    self._emit(ReplicaChanged(replica=life.id, phase=phase, restarts=life.restarts))


def gateway_name(id: str, incarnation: int) -> str:
    """Under which name one life of a gateway acknowledges: what an earlier life held is not held any more."""
    return f"{id}.{incarnation}"
