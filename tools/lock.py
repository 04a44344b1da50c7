"""Writes the files in locks/: every package but torch, pinned, with the hashes of all its files.

In: pyproject.toml and the metadata of the torch that is installed (a CPU build will do); out: three files for
``pip install --require-hashes``.  Needs pip-tools and the package index.  Torch is left out because its CPU and CUDA
builds share a version but not a hash (tools/install_torch.py installs it); its dependencies are pinned here.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_TEST = ["engine", "postgres", "redis", "test", "dev"]
LOCKS = {"serve": ["engine"], "test": _TEST, "test-all": [*_TEST, "test-all"]}
"""Each contains the one before it, at the same versions."""

CUDA_ONLY = ("nvidia-", "cuda-", "triton")
"""Dependencies of torch that only its CUDA build has; they arrive with that build."""

INSTALLED_APART = ("torch==", *CUDA_ONLY)
"""What other packages may pull into a lock, and what installing torch brings."""

EDITABLE = "editables"
"""What hatchling needs on top of itself for ``pip install -e .``."""

HEADER = """\
# Written by `make lock` from pyproject.toml; do not edit.
# Install torch first (tools/install_torch.py), then: pip install --require-hashes -r {path}
"""


def main() -> None:
    """Rewrite every lock."""
    constraints: list[Path] = []
    for name in LOCKS:
        path = ROOT / "locks" / f"{name}.txt"
        text = compile_lock(requirements(LOCKS[name]), constraints, path)
        path.write_text(HEADER.format(path=f"locks/{name}.txt") + body(text))
        print(f"{path.relative_to(ROOT)}: {len(pins(path.read_text()))} packages")
        constraints = [path]


def requirements(extras: list[str]) -> list[str]:
    """The direct requirements of an installation with ``extras``, torch replaced by what torch needs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [*project["build-system"]["requires"], EDITABLE, *project["project"]["dependencies"]]
    for extra in extras:
        wanted += project["project"]["optional-dependencies"][extra]
    return [line for line in wanted if name_of(line) != "torch"] + torch_requirements()


def torch_requirements() -> list[str]:
    """What the installed torch depends on, without extras and without the CUDA libraries."""
    lines = importlib.metadata.requires("torch") or []
    return [line for line in lines if "extra ==" not in line and not name_of(line).startswith(CUDA_ONLY)]


def name_of(requirement: str) -> str:
    """The normalised name at the head of a requirement line."""
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match, requirement
    return re.sub(r"[-_.]+", "-", match.group()).lower()


def compile_lock(wanted: list[str], constraints: list[Path], output: Path) -> str:
    """Run pip-compile; versions already in ``output`` are kept unless UPGRADE=1.  Exits with its status if it fails."""
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch, "requirements.in")
        source.write_text("\n".join(wanted) + "\n")
        torch = Path(scratch, "torch.txt")
        torch.write_text(f"torch=={importlib.metadata.version('torch').partition('+')[0]}\n")
        target = Path(scratch, "requirements.txt")
        if output.exists() and not os.environ.get("UPGRADE"):
            target.write_text(output.read_text())
        command = [sys.executable, "-m", "piptools", "compile", "--quiet", "--generate-hashes", "--strip-extras"]
        command += ["--allow-unsafe", "--no-header", "--no-annotate", "--no-emit-options"]
        for path in (torch, *constraints):
            command += ["--constraint", str(path)]
        command += ["--output-file", str(target), str(source)]
        status = subprocess.run(command, check=False).returncode
        if status:
            sys.exit(status)
        return target.read_text()


def body(compiled: str) -> str:
    """The pins and hashes alone, torch left out: no comment, no option, so that no index address can slip in."""
    entries = re.split(r"^(?=\S)", compiled, flags=re.MULTILINE)
    kept = "".join(entry for entry in entries if not entry.startswith(INSTALLED_APART))
    lines = [line for line in kept.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    strange = [line for line in lines if not re.match(r"(    --hash=sha256:[0-9a-f]{64}|[a-z0-9][a-z0-9.-]*==)", line)]
    assert not strange, strange
    return "\n".join(lines) + "\n"


def pins(text: str) -> list[str]:
    """The ``name==version`` lines of a lock."""
    return re.findall(r"^[a-z0-9][a-z0-9.-]*==[^\s;]+", text, flags=re.MULTILINE)


if __name__ == "__main__":
    main()
