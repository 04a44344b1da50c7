"""Runs the steps of a Dockerfile's first stage in a fresh folder, where no container engine is at hand.

In: a Dockerfile; out: each step's command and time, exit status 1 at the first that fails.  Absolute paths of the
image become paths under the folder; steps for the system's packages and users need a container and are named instead.
Usage: python tools/run_dockerfile.py Dockerfile [FOLDER]
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IMAGE_PATHS = ("/opt/penstock", "/build")
NEEDS_CONTAINER = ("apt-get", "useradd")


def steps(text: str) -> Iterator[tuple[str, str]]:
    """Instruction and argument of the first stage, continuation lines joined, comments left out."""
    joined = re.sub(r"\\\n\s*", " ", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE))
    stages = 0
    for line in filter(None, map(str.strip, joined.splitlines())):
        instruction, _, argument = line.partition(" ")
        stages += instruction == "FROM"
        if stages > 1:
            return
        yield instruction, argument


def main(arguments: list[str]) -> int:
    """The exit status of the first step that fails, else 0."""
    folder = Path(arguments[1] if len(arguments) > 1 else tempfile.mkdtemp(prefix="dockerfile-")).resolve()
    environment = dict(os.environ)
    work = folder

    def placed(text: str) -> str:
        for path in IMAGE_PATHS:
            text = re.sub(rf"(?<![\w.]){path}\b", str(folder) + path, text)
        return text

    for instruction, argument in steps((ROOT / arguments[0]).read_text()):
        if instruction == "WORKDIR":
            work = Path(placed(argument))
            work.mkdir(parents=True, exist_ok=True)
        elif instruction in ("ENV", "ARG"):
            for name, value in re.findall(r"(\w+)=(\S+)", argument):
                if instruction == "ENV" or name not in environment:  # an argument of the build may come from outside
                    environment[name] = placed(value).replace("$PATH", environment["PATH"])
        elif instruction == "COPY":
            _copy(argument.split(), work)
        elif instruction == "RUN":
            status = _run(placed(argument), work, environment)
            if status:
                return status
    print(f"every step of {arguments[0]} ran in {folder}")
    return 0


def _copy(names: list[str], work: Path) -> None:
    *sources, target = names
    for source in sources:
        to = work / target if not target.endswith("/") and len(sources) == 1 else work / target / Path(source).name
        to.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, to, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
        else:
            shutil.copy(ROOT / source, to)


def _run(command: str, work: Path, environment: dict[str, str]) -> int:
    parts = [part.strip() for part in command.split("&&")]
    left_out = [part for part in parts if part.startswith((*NEEDS_CONTAINER, "rm -rf /var", "install -d"))]
    for part in left_out:
        print(f"needs a container: {part}")
    here = " && ".join(part for part in parts if part not in left_out)
    if not here:
        return 0
    started = time.perf_counter()
    status = subprocess.run(["/bin/sh", "-ec", here], cwd=work, env=environment, check=False).returncode
    print(f"{time.perf_counter() - started:6.1f} s, status {status}: {here}", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
