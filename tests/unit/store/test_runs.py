"""store.runs: what a run measured is complete or absent, and what it says of itself is true."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.store.runs import Run, RunRecord, list_runs
from penstock.wire.errors import Problem


def record(name: str = "a", state: str = "running") -> RunRecord:
    return RunRecord(name=name, recipe={}, state=state, stage="sft", started_at=1.0, updated_at=2.0)  # type: ignore[arg-type]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "a")
    with run.locked():
        run.write(record())
    return run


def test_a_run_is_running_only_while_somebody_holds_it(run: Run) -> None:
    """A record that says running means interrupted once its process is gone."""
    with run.locked():
        assert run.record().state == "running"
    assert run.record().state == "interrupted"


def test_a_finished_run_stays_finished(run: Run) -> None:
    """done and failed do not depend on the lock."""
    run.write(record(state="done"))
    assert run.record() == record(state="done")


def test_metrics_come_back_in_order_without_a_torn_line(run: Run) -> None:
    """A line that a crash cut short is passed over."""
    for step in range(3):
        run.append({"stage": "sft", "step": step})
    with (run.directory / "metrics.jsonl").open("ab") as file:
        file.write(b'{"stage": "sft", "st')
    assert [line["step"] for line in run.metrics()] == [0, 1, 2]


def test_rewinding_forgets_one_stage_after_a_step(run: Run) -> None:
    """Lines of other stages and up to the step stay, and a torn end is removed so that the next line is whole."""
    for stage, step in (("pretrain", 9), ("sft", 1), ("sft", 2), ("sft", 3)):
        run.append({"stage": stage, "step": step})
    with (run.directory / "metrics.jsonl").open("ab") as file:
        file.write(b'{"torn')
    run.rewind("sft", 2)
    run.append({"stage": "sft", "step": 3, "again": True})
    assert [(line["stage"], line["step"]) for line in run.metrics()] == [
        ("pretrain", 9),
        ("sft", 1),
        ("sft", 2),
        ("sft", 3),
    ]


def test_the_latest_run_is_listed_first(run: Run, tmp_path: Path) -> None:
    """Only folders with a record are runs."""
    (tmp_path / "not-a-run").mkdir()
    other = Run(tmp_path / "b")
    with other.locked():
        other.write(record("b"))
    import os

    os.utime(run.directory / "run.json", (1, 1))
    assert [found.record().name for found in list_runs(tmp_path)] == ["b", "a"]
    assert list_runs(tmp_path / "nowhere") == []


def test_what_is_no_run_is_named(run: Run, tmp_path: Path) -> None:
    """A folder without a record and a damaged record are told apart."""
    with pytest.raises(Problem) as caught:
        Run(tmp_path / "nothing").record()
    assert caught.value.code == "run_not_found"
    (run.directory / "run.json").write_text("{")
    with pytest.raises(Problem) as caught:
        run.record()
    assert caught.value.code == "artefact_invalid"


def test_a_place_that_cannot_be_written_is_a_setting_to_correct(tmp_path: Path) -> None:
    """A file where the folder should be is named."""
    (tmp_path / "file").write_text("")
    with pytest.raises(Problem, match="cannot be written") as caught, Run(tmp_path / "file").locked():
        pass
    assert caught.value.code == "invalid_setting"
