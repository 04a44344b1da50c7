"""How the processes of a service are started.

In: which one; out: a command line, and an engine's id.  Loads nothing: the first of them is started before the rest of
the controller is imported.
"""

from __future__ import annotations

import sys
from typing import Literal


def engine_id(number: int) -> str:
    """Of the engine that is made as the ``number``-th of a service, from 0."""
    return f"engine-{number}"


FIRST_ENGINE = engine_id(0)
"""Its process may be started before it is known what it will serve."""


def command(kind: Literal["engine", "gateway", "mock"]) -> list[str]:
    """How one of our processes is started."""
    # -P: a folder named like one of our modules in the working directory must not be imported.
    return [sys.executable, "-P", "-m", "penstock.cli.children", kind]
