"""A file is there whole or not at all."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import BinaryIO

import pytest

from penstock.models.save import write_atomically
from penstock.wire.errors import Problem


def test_full_disk_is_named_and_leaves_the_old_file(tmp_path: Path) -> None:
    """When the disk fills up midway, the error names the file, the old one stays and no draft is left."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"old")

    def fill_the_disk(file: BinaryIO) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(Problem, match=r"model\.safetensors") as caught:
        write_atomically(path, fill_the_disk)
    assert caught.value.code == "insufficient_disk"
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"] and path.read_bytes() == b"old"


def test_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    """An interrupt midway passes through and leaves no file."""

    def interrupt(file: BinaryIO) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "config.json", interrupt)
    assert list(tmp_path.iterdir()) == []
