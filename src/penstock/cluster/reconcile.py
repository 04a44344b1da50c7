"""What to do about one process: start, keep, kill, or give up on it.  Pure; each verdict says why.

In: what was observed, the rules, what is remembered, the time; out: a verdict and what to remember next.
Knows no process, no clock and no other replica.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from penstock.wire.engine import problem_of
from penstock.wire.errors import Fault, Problem
from penstock.wire.load import Load

Do = Literal["start", "keep", "kill", "give_up"]


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """When a process is started again and when it counts as hung.  Times in seconds.

    The delay before the n-th start in a row is ``backoff_s * 2**(n-1)``, at most ``backoff_max_s``.
    """

    backoff_s: float = 0.5
    backoff_max_s: float = 30.0
    served_backoff_max_s: float = 2.0
    """The most after a process that had become ready: loading bounds how often it can die, and streams wait for it."""
    healthy_s: float = 60.0
    """Ready for this long: earlier failures are forgotten."""
    crash_limit: int = 5
    """This many failures in a row without ever becoming ready: it is given up."""
    first_answer_s: float = 120.0
    """How long a new process may take to answer at all: it imports, on a machine that may be busy."""
    silence_s: float = 30.0
    """How long a process that once answered may stay silent before it counts as hung."""
    stuck_s: float = 30.0
    """How much longer a step may go on than the engine itself allows before the engine counts as hung."""


class Observed(msgspec.Struct, frozen=True, kw_only=True):
    """One process as the driver sees it.  Times on the caller's monotonic clock.

    ``exit_code`` is ``None`` while it lives, negative when a signal ended it.  ``load`` is its last answer;
    ``problem`` is what it said was wrong when it ended; ``last_lines`` is the end of its log, then.
    """

    pid: int
    started_at: float
    exit_code: int | None = None
    answered_at: float | None = None
    load: Load | None = None
    problem: Problem | None = None
    last_lines: tuple[str, ...] = ()

    @property
    def ready(self) -> bool:
        """Alive, and by its own last word serving."""
        return self.exit_code is None and self.load is not None and self.load.phase == "ready"


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """What the next decision needs of the ones before.  ``starts`` counts all starts; ``failures`` those in a row."""

    starts: int = 0
    failures: int = 0
    futile: int = 0
    """Failures in a row before which it had not even become ready."""
    ready_since: float | None = None
    retry_at: float | None = None


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """``problem`` goes with ``give_up``: what ends the service when nothing else serves."""

    do: Do
    why: str
    problem: Problem | None = None


def decide(seen: Observed | None, rules: Rules, memory: Memory, now: float) -> tuple[Verdict, Memory]:
    """The verdict on one process; ``seen`` is ``None`` when there is none (never started, or already reaped)."""
    if seen is None:
        return _absent(memory, now)
    if seen.exit_code is not None:
        return _ended(seen, rules, memory, now)
    if seen.load is not None and seen.load.phase == "failed":
        return _failed_to_load(seen.load, memory)
    silent_since = seen.started_at if seen.answered_at is None else seen.answered_at
    limit_s = rules.first_answer_s if seen.answered_at is None else rules.silence_s
    if now - silent_since > limit_s:
        why = f"hung: no answer for {now - silent_since:.0f} s, the limit is {limit_s:g} s"
        return Verdict(do="kill", why=why), memory
    if seen.load is not None and seen.load.step_age_s > seen.load.step_limit_s + rules.stuck_s:
        why = f"hung: a step of {seen.load.step_age_s:.0f} s, where {seen.load.step_limit_s:.0f} s were the most"
        return Verdict(do="kill", why=why), memory
    if not seen.ready:
        return Verdict(do="keep", why="not ready yet"), msgspec.structs.replace(memory, ready_since=None)
    since = now if memory.ready_since is None else memory.ready_since
    failures = 0 if now - since >= rules.healthy_s else memory.failures
    return Verdict(do="keep", why="ready"), msgspec.structs.replace(
        memory, ready_since=since, futile=0, failures=failures
    )


def _absent(memory: Memory, now: float) -> tuple[Verdict, Memory]:
    if memory.retry_at is not None and now < memory.retry_at:
        return Verdict(do="keep", why=f"waiting {memory.retry_at - now:.1f} s before start {memory.starts + 1}"), memory
    number = memory.starts + 1
    why = "first start" if number == 1 else f"start {number}, after {memory.failures} failures in a row"
    return Verdict(do="start", why=why), msgspec.structs.replace(
        memory, starts=memory.starts + 1, retry_at=None, ready_since=None
    )


def _ended(seen: Observed, rules: Rules, memory: Memory, now: float) -> tuple[Verdict, Memory]:
    failures = memory.failures + 1
    futile = 0 if memory.ready_since is not None else memory.futile + 1
    longest_s = rules.backoff_max_s if futile else rules.served_backoff_max_s
    delay_s = min(longest_s, rules.backoff_s * 2.0 ** min(failures - 1, 60))
    how = _how(seen.exit_code or 0)
    problem, why = None, f"ended {how}; next start in {delay_s:g} s"
    if seen.problem is not None and seen.problem.spec.fault is Fault.CALLER:
        problem, why = seen.problem, seen.problem.message
    elif futile >= rules.crash_limit:
        why = f"ended {futile} times in a row without becoming ready, the last time {how}"
        said = f" Its last lines: {' | '.join(seen.last_lines)}" if seen.last_lines else ""
        problem = seen.problem or Problem("internal_error", f"A process {why}.{said}")
    after = msgspec.structs.replace(
        memory,
        failures=failures,
        futile=futile,
        ready_since=None,
        retry_at=now + (delay_s if problem is None else rules.backoff_max_s),
    )
    return Verdict(do="keep" if problem is None else "give_up", why=why, problem=problem), after


def _failed_to_load(load: Load, memory: Memory) -> tuple[Verdict, Memory]:
    failed = load.problem
    problem = None if failed is None else problem_of(failed)
    if problem is not None and problem.spec.fault is Fault.CALLER:
        return Verdict(do="give_up", why=problem.message, problem=problem), memory
    return Verdict(do="kill", why=f"loading failed: {problem.message if problem else load.detail}"), memory


def _how(exit_code: int) -> str:
    return f"killed by signal {-exit_code}" if exit_code < 0 else f"with exit code {exit_code}"
