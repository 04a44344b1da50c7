"""Without wide vectors and their instructions kernels compute the same: whole numbers bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from penstock.models.fast import simd
from penstock.models.fast.cpu import has
from penstock.models.fast.simd import FLOATS, I64, INTS

pytestmark = pytest.mark.skipif(not has("avx2", "fma"), reason="the CPU has no AVX2")


@intrinsic
def _three(_context, address):
    """From left, right, 16 float32 and 16 int32 at ``address`` on, behind them: products, halves, rounded."""

    def generate(context: Any, b: Any, _s: Any, arguments: Any) -> Any:
        def at(line: int) -> Any:
            return b.add(arguments[0], ir.Constant(I64, 64 * line))

        left, right = simd.load(b, at(0), INTS), simd.load(b, at(1), INTS)
        floats, ints = simd.load(b, at(2), FLOATS), simd.load(b, at(3), INTS)
        simd.store(b, simd.dot_words(b, ints, left, right), at(4))
        for half, line in zip(simd.halves(b, left), (5, 7), strict=True):
            simd.store(b, half, at(line))
        simd.store(b, simd.round_bits(b, floats), at(6))
        return context.get_dummy_value()

    return types.void(types.int64), generate


@njit  # type: ignore[untyped-decorator]  # numba has no types
def _run(address: int) -> None:
    _three(address)


def test_products_of_bytes_by_words_are_exact() -> None:
    """The largest of both signs, and numbers in between, added to what was there."""
    lines = np.zeros((8, 64), np.uint8)
    source = np.random.default_rng(0)
    for _ in range(50):
        lines[0], lines[1] = source.integers(0, 256, 64), source.integers(0, 256, 64)
        lines[0, :8], lines[1, :8] = 255, [0x80] * 4 + [0x7F] * 4
        lines[3] = source.integers(-1000, 1000, 16, np.int32).view(np.uint8)
        _run(lines.ctypes.data)
        expected = (lines[0].astype(np.int32) * lines[1].view(np.int8)).reshape(16, 4).sum(1)
        assert np.array_equal(lines[4].view(np.int32), lines[3].view(np.int32) + expected)


def test_halves_of_pairs_are_their_numbers() -> None:
    """The even and the odd ones of 32 bfloat16, bit for bit."""
    pairs = torch.randn(32, generator=torch.Generator().manual_seed(0)).bfloat16()
    lines = np.zeros((8, 64), np.uint8)
    lines[0] = pairs.view(torch.int16).numpy().view(np.uint8)
    _run(lines.ctypes.data)
    assert torch.equal(torch.from_numpy(lines[5].view(np.float32).copy()), pairs[::2].float())
    assert torch.equal(torch.from_numpy(lines[7].view(np.float32).copy()), pairs[1::2].float())


def test_numbers_are_rounded_as_torch_rounds_them() -> None:
    """To nearest, ties to even; infinities and NaN stay what they are."""
    values = torch.tensor([1.0, -1.0, 1.00390625, 1.01171875, 3.3e38, torch.inf, -torch.inf, torch.nan, 0.0, 1e-30])
    values = torch.cat((values, torch.randn(6, generator=torch.Generator().manual_seed(2))))
    lines = np.zeros((8, 64), np.uint8)
    lines[2] = values.numpy().view(np.uint8)
    _run(lines.ctypes.data)
    found = torch.from_numpy(lines[6, :32].view(np.int16).copy()).view(torch.bfloat16)
    torch.testing.assert_close(found, values.bfloat16(), rtol=0, atol=0, equal_nan=True)


def test_instructions_by_their_names_are_understood_wherever_kernels_are_put_together() -> None:
    """Also in a process that wrote none of them itself: LLVM ends a process that has no parser for them."""
    code = """
import penstock.models.fast.simd
from llvmlite import binding
binding.initialize_native_target()
binding.initialize_native_asmprinter()
source = 'define i64 @f() { %x = call i64 asm "movq $$7, $0", "=r"() ret i64 %x }'
target = binding.Target.from_default_triple().create_target_machine()
engine = binding.create_mcjit_compiler(binding.parse_assembly(source), target)
engine.finalize_object()
assert engine.get_function_address("f")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_whole_steps_are_computed_without_wide_vectors() -> None:
    """Whoever keeps torch from AVX-512 keeps the kernels from it, and these pass their own tests."""
    here = Path(__file__).parent
    tests = [str(here / f"test_{name}.py") for name in ("quantised_weights", "fast_step", "fast_attention")]
    environment = os.environ | {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=here.parents[3], check=False)
    assert done.returncode == 0 and "skipped" not in done.stdout, done.stdout[-2000:]
