"""Compiled kernels on disk."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from numba.core import config

from penstock.models.kept import kept

KERNEL = """
from numba import njit
from helper import STEP
from penstock.models.kept import kept

@kept(njit(cache=True))
def advance(x):
    return x + STEP

print(advance(1), sum(advance.stats.cache_hits.values()))
"""


def run(folder: Path, step: int) -> list[str]:
    """What the kernel says with a neighbour that has this ``step``, and whether it came from the disk."""
    helper = folder / "helper.py"
    helper.write_text(f"STEP = {step}\n")
    os.utime(helper, (1e9, 1e9))
    environment = os.environ | {"NUMBA_CACHE_DIR": "", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, str(folder / "kernel.py")]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.split()


def test_a_kernel_is_compiled_anew_when_a_file_beside_it_changes(tmp_path: Path) -> None:
    """And is otherwise taken from the disk; times of files mean nothing."""
    (tmp_path / "kernel.py").write_text(KERNEL)
    assert run(tmp_path, 1) == ["2", "0"]
    assert run(tmp_path, 1) == ["2", "1"]
    assert run(tmp_path, 7) == ["8", "0"]


@pytest.mark.parametrize("given", ["", "elsewhere"])
def test_the_compiler_is_told_of_a_folder_only_meanwhile(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of the user's is kept within; whatever else is compiled in this process goes where it went."""
    monkeypatch.setattr(config, "CACHE_DIR", given)
    seen = kept(lambda function: Path(config.CACHE_DIR))(run)
    assert seen.name.startswith("kernels-")
    assert seen.parent.name == (given or "__pycache__")
    assert given == config.CACHE_DIR
