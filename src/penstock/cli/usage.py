"""``penstock usage``: who has used how many tokens of which model, and what that cost.

In: the store; out: sums per tenant, key and model, as a table or JSON.
What ended less than about a second ago may still be on its way from a gateway.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.cli.console import columns, print_json
from penstock.cli.keys import AsJson, Store, opened_store
from penstock.wire.errors import Problem

if TYPE_CHECKING:
    from penstock.store.ledger import UsageTotal


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("usage", help="Tokens and dollars per tenant, key and model.")(usage)


def usage(
    tenant: Annotated[str | None, typer.Option("--tenant", help="Of this tenant's own keys.")] = None,
    key: Annotated[str | None, typer.Option("--key", metavar="ID", help="Of this key.")] = None,
    model: Annotated[str | None, typer.Option("--model", metavar="NAME", help="Of this model.")] = None,
    since: Annotated[
        str | None, typer.Option("--since", metavar="DATE", help="From this day or time on, in UTC unless it says so.")
    ] = None,
    as_json: AsJson = False,
    store: Store = None,
) -> None:
    """Tokens and dollars per tenant, key and model."""
    begin = None if since is None else _time(since)
    with opened_store(store) as opened:
        totals = opened.ledger.totals(tenant=tenant, key_id=key, model=model, since=begin)
    if as_json:
        print_json(totals)
    elif totals:
        typer.echo(table(totals))
    else:
        typer.echo("nothing was used")


def table(totals: list[UsageTotal]) -> str:
    """Columns wide enough for what they hold."""
    cells: list[tuple[str, ...]] = [
        ("TENANT", "KEY", "MODEL", "REQUESTS", "PROMPT", "CACHED", "OUTPUT", "REASONING", "USD")
    ]
    for total in totals:
        counts = (
            total.requests,
            total.prompt_tokens,
            total.cached_tokens,
            total.output_tokens,
            total.reasoning_tokens,
        )
        cells.append((total.tenant, total.key_id or "-", total.model, *map(str, counts), f"{total.cost_usd:.6f}"))
    return columns(cells)


def _time(text: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        message = f"--since is {text!r}; it must be a day or time such as 2026-11-01 or 2026-11-01T12:00."
        raise Problem("invalid_setting", message, param="--since") from None
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()
