"""The mock engine as processes: by itself, killed by its script, and behind the real gateway."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.cli.wiring.mock import read_script
from penstock.config.mock import Fault, MockScript
from penstock.wire.errors import Problem


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


def start(processes: list[subprocess.Popen[str]], *flags: str) -> str:
    command = [sys.executable, "-m", "penstock", "mock-engine", "--port", "0", *flags]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    processes.append(process)
    assert process.stderr is not None
    said = process.stderr.readline()
    assert "answers the engine protocol" in said
    return f"http://127.0.0.1:{int(said.rsplit(' ', 1)[1])}"


def ask(url: str, num_tokens: int) -> list[str]:
    body = json.dumps({"id": "a", "sampling": {"seed": 1}, "text": "hi", "max_tokens": num_tokens}).encode()
    with urllib.request.urlopen(f"{url}/engine/generate", data=body, timeout=20) as answer:
        return [json.loads(line)["type"] for line in answer]


def test_it_serves_on_a_port_and_ends_well(started: list[subprocess.Popen[str]]) -> None:
    """It says where it answers, answers there, and SIGTERM ends it with exit code 0."""
    url = start(started, "--ttft", "0.01", "--gap", "0.001", "--jitter", "0.5")
    assert ask(url, 3) == ["accepted", "delta", "delta", "delta", "finished"]
    started[0].send_signal(signal.SIGTERM)
    assert started[0].wait(timeout=20) == 0


def test_a_scripted_crash_kills_the_process(started: list[subprocess.Popen[str]]) -> None:
    """``crash`` is a SIGKILL in the middle of a stream: nothing is cleaned up."""
    url = start(started, "--fault", "crash:after=2", "--gap", "0.001")
    assert ask(url, 50) == ["accepted", "delta", "delta"]
    assert started[0].wait(timeout=20) == -signal.SIGKILL


def test_a_script_is_read_from_a_file(tmp_path: Path) -> None:
    """YAML or JSON with the names of MockScript; a wrong key is named."""
    path = tmp_path / "script.yaml"
    path.write_text("gap_s: 0.5\nfaults:\n- {kind: break, after: 3}\n")
    assert read_script(path) == MockScript(gap_s=0.5, faults=(Fault(kind="break", after=3),))
    path.write_text("gapp_s: 0.5")
    with pytest.raises(Problem, match="gapp_s"):
        read_script(path)


@pytest.mark.parametrize("flags", [[], ["--port", "0", "--fault", "boom"]])
def test_flags_that_do_not_fit_end_it_with_a_word(flags: list[str]) -> None:
    """Exit code 1 and the reason."""
    done = subprocess.run(
        [sys.executable, "-m", "penstock", "mock-engine", *flags], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and "invalid_setting" in done.stderr
