"""Kernels that are compiled beside the weights, at a machine's first start."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest
from seeded import write_seeded_checkpoint

from penstock.cli import boot_decoder
from penstock.cli.boot import boot
from penstock.cli.numerics import Numerics, numerics
from penstock.config.settings import EngineSettings

Kernels = list[Callable[[], object]]


def settings_with(kernels: Kernels, directory: Path, monkeypatch: pytest.MonkeyPatch) -> EngineSettings:
    """For an engine whose kernels these are."""
    write_seeded_checkpoint(directory)

    def chosen(settings: EngineSettings, config: object) -> Numerics:
        return replace(numerics(settings, config), kernels=kernels)  # type: ignore[arg-type]  # the checkpoint's config

    monkeypatch.setattr(boot_decoder, "numerics", chosen)
    monkeypatch.setattr(boot_decoder, "_SHOW_S", 0.01)
    return EngineSettings(replica="0", socket="", model_dir=str(directory), served_name="m", kv_memory_bytes=1 << 20)


def test_a_compilation_that_is_waited_for_tells_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second kernel is not there before somebody has heard of it."""
    heard = Event()
    told: list[tuple[float, int, int]] = []

    def progress(share: float, text: str) -> None:
        if found := re.match(r"(\d+) of (\d+) kernels, compiled at a machine's first start", text):
            told.append((share, int(found[1]), int(found[2])))
            heard.set()

    def slow() -> None:
        assert heard.wait(60)

    booted = boot(settings_with([lambda: None, slow], tmp_path, monkeypatch), progress)
    booted.grammars.close()
    assert told and all(share == done / count and done < count == 2 for share, done, count in told)


def test_a_kernel_that_cannot_be_compiled_ends_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its own words, and not at the first request."""

    def broken() -> None:
        raise RuntimeError("no such instruction")

    with pytest.raises(RuntimeError, match="no such instruction"):
        boot(settings_with([broken], tmp_path, monkeypatch), lambda *_: None)
