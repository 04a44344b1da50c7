"""``penstock explain REQUEST``: why a request was admitted, where it went, what was rejected and how it ended.

In: the id of an answer, or what ``x-request-id`` said; out: the gateway's recorded verdicts, or JSON with ``--json``.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer

from penstock.wire.errors import Problem

_TIMEOUT_S = 5.0
_FORGOTTEN = (
    "Gateways tell of their last requests since they started, those with this PENSTOCK_HOME: see `penstock ps`."
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("explain", help="Tell why a request went as it did.")(explain)


def explain(
    request: Annotated[str, typer.Argument(help="Id of the answer, or its x-request-id.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Ask the gateways of this machine's services what they decided about a request."""
    import asyncio

    from penstock.cli.home import penstock_home
    from penstock.cluster.drivers.probe import ask
    from penstock.cluster.rundir import gateway_sockets
    from penstock.wire.gateway import EXPLAIN, Explanation

    if not request or not all(char.isalnum() or char in "._:-" for char in request):
        raise Problem("invalid_value", f"{request[:200]!r} is no request's id.", param="REQUEST")
    for socket in gateway_sockets(penstock_home()):
        body = asyncio.run(ask(str(socket), EXPLAIN + request, _TIMEOUT_S))
        if body is None:
            continue
        if as_json:
            typer.echo(body.decode())
            return
        told = msgspec.json.decode(body, type=Explanation)
        typer.echo(f"{told.route} for {told.model or 'no model'}, request {told.request_id or told.id}")
        for step in told.steps:
            typer.echo(f"  {step.at_s:9.4f} s  {step.stage:8}  {step.why}")
            for replica, seconds in sorted(step.scores.items(), key=lambda item: item[1]):
                typer.echo(f"{'':23}{replica}: {seconds:.4f} s predicted")
        return
    raise Problem("not_found", f"No gateway on this machine remembers {request}.", hint=_FORGOTTEN)
