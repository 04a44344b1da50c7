"""Words for the person at the terminal: plain lines, red for a problem, nothing on standard output but data.

In: text and problems; out: lines on standard error.  Colour only where a terminal shows it and NO_COLOR is unset.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import TextIO

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
    if problem.spec.hint:
        say(f"  {problem.spec.hint}")
