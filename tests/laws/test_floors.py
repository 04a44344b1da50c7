"""What import-linter cannot say about the floors; the contracts themselves stand in pyproject.toml."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "penstock"
EDGES = {"engine": {"cpu", "server"}, "gateway": {"http"}, "mock": {"http"}}


@pytest.mark.parametrize("room", sorted(EDGES))
def test_a_room_has_no_folder_beside_its_declared_edges(room: str) -> None:
    """The fence around the machines covers every file that is not in an edge."""
    folders = {path.name for path in (PACKAGE / room).iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == EDGES[room]


def test_every_room_is_named_in_the_map() -> None:
    """docs/architecture.md shows each folder directly under the package, and none that does not exist."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    shown = set(re.findall(r"^    (\w+)/ ", text, flags=re.MULTILINE))
    assert shown == {path.parent.name for path in PACKAGE.glob("*/__init__.py")}


def test_a_package_file_holds_a_docstring_and_nothing_that_imports() -> None:
    """Importing a room costs nothing but its name."""
    for path in PACKAGE.rglob("__init__.py"):
        assert not re.search(r"^\s*(import|from)\s", path.read_text(), flags=re.MULTILINE), path


def test_the_gateway_and_the_controller_run_without_torch() -> None:
    """The base install needs none of the engine's packages: importing both sides loads no torch."""
    lines = [
        "import importlib, pkgutil, sys, penstock",
        "for room in 'wire config events cost policy runtimes store observe loadgen gateway cluster mock'.split():",
        "    package = importlib.import_module(f'penstock.{room}')",
        "    for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):",
        "        importlib.import_module(module.name)",
        "assert not {'torch', 'tokenizers', 'safetensors', 'jinja2', 'numpy'} & set(sys.modules), sorted(sys.modules)",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_base_install_has_at_most_25_dependencies() -> None:
    """A new dependency is a decision."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert len(project["dependencies"]) <= 25
    assert not any(line.startswith("torch") for line in project["dependencies"])
