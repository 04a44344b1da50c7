"""That an engine measures whether oneDNN multiplies many rows of its weights faster."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from random_checkpoints import make_checkpoint
from seeded import write_seeded_checkpoint

from penstock.cli import boot_decoder
from penstock.cli.boot import boot
from penstock.config.settings import EngineSettings
from penstock.models.fast import bf16, onednn

pytestmark = pytest.mark.skipif(
    not bf16.is_supported() or not onednn.is_supported(), reason="oneDNN has no bfloat16 on this CPU"
)


def clock(ours: float, theirs: float) -> Callable[[], float]:
    """Reads as if products took so long, our kernels' and oneDNN's in turn."""
    return itertools.accumulate(itertools.cycle((0.0, ours, 0.0, theirs))).__next__


def weights_bytes(directory: Path, **changes: Any) -> int:
    settings = EngineSettings(
        replica="0", socket="", model_dir=str(directory), served_name="m", kv_memory_bytes=1 << 20, **changes
    )
    booted = boot(settings, lambda *_: None)
    booted.grammars.close()
    return booted.weights_bytes


@pytest.mark.parametrize(
    ("theirs", "changes", "copied"),
    [(0.5, {}, True), (2.0, {}, False), (0.5, {"quantization": "int8"}, False), (0.5, {"exact": True}, False)],
)
def test_where_onednn_is_faster_weights_are_there_twice(
    theirs: float,
    changes: dict[str, Any],
    copied: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Both count as memory, and the log says from how many rows on; never in exact mode, nor of quantised weights."""
    write_seeded_checkpoint(tmp_path)
    make_checkpoint("qwen3", tmp_path)
    monkeypatch.setattr(boot_decoder, "perf_counter", clock(1.0, 9.0))
    plain = weights_bytes(tmp_path, dtype="bfloat16", **changes)
    monkeypatch.setattr(boot_decoder, "perf_counter", clock(1.0, theirs))
    with caplog.at_level(logging.INFO):
        found = weights_bytes(tmp_path, dtype="bfloat16", **changes)
    assert (found > 1.5 * plain) == copied == ("oneDNN multiplies 16 rows and more" in caplog.text)
    assert copied or found == plain


def test_copies_are_given_what_is_left_when_all_else_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 400 MB free, half is this engine's, 20 MB were asked for as KV memory: copies have half of 180 MB."""
    write_seeded_checkpoint(tmp_path)
    make_checkpoint("qwen3", tmp_path)
    rooms: list[int] = []
    monkeypatch.setattr(boot_decoder, "free_memory_bytes", lambda: 400_000_000)
    monkeypatch.setattr(boot_decoder, "prefer_onednn", lambda decoder, room_bytes, clock: rooms.append(room_bytes))
    settings = EngineSettings(
        replica="0",
        socket="",
        model_dir=str(tmp_path),
        served_name="m",
        dtype="bfloat16",
        kv_memory_bytes=20_000_000,
        kv_share=0.5,
    )
    boot(settings, lambda *_: None).grammars.close()
    assert rooms == [90_000_000]
