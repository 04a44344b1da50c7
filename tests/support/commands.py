"""The command line as a user types it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def penstock(home: Path, *words: str) -> str:
    """What a command that ends well prints, with ``home`` as PENSTOCK_HOME."""
    environment = os.environ | {"PENSTOCK_HOME": str(home)}
    command = [sys.executable, "-m", "penstock", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
