"""train.loop and train.checkpoint: training learns, resumes where it was, and never loads what is half-written."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch

from penstock.config.recipe import TrainingRecipe
from penstock.models.decoder import Decoder
from penstock.train import artefact
from penstock.train.checkpoint import Checkpoints
from penstock.train.loop import StepReport, train
from penstock.train.optimizer import Optimizer
from penstock.train.packing import PackedRows
from penstock.wire.errors import Problem

MakeDecoder = Callable[..., Decoder]
Trainer = Callable[..., tuple[Decoder, list[StepReport], list[int]]]


class Interrupted(Exception):
    """Stands for a kill."""


@pytest.fixture
def run(make_decoder: MakeDecoder, rows: PackedRows, training_recipe: TrainingRecipe, tmp_path: Path) -> Trainer:
    def run(
        *, stop_at: int | None = None, recipe: TrainingRecipe = training_recipe, folder: str = "checkpoints"
    ) -> tuple[Decoder, list[StepReport], list[int]]:
        decoder = make_decoder(recipe.precision)
        reports: list[StepReport] = []
        starts: list[int] = []

        def report(step: StepReport) -> None:
            reports.append(step)
            if step.step == stop_at:
                raise Interrupted

        checkpoints = Checkpoints(tmp_path / folder, "key")
        seconds = itertools.count()
        with contextlib.suppress(Interrupted):
            train(
                decoder,
                rows,
                recipe,
                3,
                checkpoints,
                report=report,
                resumed=starts.append,
                clock=lambda: float(next(seconds)),
            )
        return decoder, reports, starts

    return run


def same(one: Decoder, other: Decoder) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_the_loss_falls(run: Trainer) -> None:
    """Thirty steps on counting texts take the loss well below that of guessing."""
    _, reports, _ = run()
    assert [report.step for report in reports] == [5, 10, 15, 20, 25, 30]
    assert reports[0].loss > 3.9 and reports[-1].loss < reports[0].loss - 0.5


def test_a_resumed_run_ends_with_the_same_bits(run: Trainer) -> None:
    """Stopped at step 15, a loop resumes from the checkpoint of step 10 and ends as the undisturbed one does."""
    undisturbed, reports, starts = run(folder="whole")
    run(stop_at=15)
    resumed, again, restarts = run()
    assert (starts, restarts) == ([0], [10])
    assert same(undisturbed, resumed)
    assert [report.loss for report in again] == [report.loss for report in reports[2:]]


def test_a_finished_loop_has_nothing_left_to_do(run: Trainer) -> None:
    """Running again restores the last checkpoint and reports no step."""
    first, _, _ = run()
    again, reports, starts = run()
    assert same(first, again) and reports == [] and starts == [30]


def test_bfloat16_learns_too(run: Trainer, training_recipe: TrainingRecipe) -> None:
    """The mixed table reaches about the loss of float32."""
    exact = run(folder="exact")[1][-1].loss
    mixed = run(recipe=msgspec.structs.replace(training_recipe, precision="bfloat16"), folder="mixed")[1][-1].loss
    assert mixed == pytest.approx(exact, abs=0.1)


def test_the_pace_counts_tokens_and_estimates_the_rest(run: Trainer) -> None:
    """With a clock that ticks once per report, 5 steps of 256 tokens take one second."""
    _, reports, _ = run()
    assert reports[0].tokens == 5 * 256 and reports[0].tokens_per_s == pytest.approx(5 * 256)
    assert [report.left_s for report in reports] == pytest.approx([5, 4, 3, 2, 1, 0])


def test_divergence_is_named_with_its_step(run: Trainer, training_recipe: TrainingRecipe) -> None:
    """A loss that is not finite ends the loop with the step, the loss and the rate."""
    wild = msgspec.structs.replace(training_recipe, learning_rate=1e20, warmup_steps=0)
    with pytest.raises(Problem, match=r"Step 2 has loss .* gradient norm nan at learning rate") as caught:
        run(recipe=wild)
    assert caught.value.code == "training_diverged"


def latest(folder: Path) -> Path:
    return folder / (folder / "latest").read_text()


def test_only_the_committed_checkpoint_remains(run: Trainer, tmp_path: Path) -> None:
    """The previous checkpoint goes only after the new one counts."""
    run(stop_at=25)
    folder = tmp_path / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["latest", "step-00000020"]


@pytest.mark.parametrize("file", ["weights.safetensors", "optimizer.safetensors", "manifest.json"])
def test_a_checkpoint_cut_short_before_its_commit_is_passed_over(run: Trainer, tmp_path: Path, file: str) -> None:
    """A later folder that lacks a file and that `latest` does not name changes nothing."""
    run(stop_at=15)
    folder = tmp_path / "checkpoints"
    leftover = folder / "step-00000020"
    leftover.mkdir()
    for name in ("weights.safetensors", "optimizer.safetensors"):
        if name != file:
            (leftover / name).write_bytes(b"half")
    resumed, _, starts = run()
    assert starts == [10] and same(resumed, run(folder="whole")[0])


@pytest.mark.parametrize("file", ["weights.safetensors", "optimizer.safetensors"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_checkpoint_is_refused_by_name(run: Trainer, tmp_path: Path, file: str, damage: str) -> None:
    """One changed bit, a missing end and a missing file each name the file and load nothing."""
    run(stop_at=15)
    path = latest(tmp_path / "checkpoints") / file
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.unlink()
    if damage != "remove":
        path.write_bytes(content[:-8] if damage == "cut" else content)
    with pytest.raises(Problem, match=file) as caught:
        run()
    assert caught.value.code == "artefact_invalid"


def test_a_checkpoint_of_another_recipe_is_refused(
    run: Trainer, make_decoder: MakeDecoder, training_recipe: TrainingRecipe, tmp_path: Path
) -> None:
    """The key of recipe and data has to agree."""
    run(stop_at=15)
    decoder = make_decoder()
    with pytest.raises(Problem, match="another recipe"):
        Checkpoints(tmp_path / "checkpoints", "other").restore(decoder, Optimizer(decoder, training_recipe))


def test_a_full_disk_leaves_the_previous_checkpoint(
    run: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No space while writing is `insufficient_disk`, and the run resumes from what was there."""
    run(stop_at=15)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(Problem) as caught:
            run()
    assert caught.value.code == "insufficient_disk"
    assert run()[2] == [10]


def test_the_digest_of_a_seal_is_of_the_content_alone(tmp_path: Path) -> None:
    """Two folders with the same files have the same digest, whatever their keys and facts."""
    seals = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("same")
        seals.append(artefact.seal(tmp_path / name, key=name, facts={"made": name}))
    assert seals[0].digest == seals[1].digest
