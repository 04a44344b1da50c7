"""Which source a service was upgraded to, so that its next start serves that one.

In: what ``penstock serve`` was given, and the source it was upgraded to; out: one small file for each such command.
Written when an upgrade is done and not before: a service that is killed in the middle starts with what it had.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import msgspec

from penstock.store.disk import writing


class Upgraded(msgspec.Struct, frozen=True, kw_only=True):
    """``model``: the served name.  ``source`` serves in place of ``given`` since ``at``, seconds since the epoch."""

    model: str
    given: str
    source: str
    at: float


def write_upgraded(home: Path, served_name: str, upgraded: Upgraded) -> None:
    """Replace what was written before; of an upgrade back to what was given nothing is kept.

    ``served_name`` as it was given, empty where it was not.  Raises ``Problem`` when the disk is full.
    """
    path = upgraded_path(home, served_name, upgraded.given)
    with writing(path):
        if upgraded.source == upgraded.given:
            path.unlink(missing_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        with draft.open("wb") as file:
            file.write(msgspec.json.encode(upgraded))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)


def read_upgraded(home: Path, served_name: str, given: str) -> Upgraded | None:
    """What this command line was upgraded to; ``None``: it never was."""
    try:
        return msgspec.json.decode(upgraded_path(home, served_name, given).read_bytes(), type=Upgraded)
    except (OSError, msgspec.MsgspecError):
        return None


def upgraded_path(home: Path, served_name: str, given: str) -> Path:
    """Where it is written for this command line."""
    command = "\0".join((served_name, given))
    return home / "upgraded" / f"{hashlib.sha256(command.encode()).hexdigest()[:16]}.json"
