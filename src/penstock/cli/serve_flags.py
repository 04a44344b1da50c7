"""The flags of ``penstock serve``: each is an environment variable, too, and a wrong number is told what is allowed.

In: names, help and bounds; out: options for typer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import typer

from penstock.wire.errors import Problem


def option(*names: str, help: str, parser: Callable[[str], Any] | None = None, metavar: str | None = None) -> Any:
    """An option that is also read from PENSTOCK_<NAME>."""
    variable = "PENSTOCK_" + names[0].split("/")[0].removeprefix("--").replace("-", "_").upper()
    return typer.Option(*names, envvar=variable, help=help, parser=parser, metavar=metavar)


def count(low: int, high: int | None = None) -> dict[str, Any]:
    """An option that takes a whole number from ``low`` to ``high``; the error names the value and what is allowed."""
    allowed = f"a whole number of at least {low}" if high is None else f"a whole number from {low} to {high}"

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise typer.BadParameter(f"{text!r} is not {allowed}.") from None
        if number < low or (high is not None and number > high):
            raise typer.BadParameter(f"{number} is not {allowed}.")
        return number

    return {"parser": parse, "metavar": "NUMBER"}


def seconds(text: str) -> float:
    """A parser of seconds, 0 or more."""
    number = _number(text)
    if not 0 <= number < math.inf:
        raise typer.BadParameter(f"{text!r} is not a number of seconds of at least 0.")
    return number


def milliseconds(text: str) -> float:
    """A parser of milliseconds above 0."""
    number = _number(text)
    if not 0 < number < math.inf:
        raise typer.BadParameter(f"{text!r} is not a number of milliseconds above 0.")
    return number


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def named_paths(given: list[str], flag: str) -> dict[str, str]:
    """NAME=PATH, as often as it was given.  Raises ``Problem`` ``invalid_setting``."""
    paths: dict[str, str] = {}
    for text in given:
        name, _, path = text.partition("=")
        if not (name and path):
            raise Problem("invalid_setting", f"{flag} {text!r} is not NAME=PATH.", param=flag)
        if name in paths:
            raise Problem("invalid_setting", f"{flag} gives {name!r} twice.", param=flag)
        paths[name] = path
    return paths
