"""The facts about a machine that decide whether Penstock runs well on it.  Sizes in bytes.

Plain values between the probes, which gather them, and the findings, which judge them; nothing here does either.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Status = Literal["ok", "warn", "fail"]
Holder = Literal["free", "penstock", "other", "forbidden"]


class Finding(msgspec.Struct, frozen=True):
    """One line of the diagnosis.  ``fix`` says what to do, and is empty when there is nothing to do."""

    name: str
    status: Status
    detail: str
    fix: str = ""


class Torch(msgspec.Struct, frozen=True, kw_only=True):
    """``cuda`` and ``rocm`` are the toolkit's version that torch was built with; both ``None``: a CPU build."""

    version: str
    cuda: str | None = None
    rocm: str | None = None


class Cpu(msgspec.Struct, frozen=True, kw_only=True):
    """``flags`` as the kernel names them, empty where the system does not tell.

    ``allowed_cores``: those this process may run on; ``quota_cores``: what its control group grants, if bounded.
    """

    model: str = ""
    architecture: str = ""
    flags: frozenset[str] = frozenset()
    cores: int = 1
    allowed_cores: int = 1
    quota_cores: float | None = None


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    memory_bytes: int
    driver: str


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """``free_bytes``: what an engine that started now would find, control groups considered."""

    total_bytes: int
    free_bytes: int


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A model to serve.  ``directory`` is empty when it is not on this machine; ``problem``: why it cannot be read.

    ``kv_bytes_per_token`` 0: only the engine can tell.
    ``workspace_bytes``: what a step takes beside weights and KV cache, with the engine's default settings.
    """

    name: str
    directory: str = ""
    weights_bytes: int = 0
    kv_bytes_per_token: int = 0
    context_tokens: int = 0
    workspace_bytes: int = 0
    block_tokens: int = 32
    problem: str = ""


class Port(msgspec.Struct, frozen=True, kw_only=True):
    """A port on loopback and who holds it; ``option`` is the flag that chooses another one."""

    number: int
    option: str
    holder: Holder


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """A directory that is written to, and the environment variable that moves it.  ``problem``: why it cannot be."""

    variable: str
    path: str
    free_bytes: int = 0
    problem: str = ""


class Hub(msgspec.Struct, frozen=True, kw_only=True):
    """The model hub.  ``offline``: HF_HUB_OFFLINE is set; ``problem``: why it could not be reached, else empty."""

    endpoint: str
    offline: bool = False
    problem: str = ""
    has_token: bool = False


class RunDirectory(msgspec.Struct, frozen=True, kw_only=True):
    """Where sockets and the state of running services lie.  ``mode`` is ``None`` while it does not exist."""

    path: str
    mode: int | None = None
    owned: bool = True


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that the findings are drawn from.  ``gpu_problem``: what nvidia-smi complained about."""

    system: str
    python: tuple[int, int, int]
    torch: Torch | None
    missing_packages: list[str]
    cpu: Cpu
    gpus: list[Gpu]
    gpu_problem: str
    memory: Memory
    model: Model
    ports: list[Port]
    places: list[Place]
    hub: Hub
    open_files_soft: int
    open_files_hard: int
    run_directory: RunDirectory
