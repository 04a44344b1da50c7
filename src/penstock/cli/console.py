"""Words for the person at the terminal: plain lines, red for a problem, nothing on standard output but data.

In: text and problems, or data; out: lines on standard error, and data as JSON or columns.
Colour only where a terminal shows it and NO_COLOR is unset.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from penstock.wire.errors import Problem

_RED, _BOLD, _RESET = "\x1b[31m", "\x1b[1m", "\x1b[0m"


def coloured() -> bool:
    """Whether standard error understands colour."""
    return sys.stderr.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def say(line: str, file: TextIO | None = None) -> None:
    """One line for a person, on standard error or ``file``.

    Lost where it cannot be written: a full disk under a log or a reader that left must not end a service.
    """
    with suppress(OSError):
        print(line, file=file or sys.stderr, flush=True)


def print_json(value: Any) -> None:
    """The one answer of a command with ``--json``: indented, on standard output."""
    import msgspec

    print(msgspec.json.format(msgspec.json.encode(value)).decode())


def columns(rows: Sequence[Sequence[str]]) -> str:
    """A table whose columns are as wide as what they hold; the first row is its head."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def program() -> str:
    """What to type to run ``penstock`` here: its name, or where it lies when the PATH does not lead to it."""
    if shutil.which("penstock"):
        return "penstock"
    script = Path(sys.executable).parent / "penstock"
    with suppress(ValueError):
        script = script.relative_to(Path.cwd())
    return shlex.quote(str(script))


def print_problem(problem: Problem) -> None:
    """The message, what to do about it, and the code to look up."""
    red, bold, reset = (_RED, _BOLD, _RESET) if coloured() else ("", "", "")
    say(f"{red}{bold}error{reset}{red}: {problem.message}{reset} [{problem.code}]")
    if problem.hint:
        say(f"  {problem.hint}")
