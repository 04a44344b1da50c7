"""``penstock upgrade MODEL SOURCE``: other weights behind a name, one replica after the other, without losing a stream.

In: a served name and a source; out: progress on standard error, and how it ended, as JSON with ``--json``.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.cli.console import print_json, say
from penstock.wire.errors import Problem

if TYPE_CHECKING:
    from penstock.cluster.rundir import Service
    from penstock.cluster.upgrade import UpgradeView

_TIMEOUT_S = 10.0
_POLL_S = 0.2
_PATIENCE_S = 10.0


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("upgrade", help="Serve a model from another source, replica by replica.")(upgrade)


def upgrade(
    model: Annotated[str, typer.Argument(help="Served name of the model.")],
    source: Annotated[str, typer.Argument(help="What to serve it from: as of `penstock serve`.")],
    drain_timeout: Annotated[
        float | None,
        typer.Option(
            "--drain-timeout", help="Seconds that a replica's streams get before they go on elsewhere.", min=0.0
        ),
    ] = None,
    fetch_timeout: Annotated[
        float,
        typer.Option("--fetch-timeout", help="Seconds until which the source has to be found, or fetched.", min=0.001),
    ] = 3600.0,
    start_timeout: Annotated[
        float,
        typer.Option("--start-timeout", help="Seconds within which each new replica has to be ready.", min=0.001),
    ] = 1800.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print how it ended as JSON.")] = False,
) -> None:
    """Replace the replicas of a running service one by one; where the new source fails, the old ones come back.

    Ctrl-C stops it and waits until they are back; a second one leaves that to the service.
    """
    from penstock.cli.admin_call import call_admin
    from penstock.cluster.upgrade import NewUpgrade, UpgradeView

    asked = NewUpgrade(
        model=model,
        source=_found(source),
        drain_timeout_s=drain_timeout,
        fetch_timeout_s=fetch_timeout,
        start_timeout_s=start_timeout,
    )
    service = _service_of(model)
    call_admin(service, "POST", "/admin/upgrade", UpgradeView, asked, timeout_s=_TIMEOUT_S)
    try:
        view = _follow(service)
    except KeyboardInterrupt:
        say("goes back; Ctrl-C once more leaves that to the service")
        with suppress(Problem):  # it has come to its end by itself
            call_admin(service, "DELETE", "/admin/upgrade", UpgradeView, timeout_s=_TIMEOUT_S)
        view = _follow(service)
    if as_json:
        print_json(view)
    if view.state != "done":
        raise Problem("upgrade_failed", f"{_ENDS[view.state]}: {view.why}.")
    say(f"{view.model} is served from {view.source} now")


_ENDS = {
    "failed": "Nothing was changed",
    "rolled_back": "The old source serves again",
    "stuck": "Neither source could replace the other everywhere, and what is ready serves",
}


def _found(source: str) -> str:
    """The source as it is named from any directory.  Raises ``Problem`` where its file system does not answer."""
    from penstock.cli.wiring.engines import absolute
    from penstock.cluster.apart import apart

    try:
        return asyncio.run(asyncio.wait_for(apart(lambda: absolute(source)), _TIMEOUT_S))
    except TimeoutError:
        message = f"Whether there is a directory {source} was not to be learnt within {_TIMEOUT_S:g} s."
        raise Problem("source_not_found", message, param="SOURCE") from None


def _service_of(model: str) -> Service:
    """The one on this machine that serves it, the newest of several."""
    from penstock.cli.home import penstock_home
    from penstock.cluster.rundir import running

    services = running(penstock_home())
    served = {service.pid: _models_of(service) for service in services}
    found = [service for service in services if model in served[service.pid]]
    if not found:
        names = ", ".join(sorted({name for models in served.values() for name in models})) or "nothing"
        raise Problem("model_not_found", f"No service of this machine serves {model!r}; served: {names}.")
    return found[-1]


def _models_of(service: Service) -> list[str]:
    """All that it serves, as far as it answers."""
    from penstock.cli.admin_call import call_admin
    from penstock.cluster.state import ServiceState

    try:
        state = call_admin(service, "GET", "/admin/state", ServiceState, timeout_s=_TIMEOUT_S)
    except Problem:
        return [service.model]
    return [served.name for served in state.desired.models]


def _follow(service: Service) -> UpgradeView:
    """Tell what happens until it is over.  Raises ``Problem`` when the service does not answer any more."""
    from penstock.cli.admin_call import call_admin
    from penstock.cluster.upgrade import UpgradeView

    told, answered_at = "", time.monotonic()
    while True:
        try:
            view = call_admin(service, "GET", "/admin/upgrade", UpgradeView, timeout_s=_TIMEOUT_S)
            answered_at = time.monotonic()
        except Problem:
            if time.monotonic() - answered_at > _PATIENCE_S:
                raise
            time.sleep(_POLL_S)
            continue
        line = f"{view.replaced}/{view.replicas} replaced; {view.why}"
        if line != told:
            say(line)
            told = line
        if view.is_over:
            return view
        time.sleep(_POLL_S)
