"""The standard library's documentation strings, read from its source without running any of it.

In: the directory of the standard library; out: a :class:`Definition` per module, class, function and method.
Names are the public ones: ``asyncio.sleep``, though it is written in ``asyncio.tasks``.
"""

from __future__ import annotations

import ast
import tokenize
import warnings
from collections.abc import Container, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

Kind = Literal["module", "class", "function", "method"]
# Not a library: tests, jokes, what needs a window or another system, and what was already on its way out.
_SKIPPED = frozenset(
    {"antigravity", "distutils", "ensurepip", "idlelib", "lib2to3", "msilib", "nturl2path", "ntpath", "pydoc_data"}
    | {"test", "this", "tkinter", "turtle", "turtledemo"}
)
_SKIPPED_PARTS = frozenset({"__main__", "site-packages", "test", "tests"})
_OTHER_SYSTEMS = ("windows", "win32")
_RENAMED = {"_collections_abc": "collections.abc", "posixpath": "os.path"}
_MAX_SIGNATURE = 120
_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Definition:
    """``name`` is qualified ("json.dumps"); ``doc`` is cleaned of its indentation, ``None`` where there is none."""

    name: str
    kind: Kind
    signature: str | None
    doc: str | None


def source_definitions(library: Path, modules: Container[str]) -> list[Definition]:
    """Every public definition of the top-level ``modules`` in ``library``, in order of name; each name once.

    Raises ``SyntaxError`` for a file this Python cannot read: then ``library`` belongs to another one.
    """
    trees = {module: _parse(path) for module, path in sorted(_files(library, modules).items())}
    aliases = _aliases(trees)
    found: dict[str, Definition] = {}
    for module, tree in trees.items():
        for definition in _definitions(module, tree):
            name = _public_name(definition.name, aliases)
            if name is not None and (name not in found or found[name].doc is None):
                found[name] = replace(definition, name=name)
    return [found[name] for name in sorted(found)]


def _files(library: Path, modules: Container[str]) -> dict[str, Path]:
    """Module name -> file, private modules included: what they define may be public elsewhere."""
    files = {}
    for path in library.rglob("*.py"):
        parts = path.relative_to(library).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        if not parts or parts[0] not in modules or parts[0] in _SKIPPED or _SKIPPED_PARTS & set(parts):
            continue
        if parts[0] == "encodings" and len(parts) > 1:
            continue
        if any(word in part for part in parts for word in _OTHER_SYSTEMS):
            continue
        files[".".join(parts)] = path
    return files


def _parse(path: Path) -> ast.Module:
    with tokenize.open(path) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # about the library's own string escapes
        warnings.simplefilter("ignore", DeprecationWarning)
        return ast.parse(file.read(), str(path))


def _definitions(module: str, tree: ast.Module) -> Iterator[Definition]:
    yield Definition(module, "module", None, ast.get_docstring(tree))
    for node in _statements(tree.body):
        yield from _definition(module, node, inside_class=False)
    yield from _bound_methods(module, tree)


def _definition(prefix: str, node: ast.stmt, *, inside_class: bool) -> Iterator[Definition]:
    if isinstance(node, ast.ClassDef):
        name = f"{prefix}.{node.name}"
        yield Definition(name, "class", None, ast.get_docstring(node))
        for child in _statements(node.body):
            yield from _definition(name, child, inside_class=True)
    elif isinstance(node, _Function) and not _is_property(node):
        kind: Kind = "method" if inside_class else "function"
        yield Definition(f"{prefix}.{node.name}", kind, _signature(node, inside_class), ast.get_docstring(node))


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """``body`` with the branches of ``if``, ``try`` and ``with`` laid flat, first branches first."""
    for node in body:
        if isinstance(node, ast.If | ast.Try | ast.With):
            yield from _statements(node.body)
            if isinstance(node, ast.Try):
                for handler in node.handlers:
                    yield from _statements(handler.body)
            if not isinstance(node, ast.With):
                yield from _statements(node.orelse)
        else:
            yield node


def _is_property(node: _Function) -> bool:
    """Read as an attribute, or one of several declarations of one function: not what somebody calls."""
    names = {ast.unparse(decorator).rpartition(".")[2] for decorator in node.decorator_list}
    return bool(
        names & {"property", "cached_property", "setter", "getter", "deleter", "overload", "DynamicClassAttribute"}
    )


def _signature(node: _Function, inside_class: bool) -> str | None:
    arguments = ast.unparse(node.args)
    static = any(isinstance(item, ast.Name) and item.id == "staticmethod" for item in node.decorator_list)
    if inside_class and not static:
        arguments = arguments.partition(",")[2].lstrip().removeprefix("/, ")
    signature = f"({arguments})"
    return signature if len(signature) <= _MAX_SIGNATURE else None


def _bound_methods(module: str, tree: ast.Module) -> Iterator[Definition]:
    """Functions that are methods of a hidden object: ``_inst = Random(); randint = _inst.randint``."""
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    objects: dict[str, ast.ClassDef] = {}
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Call(func=ast.Name(id=made))) if made in classes:
                objects[name] = classes[made]
            case ast.Assign(
                targets=[ast.Name(id=name)], value=ast.Attribute(value=ast.Name(id=owner), attr=attribute)
            ) if owner in objects:
                for child in objects[owner].body:
                    if isinstance(child, _Function) and child.name == attribute:
                        signature = _signature(child, inside_class=True)
                        yield Definition(f"{module}.{name}", "function", signature, ast.get_docstring(child))


def _aliases(trees: dict[str, ast.Module]) -> dict[str, str]:
    """Where a package offers what its own modules define: "asyncio.tasks.sleep" -> "asyncio.sleep"."""
    packages = {module.rpartition(".")[0] for module in trees}
    aliases: dict[str, str] = {}
    for package in sorted(packages & set(trees), key=lambda name: (name.count("."), name)):
        if _is_private(package):
            continue
        exported = _literal_all(trees[package])
        for node in _statements(trees[package].body):
            if not isinstance(node, ast.ImportFrom):
                continue
            origin = f"{package}.{node.module}" if node.level == 1 and node.module else node.module or ""
            if not origin.startswith(f"{package}.") or origin not in trees or node.level > 1:
                continue
            for name, public in _imported(node, trees[origin]):
                if not public.startswith("_") and (exported is None or public in exported):
                    aliases.setdefault(f"{origin}.{name}", f"{package}.{public}")
    return aliases


def _imported(node: ast.ImportFrom, origin: ast.Module) -> Iterator[tuple[str, str]]:
    """(name in the module it comes from, name it gets)."""
    for alias in node.names:
        if alias.name != "*":
            yield alias.name, alias.asname or alias.name
            continue
        exported = _literal_all(origin)
        for child in _statements(origin.body):
            if isinstance(child, ast.ClassDef | _Function) and (exported is None or child.name in exported):
                yield child.name, child.name


def _literal_all(tree: ast.Module) -> set[str] | None:
    """The names ``__all__`` lists; ``None`` where it is absent or computed."""
    names: set[str] | None = None
    for node in _statements(tree.body):
        match node:
            case (
                ast.Assign(targets=[ast.Name(id="__all__")], value=value)
                | ast.AugAssign(target=ast.Name(id="__all__"), value=value)
            ):
                try:
                    names = (names or set()) | set(ast.literal_eval(value))
                except ValueError:
                    return None
    return names


def _public_name(name: str, aliases: dict[str, str]) -> str | None:
    """The name to use for ``name``; ``None`` when no part of the public interface has it."""
    parts = name.split(".")
    for length in range(len(parts), 1, -1):
        alias = aliases.get(".".join(parts[:length]))
        if alias is not None:
            name = ".".join([alias, *parts[length:]])
            break
    first, _, rest = name.partition(".")
    if first in _RENAMED:
        name = f"{_RENAMED[first]}.{rest}" if rest else _RENAMED[first]
    return None if _is_private(name) else name


def _is_private(name: str) -> bool:
    return any(part.startswith("_") for part in name.split("."))
