"""The reconciler: which processes should run, what they are told, and how the service ends.

In: what the driver observed, what gateways acknowledged, the time; out: actions.  Deterministic, without I/O.
The desired state lists the replicas that live; gateways ask each whether it is ready, sooner than we could tell them.
Requests are refused before anything that may hold one is stopped.
Argued in docs/decisions/003-processes-and-desired-state.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from penstock.cluster.actions import Action, Finish, Forget, Kill, Publish, Start, Tell, Terminate
from penstock.cluster.reconcile import Memory, Observed, Rules, decide
from penstock.cluster.rollout import Member, Rollout, RolloutStatus
from penstock.cluster.state import MemberState, ServiceState, Stage
from penstock.config.desired import Acknowledgement, Balance, DesiredState, Model, Replica
from penstock.config.names import Name
from penstock.events.list import ReplicaChanged
from penstock.policy.names import check
from penstock.policy.rollout import Duty, ReplicaView, RolloutRules
from penstock.ports import Emit
from penstock.wire.errors import Problem


class EndRules(msgspec.Struct, frozen=True, kw_only=True):
    """How the service ends.  Seconds: for requests to finish, for processes to exit, and the latter when hurried."""

    drain_timeout_s: float = 30.0
    stop_timeout_s: float = 10.0
    hurried_stop_s: float = 2.0


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
        """``also``: further models, without their replicas.  Raises ``Problem`` where the names do not fit them."""
        self._also = list(also)
        self._names: dict[str, Name] = {}
        self._model = model
        self._created = created
        self._balance = balance
        self._max_concurrent = max_concurrent
        self._members = list(members)
        self._rules = rules
        self._end = end
        self._emit = emit
        self._stage: Stage = "serving"
        self._stop_requests = 0
        self._deadline: float | None = None
        self._problem: Problem | None = None
        self._desired = DesiredState()
        self._memory = {member.id: Memory() for member in members}
        self._why = {member.id: "not started yet" for member in members}
        self._phase = {member.id: "" for member in members}
        self._seen: dict[str, Observed] = {}
        self._asked: set[tuple[str, int, str]] = set()  # (id, pid, verb): a signal is sent once
        self._rollout: Rollout | None = None
        self._duties: dict[str, Duty] = {}
        self._failed: dict[str, str] = {}
        self._hopeless: set[str] = set()
        self._leaves_until: dict[str, float] = {}
        self.rename(names or {})

    @property
    def models(self) -> list[str]:
        """Served names, the first one first."""
        return [self._model, *(model.name for model in self._also)]

    @property
    def names(self) -> Mapping[str, Name]:
        return self._names

    def rename(self, names: Mapping[str, Name]) -> None:
        """These are the names from the next step on.  Raises ``Problem`` ``invalid_value``, and changes none then."""
        try:
            check(names, self.models)
        except ValueError as error:
            raise Problem("invalid_value", f"{str(error)[:1].upper()}{str(error)[1:]}.", param="names") from None
        self._names = dict(names)

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
        return [m for m in self._members if self._is_of(m, model) and self._duty(m) == "serve"]

    def _is_of(self, member: Member, model: str) -> bool:
        return member.kind == "engine" and (member.model or self._model) == model

    @property
    def rollout(self) -> RolloutStatus | None:
        """The present upgrade, or the last one."""
        return None if self._rollout is None else self._rollout.status

    def published(self, state: DesiredState) -> None:
        """The last :class:`Publish` has become ``state``."""
        self._desired = state

    def state(self) -> ServiceState:
        """A picture of the last step."""
        members = [self._member_state(member) for member in self._members]
        serving = {member.kind for member in members if member.phase == "ready"}
        ready = self._stage == "serving" and serving == {"engine", "gateway"}
        return ServiceState(stage=self._stage, ready=ready, desired=self._desired, members=members)

    def step(
        self, seen: Mapping[str, Observed], acknowledgements: Sequence[Acknowledgement], now: float
    ) -> list[Action]:
        """What to do now.  Everything returned is to be done, in order."""
        self._seen = dict(seen)
        actions: list[Action] = []
        if self._stage == "stopping":  # from an earlier step, so that what that one started has been observed
            actions += self._stop(now)
        elif self._stage != "stopped":
            actions += self._roll(acknowledgements, now)
            for member in list(self._members):
                actions += self._reconcile(member, now) if self._is_wanted(member) else self._let_go(member, now)
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
        for member in rollout.members:
            self._duties[member.id] = duties.get(member.id, "leave")
            if self._duties[member.id] in ("warm", "serve") and member not in self._members:
                self._enter(member)
        after = rollout.status
        return [] if before.why == after.why else [Tell("upgrade", after.why)]

    def _enter(self, member: Member) -> None:
        self._members.append(member)
        self._memory[member.id] = Memory()
        self._why[member.id], self._phase[member.id] = "not started yet", ""
        self._failed.pop(member.id, None)
        self._hopeless.discard(member.id)

    def _duty(self, member: Member) -> Duty:
        """What no upgrade is about serves."""
        return self._duties.get(member.id, "serve")

    def _is_wanted(self, member: Member) -> bool:
        duty = self._duty(member)
        # One that ended while it drained is not missed.
        return duty in ("warm", "serve") or (duty == "drain" and member.id in self._seen)

    def _replica_view(self, member: Member) -> ReplicaView:
        seen, load = self._seen.get(member.id), None
        if seen is not None:
            load = seen.load
        return ReplicaView(
            id=member.id,
            present=seen is not None,
            ready=seen is not None and seen.ready,
            failed=self._failed.get(member.id, ""),
            hopeless=member.id in self._hopeless,
            num_busy=0 if load is None else load.running + load.waiting,
            vocabulary="" if load is None else load.vocabulary,
        )

    def _let_go(self, member: Member, now: float) -> list[Action]:
        """End a replica that is replaced; when it is gone it is no member any more."""
        seen = self._seen.get(member.id)
        self._why[member.id] = "replaced"
        if seen is None or seen.exit_code is not None:
            self._members.remove(member)
            self._leaves_until.pop(member.id, None)
            return [] if self._seen.pop(member.id, None) is None else [Forget(member.id)]
        deadline = self._leaves_until.setdefault(member.id, now + self._end.stop_timeout_s)
        if self._first(member.id, seen.pid, "terminate"):
            return [Terminate(member.id)]
        if now >= deadline and self._first(member.id, seen.pid, "kill"):
            return [Kill(member.id), Tell(member.id, "did not exit in time and was killed")]
        return []

    def _reconcile(self, member: Member, now: float) -> list[Action]:
        seen = self._seen.get(member.id)
        verdict, self._memory[member.id] = decide(seen, self._rules, self._memory[member.id], now)
        self._why[member.id] = verdict.why
        actions: list[Action] = []
        if verdict.do == "start":
            actions.append(Start(member.id, self._memory[member.id].starts))
        if verdict.do == "give_up":
            self._hopeless.add(member.id)
        if verdict.do == "give_up" and not self._others_serve(member) and not self._on_trial(member):
            self._problem = self._problem or verdict.problem
        told: list[Action] = []
        if seen is not None and seen.exit_code is not None:
            actions.append(Forget(member.id))
            told.append(Tell(member.id, verdict.why, seen.last_lines))
            self._failed[member.id] = seen.problem.message if seen.problem else verdict.why
            del self._seen[member.id]
        elif seen is not None and verdict.do in ("kill", "give_up") and self._first(member.id, seen.pid, "kill"):
            actions.append(Kill(member.id))
            told.append(Tell(member.id, verdict.why))
            self._failed[member.id] = verdict.why
        ends_all = verdict.problem is not None and verdict.problem is self._problem  # and is then told as the end
        return actions if ends_all else actions + told

    def _on_trial(self, member: Member) -> bool:
        """What an upgrade starts must not end the service that it was to upgrade."""
        return self._rollout is not None and not self._rollout.is_over and member in self._rollout.members

    def _others_serve(self, member: Member) -> bool:
        # A checkpoint that vanished must not end the replicas that hold it in memory; those of another model do not
        # make up for it.
        return any(
            (other.kind, other.model) == (member.kind, member.model)
            and other.id != member.id
            and other.id in self._seen
            and self._seen[other.id].ready
            for other in self._members
        )

    def _models(self) -> list[Model]:
        first = Model(
            name=self._model,
            replicas=[],
            created=self._created,
            balance=self._balance,
            max_concurrent=self._max_concurrent,
        )
        return [msgspec.structs.replace(model, replicas=self._living(model.name)) for model in (first, *self._also)]

    def _publish(self) -> list[Action]:
        models, admitting = self._models(), self._stage == "serving" and self._stop_requests == 0
        wanted = (models, self._names, admitting)
        if wanted == (self._desired.models, self._desired.names, self._desired.admitting):
            return []
        return [Publish(models, admitting, self._names)]

    def _living(self, model: str) -> list[Replica]:
        return [
            Replica(id=member.id, socket=member.socket, draining=self._duty(member) != "serve")
            for member in self._members
            if self._is_of(member, model) and member.id in self._seen
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
            gateway_name(member.id, self._memory[member.id].starts)
            for member in self._members
            if member.kind == "gateway" and (seen := self._seen.get(member.id)) is not None and seen.exit_code is None
        ]
        return [said[name] for name in living if name in said]

    def _stop(self, now: float) -> list[Action]:
        if self._deadline is None:
            hurried = self._stop_requests > 1
            self._deadline = now + (self._end.hurried_stop_s if hurried else self._end.stop_timeout_s)
        elif self._stop_requests > 1:
            self._deadline = min(self._deadline, now + self._end.hurried_stop_s)
        actions: list[Action] = []
        for id, seen in list(self._seen.items()):
            if seen.exit_code is not None:
                actions.append(Forget(id))
                del self._seen[id]
            elif self._first(id, seen.pid, "terminate"):
                actions.append(Terminate(id))
            elif now >= self._deadline and self._first(id, seen.pid, "kill"):
                actions += [Kill(id), Tell(id, "did not exit in time and was killed")]
        if not self._seen:
            self._stage = "stopped"
            actions.append(Finish(self._problem))
        return actions

    def _first(self, id: str, pid: int, verb: str) -> bool:
        asked = (id, pid, verb)
        fresh = asked not in self._asked
        self._asked.add(asked)
        return fresh

    def _note_phases(self) -> None:
        for member in self._members:
            seen = self._seen.get(member.id)
            phase = _phase(seen, self._memory[member.id])
            if phase == "ready" and self._duty(member) in ("drain", "leave"):
                phase = "draining"
            if phase != self._phase[member.id]:
                self._phase[member.id] = phase
                if member.kind == "engine":
                    self._emit(ReplicaChanged(replica=member.id, phase=phase, restarts=self._restarts(member.id)))

    def _restarts(self, id: str) -> int:
        return max(0, self._memory[id].starts - 1)

    def _member_state(self, member: Member) -> MemberState:
        seen = self._seen.get(member.id)
        return MemberState(
            id=member.id,
            kind=member.kind,
            model=(member.model or self._model) if member.kind == "engine" else "",
            phase=self._phase[member.id],
            why=self._why[member.id],
            pid=None if seen is None else seen.pid,
            restarts=self._restarts(member.id),
            load=None if seen is None else seen.load,
        )


def _phase(seen: Observed | None, memory: Memory) -> str:
    if seen is None:
        return "exited" if memory.failures else "starting"
    return "starting" if seen.load is None else seen.load.phase


def gateway_name(id: str, incarnation: int) -> str:
    """Under which name one life of a gateway acknowledges: what an earlier life held is not held any more."""
    return f"{id}.{incarnation}"
