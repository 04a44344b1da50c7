"""Findings: what made-up facts about a machine lead to."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from penstock.cli.diagnosis.facts import (
    Cpu,
    Facts,
    Finding,
    Gpu,
    Hub,
    Memory,
    Model,
    Place,
    Port,
    RunDirectory,
    Torch,
)
from penstock.cli.diagnosis.findings import MIN_PYTHON, MIN_TORCH, diagnose

GB = 1 << 30
X86 = frozenset({"avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16"})
SMALL = Model(
    name="small",
    directory="/models/small",
    weights_bytes=2 * GB,
    kv_bytes_per_token=100_000,
    context_tokens=32_768,
    workspace_bytes=GB // 10,
)
HEALTHY = Facts(
    system="Linux",
    python=(3, 12, 1),
    torch=Torch(version="2.13.0+cpu"),
    missing_packages=[],
    cpu=Cpu(model="Xeon", architecture="x86_64", flags=X86, cores=8, allowed_cores=8),
    gpus=[],
    gpu_problem="",
    memory=Memory(total_bytes=64 * GB, free_bytes=48 * GB),
    model=SMALL,
    ports=[Port(number=8000, option="--port", holder="free"), Port(number=8001, option="--admin-port", holder="free")],
    places=[
        Place(variable="HF_HOME", path="/cache/hf", free_bytes=100 * GB),
        Place(variable="PENSTOCK_HOME", path="/cache/penstock", free_bytes=100 * GB),
    ],
    hub=Hub(endpoint="https://hub.example"),
    open_files_soft=65536,
    open_files_hard=65536,
    run_directory=RunDirectory(path="/home/me/.cache/penstock/run", mode=0o40700),
)


def find(name: str, **changes: Any) -> Finding:
    """The one finding of that name, on the healthy machine with these changes."""
    (finding,) = [f for f in diagnose(msgspec.structs.replace(HEALTHY, **changes)) if f.name == name]
    return finding


def test_a_healthy_machine_has_nothing_to_fix() -> None:
    """Every finding is ok, names are unique, and no advice is given."""
    findings = diagnose(HEALTHY)
    assert {finding.status for finding in findings} == {"ok"}
    assert len({finding.name for finding in findings}) == len(findings)
    assert not any(finding.fix for finding in findings)


_CASES: list[tuple[str, str, dict[str, Any], str]] = [
    ("python", "fail", {"python": (3, 10, 9)}, "3.11"),
    ("torch", "fail", {"torch": None}, "penstock[engine]"),
    ("torch", "fail", {"torch": Torch(version="2.10.1+cu130", cuda="13.0")}, "torch>=2.11"),
    ("torch", "warn", {"torch": Torch(version="nightly")}, "torch>=2.11"),
    ("packages", "fail", {"missing_packages": ["tokenizers"]}, "penstock[engine]"),
    ("cpu instructions", "warn", {"cpu": Cpu(architecture="x86_64", flags=frozenset({"sse4_2"}))}, "virtual machine"),
    ("cores", "warn", {"cpu": Cpu(flags=X86, cores=8, allowed_cores=8, quota_cores=0.5)}, "one core"),
    ("gpu", "warn", {"gpu_problem": "nvidia-smi: Driver/library version mismatch"}, "driver"),
    ("model", "fail", {"model": Model(name="x", problem="There is no directory /x.")}, "directory"),
    ("memory", "fail", {"memory": Memory(total_bytes=2 * GB, free_bytes=GB)}, "smaller model"),
    ("memory", "fail", {"memory": Memory(total_bytes=3 * GB, free_bytes=2 * GB + GB // 10)}, "smaller model"),
    ("memory", "warn", {"memory": Memory(total_bytes=4 * GB, free_bytes=4 * GB)}, "--max-model-len"),
    ("port 8000", "fail", {"ports": [Port(number=8000, option="--port", holder="other")]}, "--port"),
    ("port 80", "fail", {"ports": [Port(number=80, option="--port", holder="forbidden")]}, "above 1023"),
    ("HF_HOME", "fail", {"places": [Place(variable="HF_HOME", path="/ro", problem="not writable")]}, "HF_HOME"),
    ("HF_HOME", "warn", {"places": [Place(variable="HF_HOME", path="/c", free_bytes=GB)]}, "free some space"),
    ("PENSTOCK_HOME", "fail", {"places": [Place(variable="PENSTOCK_HOME", path="/c", free_bytes=9)]}, "PENSTOCK_HOME"),
    ("hub", "warn", {"hub": Hub(endpoint="https://h", offline=True)}, "unset it"),
    ("hub", "warn", {"hub": Hub(endpoint="https://h", problem="timed out")}, "HTTPS_PROXY"),
    ("open files", "warn", {"open_files_soft": 1024}, "ulimit -n 65536"),
    ("open files", "warn", {"open_files_soft": 1024, "open_files_hard": 1024}, "LimitNOFILE"),
    ("run directory", "warn", {"run_directory": RunDirectory(path="/h/run", mode=0o40755)}, "chmod 700 /h/run"),
    ("run directory", "fail", {"run_directory": RunDirectory(path="/h/run", mode=0o40700, owned=False)}, "your own"),
]


@pytest.mark.parametrize(("name", "status", "changes", "advice"), _CASES)
def test_each_trouble_is_found_with_its_fix(name: str, status: str, changes: dict[str, Any], advice: str) -> None:
    """The finding has the status that fits and advice that names what to type or to change."""
    finding = find(name, **changes)
    assert finding.status == status, finding
    assert advice in finding.fix


@pytest.mark.parametrize(("name", "status", "changes", "advice"), _CASES)
def test_one_trouble_is_one_finding(name: str, status: str, changes: dict[str, Any], advice: str) -> None:
    """Nothing else turns red because of it, so the reader sees the cause and not its echo."""
    findings = diagnose(msgspec.structs.replace(HEALTHY, **changes))
    assert [f.name for f in findings if f.status != "ok"] == [name]


def test_a_port_held_by_penstock_is_fine() -> None:
    """Running the doctor beside a running service is no failure."""
    finding = find("port 8000", ports=[Port(number=8000, option="--port", holder="penstock")])
    assert finding.status == "ok" and "running penstock" in finding.detail


def test_the_memory_warning_names_a_length_that_then_fits() -> None:
    """Following the advice ends the warning."""
    tight = Memory(total_bytes=4 * GB, free_bytes=4 * GB)
    fits = int(find("memory", memory=tight).fix.split("--max-model-len ")[1].split(",")[0])
    assert 256 <= fits < SMALL.context_tokens
    shorter = msgspec.structs.replace(SMALL, context_tokens=fits)
    assert find("memory", memory=tight, model=shorter).status == "ok"


def test_a_quota_is_stated() -> None:
    """The engine takes as many threads as it is granted cores, so a quota above one core is no trouble."""
    finding = find("cores", cpu=Cpu(flags=X86, cores=8, allowed_cores=8, quota_cores=2.5))
    assert finding.status == "ok" and "grants 2.5" in finding.detail


def test_a_model_that_is_not_here_yet_is_no_trouble() -> None:
    """Its size is not known, so its memory is not judged."""
    model = Model(name="org/name")
    assert find("model", model=model).status == "ok"
    assert find("memory", model=model).detail == "48.0 GiB free of 64.0 GiB"


@pytest.mark.parametrize(
    ("cpu", "said"),
    [
        (Cpu(model="M4", architecture="arm64"), "does not list"),
        (Cpu(architecture="aarch64", flags=frozenset({"asimd", "bf16", "i8mm"})), "bf16, i8mm"),
        (Cpu(architecture="aarch64", flags=frozenset({"asimd"})), "neither bf16"),
        (Cpu(model="Zen 3", architecture="x86_64", flags=frozenset({"avx2"})), "widened to float32"),
        (Cpu(model="Xeon", architecture="x86_64", flags=X86), "amx_bf16 (bf16 matrix tiles)"),
    ],
)
def test_every_kind_of_cpu_is_described(cpu: Cpu, said: str) -> None:
    """The line says what the instructions mean for bf16, also where the system lists none."""
    finding = find("cpu instructions", cpu=cpu)
    assert finding.status == "ok" and said in finding.detail


def test_a_gpu_is_named_and_not_promised() -> None:
    """The engine of this release computes on the CPU, and the finding says so."""
    finding = find("gpu", gpus=[Gpu(name="NVIDIA L4", memory_bytes=24 * GB, driver="580.1")])
    assert finding.status == "ok"
    assert "NVIDIA L4 (24.0 GiB), driver 580.1" in finding.detail and "CPU" in finding.detail


def test_the_versions_agree_with_the_package() -> None:
    """What the doctor demands is what pip was told."""
    root = next(p for p in Path(__file__).parents if (p / "pyproject.toml").is_file())
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == ">=" + ".".join(map(str, MIN_PYTHON))
    torch = [r for r in project["optional-dependencies"]["engine"] if r.startswith("torch")]
    assert torch == ["torch>=" + ".".join(map(str, MIN_TORCH))]
