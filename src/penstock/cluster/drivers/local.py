"""Processes on this machine: started as children, watched, ended with everything they started.

In: how to launch each member; out: what was observed of it.  A child gets its settings as the first line of its
standard input, which then stays open: its end tells the child that the controller died.
Each child leads a process group, so that Ctrl-C in the terminal reaches the controller alone.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from penstock.cluster.drivers.probe import Probe
from penstock.cluster.drivers.process import discard, hand_over, hang_up, kill_group, open_log, spawn
from penstock.cluster.reconcile import Observed
from penstock.ports import Clock
from penstock.wire.engine import Failed, problem_of
from penstock.wire.errors import Problem
from penstock.wire.load import Load, decode_load

EXIT_PROBLEM = 78
"""Exit code (EX_CONFIG of sysexits.h) of a child that ends with a problem and has written it down."""
PROBLEM_MARK = "PENSTOCK_PROBLEM "
"""Starts the line of the log that carries the problem, as JSON of ``wire.engine.Failed``."""

_TAIL_BYTES = 16 * 1024
_TAIL_LINES = 12
_PROBE_TIMEOUT_S = 2.0
_STARTING_S = 0.05
"""Between two questions until it is ready: what was not asked in time is waited for."""


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """How one member is started.  ``settings(incarnation)`` is the JSON it reads, without a line end.

    ``route`` on ``socket`` answers how it is; ``answers`` turns that into a :class:`Load` and raises
    ``msgspec.MsgspecError`` for anything else.
    """

    argv: Sequence[str]
    settings: Callable[[int], bytes]
    socket: str
    route: str
    answers: Callable[[bytes], Load] = decode_load
    pass_fds: tuple[int, ...] = ()


class LocalDriver:
    """Implements ``cluster.supervise.Driver``.  Lives in one event loop.  Logs go to ``log_dir/<id>.log``."""

    def __init__(
        self,
        launches: Mapping[str, Launch],
        log_dir: Path,
        clock: Clock,
        waiting: Mapping[str, subprocess.Popen[bytes]] | None = None,
    ) -> None:
        """``waiting``: processes that are there already and wait for their settings, by the member they may become."""
        self._launches = dict(launches)
        self._waiting = dict(waiting or {})
        self._log_dir = log_dir
        self._clock = clock
        self._children: dict[str, _Child] = {}

    def start(self, id: str, incarnation: int) -> None:
        assert id not in self._children, id
        log, launch = self._log_dir / f"{id}.log", self._launches[id]
        self._children[id] = _Child(launch, incarnation, log, self._clock, self._waiting_for(id, launch))

    def know(self, id: str, launch: Launch) -> None:
        """Another member that may be started from now on."""
        self._launches[id] = launch

    def terminate(self, id: str) -> None:
        self._children[id].signal(signal.SIGTERM)

    def kill(self, id: str) -> None:
        self._children[id].kill()

    def forget(self, id: str) -> None:
        self._children.pop(id).release()

    def observe(self) -> Mapping[str, Observed]:
        return {id: child.observe() for id, child in self._children.items()}

    def _waiting_for(self, id: str, launch: Launch) -> subprocess.Popen[bytes] | None:
        process = self._waiting.pop(id, None)
        if process is not None and process.args != list(launch.argv):
            discard(process)  # it waits for settings of another kind
            return None
        return process

    async def close(self) -> None:
        for child in self._children.values():
            child.kill()
        while any(child.observe().exit_code is None for child in self._children.values()):
            await asyncio.sleep(0.01)
        for id in list(self._children):
            self.forget(id)


class _Child:
    """One life of one member."""

    def __init__(
        self,
        launch: Launch,
        incarnation: int,
        log: Path,
        clock: Clock,
        waiting: subprocess.Popen[bytes] | None,
    ) -> None:
        self._launch = launch
        self._clock = clock
        self._log = log
        self._load: Load | None = None
        self._answered_at: float | None = None
        self._ended: Observed | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._started_at = clock.now()
        self._log_start = 0
        Path(launch.socket).unlink(missing_ok=True)
        try:
            if waiting is not None:  # it writes to this log already
                self._process = waiting
            else:
                with open_log(log) as output:
                    self._log_start = output.tell()
                    self._process = spawn(launch.argv, output, launch.pass_fds)
        except OSError as error:  # no memory, no process slots, no disk: tried again like any other failed start
            self._ended = self._observed(exit_code=127, last_lines=(f"{launch.argv[0]}: {error}",))
            return
        hand_over(self._process, launch.settings(incarnation))
        self._watch = asyncio.get_running_loop().create_task(self._keep_asking())

    def observe(self) -> Observed:
        if self._ended is not None:
            return self._ended
        assert self._process is not None
        _end_group_of_the_dead(self._process)
        code = self._process.poll()
        if code is None:
            return self._observed()
        lines = _tail(self._log, self._log_start)
        problem = written_problem(lines) if code == EXIT_PROBLEM else None
        shown = tuple(line for line in lines if not line.startswith(PROBLEM_MARK))
        self._ended = self._observed(exit_code=code, problem=problem, last_lines=shown[-_TAIL_LINES:])
        return self._ended

    def signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)  # does nothing once it has been waited for

    def kill(self) -> None:
        if self._process is not None:
            kill_group(self._process)

    def release(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
        if self._process is not None:
            hang_up(self._process)

    def _observed(
        self, exit_code: int | None = None, problem: Problem | None = None, last_lines: tuple[str, ...] = ()
    ) -> Observed:
        return Observed(
            pid=0 if self._process is None else self._process.pid,
            started_at=self._started_at,
            exit_code=exit_code,
            answered_at=self._answered_at,
            load=self._load,
            problem=problem,
            last_lines=last_lines,
        )

    async def _keep_asking(self) -> None:
        probe = Probe(self._launch.socket)
        try:
            while True:
                body = await probe.get(self._launch.route, _PROBE_TIMEOUT_S)
                if body is not None:
                    try:
                        self._load = self._launch.answers(body)
                        self._answered_at = self._clock.now()
                    except msgspec.MsgspecError:
                        pass  # something else than an answer counts as silence, and silence has its limit
                await asyncio.sleep(1.0 if self._load is not None and self._load.phase == "ready" else _STARTING_S)
        finally:
            await probe.close()


def _end_group_of_the_dead(process: subprocess.Popen[bytes]) -> None:
    """What a child had started must not outlive it: a new life would meet it on the GPU or in the memory."""
    if process.returncode is not None or not hasattr(os, "waitid"):  # macOS before Python 3.13
        return
    # WNOWAIT: its process id, and so its group's, stays taken until poll() waits for it.
    if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
        os.killpg(process.pid, signal.SIGKILL)


def _tail(log: Path, start: int) -> list[str]:
    with log.open("rb") as lines:
        size = lines.seek(0, os.SEEK_END)
        lines.seek(max(start, size - _TAIL_BYTES))
        return [line.rstrip() for line in lines.read().decode("utf-8", "replace").splitlines() if line.strip()]


def written_problem(lines: Sequence[str]) -> Problem | None:
    """The problem that a child wrote down last, or ``None``."""
    for line in reversed(lines):
        if line.startswith(PROBLEM_MARK):
            try:
                return problem_of(msgspec.json.decode(line.removeprefix(PROBLEM_MARK), type=Failed))
            except msgspec.MsgspecError:  # torn by another writer of the log
                return None
    return None
