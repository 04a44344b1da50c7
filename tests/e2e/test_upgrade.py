"""`penstock upgrade` against real processes: streams under way, sources that fail, and a controller that is killed."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from mocked import answer_of
from safetensors.torch import load_file, save_file
from seeded import write_seeded_checkpoint

from penstock.mock import words
from penstock.wire.engine import GenerateRequest, Sampling

pytestmark = pytest.mark.slow

PACE: dict[str, Any] = {"ttft_s": 0.05, "gap_s": 0.02, "output_tokens": 1000, "drain_s": 0.3}


@pytest.fixture
def source(tmp_path: Path) -> Callable[..., str]:
    """Writes the script of a mock engine; gives what it is served from."""

    def write(name: str, **fields: Any) -> str:
        script = tmp_path / f"{name}.json"
        script.write_text(json.dumps(PACE | fields))
        return f"mock://{script}"

    return write


def upgrade(running: Any, *args: str, model: str = "mock") -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PENSTOCK_HOME": str(running.home)}
    command = [sys.executable, "-m", "penstock", "upgrade", model, *args]
    return subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=90)


def engines(running: Any) -> dict[str, str]:
    return {m["id"]: m["phase"] for m in running.state()["members"] if m["kind"] == "engine"}


def expected(seed: int, num_tokens: int) -> str:
    request = GenerateRequest(id="", sampling=Sampling(seed=seed, temperature=1.0), text="once")
    return answer_of(words.key_of(request, b"once"), num_tokens)


def is_busy(running: Any) -> bool:
    return any(m["kind"] == "engine" and (m["load"] or {}).get("running") for m in running.state()["members"])


def stream(running: Any, seed: int, num_tokens: int) -> tuple[str, list[dict[str, Any]]]:
    """The text of one stream, and its events, up to where it is cut."""
    body = {"model": "mock", "prompt": "once", "seed": seed, "max_tokens": num_tokens, "temperature": 1, "stream": True}
    asked = urllib.request.Request(f"{running.url}/v1/completions", json.dumps(body).encode())
    with urllib.request.urlopen(asked, timeout=60) as answer:
        try:
            content = answer.read()
        except http.client.IncompleteRead as cut:
            content = cut.partial
    lines = [line for line in content.decode().splitlines() if line.startswith("data: {")]
    events = [json.loads(line[6:]) for line in lines]
    return "".join(choice["text"] for event in events for choice in event.get("choices", [])), events


class Clients:
    """Streams that go on one after the other until :meth:`end`, which tells how many there were, all of them right."""

    def __init__(self, running: Any, number: int) -> None:
        self._over = threading.Event()
        self._pool = ThreadPoolExecutor(number)
        self._done: list[Future[int]] = [self._pool.submit(self._ask, running, n) for n in range(number)]

    def _ask(self, running: Any, place: int) -> int:
        number = 0
        while not self._over.is_set():
            seed = 1000 * place + number
            assert stream(running, seed, 60)[0] == expected(seed, 60)
            number += 1
        return number

    def end(self) -> int:
        self._over.set()
        return sum(done.result() for done in self._done)


@pytest.mark.parametrize("replicas", [1, 2])
def test_every_stream_outlives_an_upgrade(serve, source, replicas: int) -> None:
    """Replicas are replaced under streams longer than their drain: none is cut, each is token-equal, then all are new.

    The next start of the same command serves the new source.
    """
    old, new = source("old"), source("new", gap_s=0.021)
    running = serve("--replicas", str(replicas), model=old)
    clients = Clients(running, 6)
    said = upgrade(running, new, "--drain-timeout", "0.2", "--json")
    assert said.returncode == 0, said.stderr
    assert clients.end() >= 6
    ended = json.loads(said.stdout)
    assert (ended["state"], ended["replaced"], ended["replicas"]) == ("done", replicas, replicas)
    assert "drains" in said.stderr and "1/" in said.stderr
    assert engines(running) == {f"engine-{replicas + n}": "ready" for n in range(replicas)}
    running.until(lambda: all(m["load"].get("running", 0) == 0 for m in running.state()["members"]), "nothing runs")
    audit = json.loads(running.get(f"{running.admin_url}/admin/audit")[1])
    assert [(row["action"], row["verdict"]) for row in audit if row["action"].startswith("upgrade")] == [
        ("upgrade.start", "allowed"),
        ("upgrade.end", "allowed"),
    ]
    assert running.stop() == 0
    again = Again(running, "--replicas", str(replicas), old)
    again.wait_ready()
    assert f"serving {new} since the upgrade of {old}" in again.log.read_text()
    assert upgrade(running, old).returncode == 0
    again.stop()


def test_a_source_that_fails_is_taken_back(serve, source, tmp_path: Path) -> None:
    """Missing, no checkpoint, of another vocabulary, or crashing under its first requests: the old one serves on.

    Each time the command fails with the reason, and the streams under way are whole.
    """
    running = serve("--replicas", "2", model=source("old"))
    clients = Clients(running, 4)
    failures = {
        "There is no directory": str(tmp_path / "nowhere"),
        "config.json is missing": str(tmp_path),
        "another vocabulary": source("alien", vocabulary="other"),
        "signal 9": source("crashing", faults=[{"kind": "crash", "after": 3}]),
    }
    for reason, wrong in failures.items():
        said = upgrade(running, wrong, "--json")
        assert said.returncode == 1 and reason in said.stderr, said.stderr
        assert json.loads(said.stdout)["state"] in ("failed", "rolled_back")
        assert json.loads(said.stdout)["replaced"] == 0
    assert clients.end() >= 4
    running.until(
        lambda: engines(running) == {"engine-0": "ready", "engine-1": "ready"}, "the old engines, and no other"
    )


@pytest.mark.parametrize("hangs", ["while it is looked for", "while it loads"])
def test_a_source_that_hangs_is_given_up(serve, source, tmp_path: Path, hangs: str) -> None:
    """A FIFO that nobody writes into where a file should be, or an hour of loading: Ctrl-C ends the upgrade, and the
    old source serves on.

    So do time limits, for finding the source and for loading it; and the service ends though a read still hangs.
    A second upgrade meanwhile is refused and changes nothing.
    """
    running = serve(model=source("old"))
    if hangs == "while it loads":
        hanging = source("slow", load_s=3600.0)
        said = upgrade(running, hanging, "--start-timeout", "2")
        assert said.returncode == 1 and "was not ready within 2 s" in said.stderr
    else:
        os.mkfifo(tmp_path / "script.json")
        hanging = f"mock://{tmp_path / 'script.json'}"
        said = upgrade(running, hanging, "--fetch-timeout", "0.5")
        assert said.returncode == 1 and "was not there after 0.5 s" in said.stderr
    environment = os.environ | {"PENSTOCK_HOME": str(running.home)}
    command = [sys.executable, "-m", "penstock", "upgrade", "mock", hanging]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as asking:
        assert asking.stderr is not None
        said_first = asking.stderr.readline()
        if hangs == "while it loads":
            running.until(lambda: engines(running).get("engine-2") == "loading", "the new replica loads")
        second = upgrade(running, source("other"))
        assert second.returncode == 1 and "under way already" in second.stderr
        asking.send_signal(signal.SIGINT)
        said_at_last = said_first + asking.stderr.read()
    assert asking.returncode == 1
    assert "operator stopped it" in said_at_last
    running.until(lambda: engines(running) == {"engine-0": "ready"}, "the old source alone")
    assert stream(running, 1, 3)[0] == expected(1, 3)
    assert running.stop() == 0


def test_streams_that_cannot_go_on_say_why(serve, source) -> None:
    """Other weights behind the last drain: exact ends with the reason in-band, the others go on with a new fingerprint.

    In between nothing is lost, and the header had named the class.
    """
    outcomes = {}
    for exact in (True, False):
        old = source(f"old-{exact}", weights="fp_old", exact=exact)
        running = serve(model=old)
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(stream, running, 7, 500)
            running.until(partial(is_busy, running), "the stream runs")
            said = upgrade(running, source(f"new-{exact}", weights="fp_new", exact=exact), "--drain-timeout", "0")
            assert said.returncode == 0, said.stderr
            outcomes[exact] = asked.result()
        running.stop()
    events = outcomes[True][1]
    assert events[-1]["error"]["code"] == "weights_changed" and {e["system_fingerprint"] for e in events[:-1]} == {
        "fp_old"
    }
    text, events = outcomes[False]
    prints = list(dict.fromkeys(event["system_fingerprint"] for event in events))
    assert prints == ["fp_old", "fp_new"]
    assert events[-1]["choices"][0]["finish_reason"] == "length" and len(text) > 500


def test_a_controller_that_is_killed_in_the_middle_starts_with_what_it_had(serve, source) -> None:
    """SIGKILL during an upgrade: no process is left over, and the same command serves the old source."""
    old, new = source("old"), source("new", load_s=60.0)
    running = serve("--replicas", "2", model=old)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(upgrade, running, new)
        running.until(lambda: engines(running).get("engine-2") == "loading", "the new replica loads")
        pids = [member["pid"] for member in running.state()["members"]]
        running.process.kill()
        assert asked.result().returncode == 1
    running.until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "no process left")
    again = Again(running, "--replicas", "2", old)
    again.wait_ready()
    assert "since the upgrade" not in again.log.read_text()
    again.stop()


def test_real_engines_are_told_apart_by_their_fingerprints(serve, tmp_path: Path) -> None:
    """A checkpoint that was trained on takes the place of the one before; answers say which of them they are of."""
    old, new = tmp_path / "seeded-1", tmp_path / "seeded-1-trained"
    write_seeded_checkpoint(old)
    shutil.copytree(old, new)
    (weights,) = new.glob("*.safetensors")
    save_file({name: tensor * 0.9 for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    running = serve(model=str(old))
    before = completion(running)
    said = upgrade(running, str(new), model="seeded-1")
    assert said.returncode == 0, said.stderr
    after = completion(running)
    assert before["system_fingerprint"].startswith("fp_") and after["system_fingerprint"].startswith("fp_")
    assert before["system_fingerprint"] != after["system_fingerprint"]
    assert upgrade(running, str(old), model="seeded-1").returncode == 0
    assert completion(running)["system_fingerprint"] == before["system_fingerprint"]


def completion(running: Any) -> dict[str, Any]:
    asked = json.dumps({"model": "seeded-1", "prompt": "once", "max_tokens": 3}).encode()
    with urllib.request.urlopen(urllib.request.Request(f"{running.url}/v1/completions", asked), timeout=60) as answer:
        body: dict[str, Any] = json.load(answer)
    return body


def test_upgrades_are_for_administrators_of_everything(serve, source) -> None:
    """A user's key and one of a tenant below get 403 and a row of the audit log; nothing happens."""
    running = serve(model=source("old"))
    environment = os.environ | {"PENSTOCK_HOME": str(running.home)}

    def penstock(*args: str) -> Any:
        command = [sys.executable, "-m", "penstock", *args, "--json"]
        return json.loads(subprocess.run(command, capture_output=True, check=True, env=environment).stdout)

    penstock("tenants", "create", "below", "--admin")
    keys = [penstock("keys", "create")["secret"], penstock("keys", "create", "--tenant", "below", "--admin")["secret"]]
    body = json.dumps({"model": "mock", "source": "mock://"}).encode()
    for key in keys:
        for method in ("POST", "GET", "DELETE"):
            headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
            asked = urllib.request.Request(f"{running.admin_url}/admin/upgrade", body, headers, method=method)
            running.until(lambda asked=asked: status(asked) == 403, "the key to be known, and refused")
    assert engines(running) == {"engine-0": "ready"}
    denied = [
        row for row in penstock("audit", "list") if row["action"] == "upgrade.start" and row["verdict"] == "denied"
    ]
    assert len(denied) == 1
    assert upgrade(running, source("new")).returncode == 0, "the operator at the command line may"


def status(asked: urllib.request.Request) -> int:
    try:
        with urllib.request.urlopen(asked, timeout=10) as answer:
            code: int = answer.status
    except urllib.error.HTTPError as error:
        code = error.code
    return code


class Again:
    """The same service started once more, on ports of its own choice."""

    def __init__(self, running: Any, *args: str) -> None:
        self.log = running.home / "again.log"
        command = [sys.executable, "-m", "penstock", "serve", *args, "--port", "0", "--admin-port", "0"]
        environment = os.environ | {"PENSTOCK_HOME": str(running.home)}
        with self.log.open("wb") as out:
            self._process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
        self._until = running.until

    def wait_ready(self) -> None:
        self._until(lambda: "serving mock\n" in self.log.read_text(), "the service that was started again")

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        assert self._process.wait(timeout=60) == 0
