"""Where Penstock keeps its own files: PENSTOCK_HOME, else ~/.cache/penstock."""

from __future__ import annotations

import os
from pathlib import Path


def penstock_home() -> Path:
    """The directory, absolute; it need not exist.  Weights from the hub live elsewhere: HF_HOME keeps its meaning."""
    return Path(os.environ.get("PENSTOCK_HOME") or Path.home() / ".cache" / "penstock").expanduser().absolute()
