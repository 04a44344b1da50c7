"""The servers' own secret: 32 random bytes in a file that only this user can read.

In: a path; out: the bytes, made on first use.  Digests of keys, the audit chain and snapshots hang on it: whoever
loses it has to issue every key again.
"""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from penstock.store.disk import writing
from penstock.wire.errors import Problem

SECRET_HINT = "Copy `secret` from the PENSTOCK_HOME of the backup into this one (chmod 600), then try again."
"""Where a backup's secret is missing."""
_BYTES = 32


def server_secret(path: Path, *, make: bool = True) -> bytes:
    """Raises ``Problem`` ``invalid_setting`` for a file that others can read or that holds no secret.

    Without ``make`` also where there is none: a new one would be another than what is wanted.
    """
    with writing(path), suppress(FileNotFoundError):
        return _read(path)
    if not make:
        message = f"There is no {path}, and a backup is only for the installation whose secret signed it."
        raise Problem("invalid_setting", message, hint=SECRET_HINT)
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    with writing(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(scratch, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(secrets.token_bytes(_BYTES))
                file.flush()
                os.fsync(file.fileno())
            # A link and not a rename: of two processes that start together, both take the first one's.
            with suppress(FileExistsError):
                os.link(scratch, path)
        finally:
            scratch.unlink()
    return _read(path)


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
            message = f"{path} can be read by others; it has to be for its owner alone (chmod 600)."
            raise Problem("invalid_setting", message)
        content = file.read(_BYTES + 1)
    if len(content) != _BYTES:
        raise Problem("invalid_setting", f"{path} does not hold the {_BYTES} bytes of a secret.")
    return content
