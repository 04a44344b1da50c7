"""Gathers the facts: reads files, asks the kernel, tries ports, calls nvidia-smi and the hub.

In: what the command was told and the environment; out: :class:`Facts`.  Needs no privileges, writes nothing, never
loads torch, and takes five seconds at worst: each call that can hang has a bound.
A thing that a system does not tell is a default of the facts, not an error.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from penstock.cli.diagnosis import network
from penstock.cli.diagnosis.facts import Cpu, Facts, Gpu, Memory, Model, Place, Port, RunDirectory, Torch
from penstock.cluster.rundir import running
from penstock.engine.cpu.cgroup import cpu_quota
from penstock.engine.cpu.cores import usable_cpus
from penstock.engine.cpu.memory import free_memory_bytes

ENGINE_PACKAGES = ("jinja2", "llguidance", "numba", "numpy", "safetensors", "tokenizers")


def gather(model: Model, home: Path, ports: dict[str, int], environment: Mapping[str, str]) -> Facts:
    """Every fact.  ``home`` is PENSTOCK_HOME; ``ports`` maps an option to the port it would choose."""
    with ThreadPoolExecutor(max_workers=2) as pool:  # the slow ones wait at the same time
        hub = pool.submit(network.hub, environment)
        gpus = pool.submit(_gpus)
        ours = _service_ports(home)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        gpu_list, gpu_problem = gpus.result()
        return Facts(
            system=platform.system(),
            python=sys.version_info[:3],
            torch=_torch(),
            missing_packages=[name for name in ENGINE_PACKAGES if importlib.util.find_spec(name) is None],
            cpu=read_cpu(),
            gpus=gpu_list,
            gpu_problem=gpu_problem,
            memory=Memory(total_bytes=psutil.virtual_memory().total, free_bytes=free_memory_bytes()),
            model=model,
            ports=[
                Port(number=number, option=option, holder=network.holder(number, ours))
                for option, number in ports.items()
            ],
            places=[_place("HF_HOME", _hf_home(environment)), _place("PENSTOCK_HOME", home)],
            hub=hub.result(),
            open_files_soft=_finite(soft),
            open_files_hard=_finite(hard),
            run_directory=_run_directory(home / "run"),
        )


def _service_ports(home: Path) -> set[int]:
    try:
        services = running(home)
    except OSError:  # not ours to read: the finding about the run directory tells
        return set()
    return {urlsplit(url).port or 0 for service in services for url in (service.url, service.admin_url)}


def _torch() -> Torch | None:
    """Version and build as torch's own version.py states them, without the seconds that importing it takes."""
    try:
        distribution = importlib.metadata.distribution("torch")
    except importlib.metadata.PackageNotFoundError:
        return None
    stated = Path(str(distribution.locate_file("torch/version.py")))
    text = stated.read_text() if stated.is_file() else ""
    return Torch(version=distribution.version, cuda=_assigned(text, "cuda"), rocm=_assigned(text, "hip"))


def _assigned(text: str, name: str) -> str | None:
    match = re.search(rf"^{name}\b[^=\n]*=\s*['\"]([^'\"]+)['\"]", text, re.MULTILINE)
    return match[1] if match else None


def read_cpu() -> Cpu:
    """The processor, and what of it this process may use."""
    model, flags = read_cpuinfo(_text(Path("/proc/cpuinfo")))
    return Cpu(
        model=model or platform.processor() or platform.machine(),
        architecture=platform.machine(),
        flags=flags,
        cores=os.cpu_count() or 1,
        allowed_cores=len(usable_cpus()),
        quota_cores=cpu_quota(),
    )


def read_cpuinfo(text: str) -> tuple[str, frozenset[str]]:
    """Model name and flags of the first core; x86 calls them flags, Arm calls them Features."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip().lower(), value.strip())
    return fields.get("model name", ""), frozenset((fields.get("flags") or fields.get("features") or "").split())


def _gpus() -> tuple[list[Gpu], str]:
    if shutil.which("nvidia-smi") is None:
        return [], ""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [], f"nvidia-smi did not answer: {error}"
    if done.returncode:
        return [], f"nvidia-smi: {' '.join((done.stdout + done.stderr).split())}"
    return read_gpus(done.stdout), ""


def read_gpus(table: str) -> list[Gpu]:
    """nvidia-smi's rows of name, MiB and driver.  Unified-memory devices state no size: it counts as 0."""
    gpus = []
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) == 3:
            mib = int(cells[1]) if cells[1].isdigit() else 0
            gpus.append(Gpu(name=cells[0], memory_bytes=mib << 20, driver=cells[2]))
    return gpus


def _hf_home(environment: Mapping[str, str]) -> Path:
    """As huggingface_hub resolves it."""
    cache = environment.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(environment.get("HF_HOME") or f"{cache}/huggingface").expanduser()


def _place(variable: str, path: Path) -> Place:
    try:
        existing = next(p for p in (path, *path.absolute().parents) if p.exists())
        if not existing.is_dir():
            return Place(variable=variable, path=str(path), problem=f"{existing} is not a directory")
        free = shutil.disk_usage(existing).free
    except OSError as error:
        return Place(variable=variable, path=str(path), problem=error.strerror or str(error))
    writable = os.access(existing, os.W_OK | os.X_OK)
    return Place(variable=variable, path=str(path), free_bytes=free, problem="" if writable else "not writable")


def _run_directory(path: Path) -> RunDirectory:
    try:
        state = path.stat()
    except OSError:  # not there yet, or hidden with its parent, which PENSTOCK_HOME's own finding reports
        return RunDirectory(path=str(path))
    return RunDirectory(path=str(path), mode=state.st_mode, owned=state.st_uid == os.getuid())


def _finite(limit: int) -> int:
    return 1 << 30 if limit == resource.RLIM_INFINITY else limit


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
