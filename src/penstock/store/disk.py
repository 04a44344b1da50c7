"""Writing files that are whole or as before, and what a full or read-only disk is called.

In: the path that is written; out: a ``Problem`` in place of the ``OSError``.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from penstock.wire.errors import Problem

_NOT_HERE = (
    errno.EACCES,
    errno.EROFS,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENOENT,  # what /proc says to a new directory
    errno.ELOOP,
    errno.ENAMETOOLONG,
)
_HOME = "set PENSTOCK_HOME to a directory that can"


@contextmanager
def writing(path: Path, *, advice: str = _HOME, param: str = "PENSTOCK_HOME") -> Iterator[None]:
    """Turns the ``OSError`` of a disk that is full or may not be written into a ``Problem`` that names ``path``."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Problem("insufficient_disk", f"No disk space left for {path}.") from error
        if error.errno in _NOT_HERE:
            message = f"{path} cannot be written ({error.strerror}); {advice}."
            raise Problem("invalid_setting", message, param=param) from error
        raise


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file, readable for its owner alone, that takes the place of ``path`` at the end of the block, on the disk.

    An exception, or a kill at any moment, leaves what was there.
    """
    descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(draft).replace(path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)  # the rename itself
    finally:
        os.close(folder)
