"""The ledger against the engines' own counts, through real processes: stores away, disks full, gateways killed."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from commands import penstock

pytestmark = pytest.mark.slow

SCRIPT = "{gap_s: 0.02, jitter: 0.3, output_tokens: 40}"
PRICES = "- {model: mock, since: 2026-01-01, input: 0.15, output: 0.6}\n"
GAP_S = 0.02
NOTICED_S = 0.5
"""By when an engine has noticed that its gateway is gone, on a busy machine."""


class Client(threading.Thread):
    """One request; ``received``: tokens that it was sent until it left after ``leave``, or the connection broke."""

    def __init__(self, url: str, key: str, *, stream: bool = True, leave: int | None = None, most: int = 30) -> None:
        super().__init__(daemon=True)
        self.received = 0
        body = {"model": "mock", "messages": [{"role": "user", "content": "abcdefg"}], "max_tokens": most}
        body |= {"stream": stream}
        head = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        self._request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), head)
        self._leave = leave
        self.start()

    def run(self) -> None:
        try:
            with urllib.request.urlopen(self._request, timeout=60) as answer:
                for line in answer:
                    self.received += b'"delta":{"content"' in line
                    if self._leave is not None and self.received >= self._leave:
                        return
        except (OSError, urllib.error.HTTPError):
            return  # the gateway was killed


def engines(running: Any) -> dict[str, int]:
    """What the engines say that they have done: requests and tokens by kind, over all replicas."""
    sums = {"requests": 0, "prompt": 0, "output": 0}
    for line in running.metrics().splitlines():
        name, _, value = line.rpartition(" ")
        if name.startswith("penstock_engine_sequences_total"):
            sums["requests"] += int(float(value))
        elif name.startswith("penstock_engine_sequence_tokens_total"):
            sums["prompt"] += int(float(value)) * ('kind="prompt"' in name)
            sums["output"] += int(float(value)) * ('kind="output"' in name)
    return sums


def ledger(running: Any) -> dict[str, int]:
    found = json.loads(penstock(running.home, "usage", "--json"))
    names = {"requests": "requests", "prompt": "prompt_tokens", "output": "output_tokens", "nusd": "cost_nusd"}
    return {name: sum(total[column] for total in found) for name, column in names.items()}


def idle(running: Any) -> bool:
    loads = [member["load"] for member in running.state()["members"] if member["kind"] == "engine" and member["load"]]
    return len(loads) == 2 and not any(load.get("running") for load in loads)


def gateway(running: Any) -> int:
    pid: int = next(member for member in running.state()["members"] if member["kind"] == "gateway")["pid"]
    return pid


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Nobody else writes to the store meanwhile."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    yield
    other.execute("ROLLBACK")
    other.close()


@contextmanager
def full_disk(directory: Path) -> Iterator[None]:
    """A file system of this folder's own that has no byte left."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    mounting = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(directory)]
    if subprocess.run(mounting, check=False, capture_output=True).returncode:
        pytest.skip("mounting a file system needs to be root")
    try:
        with pytest.raises(OSError, match="space"), (directory / "ballast").open("wb") as file:
            while True:
                file.write(b"x" * 4096)
                file.flush()
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


@pytest.fixture(scope="module")
def service(serve: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, str]]:
    directory = tmp_path_factory.mktemp("script")
    (directory / "script.yaml").write_text(SCRIPT)
    (directory / "prices.yaml").write_text(PRICES)
    prices = ("--prices", str(directory / "prices.yaml"))
    running = serve(*prices, "--replicas", "2", "--served-name", "mock", model=f"mock://{directory / 'script.yaml'}")
    key = json.loads(penstock(running.home, "keys", "create", "--json"))["secret"]
    running.wait_known(key)
    yield running, key


def settled(running: Any, before: dict[str, int], num_requests: int) -> dict[str, int]:
    """What the ledger has beyond ``before``, once it has that many requests more."""
    running.until(lambda: ledger(running)["requests"] == before["requests"] + num_requests, "all rows are written")
    after = ledger(running)
    return {name: after[name] - before[name] for name in after}


def test_undisturbed_both_sides_are_equal(service: tuple[Any, str]) -> None:
    """Streams and plain calls, also while the store was away for longer than anybody waits for it: to the token."""
    running, key = service
    before, said = ledger(running), engines(running)
    with locked(running.home / "penstock.sqlite"):
        clients = [Client(running.url, key, stream=number % 3 > 0, most=5 + number) for number in range(24)]
        for client in clients:
            client.join()
        threading.Event().wait(3.0)  # longer than a writer waits for another
    used = settled(running, before, 24)
    now = engines(running)
    assert used["requests"] == now["requests"] - said["requests"]
    assert used["prompt"] == now["prompt"] - said["prompt"] > 0
    assert used["output"] == now["output"] - said["output"] == sum(range(5, 29))
    assert used["nusd"] == used["prompt"] * 150 + used["output"] * 600


def test_a_full_disk_loses_no_row(service: tuple[Any, str]) -> None:
    """What cannot be written is kept, and is in the ledger once there is room again."""
    running, key = service
    before, said = ledger(running), engines(running)
    [spill] = (running.home / "usage").iterdir()
    with full_disk(spill):
        clients = [Client(running.url, key, most=7) for _ in range(8)]
        for client in clients:
            client.join()
    Client(running.url, key, most=7).join()
    used = settled(running, before, 9)
    assert used["output"] == engines(running)["output"] - said["output"] == 63


def test_a_killed_gateway_loses_nothing_that_it_had(service: tuple[Any, str]) -> None:
    """Every token that a client was sent is in the ledger; beyond it the engines drew what nobody took any more,
    for as long as they needed to notice.
    """
    running, key = service
    for _ in range(3):
        before, said = ledger(running), engines(running)
        clients = [Client(running.url, key) for _ in range(16)]
        running.until(lambda clients=clients: all(client.received >= 4 for client in clients), "all streams run")
        killed = gateway(running)
        os.kill(killed, signal.SIGKILL)
        for client in clients:
            client.join()
        running.until(lambda killed=killed: gateway(running) not in (None, killed), "the gateway is started again")
        running.wait_ready()
        running.until(lambda: idle(running), "the engines have noticed")
        used = settled(running, before, 16)
        drawn = engines(running)["output"] - said["output"]
        assert sum(client.received for client in clients) <= used["output"] <= drawn
        assert drawn - used["output"] <= 16 * NOTICED_S / GAP_S
        assert used["prompt"] == engines(running)["prompt"] - said["prompt"]
        assert used["nusd"] == used["prompt"] * 150 + used["output"] * 600


def test_clients_that_leave_pay_for_what_had_come(service: tuple[Any, str]) -> None:
    """At least what they were sent, at most what was drawn for them."""
    running, key = service
    before, said = ledger(running), engines(running)
    clients = [Client(running.url, key, leave=5) for _ in range(12)]
    for client in clients:
        client.join()
    used = settled(running, before, 12)
    running.until(lambda: idle(running), "the engines have noticed")
    drawn = engines(running)["output"] - said["output"]
    assert sum(client.received for client in clients) <= used["output"] <= drawn
    assert drawn - used["output"] <= 12 * NOTICED_S / GAP_S
