"""What is kept below PENSTOCK_HOME is for its owner alone.

In: paths; out: modes that are so, and a line of the log for each that was not.
Who could write the store could give a key more rights; who can write the folder could put another file in its place.
"""

from __future__ import annotations

import logging
import stat
from collections.abc import Iterable
from pathlib import Path

from penstock.wire.errors import Problem

_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_log = logging.getLogger(__name__)


def keep_private(home: Path, files: Iterable[Path]) -> None:
    """Nobody else may read or write ``files``, as far as these exist; that others may write into ``home`` is told.

    Raises ``Problem`` ``invalid_setting`` for a file that is somebody else's, so that its mode cannot be changed.
    """
    mode = _mode(home)
    if mode & _OTHERS_WRITE and not mode & stat.S_ISVTX:
        # Its mode stays: it may be there for more than us.
        _log.warning("others can write into %s (mode %03o) and so replace what is kept there; chmod go-w", home, mode)
    for path in files:
        mode = _mode(path)
        if not mode & _OTHERS:
            continue
        try:
            path.chmod(mode & ~_OTHERS)
        except OSError as error:
            message = f"{path} can be read or written by others, and its mode not be changed ({error.strerror})."
            raise Problem("invalid_setting", message, param="PENSTOCK_HOME") from None
        _log.warning("%s could be read or written by others (mode %03o); it is for its owner alone now", path, mode)


def make_private(directory: Path) -> None:
    """Make it where it is not there, and what is missing above it, for the owner alone."""
    # Not with parents=True, which gives those above the umask's mode.
    for made in (*reversed(directory.parents), directory):
        made.mkdir(mode=0o700, exist_ok=True)


def _mode(path: Path) -> int:
    """0 where there is nothing."""
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return 0
