"""How the replicas of one source are replaced by those of another, one at a time, and put back where that fails.

In: how old and new replicas are, the rules, what was decided before, now; out: what each replica is to do, and why.
Pure.  Replica ``i`` of the new ones takes the place of replica ``i`` of the old ones: it starts beside it, becomes
ready, the old one drains and ends.  Back is the same the other way round.  Argued in docs/decisions/016-upgrades.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

Duty = Literal["warm", "serve", "drain", "leave"]
"""Run and take no work yet; run and take it; run and take none any more; end."""
Stage = Literal["start", "drain", "end"]
Direction = Literal["forward", "back"]
Outcome = Literal["done", "rolled_back", "stuck"]


class RolloutRules(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds.  ``prove_s``: how long a new replica serves beside the one that it replaces, before that may end."""

    drain_timeout_s: float = 30.0
    prove_s: float = 3.0
    start_timeout_s: float = 1800.0


class ReplicaView(msgspec.Struct, frozen=True, kw_only=True):
    """One replica.  ``present``: its process exists.  ``failed``: why it ended once, empty while it never did.

    ``hopeless``: starting it again would not help.  ``num_busy``: sequences that it has.
    ``vocabulary``: which tokens its ids stand for.
    """

    id: str
    present: bool = False
    ready: bool = False
    failed: str = ""
    hopeless: bool = False
    num_busy: int = 0
    vocabulary: str = ""


class RolloutView(msgspec.Struct, frozen=True, kw_only=True):
    """``settled``: every gateway routes by the duties that were decided last.  ``stop``: why somebody ended it."""

    old: Sequence[ReplicaView]
    new: Sequence[ReplicaView]
    settled: bool
    stop: str = ""


class RolloutMemory(msgspec.Struct, frozen=True, kw_only=True):
    """The place that is being changed, and since when it has been in its stage.  ``reason``: why it went back."""

    direction: Direction = "forward"
    place: int = 0
    stage: Stage = "start"
    since: float = 0.0
    reason: str = ""
    outcome: Outcome | None = None


class RolloutVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """``duties`` by id; who is not in it does not run."""

    duties: dict[str, Duty]
    why: str


def decide(
    view: RolloutView, rules: RolloutRules, memory: RolloutMemory, now: float
) -> tuple[RolloutVerdict, RolloutMemory]:
    """The next duties.  ``memory.outcome`` is set once it is over; the duties are then those that stay."""
    if memory.outcome is None and memory.direction == "forward":
        reason = _failure(view, rules, memory, now)
        if reason:
            memory = RolloutMemory(direction="back", place=memory.place, since=now, reason=reason)
    if memory.outcome is None:
        memory = _advance(view, rules, memory, now)
    return RolloutVerdict(duties=_duties(view, memory), why=_why(view, memory)), memory


def _failure(view: RolloutView, rules: RolloutRules, memory: RolloutMemory, now: float) -> str:
    """Why the new replicas are not to go on; empty: they are."""
    if view.stop:
        return view.stop
    for replica in view.new[: memory.place + 1]:
        if replica.failed:
            return f"{replica.id}: {replica.failed.rstrip('.')}"
    coming, going = view.new[memory.place], view.old[memory.place]
    if memory.stage == "start" and now - memory.since > rules.start_timeout_s:
        return f"{coming.id} was not ready within {rules.start_timeout_s:g} s"
    if coming.ready and going.ready and coming.vocabulary != going.vocabulary:
        return (
            f"{coming.id}: the new source has another vocabulary, so that no running stream could go on; "
            "serve it under a name of its own"
        )
    return ""


def _advance(view: RolloutView, rules: RolloutRules, memory: RolloutMemory, now: float) -> RolloutMemory:
    """One stage further where everything for it is there."""
    coming, going = _pair(view, memory)
    in_stage_s = now - memory.since
    if memory.stage == "start":
        if coming.ready:
            return msgspec.structs.replace(memory, stage="drain", since=now)
        # An old replica that was lost meanwhile is started again like any other; one that cannot load is not.
        given_up = memory.direction == "back" and (coming.hopeless or in_stage_s > rules.start_timeout_s)
        return msgspec.structs.replace(memory, outcome="stuck") if given_up else memory
    if memory.stage == "drain":
        # Going back, nothing has to be proven: what comes had served before.
        proven = memory.direction == "back" or in_stage_s >= rules.prove_s
        empty = going.num_busy == 0 or not going.ready or in_stage_s >= rules.drain_timeout_s
        over = view.settled and proven and empty
        return msgspec.structs.replace(memory, stage="end", since=now) if over else memory
    if going.present:
        return memory
    place = memory.place + (1 if memory.direction == "forward" else -1)
    outcome: Outcome | None = None
    if place == len(view.new):
        outcome = "done"
    elif place < 0:
        outcome = "rolled_back"
    return msgspec.structs.replace(memory, place=place, stage="start", since=now, outcome=outcome)


def _pair(view: RolloutView, memory: RolloutMemory) -> tuple[ReplicaView, ReplicaView]:
    """Who comes to this place and who goes from it."""
    old, new = view.old[memory.place], view.new[memory.place]
    return (new, old) if memory.direction == "forward" else (old, new)


def _duties(view: RolloutView, memory: RolloutMemory) -> dict[str, Duty]:
    duties: dict[str, Duty] = {}
    for place, (old, new) in enumerate(zip(view.old, view.new, strict=True)):
        if place != memory.place:
            duties[(new if place < memory.place else old).id] = "serve"
            continue
        coming, going = _pair(view, memory)
        if memory.outcome == "stuck":
            duties |= {going.id: "serve", coming.id: "leave"}
            continue
        # Nobody is served by a new one before it is known to be ready and to speak the same tokens.
        is_unproven = memory.direction == "forward" and memory.stage == "start"
        duties[coming.id] = "warm" if is_unproven else "serve"
        stage_duties: dict[Stage, Duty] = {"start": "serve", "drain": "drain", "end": "leave"}
        duties[going.id] = stage_duties[memory.stage]
        if going.failed and memory.direction == "back":
            duties[going.id] = "leave"
    return duties


def _why(view: RolloutView, memory: RolloutMemory) -> str:
    if memory.outcome is not None:
        return memory.reason or f"all {len(view.new)} replicas are of the new source"
    coming, going = _pair(view, memory)
    doing = {
        "start": f"{coming.id} starts beside {going.id}",
        "drain": f"{coming.id} serves; {going.id} drains, {going.num_busy} sequences left",
        "end": f"{going.id} ends",
    }[memory.stage]
    return f"{doing}; back, because of {memory.reason}" if memory.reason else doing
