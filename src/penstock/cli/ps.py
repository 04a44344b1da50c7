"""``penstock ps``: the services that run on this machine for this user, and the models of each.

In: run directories and each service's admin listener; out: a table, or JSON with ``--json``.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from penstock.cli.console import columns, print_json, program
from penstock.wire.errors import Problem

if TYPE_CHECKING:
    from penstock.cluster.rundir import Service
    from penstock.cluster.state import MemberState, ServiceState

_ADMIN_TIMEOUT_S = 2.0


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One model of a service.  ``phase``: the service's stage when it ends, else ``ready`` or that of a replica.

    ``kv_use`` is 0..1, ``None`` when unknown.
    ``quantization``: what weights are kept in; ``None`` while no replica has told.
    """

    model: str
    phase: str
    replicas: int | None
    replicas_ready: int | None
    restarts: int | None
    pid: int
    url: str
    admin_url: str
    uptime_s: float
    kv_use: float | None
    quantization: str | None
    version: str


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("ps", help="List the services that run on this machine.")(ps)


def ps(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the services that run on this machine."""
    from penstock.cli.home import penstock_home
    from penstock.cluster.rundir import running

    now = time.time()
    rows = [row for service in running(penstock_home()) for row in rows_of(service, _ask(service), now)]
    if as_json:
        print_json(rows)
    elif rows:
        typer.echo(table(rows))
    else:
        typer.echo(f"nothing is being served; start with: {program()} serve")


def rows_of(service: Service, state: ServiceState | None, now: float) -> list[Row]:
    """What is known of one service's models; ``state`` is ``None`` when its admin listener did not answer."""
    engines: dict[str, list[MemberState]] = {service.model: []}
    for member in [] if state is None else state.members:
        if member.kind == "engine":
            engines.setdefault(member.model or service.model, []).append(member)
    return [_row(service, model, state, members, now) for model, members in engines.items()]


def _row(service: Service, model: str, state: ServiceState | None, engines: list[MemberState], now: float) -> Row:
    ready = sum(member.phase == "ready" for member in engines)
    loads = [member.load for member in engines if member.load is not None]
    blocks = sum(load.kv_blocks_total for load in loads)
    return Row(
        model=model,
        phase=_phase(state, engines),
        replicas=None if state is None else len(engines),
        replicas_ready=None if state is None else ready,
        restarts=None if state is None else sum(member.restarts for member in engines),
        pid=service.pid,
        url=service.url,
        admin_url=service.admin_url,
        uptime_s=max(0.0, round(now - service.started_at, 1)),
        kv_use=sum(load.kv_blocks_used for load in loads) / blocks if blocks else None,
        quantization=next((load.quantization for load in loads if load.weights_bytes), None),
        version=service.version,
    )


def table(rows: list[Row]) -> str:
    """Columns wide enough for what they hold."""
    cells = [("MODEL", "REPLICAS", "PHASE", "PID", "URL", "UPTIME", "KV USE", "WEIGHTS", "RESTARTS")]
    for r in rows:
        cells.append(
            (
                r.model,
                "?" if r.replicas is None else f"{r.replicas_ready}/{r.replicas}",
                r.phase,
                str(r.pid),
                r.url,
                _duration(r.uptime_s),
                "-" if r.kv_use is None else f"{r.kv_use:.0%}",
                "-" if r.quantization is None else "as released" if r.quantization == "none" else r.quantization,
                "?" if r.restarts is None else str(r.restarts),
            )
        )
    return columns(cells)


def _phase(state: ServiceState | None, engines: list[MemberState]) -> str:
    if state is None:
        return "unreachable"
    if state.stage != "serving":
        return state.stage
    phases = {member.phase for member in engines}
    if state.ready and "ready" in phases:
        return "ready"
    return next((phase for phase in ("loading", "starting", "failed", "exited") if phase in phases), "starting")


def _ask(service: Service) -> ServiceState | None:
    from penstock.cli.admin_call import call_admin
    from penstock.cluster.state import ServiceState

    try:
        return call_admin(service, "GET", "/admin/state", ServiceState, timeout_s=_ADMIN_TIMEOUT_S)
    except Problem:
        return None  # shown as unreachable


def _duration(seconds: float) -> str:
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02}h"
