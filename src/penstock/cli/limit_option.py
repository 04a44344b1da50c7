"""Limits as they are written at the command line: ``tokens=100000/day``, ``usd=5/month@MODEL``, ``concurrency=8``.

In: text; out: limits, or a usage error that says what is allowed.
"""

from __future__ import annotations

from typing import Annotated, get_args

import typer

from penstock.config.tenants import Limit, Unit, Window

_FORM = "UNIT=AMOUNT[/WINDOW][@MODEL]"


def parse_limit(text: str) -> Limit:
    """One limit.  Raises ``typer.BadParameter``."""
    rule, _, model = text.partition("@")
    unit, equals, rest = rule.partition("=")
    amount, _, window = rest.partition("/")
    units, windows = get_args(Unit), get_args(Window)
    if not equals or unit not in units or (window and window not in windows):
        raise typer.BadParameter(f"{text!r} is not {_FORM}; units: {', '.join(units)}; windows: {', '.join(windows)}.")
    try:
        return Limit(unit=unit, amount=float(amount), window=window or None, model=model or None)  # type: ignore[arg-type]
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is no limit: {error}.") from None


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
