"""The controller over real child processes: restarts, drains, deaths, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from penstock.store.desired import DesiredStore

SCRIPT = Path(__file__).with_name("fake_controller.py")
LIMIT_S = 30.0


class Service:
    """A fake controller that runs; ``last`` is the latest picture it printed."""

    def __init__(self, home: Path, *modes: str) -> None:
        self.home = home
        (home / "in_flight").write_text("0")
        self.process = subprocess.Popen(
            [sys.executable, str(SCRIPT), str(home), *modes], stdout=subprocess.PIPE, text=True
        )
        self.last: dict[str, Any] = {}
        self.lines: list[dict[str, Any]] = []
        self.pids: set[int] = set()

    def until(self, true: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Read pictures until one for which ``true``."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(json.loads(line))
            if "members" in self.lines[-1]:
                self.last = self.lines[-1]
                self.pids |= {pid for _, pid, _ in self.last["members"].values() if pid}
            if true(self.lines[-1]):
                return self.lines[-1]
        raise AssertionError(f"ended without it; printed {self.lines}")

    def until_all_ready(self) -> None:
        self.until(lambda line: all(phase == "ready" for phase, _, _ in line.get("members", {"": ["", 0, 0]}).values()))

    def end(self) -> int:
        """The exit code, once it has ended; reads what was left to read."""
        out, _ = self.process.communicate(timeout=LIMIT_S)
        self.lines += [json.loads(line) for line in out.splitlines()]
        return self.process.returncode

    def pid(self, id: str) -> int:
        pid: int = self.last["members"][id][1]
        return pid

    def wait_until_no_child_is_left(self) -> None:
        eventually(lambda: not any(alive(pid) for pid in self.pids))


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def eventually(true: Callable[[], bool], limit_s: float = LIMIT_S) -> None:
    end = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.01)


pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads processes from /proc")


@pytest.fixture
def serve() -> Iterator[Callable[..., Service]]:
    """Start fake controllers; whatever a test leaves is killed."""
    with tempfile.TemporaryDirectory(prefix="pk") as home:  # short: socket paths end at 107 bytes
        services: list[Service] = []

        def start(*modes: str) -> Service:
            services.append(Service(Path(home), *modes))
            return services[-1]

        yield start
        for service in services:
            service.process.kill()
            service.process.communicate()
            service.wait_until_no_child_is_left()


def test_a_killed_replica_is_restarted_and_the_state_published_again(serve: Callable[..., Service]) -> None:
    """After kill -9 the other replica stays, the killed one gets a new process, and the version grows."""
    service = serve("ready", "ready")
    service.until_all_ready()
    version, killed, other = service.last["version"], service.pid("e0"), service.pid("e1")
    os.kill(killed, signal.SIGKILL)
    service.until(lambda line: line.get("members", {}).get("e0", [""])[0] == "exited")
    service.until_all_ready()
    assert service.last["members"]["e0"][2] == 1
    assert service.pid("e0") != killed
    assert service.pid("e1") == other
    state = DesiredStore(service.home / "store").read()
    assert state.version > version
    assert [replica.id for replica in state.models[0].replicas] == ["e0", "e1"]


def test_sigterm_waits_for_what_is_in_flight_and_exits_zero(serve: Callable[..., Service]) -> None:
    """No process is stopped while the gateway holds a request; then all end and none is left."""
    service = serve("ready")
    service.until_all_ready()
    (service.home / "in_flight").write_text("2")
    store = DesiredStore(service.home / "store")
    eventually(lambda: any(said.in_flight == 2 for said in store.acknowledgements()))
    service.process.send_signal(signal.SIGTERM)
    service.until(lambda line: line.get("stage") == "draining")
    eventually(lambda: any(said.version == store.read().version for said in store.acknowledgements()))
    assert not store.read().admitting
    assert all(alive(pid) for pid in (service.pid("e0"), service.pid("g")))
    (service.home / "in_flight").write_text("0")
    assert service.end() == 0
    service.wait_until_no_child_is_left()


def test_a_child_that_ignores_sigterm_is_killed(serve: Callable[..., Service]) -> None:
    """The service still ends with 0 and leaves nothing."""
    service = serve("stubborn")
    service.until_all_ready()
    service.process.send_signal(signal.SIGTERM)
    assert service.end() == 0
    service.wait_until_no_child_is_left()


def test_children_end_when_the_controller_is_killed(serve: Callable[..., Service]) -> None:
    """SIGKILL leaves the controller no word; its children notice the end of their standard input."""
    service = serve("ready", "stubborn")
    service.until_all_ready()
    service.process.kill()
    service.wait_until_no_child_is_left()


def test_a_frozen_replica_is_killed_and_replaced(serve: Callable[..., Service]) -> None:
    """A process that lives and does not answer is hung."""
    service = serve("ready")
    service.until_all_ready()
    frozen = service.pid("e0")
    os.kill(frozen, signal.SIGSTOP)
    service.until(lambda line: line.get("members", {}).get("e0", ["", frozen])[1] not in (frozen, None))
    service.until_all_ready()
    assert not alive(frozen)


@pytest.mark.parametrize(
    ("mode", "words"), [("problem", "no such tensor"), ("failed", "torn"), ("crash", "crashed on purpose")]
)
def test_an_engine_that_cannot_load_ends_the_service_with_its_reason(
    mode: str, words: str, serve: Callable[..., Service]
) -> None:
    """A written problem, a failed load and a crash loop each end with exit code 1 and say why."""
    service = serve(mode)
    service.until(lambda line: "problem" in line)
    assert words in service.lines[-1]["problem"][1]
    assert service.end() == 1
    service.wait_until_no_child_is_left()


def test_children_lead_their_own_process_groups(serve: Callable[..., Service]) -> None:
    """Ctrl-C in a terminal goes to the controller's group and reaches no child."""
    service = serve("ready")
    service.until_all_ready()
    pid = service.pid("e0")
    assert os.getpgid(pid) == pid
    assert os.getpgid(service.process.pid) != pid
