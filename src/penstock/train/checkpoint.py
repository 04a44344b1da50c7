"""Where a training loop stands, on disk: weights, optimiser state and the step, with one point of commitment.

In: a decoder, its optimiser and a step; out: a folder ``step-N`` and the file ``latest`` that names it.
The rename of ``latest`` commits: before it the previous checkpoint counts, after it the new one, and only then is
the previous one deleted.  A folder that ``latest`` does not name is a leftover.  Never a pickle.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from penstock.models.decoder import Decoder
from penstock.models.save import write_atomically
from penstock.train.artefact import read_manifest, seal, sync_directory, verify
from penstock.train.optimizer import Optimizer
from penstock.wire.errors import Problem

_LATEST = "latest"
_WEIGHTS, _MOMENTS = "weights.safetensors", "optimizer.safetensors"
# Weights and two moments, float32, of the old checkpoint and the new one.
BYTES_PER_PARAMETER = 2 * 3 * 4


class Checkpoints:
    """The checkpoints of one loop.  ``key`` identifies recipe and data: those of another loop are refused."""

    def __init__(self, directory: Path, key: str) -> None:
        self._directory = directory
        self._key = key

    def save(self, step: int, decoder: Decoder, optimizer: Optimizer) -> None:
        """Commit the state after ``step`` updates.  Raises ``insufficient_disk``: the previous one then counts."""
        folder = self._directory / f"step-{step:08}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        weights = {name: parameter.detach() for name, parameter in decoder.named_parameters()}
        _write(folder / _WEIGHTS, weights)
        _write(folder / _MOMENTS, optimizer.tensors())
        seal(folder, self._key, {"step": step})
        sync_directory(self._directory)
        write_atomically(self._directory / _LATEST, lambda file: file.write(folder.name.encode()))
        sync_directory(self._directory)
        for other in self._directory.glob("step-*"):
            if other != folder:
                shutil.rmtree(other, ignore_errors=True)

    def restore(self, decoder: Decoder, optimizer: Optimizer) -> int:
        """Take up the latest checkpoint and return its step; 0, and nothing changed, where there is none.

        Raises ``artefact_invalid`` for a checkpoint that is damaged or of another recipe.
        """
        latest = self._directory / _LATEST
        if not latest.is_file():
            return 0
        folder = self._directory / latest.read_text("utf-8", errors="replace").strip()
        manifest = read_manifest(folder)
        if manifest is None:
            raise Problem("artefact_invalid", f"{latest} names {folder.name!r}, which is no complete checkpoint.")
        if manifest.key != self._key:
            raise Problem("artefact_invalid", f"{folder} was made by another recipe or from other data.")
        verify(folder, manifest)
        step = manifest.facts["step"]
        _fill(decoder, _read(folder / _WEIGHTS), folder)
        optimizer.restore(_read(folder / _MOMENTS), step)
        return int(step)


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    content = save(dict(tensors))
    write_atomically(path, lambda file: file.write(content))


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise Problem("artefact_invalid", f"{path} is not a safetensors file: {error}.") from None


def _fill(decoder: Decoder, weights: Mapping[str, Tensor], folder: Path) -> None:
    parameters = dict(decoder.named_parameters())
    if {n: p.shape for n, p in parameters.items()} != {n: w.shape for n, w in weights.items()}:
        raise Problem("artefact_invalid", f"{folder} holds the weights of another model.")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
