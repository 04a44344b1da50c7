"""train.run: stages in order, each once; skipped when unchanged, done again when not, never mixed."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from penstock.config.recipe import Recipe
from penstock.store.runs import Run
from penstock.train.recipe_file import load_recipe
from penstock.train.run import Stage, Times, Work, run_stages
from penstock.wire.errors import Problem

RECIPE = Path(__file__).parents[3] / "recipes" / "pydoc.yaml"


@dataclass
class Watched:
    """A pipeline of three stages that count themselves: text, a copy of it, and a stage that can be made to fail."""

    directory: Path
    worked: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    text: str = "text"
    failure: BaseException | None = None

    def run(self, *overrides: str) -> dict[str, Any]:
        self.worked, self.skipped = [], []
        stages = (
            Stage("first", (), lambda recipe: [recipe.seed, self.text], self.first),
            Stage("second", ("first",), lambda recipe: recipe.tokenizer, self.second),
            Stage("third", ("first", "second"), lambda recipe: recipe.export, self.third),
        )
        times = Times(clock=lambda: 0.0, wall=lambda: 1000.0)
        recipe: Recipe = load_recipe(RECIPE, overrides)
        record = run_stages(stages, recipe, Run(self.directory), display=self, times=times, versions={"penstock": "0"})
        assert (record.state, record.stage) == ("done", "third")
        return record.results

    def first(self, work: Work) -> dict[str, Any]:
        self.worked.append("first")
        (work.directory / "text").write_text(self.text)
        return {"length": len(self.text)}

    def second(self, work: Work) -> dict[str, Any]:
        self.worked.append("second")
        (work.directory / "copy").write_text((work.done["first"] / "text").read_text())
        return {}

    def third(self, work: Work) -> dict[str, Any]:
        self.worked.append("third")
        work.checkpoints.mkdir(parents=True, exist_ok=True)
        (work.checkpoints / "latest").write_text("step-1")
        (work.directory / "half").write_text("half-written")
        if self.failure is not None:
            raise self.failure
        return {}

    def begin(self, stage: str, number: int, of: int) -> None: ...
    def skip(self, stage: str, number: int, of: int) -> None:
        self.skipped.append(stage)

    def progress(self, words: str) -> None: ...
    def done(self, stage: str, facts: Mapping[str, Any]) -> None: ...


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path / "run")


def test_each_stage_is_done_once_and_then_skipped(watched: Watched) -> None:
    """The second run does nothing and reports the same results."""
    results = watched.run()
    assert watched.worked == ["first", "second", "third"] and results["first"] == {"length": 4}
    assert watched.run() == results
    assert watched.worked == [] and watched.skipped == ["first", "second", "third"]


def test_a_change_repeats_what_depends_on_it_and_nothing_else(watched: Watched) -> None:
    """Another vocabulary size repeats the second stage; its output is the same, so the third is skipped."""
    watched.run()
    watched.run("tokenizer.vocab_size=2048")
    assert watched.worked == ["second"]
    watched.text = "other"
    watched.run("tokenizer.vocab_size=2048")
    assert watched.worked == ["first", "second", "third"]


def test_a_stage_that_is_gone_is_done_again(watched: Watched) -> None:
    """Removing a stage's folder, or only its manifest, asks for the stage again."""
    watched.run()
    shutil.rmtree(watched.directory / "second")
    (watched.directory / "third" / "manifest.json").unlink()
    watched.run()
    assert watched.worked == ["second", "third"]


def test_a_damaged_stage_is_refused(watched: Watched) -> None:
    """A finished stage whose file has changed is not used and not silently made again."""
    watched.run()
    (watched.directory / "second" / "copy").write_text("tampered")
    with pytest.raises(Problem, match="second/copy") as caught:
        watched.run()
    assert caught.value.code == "artefact_invalid"
    assert Run(watched.directory).record().state == "failed"


@pytest.mark.parametrize("failure", [Problem("insufficient_disk", "No space is left."), KeyboardInterrupt()])
def test_an_unfinished_stage_leaves_nothing_but_its_checkpoints(watched: Watched, failure: BaseException) -> None:
    """After a failure there is no folder of that name; what went before is kept, and the next run finishes."""
    watched.failure = failure
    with pytest.raises(type(failure)):
        watched.run()
    record = Run(watched.directory).record()
    if isinstance(failure, Problem):
        assert (record.state, record.stage, record.message) == ("failed", "third", "No space is left.")
    else:
        assert (record.state, record.stage) == ("interrupted", "third")
    assert not (watched.directory / "third").exists()
    assert list((watched.directory / "checkpoints").glob("third-*/latest"))
    watched.failure = None
    watched.run()
    assert watched.worked == ["third"] and watched.skipped == ["first", "second"]
    assert not list((watched.directory / "checkpoints").iterdir())


def test_two_processes_do_not_train_in_one_folder(watched: Watched) -> None:
    """The folder's lock is held for the whole run."""
    with Run(watched.directory).locked(), pytest.raises(Problem) as caught:
        watched.run()
    assert caught.value.code == "run_busy"


def test_a_disk_that_is_too_small_is_refused_before_the_first_stage(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is needed and what is free both stand in the message."""
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 5_000_000))
    with pytest.raises(Problem, match=r"needs about \d+ MB .*; 5 MB are free") as caught:
        watched.run()
    assert caught.value.code == "insufficient_disk" and watched.worked == []
