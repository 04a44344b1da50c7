"""Compiled functions on disk as the machine code that they are.

In: a function of an address; out: where its code lies.  Compiled once per machine, as ``models.kept`` has it.
Numba's own files bring back what the compiler knew of a function, and its tables with it: 0.3 s for the kernels of a
step, of which loading their code takes a tenth.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from llvmlite import binding
from numba import _helperlib, cfunc, types
from numba.core import config
from numba.core.runtime import _nrt_python

from penstock.models.kept import folder_of, kept

_SIGNATURE = types.void(types.CPointer(types.int64))
_DIGEST_BYTES = 32
_log = logging.getLogger(__name__)


class _Kept(msgspec.Struct, frozen=True):
    """An object file, and the name that the function has in it."""

    symbol: str
    code: bytes


_owners: list[object] = []
"""Of code in memory: addresses hold until the process ends."""


def address_of(function: Callable[[Any], None]) -> int:
    """Of ``function``, which takes an int64 pointer, as C calls it."""
    if sys.platform != "linux":  # what its code refers to has other names elsewhere
        owner = kept(cfunc(_SIGNATURE, cache=True))(function)
        _owners.append(owner)
        return int(owner.address)
    path = folder_of(function) / f"{function.__module__}.{function.__qualname__}-{_machine()}.o"
    found = _read(path)
    if found is not None:
        return _loaded(found)
    owner = cfunc(_SIGNATURE)(function)
    _owners.append(owner)
    code = owner._library._get_compiled_object()  # noqa: SLF001  # what Numba's own cache writes
    _write(path, _Kept(owner.native_name, code))
    return int(owner.address)


@cache
def _machine() -> str:
    """What code is made for: a processor and what of it may be used."""
    features = config.CPU_FEATURES or binding.get_host_cpu_features().flatten()
    made_for = f"{binding.get_process_triple()} {config.CPU_NAME or binding.get_host_cpu_name()} {features}"
    return hashlib.sha256(made_for.encode()).hexdigest()[:16]


def _loaded(found: _Kept) -> int:
    _ready_llvm()
    machine = binding.Target.from_default_triple().create_target_machine()
    engine = binding.create_mcjit_compiler(binding.parse_assembly(""), machine)
    engine.add_object_file(binding.ObjectFileRef.from_data(found.code))
    engine.finalize_object()
    address = engine.get_function_address(found.symbol)
    assert address, found.symbol
    _owners.append(engine)
    return int(address)


@cache
def _ready_llvm() -> None:
    """Tell it of this processor, and by which names code calls Numba's own: memory of arrays, and errors."""
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    errors = _helperlib.c_helpers  # type: ignore[attr-defined]  # it is there at run time
    for prefix, helpers in (("numba_", errors), ("NRT_", _nrt_python.c_helpers)):
        for name, address in helpers.items():
            binding.add_symbol(name if name.startswith("_") else prefix + name, address)


def _read(path: Path) -> _Kept | None:
    """``None``: nothing is there, or it is damaged or another version's; what LLVM is given has to be whole."""
    try:
        stored = path.read_bytes()
    except OSError:
        return None
    digest, content = stored[:_DIGEST_BYTES], stored[_DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != digest:
        return None
    try:
        return msgspec.msgpack.decode(content, type=_Kept)
    except msgspec.MsgspecError:  # whole, but not what this file writes: the folder is named after the kernels alone
        return None


def _write(path: Path, made: _Kept) -> None:
    content = msgspec.msgpack.encode(made)
    scratch = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with scratch.open("xb") as file:  # as the umask says: other users may read it
                file.write(hashlib.sha256(content).digest() + content)
            scratch.replace(path)  # at once: others may start at the same time
        finally:
            scratch.unlink(missing_ok=True)  # a full disk must not get fuller with every start
    except OSError as error:
        _log.info("%s is not kept, and compiled again at the next start: %s", path.name, error)
