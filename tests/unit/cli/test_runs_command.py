"""penstock runs: curves in the terminal and as a picture, from what a run wrote."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from typer.testing import CliRunner

from penstock.cli.main import build
from penstock.cli.plot import braille
from penstock.store.runs import Run, RunRecord
from penstock.wire.errors import Problem

_BLANK = chr(0x2800)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PENSTOCK_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def run(home: Path) -> Run:
    run = Run(home / "runs" / "pydoc")
    with run.locked():
        run.write(
            RunRecord(
                name="pydoc",
                recipe={},
                state="done",
                stage="export",
                started_at=0.0,
                updated_at=0.0,
                results={"evaluate": {"exact_share": 0.75}},
            )
        )
        for step in range(10, 110, 10):
            loss = 8 * math.exp(-step / 40)
            run.append({"stage": "sft", "step": step, "steps": 100, "loss": loss, "tokens_per_s": 10.0})
    return run


def invoke(*args: str) -> str:
    result = CliRunner().invoke(build(), ["runs", *args], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_falling_curve_falls() -> None:
    """The first dot is at the top left, the last at the bottom right, and no column between is empty."""
    lines = braille([(step, -step) for step in range(5)], width=20, height=5)
    rows = [line.partition("|")[2] for line in lines[:-1]]
    assert len(rows) == 5 and all(len(row) == 20 for row in rows)
    assert rows[0][0] != _BLANK and rows[-1][-1] != _BLANK and rows[0][-1] == _BLANK
    assert all(any(row[column] != _BLANK for row in rows) for column in range(20))
    assert lines[0].lstrip().startswith("0 |") and lines[4].lstrip().startswith("-4 |")


@pytest.mark.parametrize("points", [[(1.0, 2.0)], [(1.0, 2.0), (1.0, 2.0)], [(0.0, 3.0), (9.0, 3.0)]])
def test_a_curve_without_extent_is_drawn(points: list[tuple[float, float]]) -> None:
    """One point and a flat line have no range to divide by."""
    assert any(cell not in (_BLANK, " ") for line in braille(points)[:-1] for cell in line.partition("|")[2])


def test_list_and_show_tell_how_a_run_stands(run: Run) -> None:
    """The table has name, state and stage; the page has the curve's last value and the stages' results."""
    assert "pydoc  done   export" in invoke("list")
    page = invoke("show", "pydoc")
    assert "sft: loss 0.6567 at step 100 of 100" in page and "exact_share = 0.75" in page
    assert invoke("show", str(run.directory)) == page


def test_json_has_every_measurement(run: Run) -> None:
    """--json is for programs."""
    report = json.loads(invoke("show", "pydoc", "--json"))
    assert report["run"]["state"] == "done" and len(report["metrics"]) == 10
    assert json.loads(invoke("list", "--json"))[0]["name"] == "pydoc"


def test_png_is_a_picture(run: Run, tmp_path: Path) -> None:
    """--png writes a PNG file."""
    pytest.importorskip("matplotlib")
    invoke("show", "pydoc", "--png", str(tmp_path / "curves.png"))
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG\r\n")


def test_a_run_that_does_not_exist_is_named(home: Path) -> None:
    """run_not_found, and a home without runs says how to start one."""
    with pytest.raises(Problem) as caught:
        CliRunner().invoke(build(), ["runs", "show", "nothing"], catch_exceptions=False)
    assert caught.value.code == "run_not_found"
    assert "penstock train" in invoke("list")
