"""Killed at any moment and resumed, training ends with the same bits as if nothing had happened."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from penstock.store.runs import Run

SCRIPT = Path(__file__).parent / "resumed_training.py"
STEPS = 60


def start(directory: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, str(SCRIPT), str(directory)], stdout=subprocess.PIPE, text=True)


def finish(directory: Path) -> str:
    """Run to the end; the first line tells where it began."""
    with start(directory) as process:
        assert process.stdout is not None
        said = process.stdout.readlines()
    assert process.returncode == 0
    return said[0]


def kill_after(directory: Path, steps: int, delay_s: float) -> int:
    """SIGKILL at ``delay_s`` after the process has done ``steps`` steps; returns the step it began from."""
    with start(directory) as process:
        assert process.stdout is not None
        began = int(process.stdout.readline().split()[1])
        for _ in range(steps):
            process.stdout.readline()
        # Not a wait for something: the moment of the kill is what varies, within a step or a checkpoint's writing.
        until = time.monotonic() + delay_s
        while time.monotonic() < until:
            pass
        process.kill()
    return began


def losses(directory: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in Run(directory).metrics()]


def check(directory: Path, whole: Path) -> None:
    final, expected = (path / "final" / "model.safetensors" for path in (directory, whole))
    assert final.read_bytes() == expected.read_bytes()
    assert losses(directory) == losses(whole)
    assert [step for step, _ in losses(directory)] == list(range(1, STEPS + 1))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run."""
    directory = tmp_path_factory.mktemp("whole")
    assert finish(directory) == "resumed 0\n"
    return directory


def test_a_killed_run_ends_with_the_bits_of_an_undisturbed_one(whole: Path, tmp_path: Path) -> None:
    """Real processes, SIGKILL at random moments: weights and the curve of losses are the same, each step once."""
    chance = random.Random(20)
    began = [kill_after(tmp_path, chance.randint(4, 20), chance.uniform(0, 0.02)) for _ in range(2)]
    assert began[0] == 0 and began[1] > 0
    assert finish(tmp_path) != "resumed 0\n"
    check(tmp_path, whole)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(20))
def test_a_run_that_is_killed_again_and_again_arrives(whole: Path, tmp_path: Path, seed: int) -> None:
    """However often it is killed, and however soon after its start, nothing half-written is taken up."""
    chance = random.Random(seed)
    for _ in range(4):
        kill_after(tmp_path, chance.randint(0, 15), chance.uniform(0, 0.02))
    finish(tmp_path)
    check(tmp_path, whole)
