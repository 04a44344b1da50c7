"""How the processes of a service are started.

In: which one; out: a command line.  Loads nothing: the first of them is started before the rest of the controller is
imported.
"""

from __future__ import annotations

import sys
from typing import Literal

FIRST_ENGINE = "engine-0"
"""The member that whoever starts an engine before the others starts."""


def command(kind: Literal["engine", "gateway", "mock"]) -> list[str]:
    """How one of our processes is started."""
    # -P: a folder named like one of our modules in the working directory must not be imported.
    return [sys.executable, "-P", "-m", "penstock.cli.children", kind]
