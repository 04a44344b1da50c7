"""Other gateways that ``penstock bench gateway --peers`` measures beside ours, each in an environment of its own.

In: where their programs are; out: how each is started in front of a mock engine, or why it is left out.
Adding one: a function and its line in ``PEERS``.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from penstock.cli.bench_rig import HOST, MODEL, free_port, process
from penstock.loadgen.doorbench import Door
from penstock.wire.errors import Problem

Launch = Callable[[str, Door, Path], AbstractAsyncContextManager[Door]]
"""(program, upstream, directory for its files) -> the gateway while it runs."""

_SLOW_START_S = 180.0


@asynccontextmanager
async def litellm(program: str, upstream: Door, directory: Path) -> AsyncIterator[Door]:
    """LiteLLM's proxy with one worker and no database."""
    port = free_port()
    target = {"model": f"openai/{MODEL}", "api_base": f"http://{HOST}:{upstream.port}/v1", "api_key": "none"}
    settings = {
        "model_list": [{"model_name": MODEL, "litellm_params": target}],
        "litellm_settings": {"num_retries": 0, "telemetry": False},
    }
    config = directory / f"litellm-{port}.yaml"  # JSON is YAML
    config.write_text(json.dumps(settings))
    command = [program, "--config", str(config), "--host", HOST, "--port", str(port), "--num_workers", "1"]
    quiet = os.environ | {
        "LITELLM_LOG": "ERROR",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
    }
    async with process(command, port, "/health/liveliness", env=quiet, within_s=_SLOW_START_S) as door:
        yield door


@asynccontextmanager
async def smg(program: str, upstream: Door, directory: Path) -> AsyncIterator[Door]:
    """SGLang's gateway with one worker."""
    port = free_port()
    command = [program, "launch", "--host", HOST, "--port", str(port), "--policy", "round_robin"]
    command += ["--worker-urls", f"http://{HOST}:{upstream.port}", "--prometheus-port", str(free_port())]
    command += ["--log-level", "error", "--disable-retries"]
    async with process(command, port, "/readiness", within_s=_SLOW_START_S) as door:
        yield door


@asynccontextmanager
async def haproxy(program: str, upstream: Door, directory: Path) -> AsyncIterator[Door]:
    """HAProxy as a plain reverse proxy: what HTTP alone costs."""
    port = free_port()
    config = directory / f"haproxy-{port}.cfg"
    config.write_text(
        "global\n  nbthread 1\n  maxconn 8000\n"
        "defaults\n  mode http\n  timeout client 600s\n  timeout server 600s\n  timeout connect 5s\n"
        f"frontend bench\n  bind {HOST}:{port}\n  default_backend mock\n"
        f"backend mock\n  server mock {HOST}:{upstream.port}\n"
    )
    async with process([program, "-f", str(config), "-db"], port, "/health") as door:
        yield door


PEERS: dict[str, Launch] = {"litellm": litellm, "smg": smg, "haproxy": haproxy}


def chosen(names: str) -> list[str]:
    """The peers that ``--peers`` names: ``all``, or a list with commas.  Raises ``Problem``."""
    wanted = list(PEERS) if names == "all" else [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in PEERS]
    if unknown:
        raise Problem("invalid_setting", f"peers: {', '.join(unknown)} is none of {', '.join(PEERS)}.", param="--peers")
    return wanted


def program_of(name: str, folder: Path | None) -> str | None:
    """Its program in ``folder`` or else on the PATH; ``None``: it is not installed."""
    path = None if folder is None else str(folder)
    return (shutil.which(name, path=path) if path else None) or shutil.which(name)
