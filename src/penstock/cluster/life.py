"""One member, and what the controller remembers of it from step to step.

In: what was observed of its process, verdicts of ``reconcile``; out: actions, and views of it for others.
Knows no other member.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from penstock.cluster.actions import Action, Forget, Kill, Start, Tell, Terminate
from penstock.cluster.reconcile import Memory, Observed, Rules, Verdict, decide
from penstock.cluster.rollout import Member
from penstock.cluster.state import MemberState
from penstock.policy.rollout import Duty, ReplicaView


@dataclass(slots=True, eq=False)
class Life:
    """``seen``: its process, ``None`` where there is none.  ``failed``: why it ended once; ``hopeless``: for good.

    ``leaves_until``: when it is killed if it has not left; ``signalled``: (pid, verb), since a signal is sent once.
    """

    member: Member
    duty: Duty = "serve"
    memory: Memory = field(default_factory=Memory)
    why: str = "not started yet"
    phase: str = ""
    seen: Observed | None = None
    failed: str = ""
    hopeless: bool = False
    leaves_until: float | None = None
    signalled: set[tuple[int, str]] = field(default_factory=set)

    @property
    def id(self) -> str:
        return self.member.id

    @property
    def is_wanted(self) -> bool:
        # One that ended while it drained is not missed.
        return self.duty in ("warm", "serve") or (self.duty == "drain" and self.seen is not None)

    @property
    def is_ready(self) -> bool:
        return self.seen is not None and self.seen.ready

    @property
    def restarts(self) -> int:
        return max(0, self.memory.starts - 1)

    @property
    def present_phase(self) -> str:
        """In which phase its process is, as it is shown."""
        if self.seen is None:
            return "exited" if self.memory.failures else "starting"
        phase = "starting" if self.seen.load is None else self.seen.load.phase
        return "draining" if phase == "ready" and self.duty in ("drain", "leave") else phase

    def reconcile(self, rules: Rules, now: float) -> tuple[Verdict, list[Action], list[Action]]:
        """What is decided, what is done for it, and what is told of it."""
        seen = self.seen
        verdict, self.memory = decide(seen, rules, self.memory, now)
        self.why = verdict.why
        self.hopeless = self.hopeless or verdict.do == "give_up"
        actions: list[Action] = [Start(self.id, self.memory.starts)] if verdict.do == "start" else []
        told: list[Action] = []
        if seen is not None and seen.exit_code is not None:
            actions.append(Forget(self.id))
            told.append(Tell(self.id, verdict.why, seen.last_lines))
            self.failed = seen.problem.message if seen.problem else verdict.why
            self.seen = None
        elif seen is not None and verdict.do in ("kill", "give_up") and self._is_first("kill"):
            actions.append(Kill(self.id))
            told.append(Tell(self.id, verdict.why))
            self.failed = verdict.why
        return verdict, actions, told

    def let_go(self, now: float, stop_timeout_s: float) -> tuple[bool, list[Action]]:
        """End it, since it is replaced; whether it is gone."""
        self.why = "replaced"
        if self.leaves_until is None:
            self.leaves_until = now + stop_timeout_s
        actions = self.end(now, self.leaves_until)
        return self.seen is None, actions

    def end(self, now: float, deadline: float) -> list[Action]:
        """The next step of ending its process, if there is one: asked once, killed after ``deadline``, forgotten."""
        if self.seen is None:
            return []
        if self.seen.exit_code is not None:
            self.seen = None
            return [Forget(self.id)]
        if self._is_first("terminate"):
            return [Terminate(self.id)]
        if now >= deadline and self._is_first("kill"):
            return [Kill(self.id), Tell(self.id, "did not exit in time and was killed")]
        return []

    def replica_view(self) -> ReplicaView:
        """As ``policy.rollout`` sees it."""
        load = None if self.seen is None else self.seen.load
        return ReplicaView(
            id=self.id,
            present=self.seen is not None,
            ready=self.is_ready,
            failed=self.failed,
            hopeless=self.hopeless,
            num_busy=0 if load is None else load.running + load.waiting,
            vocabulary="" if load is None else load.vocabulary,
        )

    def state(self, model: str) -> MemberState:
        """As people see it; ``model``: the one that an engine serves."""
        return MemberState(
            id=self.id,
            kind=self.member.kind,
            model=model if self.member.kind == "engine" else "",
            phase=self.phase,
            why=self.why,
            pid=None if self.seen is None else self.seen.pid,
            restarts=self.restarts,
            load=None if self.seen is None else self.seen.load,
        )

    def _is_first(self, verb: str) -> bool:
        assert self.seen is not None
        asked = (self.seen.pid, verb)
        is_first = asked not in self.signalled
        self.signalled.add(asked)
        return is_first
