"""Documentation of what the standard library has in C: builtins and extension modules.

In: nothing but the Python that runs; out: a :class:`Definition` per C function, class and method.
Imports only the modules listed here, which do nothing when imported, and does so in a process of its own: whatever
this one has loaded may have put its own functions in their places (a command line replaces ``sys.excepthook``).
"""

from __future__ import annotations

import builtins
import importlib
import inspect
import json
import re
import subprocess
import sys
import types
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from penstock.train.python_source import Definition

_CHILD = (
    "import sys; sys.path.append(sys.argv[1]); "
    "from penstock.train.python_builtins import write_definitions; write_definitions()"
)
# fmt: off
_MODULES = (
    "array", "ast", "asyncio", "atexit", "binascii", "bisect", "builtins", "bz2", "cmath", "codecs", "collections",
    "contextvars", "csv", "ctypes", "curses", "datetime", "decimal", "errno", "faulthandler", "fcntl", "functools",
    "gc", "grp", "hashlib", "heapq", "imp", "io", "itertools", "json", "locale", "lzma", "marshal", "math", "mmap",
    "operator", "os", "pickle", "pwd", "pyexpat", "queue", "random", "re", "resource", "select", "signal", "socket",
    "sqlite3", "ssl", "statistics", "string", "struct", "symtable", "sys", "syslog", "termios", "threading", "time",
    "tracemalloc", "types", "typing", "unicodedata", "warnings", "weakref", "xml.etree.ElementTree", "zipimport",
    "zlib", "zoneinfo",
)
# fmt: on
_FUNCTIONS = (types.BuiltinFunctionType, types.MethodDescriptorType, types.ClassMethodDescriptorType)
_MAX_SIGNATURE = 120
# "$self" and what else marks an argument that the caller does not write.
_HIDDEN_ARGUMENTS = re.compile(r"\$\w+(, /)?(, )?")


def builtin_definitions() -> tuple[list[Definition], list[str]]:
    """Every public C definition in order of name, and the modules that this Python was built without."""
    root = Path(__file__).parents[2]
    # -I -S: nothing of the environment, and none of the packages installed beside the library.
    done = subprocess.run([sys.executable, "-I", "-S", "-c", _CHILD, str(root)], stdout=subprocess.PIPE, check=True)
    found, absent = json.loads(done.stdout)
    return [Definition(**each) for each in found], absent


def write_definitions() -> None:
    """What the process of its own does: definitions and absent modules as JSON on standard output."""
    found: dict[str, Definition] = {}
    absent = []
    warnings.simplefilter("ignore")
    for name in _MODULES:
        try:
            module = importlib.import_module(name)
        except ImportError:
            absent.append(name)
            continue
        for definition in _module_definitions(module):
            found.setdefault(definition.name, definition)
    json.dump([[asdict(found[name]) for name in sorted(found)], absent], sys.stdout)


def _module_definitions(module: types.ModuleType) -> Iterator[Definition]:
    exported = getattr(module, "__all__", ())
    prefix = "" if module.__name__ == "builtins" else f"{module.__name__}."
    if module.__doc__ and not hasattr(module, "__file__"):
        yield Definition(module.__name__, "module", None, inspect.cleandoc(module.__doc__))
    for name, member in sorted(vars(module).items()):
        if (
            name.startswith("_")
            or not (name in exported or _belongs(member, module))
            or _is_alias(name, member, module)
        ):
            continue
        if isinstance(member, types.BuiltinFunctionType):
            yield _definition(f"{prefix}{name}", "function", member)
        elif isinstance(member, type) and _is_in_c(member):
            yield from _class_definitions(f"{prefix}{name}", member)


def _belongs(member: object, module: types.ModuleType) -> bool:
    """Whether ``module`` is where ``member`` is to be found, not one that merely uses it."""
    return getattr(member, "__module__", None) in (module.__name__, f"_{module.__name__}")


def _is_alias(name: str, member: object, module: types.ModuleType) -> bool:
    """Whether ``member`` has a plainer name: ``array.ArrayType`` is array.array, ``os.error`` is OSError."""
    own_name = getattr(member, "__name__", name)
    if module is not builtins and getattr(builtins, own_name, None) is member:
        return True
    return own_name != name and getattr(module, own_name, None) is member


def _is_in_c(cls: type) -> bool:
    return not any(isinstance(member, types.FunctionType) for member in vars(cls).values()) and (
        not hasattr(cls, "__weakref__") or any(isinstance(member, _FUNCTIONS) for member in vars(cls).values())
    )


def _class_definitions(prefix: str, cls: type) -> Iterator[Definition]:
    yield _definition(prefix, "class", cls)
    for name, member in sorted(vars(cls).items()):
        function = member.__func__ if isinstance(member, staticmethod) else member
        if not name.startswith("_") and isinstance(function, _FUNCTIONS):
            yield _definition(f"{prefix}.{name}", "method", function)


def _definition(name: str, kind: Literal["class", "function", "method"], member: object) -> Definition:
    doc = getattr(member, "__doc__", None)
    return Definition(name, kind, _signature(member), inspect.cleandoc(doc) if isinstance(doc, str) and doc else None)


def _signature(member: object) -> str | None:
    text = getattr(member, "__text_signature__", None)
    if not isinstance(text, str):
        return None
    signature = _HIDDEN_ARGUMENTS.sub("", text, count=1)
    return signature if len(signature) <= _MAX_SIGNATURE else None
