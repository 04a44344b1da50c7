"""Engines beside one another: real processes, in turns."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from pathlib import Path

import pytest
from seeded import write_seeded_checkpoint

from penstock.cli.bench_engines import engines
from penstock.cli.bench_turns import Launch
from penstock.wire.errors import Problem


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    directory: Path = tmp_path_factory.mktemp("model") / "seeded-1"
    write_seeded_checkpoint(directory)
    return directory


def bench(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "penstock", "bench", "engines", *flags]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_ours_and_another_take_turns(checkpoint: Path) -> None:
    """Both do the same batch in every run, ours first; each has its figures under the same names."""
    beside = f"transformers={sys.executable},{checkpoint},float32"
    done = bench(str(checkpoint), "--beside", beside, "--requests", "2", "--runs", "2", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert list(report["engines"]) == ["penstock", "transformers"]
    for engine in report["engines"].values():
        assert engine["start_s"] > 0
        for figure in ("batch", "lone"):
            assert len(engine["figures"][figure]["runs"]) == 2 and engine["figures"][figure]["low"] > 0
    turns = [line.rsplit(": ", 1)[1] for line in done.stderr.splitlines() if "run 2 of 2: batch" in line]
    assert turns == ["penstock", "transformers"]


@pytest.mark.slow
def test_curves_are_a_table_and_lines(checkpoint: Path) -> None:
    """Over the context and over the batch, in the terminal."""
    done = bench(str(checkpoint), "--workload", "curves", "--longest", "256", "--runs", "1")
    assert done.returncode == 0, done.stderr
    assert "token 256 x 64, ms" in done.stdout
    assert "time of a token, ms, over the batch: penstock" in done.stdout


@pytest.mark.parametrize("lacks", ["matplotlib", "folder"])
def test_what_a_drawing_lacks_is_said_before_minutes_of_work(
    lacks: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is read or started for a file that cannot be written in the end."""
    figure = None if lacks == "matplotlib" else types.ModuleType("matplotlib.figure")
    monkeypatch.setitem(sys.modules, "matplotlib", types.ModuleType("matplotlib"))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", figure)
    path = tmp_path / "curves.png" if lacks == "matplotlib" else tmp_path / "gone" / "curves.png"
    with pytest.raises(Problem, match=lacks):
        engines("/no/such/model", workload="curves", png=path)


@pytest.mark.slow
def test_an_engine_that_ends_says_its_last_words(checkpoint: Path) -> None:
    """A model that it cannot read is its own error, shown."""
    done = bench(str(checkpoint), "--beside", f"transformers={sys.executable},/no/such/model", "--runs", "1")
    assert done.returncode == 1
    assert "transformers ended" in done.stderr and "/no/such/model" in done.stderr


@pytest.mark.parametrize("text", ["", "openvino", "openvino=/bin/python", "nobody=/bin/python,model", "vllm=,model"])
def test_what_does_not_say_how_an_engine_is_started_is_refused(text: str) -> None:
    """With the form and the engines that are known."""
    with pytest.raises(Problem, match="NAME=PYTHON,MODEL") as caught:
        Launch.parse(text, ["penstock"])
    assert "openvino" in caught.value.message


@pytest.mark.parametrize("name", ["penstock", "openvino"])
def test_an_engine_has_one_place_in_the_table(name: str) -> None:
    """Ours is there already, and nobody is twice."""
    with pytest.raises(Problem, match=f"{name} runs already"):
        Launch.parse(f"{name}=/bin/python,model", ["penstock", "openvino"])


def test_a_python_that_is_not_there_is_refused(checkpoint: Path) -> None:
    """By its path, and without leaving our own engine behind."""
    done = bench(str(checkpoint), "--beside", f"transformers=/no/such/python,{checkpoint}", "--runs", "1")
    assert done.returncode == 1 and "/no/such/python" in done.stderr
