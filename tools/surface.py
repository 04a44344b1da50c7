"""What others can depend on, read from the code: routes, flags, error codes, events, settings, metric names.

In: the installed package; out: sorted lines, one per thing.  tests/surface/ holds them against its snapshots, and
tools/reference.py writes the pages of docs/reference/ from the same sources.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import msgspec
import typer.main

from penstock.cli.main import build
from penstock.config import mock, settings
from penstock.events import list as events
from penstock.events.metrics import CATALOGUE
from penstock.wire import engine as protocol
from penstock.wire.errors import ERRORS

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "penstock"

LISTENERS = {"data": "gateway/http", "admin": "cluster/admin", "engine": "engine/server"}
"""Which folder answers on which listener."""

SETTINGS = (
    settings.ServeSettings,
    settings.GatewaySettings,
    settings.EngineSettings,
    mock.MockSettings,
    mock.MockScript,
    mock.Fault,
)


@dataclass(frozen=True, order=True)
class Route:
    """One path of one listener; ``methods`` as the table of routes gives them, GET where it gives none."""

    listener: str
    path: str
    methods: tuple[str, ...]


def routes() -> list[Route]:
    """Every path that stands as a key in a table of routes of a listener's folder."""
    found: dict[tuple[str, str], set[str]] = {}
    for listener, folder in LISTENERS.items():
        for file in sorted((PACKAGE / folder).glob("*.py")):
            for path, method in _table_keys(ast.parse(file.read_text())):
                found.setdefault((listener, path), set()).add(method)
    return sorted(Route(listener, path, tuple(sorted(methods))) for (listener, path), methods in found.items())


def _table_keys(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Path and method of each route a file lists, in a dictionary or as ``Route(path, data=... or plain=...)``."""
    names = _constants(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            for key in node.keys:
                match key:
                    case ast.Constant(value=str(path)) if path.startswith("/"):
                        yield path, "GET"
                    case ast.Tuple(elts=[ast.Constant(value=str(method)), ast.Constant(value=str(path))]):
                        yield path, method
                    case ast.Tuple(elts=[ast.Constant(value=str(method)), ast.Attribute(attr=name)]):
                        yield getattr(protocol, name), method
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Route":
            method = "POST" if any(keyword.arg == "data" for keyword in node.keywords) else "GET"
            match node.args:
                case [ast.Constant(value=str(path)), *_]:
                    yield path, method
                case [ast.Name(id=name), *_]:
                    yield names[name], method


def _constants(tree: ast.Module) -> dict[str, str]:
    """The strings that a file names at its top level."""
    found = {}
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=str(text))):
                found[name] = text
    return found


@dataclass(frozen=True)
class Flag:
    """One option or argument of a command.  ``names`` is empty for an argument."""

    name: str
    names: tuple[str, ...]
    help: str
    default: str
    environment: str
    hidden: bool


@dataclass(frozen=True)
class Command:
    """One command with its place in the tree, such as ``penstock bench serve``."""

    path: str
    help: str
    hidden: bool
    flags: tuple[Flag, ...]


def commands() -> list[Command]:
    """The command line, leaves only, hidden commands included."""
    return sorted(_walk("penstock", typer.main.get_command(build())), key=lambda command: command.path)


def _walk(path: str, command: Any) -> Iterator[Command]:
    subcommands = getattr(command, "commands", None)
    flags = tuple(_flag(parameter) for parameter in command.params if parameter.name != "help")
    if flags or not subcommands:
        text = " ".join(inspect.cleandoc(command.help or "").split())
        yield Command(path, text, bool(command.hidden), flags)
    for name, sub in sorted((subcommands or {}).items()):
        yield from _walk(f"{path} {name}", sub)


def _flag(parameter: Any) -> Flag:
    names = () if parameter.param_type_name == "argument" else (*parameter.opts, *parameter.secondary_opts)
    names = tuple(name for name in names if name.startswith("-"))
    default = "" if parameter.default in (None, False, ()) or callable(parameter.default) else str(parameter.default)
    default = "" if "UNSET" in default.upper() else default
    environment = parameter.envvar if isinstance(parameter.envvar, str) else " ".join(parameter.envvar or ())
    text = " ".join((getattr(parameter, "help", None) or "").split())
    return Flag(str(parameter.name), names, text, default, environment, bool(getattr(parameter, "hidden", False)))


def environment_variables() -> list[str]:
    """Every ``PENSTOCK_*`` variable: those of flags, and those that the code names as a string of its own."""
    found = {flag.environment for command in commands() for flag in command.flags if flag.environment}
    for file in (PACKAGE / "cli").rglob("*.py"):
        found |= set(re.findall(r'"(PENSTOCK_[A-Z_]+)"', file.read_text()))
    return sorted(found)


def fields(struct: type[msgspec.Struct]) -> list[tuple[str, str, str]]:
    """Name, type and default of each field; the default is empty where a value is required."""
    annotations = inspect.get_annotations(struct)
    rows = []
    for field in msgspec.structs.fields(struct):
        if field.default_factory is not msgspec.NODEFAULT:
            default = repr(field.default_factory())
        else:
            default = "" if field.default is msgspec.NODEFAULT else repr(field.default)
        rows.append((field.name, str(annotations[field.name]), default))
    return rows


def event_types() -> list[type[msgspec.Struct]]:
    """Every event, in the order of the list."""
    return list(get_args(events.Event))


def snapshot() -> dict[str, list[str]]:
    """The whole surface: file name to sorted lines."""
    flags = []
    for command in commands():
        names = [" ".join(flag.names) or flag.name.upper() for flag in command.flags]
        flags += [f"{command.path} {name}" for name in names] or [command.path]
    return {
        "routes": [f"{route.listener} {' '.join(route.methods)} {route.path}" for route in routes()],
        "flags": sorted(flags),
        "environment": environment_variables(),
        "errors": sorted(f"{code} {spec.status} {spec.type}" for code, spec in ERRORS.items()),
        "events": sorted(
            f"{event.__name__}.{name}: {kind}" for event in event_types() for name, kind, _ in fields(event)
        ),
        "settings": sorted(
            f"{s.__name__}.{name}: {kind} = {d or '(required)'}" for s in SETTINGS for name, kind, d in fields(s)
        ),
        "metrics": sorted(f"{m.name} {m.kind} {' '.join(m.labels)}".rstrip() for m in CATALOGUE.values()),
    }
