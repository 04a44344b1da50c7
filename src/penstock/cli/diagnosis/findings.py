"""What the facts mean for serving a model, and what to do about it.

In: facts; out: findings, always the same ones in the same order.  Pure: looks at nothing itself.
``fail`` is kept for what stops ``penstock serve``; what makes it slow, small or offline is a ``warn``.
"""

from __future__ import annotations

import re
import stat

from penstock.cli.diagnosis.facts import Facts, Finding, Place, Port, Status, Torch
from penstock.cli.diagnosis.hardware import cores, gpu, instructions, memory, model
from penstock.cli.sizes import show_size

MIN_PYTHON = (3, 11)
MIN_TORCH = (2, 11)
MIN_OPEN_FILES = 4096
"""A streaming request holds two descriptors, and a thousand at once is an ordinary burst."""
ENGINE_EXTRA = "pip install 'penstock[engine]'"


def diagnose(facts: Facts) -> list[Finding]:
    """Every finding, most basic first."""
    return [
        _python(facts.python),
        _torch(facts.torch),
        _packages(facts.missing_packages),
        instructions(facts.cpu),
        cores(facts.cpu),
        gpu(facts),
        model(facts.model),
        memory(facts.memory, facts.model),
        *(_port(port) for port in facts.ports),
        *(_place(place) for place in facts.places),
        _hub(facts),
        _open_files(facts.open_files_soft, facts.open_files_hard),
        _run_directory(facts),
    ]


def _python(version: tuple[int, int, int]) -> Finding:
    detail = ".".join(map(str, version))
    if version[:2] < MIN_PYTHON:
        wanted = ".".join(map(str, MIN_PYTHON))
        return Finding("python", "fail", f"{detail}; Penstock needs {wanted} or later", f"Install Python {wanted}.")
    return Finding("python", "ok", detail)


def _torch(torch: Torch | None) -> Finding:
    wanted = ".".join(map(str, MIN_TORCH))
    if torch is None:
        return Finding("torch", "fail", "not installed; an engine process cannot start without it", ENGINE_EXTRA)
    build = f"CUDA {torch.cuda}" if torch.cuda else f"ROCm {torch.rocm}" if torch.rocm else "CPU"
    detail = f"{torch.version}, {build} build"
    release = re.match(r"(\d+)\.(\d+)", torch.version)
    if release is None:
        return Finding("torch", "warn", f"{detail}; its version cannot be read", f"pip install 'torch>={wanted}'")
    if (int(release[1]), int(release[2])) < MIN_TORCH:
        return Finding("torch", "fail", f"{detail}; Penstock needs {wanted} or later", f"pip install 'torch>={wanted}'")
    return Finding("torch", "ok", detail)


def _packages(missing: list[str]) -> Finding:
    if missing:
        return Finding("packages", "fail", f"an engine process needs {', '.join(missing)}", ENGINE_EXTRA)
    return Finding("packages", "ok", "all that an engine process needs")


def _port(port: Port) -> Finding:
    name = f"port {port.number}"
    other = f"Choose another with {port.option}"
    match port.holder:
        case "free":
            return Finding(name, "ok", "free")
        case "penstock":
            return Finding(name, "ok", "held by a running penstock", f"{other} for a second one.")
        case "forbidden":
            return Finding(name, "fail", "this user may not listen on it", f"{other}, above 1023.")
        case "other":
            return Finding(name, "fail", "held by another program", f"{other}, or end that program.")


# Bytes below which a start fails and below which room is scarce: the hub's cache takes whole models.
_ROOM = {"HF_HOME": (100 << 20, 5 << 30), "PENSTOCK_HOME": (100 << 20, 1 << 30)}


def _place(place: Place) -> Finding:
    name = place.variable
    move = f"Set {place.variable} to a directory elsewhere"
    if place.problem:
        return Finding(name, "fail", f"{place.path}: {place.problem}", f"{move}, or correct its permissions.")
    detail = f"{place.path}: {show_size(place.free_bytes)} free"
    least, scarce = _ROOM[place.variable]
    if place.free_bytes < scarce:
        status: Status = "fail" if place.free_bytes < least else "warn"
        return Finding(name, status, detail, f"{move}, or free some space.")
    return Finding(name, "ok", detail)


def _hub(facts: Facts) -> Finding:
    hub = facts.hub
    token = "with HF_TOKEN" if hub.has_token else "without HF_TOKEN (gated models need one)"
    local = "Local directories and models already fetched work; "
    if hub.offline:
        return Finding("hub", "warn", "HF_HUB_OFFLINE is set: nothing is fetched", f"{local}unset it for the others.")
    if hub.problem:
        fix = f"{local}for the others check the network, HTTPS_PROXY and HF_ENDPOINT."
        return Finding("hub", "warn", f"{hub.endpoint}: {hub.problem}", fix)
    return Finding("hub", "ok", f"{hub.endpoint} answers, {token}")


def _open_files(soft: int, hard: int) -> Finding:
    detail = f"at most {soft} at once (hard limit {hard})"
    if soft < MIN_OPEN_FILES:
        reach = min(hard, 65536)
        fix = f"ulimit -n {reach}" if reach >= MIN_OPEN_FILES else "Raise the hard limit (LimitNOFILE, nofile)."
        return Finding("open files", "warn", f"{detail}; a burst of connections will be refused", fix)
    return Finding("open files", "ok", detail)


def _run_directory(facts: Facts) -> Finding:
    run = facts.run_directory
    if run.mode is None:
        return Finding("run directory", "ok", f"{run.path}: made at the first start")
    if not run.owned:
        return Finding("run directory", "fail", f"{run.path} belongs to another user", "Set PENSTOCK_HOME to your own.")
    if stat.S_IMODE(run.mode) & 0o077:
        detail = f"{run.path} has mode {stat.S_IMODE(run.mode):04o}: others can reach the engines' sockets"
        return Finding("run directory", "warn", detail, f"chmod 700 {run.path}")
    return Finding("run directory", "ok", run.path)
