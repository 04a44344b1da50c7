"""What a full or read-only disk is called when we write below PENSTOCK_HOME.

In: the path that is written; out: a ``Problem`` in place of the ``OSError``.  Writes nothing itself.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from penstock.wire.errors import Problem

_NOT_HERE = (
    errno.EACCES,
    errno.EROFS,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.ENOENT,  # what /proc says to a new directory
    errno.ELOOP,
    errno.ENAMETOOLONG,
)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns the ``OSError`` of a disk that is full or may not be written into a ``Problem`` that names ``path``."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Problem("insufficient_disk", f"No disk space left for {path}.") from error
        if error.errno in _NOT_HERE:
            message = f"{path} cannot be written ({error.strerror}); set PENSTOCK_HOME to a directory that can."
            raise Problem("invalid_setting", message, param="PENSTOCK_HOME") from error
        raise
