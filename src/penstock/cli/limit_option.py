"""Limits as they are written at the command line: ``tokens=100000/day``, ``usd=5/month@MODEL``, ``concurrency=8``.

In: text; out: limits, or a usage error that says what is allowed.
"""

from __future__ import annotations

from typing import Annotated

import typer

from penstock.config.tenants import Limit, limit_of

_FORM = "UNIT=AMOUNT[/WINDOW][@MODEL]"


def parse_limit(text: str) -> Limit:
    """One limit.  Raises ``typer.BadParameter``."""
    try:
        return limit_of(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


Limits = Annotated[
    list[Limit] | None,
    typer.Option(
        "--limit",
        parser=parse_limit,
        metavar=_FORM,
        help="At most so many requests, tokens, usd per minute, day or month, or so many at a time "
        "(concurrency=8); of one model with @MODEL; again for more.",
    ),
]


def limit_text(limit: Limit) -> str:
    """As it is written."""
    window = f"/{limit.window}" if limit.window else ""
    model = f"@{limit.model}" if limit.model else ""
    return f"{limit.unit}={limit.amount:.15g}{window}{model}"
