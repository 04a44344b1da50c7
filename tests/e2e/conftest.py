"""`penstock serve` as a user starts it: real processes, real sockets, a small seeded checkpoint by default."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from seeded import write_seeded_checkpoint

from penstock.cluster.drivers.probe import ask
from penstock.cluster.rundir import gateway_sockets
from penstock.wire import gateway as gateway_wire
from penstock.wire.engine import LOAD
from penstock.wire.load import Load, decode_load

MODEL = "seeded-1"


def wait_until(condition: Callable[[], bool], *, timeout_s: float, what: str) -> None:
    """Poll a condition; fail by saying what was waited for."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.02)


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Running:
    """One `penstock serve`."""

    process: subprocess.Popen[bytes]
    port: int
    admin_port: int
    home: Path
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def admin_url(self) -> str:
        return f"http://127.0.0.1:{self.admin_port}"

    def get(self, url: str, key: str = "") -> tuple[int, bytes]:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        try:
            with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()
        except OSError:
            return 0, b""

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(self.get(f"{self.admin_url}/admin/state")[1])
        return state

    def loads(self) -> dict[str, Load]:
        """How the engines that answer are by their own word just now; the admin listener's is up to a second old."""
        answers = {Path(socket).stem: asyncio.run(ask(socket, LOAD, 5.0)) for socket in self.engine_sockets()}
        return {id: decode_load(body) for id, body in answers.items() if body is not None}

    def engine_sockets(self) -> list[str]:
        """Where its engines speak their protocol."""
        [control] = gateway_sockets(self.home)
        return sorted(str(path) for path in control.parent.glob("engine-*.sock"))

    def in_flight(self) -> int:
        """Requests that the gateway holds by its own word just now; -1 while none answers."""
        [control] = gateway_sockets(self.home)
        body = asyncio.run(ask(str(control), gateway_wire.LOAD, 5.0))
        return -1 if body is None else gateway_wire.decode_load(body).in_flight

    def num_running(self) -> int:
        """Sequences and texts at all engines, running or waiting."""
        return sum(load.running + load.waiting for load in self.loads().values())

    def metrics(self) -> str:
        return self.get(f"{self.admin_url}/metrics")[1].decode()

    def until(self, condition: Callable[[], bool], what: str) -> None:
        wait_until(condition, timeout_s=60, what=what)

    def wait_known(self, *secrets: str) -> None:
        """Until the gateway asks for keys and takes these: it learns of each within a moment, not at once."""
        models = f"{self.url}/v1/models"

        def known() -> bool:
            return self.get(models)[0] == 401 and all(self.get(models, secret)[0] == 200 for secret in secrets)

        wait_until(known, timeout_s=60, what="the keys are known")

    def wait_ready(self, timeout_s: float = 90) -> None:
        def ready() -> bool:
            assert self.process.poll() is None, f"it ended:\n{self.log.read_text()}"
            return self.get(f"{self.url}/ready")[0] == 200

        wait_until(ready, timeout_s=timeout_s, what=f"readiness of {self.url}")

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)


Serve = Callable[..., Running]


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """Start services that end with the module; ``model=""``: the bundled one."""
    started: list[Running] = []

    def start(
        *args: str,
        model: str | None = None,
        wait: bool = True,
        env: dict[str, str] | None = None,
        port: int | None = None,
    ) -> Running:
        home = tmp_path_factory.mktemp("home")
        if model is None:
            model = str(home / MODEL)
            write_seeded_checkpoint(Path(model))
        log = home / "serve.log"
        port, admin_port = port or free_port(), free_port()
        command = [sys.executable, "-m", "penstock", "serve", *filter(None, [model]), *args]
        command += ["--port", str(port), "--admin-port", str(admin_port)]
        environment = os.environ | {"PENSTOCK_HOME": str(home), "HF_HUB_OFFLINE": "1"} | (env or {})
        with log.open("wb") as out:
            process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
        running = Running(process, port, admin_port, home, log)
        started.append(running)
        if wait:
            running.wait_ready()
        return running

    yield start
    for running in started:
        if running.process.poll() is None:
            running.stop()


@pytest.fixture(scope="module")
def service(serve: Serve) -> Running:
    """One service that the tests of a module share."""
    return serve()
