"""A run: the stages of a recipe in order, each done once, resumed where it was killed and skipped where it is done.

In: a recipe and a run's folder; out: one artefact folder per stage.  A stage is done when its folder's manifest says
that it was made with these settings, from inputs with these digests, and its files have the digests listed there.
Only checkpoints survive an unfinished stage; everything else it wrote is thrown away.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec
import torch

from penstock.config.recipe import Recipe
from penstock.models.decoder import Decoder
from penstock.store.runs import Run, RunRecord, State
from penstock.train.artefact import Manifest, digest_of, read_manifest, seal, sync_directory, verify
from penstock.train.checkpoint import BYTES_PER_PARAMETER
from penstock.train.initial import model_config
from penstock.wire.errors import Problem

# Weights of two stages in float32 and the exported ones, beside text, tokens and answers.
_WEIGHT_BYTES_PER_PARAMETER = 4 + 4 + 4
_TEXT_BYTES = 100_000_000


class Display(Protocol):
    """Whoever watches a run."""

    def begin(self, stage: str, number: int, of: int) -> None: ...
    def skip(self, stage: str, number: int, of: int) -> None: ...
    def progress(self, words: str) -> None: ...
    def done(self, stage: str, facts: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True)
class Work:
    """What a stage is given: fill ``directory``, from the folders ``done`` of earlier stages."""

    recipe: Recipe
    key: str
    directory: Path
    checkpoints: Path
    done: Mapping[str, Path]
    run: Run
    progress: Callable[[str], None]
    clock: Callable[[], float]


@dataclass(frozen=True)
class Stage:
    """``settings`` is what of the recipe and of this machine decides the result; ``work`` returns facts about it."""

    name: str
    needs: tuple[str, ...]
    settings: Callable[[Recipe], object]
    work: Callable[[Work], dict[str, Any]]


@dataclass(frozen=True)
class Times:
    """``clock`` measures durations, ``wall`` is the time of day; both in seconds."""

    clock: Callable[[], float]
    wall: Callable[[], float]


def run_stages(
    stages: tuple[Stage, ...],
    recipe: Recipe,
    run: Run,
    *,
    display: Display,
    times: Times,
    versions: dict[str, str],
) -> RunRecord:
    """Do what is not done yet and return how the run ended.

    Raises ``run_busy``, ``insufficient_disk``, ``artefact_invalid`` and whatever a stage raises; ``run.json`` then
    says so.
    """
    with run.locked():
        book = _Book(run, recipe, versions, times.wall)
        try:
            check_disk(recipe, run.directory)
            manifests: dict[str, Manifest] = {}
            for number, stage in enumerate(stages, 1):
                manifests[stage.name] = _do(stage, manifests, (number, len(stages)), book, recipe, display, times)
            return book.say("done", stages[-1].name)
        except Problem as problem:
            book.say("failed", book.stage, problem.message)
            raise


def check_disk(recipe: Recipe, directory: Path) -> None:
    """Raises ``insufficient_disk``: better before an hour of training than after it."""
    with torch.device("meta"):
        decoder = Decoder(model_config(recipe.model, recipe.tokenizer.vocab_size))
    num_parameters = sum(parameter.numel() for parameter in decoder.parameters())
    needed = num_parameters * (BYTES_PER_PARAMETER + _WEIGHT_BYTES_PER_PARAMETER) + _TEXT_BYTES
    free = shutil.disk_usage(directory).free
    if free < needed:
        message = f"Training needs about {needed / 1e6:,.0f} MB below {directory}; {free / 1e6:,.0f} MB are free."
        raise Problem("insufficient_disk", message)


def _do(
    stage: Stage,
    manifests: Mapping[str, Manifest],
    place: tuple[int, int],
    book: _Book,
    recipe: Recipe,
    display: Display,
    times: Times,
) -> Manifest:
    run = book.run
    inputs = {name: manifests[name].digest for name in stage.needs}
    key = digest_of([stage.name, msgspec.to_builtins(stage.settings(recipe)), inputs])
    folder = run.directory / stage.name
    manifest = _finished(folder, key)
    if manifest is not None:
        display.skip(stage.name, *place)
        book.note(stage.name, manifest.facts)
        return manifest
    display.begin(stage.name, *place)
    book.say("running", stage.name)
    draft = run.directory / f".{stage.name}.draft"
    checkpoints = run.directory / "checkpoints" / f"{stage.name}-{key[:12]}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    done = {name: run.directory / name for name in stage.needs}
    facts = stage.work(Work(recipe, key, draft, checkpoints, done, run, display.progress, times.clock))
    manifest = seal(draft, key, facts)
    _replace(folder, draft)
    shutil.rmtree(checkpoints, ignore_errors=True)
    book.note(stage.name, facts)
    display.done(stage.name, facts)
    return manifest


def _finished(folder: Path, key: str) -> Manifest | None:
    manifest = read_manifest(folder)
    if manifest is None or manifest.key != key:
        return None
    verify(folder, manifest)
    return manifest


def _replace(folder: Path, draft: Path) -> None:
    """A kill between the two costs the stage again, never a mixture: the old manifest goes with the old files."""
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)
    sync_directory(folder.parent)


class _Book:
    """Keeps ``run.json`` up to date."""

    def __init__(self, run: Run, recipe: Recipe, versions: dict[str, str], wall: Callable[[], float]) -> None:
        self.run = run
        self._wall = wall
        now = wall()
        started_at = run.record().started_at if run.exists() else now
        self._record = RunRecord(
            name=run.directory.name,
            recipe=msgspec.to_builtins(recipe),
            state="running",
            stage="",
            started_at=started_at,
            updated_at=now,
            versions=versions,
        )

    @property
    def stage(self) -> str:
        return self._record.stage

    def say(self, state: State, stage: str, message: str = "") -> RunRecord:
        self._record = msgspec.structs.replace(
            self._record, state=state, stage=stage, message=message, updated_at=self._wall()
        )
        self.run.write(self._record)
        return self._record

    def note(self, stage: str, facts: Mapping[str, Any]) -> None:
        results = {**self._record.results, stage: dict(facts)}
        self._record = msgspec.structs.replace(self._record, results=results)
