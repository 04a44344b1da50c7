"""Vector instructions for compiled kernels, as pieces of LLVM's intermediate code.

In: a builder of llvmlite and values of it; out: values.  Makes no decision about layouts: kernels do.
What is written here is one instruction or a handful; loops over data are :func:`loop` or Numba's own.
An intrinsic made of these must be a module's global: Numba keeps no compiled code whose intrinsics are closures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import binding, ir

from penstock.models.fast.cpu import has

# For instructions by their names, which code has that another process compiled and this one puts together, too.
binding.initialize_native_asmparser()

LANES = 16
"""Float32 values of one vector register of 512 bits."""

LINE_BYTES = 64
"""Of a cache line."""

I16, I32, I64, F32 = ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
FLOATS = ir.VectorType(F32, LANES)
INTS = ir.VectorType(I32, LANES)
BYTES = ir.VectorType(ir.IntType(8), LANES)
WORDS = ir.VectorType(I16, 2 * LANES)
FLAGS = ir.VectorType(ir.IntType(1), LANES)

Value = Any
Builder = Any


class _Bfloat(ir.types.Type):  # type: ignore[misc]  # llvmlite has no types
    """LLVM's bfloat, which llvmlite does not know."""

    intrinsic_name = "bf16"

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Bfloat)

    def __hash__(self) -> int:
        return hash(_Bfloat)


HALF_BFLOATS = ir.VectorType(_Bfloat(), LANES)


def constant(kind: Value, value: float) -> Value:
    """``value`` of type ``kind``, in every lane if that is a vector."""
    return ir.Constant(kind, [value] * kind.count if isinstance(kind, ir.VectorType) else value)


def call(b: Builder, name: str, result: Value, arguments: Sequence[Value]) -> Value:
    """Call LLVM's intrinsic ``name``."""
    known = b.module.globals.get(name)
    if known is None:
        known = ir.Function(b.module, ir.FunctionType(result, [a.type for a in arguments]), name)
    return b.call(known, arguments)


def at(b: Builder, address: Value, offset: Value | int) -> Value:
    """``address`` plus ``offset`` bytes."""
    return b.add(address, ir.Constant(I64, offset) if isinstance(offset, int) else offset)


def opaque(b: Builder, value: Value) -> Value:
    """``value`` (int64), of which the compiler knows nothing: it keeps this, and nothing derived from it."""
    return b.asm(ir.FunctionType(I64, [I64]), "", "=r,0", [value], side_effect=False)


def load(b: Builder, address: Value, kind: Value) -> Value:
    """What lies at ``address`` (int64, aligned or not)."""
    value = b.load(b.inttoptr(address, kind.as_pointer()))
    value.align = 1
    return value


def store(b: Builder, value: Value, address: Value) -> None:
    stored = b.store(value, b.inttoptr(address, value.type.as_pointer()))
    stored.align = 1


def store_some(b: Builder, value: Value, address: Value, wanted: Value) -> None:
    """Those lanes of 32 int8 or int16 that are ``wanted``; the others' memory is not touched."""
    pointer = b.inttoptr(address, value.type.as_pointer())
    name = f"llvm.masked.store.v32{value.type.element.intrinsic_name}.p0"
    known = b.module.globals.get(name)
    if known is None:
        kinds = [value.type, pointer.type, I32, wanted.type]
        known = ir.Function(b.module, ir.FunctionType(ir.VoidType(), kinds), name)
    b.call(known, [value, pointer, ir.Constant(I32, 1), wanted])


def prefetch(b: Builder, address: Value, level: int = 1, *, to_write: bool = False) -> None:
    """Ask for the cache line at ``address`` in the cache of ``level`` 1 .. 3; any address will do, none faults."""
    pointer = b.inttoptr(address, ir.IntType(8).as_pointer())
    nearness, use, data = (ir.Constant(I32, value) for value in (4 - level, int(to_write), 1))
    name = "llvm.prefetch.p0"
    known = b.module.globals.get(name)
    if known is None:
        kinds = [ir.IntType(8).as_pointer(), I32, I32, I32]
        known = ir.Function(b.module, ir.FunctionType(ir.VoidType(), kinds), name)
    b.call(known, [pointer, use, nearness, data])


def prefetch_later(b: Builder, address: Value) -> None:
    """Into the second cache: what comes a block later would drive out of the first what is read now."""
    prefetch(b, address, level=2)


def spread(b: Builder, value: Value) -> Value:
    """An int32 or float32 in every lane."""
    kind = INTS if value.type == I32 else FLOATS
    none = ir.Constant(kind, ir.Undefined)
    one = b.insert_element(none, value, ir.Constant(I32, 0))
    return b.shuffle_vector(one, none, ir.Constant(INTS, [0] * LANES))


def loop(
    b: Builder, count: Value, carried: Sequence[Value], body: Callable[[Value, Sequence[Value]], Sequence[Value]]
) -> Sequence[Value]:
    """``for i in range(count): carried = body(i, carried)``; what is carried stays in registers."""
    before, function = b.block, b.function
    head, inside, after = (function.append_basic_block(name) for name in ("head", "inside", "after"))
    b.branch(head)
    b.position_at_end(head)
    i = b.phi(I64)
    i.add_incoming(ir.Constant(I64, 0), before)
    phis = [b.phi(value.type) for value in carried]
    for phi, value in zip(phis, carried, strict=True):
        phi.add_incoming(value, before)
    b.cbranch(b.icmp_signed("<", i, count), inside, after)
    b.position_at_end(inside)
    results = body(i, phis)
    step = b.add(i, ir.Constant(I64, 1))
    i.add_incoming(step, b.block)
    for phi, value in zip(phis, results, strict=True):
        phi.add_incoming(value, b.block)
    b.branch(head)
    b.position_at_end(after)
    return phis


def multiply_add(b: Builder, x: Value, y: Value, z: Value) -> Value:
    """x * y + z of 16 float32, rounded once."""
    return call(b, "llvm.fma.v16f32", FLOATS, [x, y, z])


def halves(b: Builder, pairs: Value) -> tuple[Value, Value]:
    """The even and the odd ones of 32 bfloat16, given as 16 int32, in float32."""
    return (
        b.bitcast(b.shl(pairs, constant(INTS, 16)), FLOATS),
        b.bitcast(b.and_(pairs, constant(INTS, -65536)), FLOATS),
    )


def dot_int8(b: Builder, total: Value, left: Value, right: Value) -> Value:
    """total[i] + the sum of left[4i + j] * right[4i + j]: 16 int32, 64 uint8 and 64 int8, all as 16 int32."""
    if has("avx512vnni"):
        return call(b, "llvm.x86.avx512.vpdpbusd.512", INTS, [total, left, right])
    return dot_words(b, total, left, right)


def dot_words(b: Builder, total: Value, left: Value, right: Value) -> Value:
    """As ``dot_int8``, by AVX2's products of 16-bit numbers: the even bytes and the odd ones."""
    wide = ir.VectorType(I16, 2 * LANES)
    eight = constant(wide, 8)
    unsigned, signed = b.bitcast(left, wide), b.bitcast(right, wide)
    even = b.and_(unsigned, constant(wide, 255)), b.ashr(b.shl(signed, eight), eight)
    odd = b.lshr(unsigned, eight), b.ashr(signed, eight)
    for one, other in (even, odd):
        total = b.add(total, _pairs_of_words(b, one, other))
    return total


def dot_pairs(b: Builder, total: Value, left: Value, right: Value) -> Value:
    """total[i] + left[2i] * right[2i] + left[2i + 1] * right[2i + 1]: 16 int32, and 32 int16 twice."""
    if has("avx512vnni"):
        # Not by LLVM's intrinsic: it takes that for slow, and makes two instructions of it.
        kind = ir.FunctionType(INTS, [INTS, WORDS, WORDS])
        return b.asm(kind, "vpdpwssd $3, $2, $0", "=v,0,v,v", [total, left, right], side_effect=False)
    return b.add(total, _pairs_of_words(b, left, right))


def _pairs_of_words(b: Builder, left: Value, right: Value) -> Value:
    """left[2i] * right[2i] + left[2i + 1] * right[2i + 1] of 32 int16, as 16 int32, half by half."""
    half, sums = ir.VectorType(I32, LANES), ir.VectorType(I32, LANES // 2)
    parts = []
    for first in (0, LANES):
        lanes = ir.Constant(half, list(range(first, first + LANES)))
        words = [b.shuffle_vector(words, words, lanes) for words in (left, right)]
        parts.append(call(b, "llvm.x86.avx2.pmadd.wd", sums, words))
    return b.shuffle_vector(*parts, ir.Constant(INTS, list(range(LANES))))


def to_bf16(b: Builder, values: Value) -> Value:
    """16 float32 rounded to nearest, even."""
    if has("avx512bf16"):
        return call(b, "llvm.x86.avx512bf16.cvtneps2bf16.512", HALF_BFLOATS, [values])
    return round_bits(b, values)


def round_bits(b: Builder, values: Value) -> Value:
    """As ``to_bf16``, by whole numbers of any CPU's; NaN stays NaN."""
    bits = b.bitcast(values, INTS)
    last = b.and_(b.lshr(bits, constant(INTS, 16)), constant(INTS, 1))
    rounded = b.lshr(b.add(bits, b.add(last, constant(INTS, 0x7FFF))), constant(INTS, 16))
    rounded = b.select(b.fcmp_unordered("uno", values, values), constant(INTS, 0x7FC0), rounded)
    return b.bitcast(b.trunc(rounded, ir.VectorType(I16, LANES)), HALF_BFLOATS)


def from_bf16(b: Builder, values: Value) -> Value:
    """16 bfloat16 as float32."""
    bits = b.zext(b.bitcast(values, ir.VectorType(I16, LANES)), INTS)
    return b.bitcast(b.shl(bits, constant(INTS, 16)), FLOATS)


def load_int8(b: Builder, address: Value) -> Value:
    """16 int8 at ``address`` as float32."""
    return b.sitofp(b.sext(load(b, address, BYTES), INTS), FLOATS)


def load_words(b: Builder, address: Value) -> Value:
    """32 int8 at ``address`` as int16."""
    return b.sext(load(b, address, ir.VectorType(ir.IntType(8), 2 * LANES)), WORDS)


def exp(b: Builder, x: Value) -> Value:
    """e to the power of 16 float32 in -87 .. 87 (beyond, of the nearer bound), to 2 units in the last place.

    2 ** n * e ** r with n whole and r at most half of ln 2; e ** r by its series to the seventh term.
    """
    x = _bounded(b, x, -87.0, 87.0)
    whole = call(b, "llvm.rint.v16f32", FLOATS, [b.fmul(x, constant(FLOATS, 1.4426950408889634))])
    # ln 2 in two parts, so that x - whole * ln 2 keeps its last bits.
    rest = multiply_add(b, whole, constant(FLOATS, -0.693359375), x)
    rest = multiply_add(b, whole, constant(FLOATS, 2.12194440e-4), rest)
    power = constant(FLOATS, 1 / 5040)
    for factor in (1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0):
        power = multiply_add(b, power, rest, constant(FLOATS, factor))
    exponent = b.shl(b.add(b.fptosi(whole, INTS), constant(INTS, 127)), constant(INTS, 23))
    return b.fmul(power, b.bitcast(exponent, FLOATS))


def exp2(b: Builder, x: Value) -> Value:
    """2 to the power of 16 float32 up to 126 (below -126: of that), to 3e-6 of itself.

    2 ** n * 2 ** r with n whole and r at most a half; 2 ** r by the series of e ** (r * ln 2) to the fifth power.
    """
    x = maximum(b, x, constant(FLOATS, -126.0))
    whole = call(b, "llvm.rint.v16f32", FLOATS, [x])
    rest = b.fsub(x, whole)
    power = constant(FLOATS, _EXP2_TERMS[0])
    for factor in _EXP2_TERMS[1:]:
        power = multiply_add(b, power, rest, constant(FLOATS, factor))
    exponent = b.shl(b.fptosi(whole, INTS), constant(INTS, 23))
    return b.bitcast(b.add(b.bitcast(power, INTS), exponent), FLOATS)


_EXP2_TERMS = [math.log(2) ** n / math.factorial(n) for n in range(5, -1, -1)]


def tanh(b: Builder, x: Value) -> Value:
    """Of 16 float32, to 1e-6."""
    twice = exp(b, b.fmul(x, constant(FLOATS, 2.0)))
    one = constant(FLOATS, 1.0)
    return b.fsub(one, b.fdiv(constant(FLOATS, 2.0), b.fadd(twice, one)))


def maximum(b: Builder, left: Value, right: Value) -> Value:
    return b.select(b.fcmp_ordered(">", left, right), left, right)


def lanes_max(b: Builder, x: Value) -> Value:
    """The largest of 16 float32."""
    return call(b, "llvm.vector.reduce.fmax.v16f32", F32, [x])


def lanes_sum(b: Builder, x: Value) -> Value:
    """The sum of 16 float32, in any order."""
    function = b.module.globals.get("llvm.vector.reduce.fadd.v16f32")
    if function is None:
        function = ir.Function(b.module, ir.FunctionType(F32, [F32, FLOATS]), "llvm.vector.reduce.fadd.v16f32")
    return b.call(function, [constant(F32, 0.0), x], fastmath=("reassoc",))


def _bounded(b: Builder, x: Value, low: float, high: float) -> Value:
    low_lanes, high_lanes = constant(FLOATS, low), constant(FLOATS, high)
    x = b.select(b.fcmp_ordered("<", x, low_lanes), low_lanes, x)
    return b.select(b.fcmp_ordered(">", x, high_lanes), high_lanes, x)
