"""Sizes as people write them: ``512MiB``, ``2G``, ``1500000``."""

from __future__ import annotations

import re

import typer

_SIZE = re.compile(r"^\s*(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[KMGT]?)(?P<kind>i?B?)\s*$", re.IGNORECASE)
_POWER = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def parse_size(text: str) -> int:
    """Bytes.  ``KB MB GB TB`` are powers of 1000; ``K M G T`` and ``KiB MiB GiB TiB`` are powers of 1024.

    Raises ``typer.BadParameter`` that says what is allowed.
    """
    match = _SIZE.match(text)
    if match is None or (not match["unit"] and match["kind"].lower().startswith("i")):
        raise typer.BadParameter(f"{text!r} is not a size; write for example 512MiB, 2G (2 GiB) or 1500000 (bytes).")
    base = 1000 if match["unit"] and match["kind"].lower() == "b" else 1024
    size = int(float(match["number"]) * base ** _POWER[match["unit"].upper()])
    if size < 1:
        raise typer.BadParameter(f"{text!r} is less than one byte.")
    return size


def show_size(size: int) -> str:
    """``1536`` as ``1.5 KiB``."""
    number = float(size)
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = 0
    while number >= 1024 and power < len(units) - 1:
        number /= 1024
        power += 1
    return f"{number:.1f} {units[power]}" if power else f"{size} B"
