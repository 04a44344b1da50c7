"""Installs torch into the environment that runs this: the CPU build unless there is a reason for another.

In: TORCH (auto, cpu, cuda, or a wheel's path or URL) as argument, PYTORCH_INDEX from the environment.
Out: torch 2.13.0 installed, or exit status 1 with a message that says what to do.  Standard library only.
Never downloads the CUDA build, which is gigabytes, unless asked to or an NVIDIA driver answers.
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

VERSION = "2.13.0"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
CUDA_SIZE = "about 2.7 GB to download"

Run = Callable[[Sequence[str]], bool]
"""Runs a command; true when it exits with 0."""


@dataclass(frozen=True)
class Machine:
    """What the choice depends on.  ``installed`` is the version of torch that is here, empty when there is none."""

    linux: bool
    installed: str
    has_local_wheel: Callable[[], bool]
    """Whether pip finds torch without any index: a configured find-links folder, as on a machine without network."""
    has_nvidia_driver: Callable[[], bool]


@dataclass(frozen=True)
class Step:
    """What to tell the user, the arguments of ``pip install`` (none: nothing to do), and what to say if it fails."""

    say: str
    pip: tuple[str, ...] = ()
    on_failure: str = ""


def choose(torch: str, machine: Machine, cpu_index: str) -> Step:
    """The step that satisfies ``TORCH=torch`` on this machine."""
    if torch not in ("auto", "cpu", "cuda"):
        return Step(
            f"torch: {torch}", (torch,), f"pip could not install TORCH={torch}; it must be a wheel's path or URL."
        )
    if _fits(torch, machine):
        return Step(f"torch {machine.installed} is installed already")
    if torch == "auto":
        if machine.has_local_wheel():
            return Step(
                f"torch {VERSION}: the wheel that pip is configured to find", ("--no-index", "--no-deps", _pin())
            )
        if machine.linux and machine.has_nvidia_driver():
            torch = "cuda"
    if torch == "cuda":
        return _cuda()
    return _cpu(machine.linux, cpu_index)


def _fits(torch: str, machine: Machine) -> bool:
    version, _, build = machine.installed.partition("+")
    if version != VERSION:
        return False
    is_cpu = build == "cpu" or not machine.linux
    return torch == "auto" or (torch == "cpu") == is_cpu


def _cuda() -> Step:
    # "===" compares the whole string, so that a "+cpu" wheel in a find-links folder is no match.
    return Step(
        f"torch {VERSION}: the CUDA build ({CUDA_SIZE}; TORCH=cpu for the CPU build)",
        (f"torch==={VERSION}",),
        "The CUDA build could not be installed.  TORCH=cpu installs the CPU build instead.",
    )


def _cpu(linux: bool, cpu_index: str) -> Step:
    if not linux:
        return Step(f"torch {VERSION} (this system's own build)", (_pin(),), "pip could not install torch.")
    return Step(
        f"torch {VERSION}: the CPU build from {cpu_index} (about 200 MB)",
        ("--index-url", cpu_index, "--no-deps", "--retries", "1", "--timeout", "20", f"torch=={VERSION}+cpu"),
        f"The CPU build of torch {VERSION} could not be fetched from {cpu_index}; nothing was installed.  Either\n"
        "  set PYTORCH_INDEX to a mirror of that index that this machine reaches, or\n"
        f"  set PIP_FIND_LINKS to a folder that holds the wheel torch-{VERSION}+cpu-*.whl, or\n"
        f"  take the CUDA build from PyPI with TORCH=cuda ({CUDA_SIZE}; it runs on a CPU too).",
    )


def _pin() -> str:
    return f"torch=={VERSION}"


def this_machine(run: Run) -> Machine:
    """The machine this runs on; the two probes run only when the choice needs them."""
    probe = [*_PIP, "install", "--dry-run", "--quiet", "--ignore-installed", "--no-deps", "--no-index", _pin()]
    return Machine(
        linux=sys.platform == "linux",
        installed=_installed(),
        has_local_wheel=lambda: run(probe),
        has_nvidia_driver=lambda: run(["nvidia-smi", "-L"]),
    )


def _installed() -> str:
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return ""


_PIP = (sys.executable, "-m", "pip")


def _quietly(command: Sequence[str]) -> bool:
    try:
        return (
            subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0
        )
    except FileNotFoundError:
        return False


def main(arguments: list[str]) -> int:
    """Choose, say so, install.  The exit status."""
    torch = (arguments[0] if arguments else "") or "auto"
    step = choose(torch, this_machine(_quietly), os.environ.get("PYTORCH_INDEX") or CPU_INDEX)
    print(step.say, flush=True)
    if not step.pip:
        return 0
    if subprocess.run([*_PIP, "install", "--quiet", *step.pip], check=False).returncode == 0:
        return 0
    print(f"\n{step.on_failure or 'pip could not install torch.'}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
