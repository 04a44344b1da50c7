"""Machine code on disk: found again, made anew where it does not fit, and never taken damaged."""

from __future__ import annotations

import hashlib
import os
import resource
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from penstock.models import machine_code

KERNEL = """
import ctypes, math, sys
import numpy as np
from numba import carray, cfunc
from helper import STEP
from penstock.models import machine_code

def advance(numbers):
    some = np.empty(numbers[1], np.float32)
    for i in range(len(some)):
        some[i] = math.exp(0.0)
    numbers[0] += STEP + np.int64(some.sum())

compiled = []
machine_code.cfunc = lambda *known: compiled.append(1) or cfunc(*known)
address = machine_code.address_of(advance)
numbers = np.array([1, 4], np.int64)
ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)(numbers.ctypes.data)
print(numbers[0], len(compiled))
"""

OF_ANOTHER_VERSION = msgspec.msgpack.encode({"name": "advance", "parts": [b"code"]})

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere Numba's own files are kept")


def run(folder: Path, step: int = 1, **environment: str) -> list[str]:
    """What the function makes of 1 and the sum of four ones, and whether it was compiled."""
    (folder / "kernel.py").write_text(KERNEL)
    (folder / "helper.py").write_text(f"STEP = {step}\n")
    environment = os.environ | {"NUMBA_CACHE_DIR": "", "PYTHONDONTWRITEBYTECODE": "1"} | environment
    command = [sys.executable, str(folder / "kernel.py")]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.split()


def test_code_is_found_again_until_a_file_beside_it_changes(tmp_path: Path) -> None:
    """It allocates, calls the C library and computes as it did when it was compiled."""
    assert run(tmp_path) == ["6", "1"]
    assert run(tmp_path) == ["6", "0"]
    assert run(tmp_path, step=7) == ["12", "1"]


def test_another_processor_has_code_of_its_own(tmp_path: Path) -> None:
    """By its name and by what of it may be used."""
    assert run(tmp_path) == ["6", "1"]
    assert run(tmp_path, NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="") == ["6", "1"]
    assert run(tmp_path) == ["6", "0"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda code: code[:-1],
        lambda code: b"",
        lambda code: code[:99] + b"?" + code[100:],
        lambda code: hashlib.sha256(OF_ANOTHER_VERSION).digest() + OF_ANOTHER_VERSION,
    ],
)
def test_damaged_code_is_compiled_anew(damage: object, tmp_path: Path) -> None:
    """And so is what another version wrote; it is whole again afterwards."""
    assert run(tmp_path) == ["6", "1"]
    (kept,) = tmp_path.rglob("*.o")
    assert callable(damage)
    kept.write_bytes(damage(kept.read_bytes()))
    assert run(tmp_path) == ["6", "1"]
    assert run(tmp_path) == ["6", "0"]


def test_a_folder_that_cannot_be_written_costs_the_next_start_and_no_more(tmp_path: Path) -> None:
    """The function is compiled and computes."""
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    assert run(tmp_path, NUMBA_CACHE_DIR=str(in_the_way)) == ["6", "1"]


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    """Neither where the disk is full, nor where a file cannot get its name: every start would leave one more."""
    made = machine_code._Kept("advance", bytes(4096))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))
    try:
        machine_code._write(tmp_path / "full.o", made)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "taken.o").mkdir()
    machine_code._write(tmp_path / "taken.o", made)
    assert [path.name for path in tmp_path.iterdir()] == ["taken.o"]


def test_code_is_for_whoever_the_umask_lets_read_files(tmp_path: Path) -> None:
    """Users who share a folder of kernels do not compile each other's."""
    before = os.umask(0o022)
    try:
        machine_code._write(tmp_path / "kept.o", machine_code._Kept("advance", b"code"))
    finally:
        os.umask(before)
    assert (tmp_path / "kept.o").stat().st_mode & 0o777 == 0o644
