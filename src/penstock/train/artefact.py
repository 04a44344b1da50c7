"""What a finished piece of work looks like on disk: files, and a manifest with their digests that is written last.

In: a directory; out: its manifest, or a Problem.  A directory without a manifest is unfinished and is never read.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from penstock.models.save import full_disk_named, write_atomically
from penstock.wire.errors import Problem

MANIFEST = "manifest.json"
_CHUNK_BYTES = 1 << 20
Writer = Callable[[BinaryIO], object]


class FileEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One file below the directory."""

    bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """``key`` is what the work was asked to be (a digest of its inputs); ``facts`` is what it says of itself."""

    key: str
    files: dict[str, FileEntry]
    facts: dict[str, Any] = {}

    @property
    def digest(self) -> str:
        """Of the content alone: the same files have the same digest, whenever and wherever they were made."""
        return digest_of({name: entry.sha256 for name, entry in self.files.items()})


def seal(directory: Path, key: str, facts: Mapping[str, Any] | None = None) -> Manifest:
    """Declare ``directory`` finished: digest every file below it, then write the manifest and make it durable.

    Raises ``insufficient_disk``.
    """
    files = {}
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_file() and name != MANIFEST:
            files[name] = FileEntry(bytes=path.stat().st_size, sha256=file_digest(path))
    manifest = Manifest(key=key, files=files, facts=dict(facts or {}))
    content = msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"
    write_atomically(directory / MANIFEST, lambda file: file.write(content))
    sync_directory(directory)
    return manifest


def write_artefact(directory: Path, files: Mapping[str, bytes | Writer], facts: Mapping[str, Any]) -> None:
    """Make ``directory`` an artefact of ``files``: bytes, or what fills the file.  Unfinished until all are there.

    Raises ``insufficient_disk``.
    """
    directory.mkdir(parents=True, exist_ok=True)
    (directory / MANIFEST).unlink(missing_ok=True)
    for name, content in files.items():
        write_atomically(directory / name, _writer(content) if isinstance(content, bytes) else content)
    seal(directory, "", facts)


def read_artefact(directory: Path) -> dict[str, Any]:
    """The facts of a finished, undamaged artefact.  Raises ``artefact_invalid``."""
    manifest = _finished(directory)
    verify(directory, manifest)
    return manifest.facts


def artefact_digest(directory: Path) -> str:
    """The digest of a finished artefact's content.  Raises ``artefact_invalid``."""
    return _finished(directory).digest


def read_manifest(directory: Path) -> Manifest | None:
    """The manifest, ``None`` where the work is unfinished or was never begun.  Raises ``artefact_invalid``."""
    path = directory / MANIFEST
    try:
        return msgspec.json.decode(path.read_bytes(), type=Manifest)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except msgspec.DecodeError as error:
        raise Problem("artefact_invalid", f"{path} is not a manifest: {error}.") from None


def verify(directory: Path, manifest: Manifest) -> None:
    """Raises ``artefact_invalid`` for the first file that is missing or is not what the manifest says."""
    for name, entry in manifest.files.items():
        path = directory / name
        if not path.is_file():
            raise Problem("artefact_invalid", f"{path}, which {MANIFEST} lists, is missing.")
        if (size := path.stat().st_size) != entry.bytes:
            raise Problem("artefact_invalid", f"{path} has {size} bytes; {MANIFEST} says {entry.bytes}.")
        if (digest := file_digest(path)) != entry.sha256:
            raise Problem("artefact_invalid", f"{path} has sha256 {digest}; {MANIFEST} says {entry.sha256}.")


def _writer(content: bytes) -> Writer:
    return lambda file: file.write(content)


def _finished(directory: Path) -> Manifest:
    manifest = read_manifest(directory)
    if manifest is None:
        raise Problem("artefact_invalid", f"{directory} has no {MANIFEST}: it is unfinished, or no artefact.")
    return manifest


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def digest_of(value: object) -> str:
    """sha256 of a JSON-like value; keys are sorted."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def sync_directory(directory: Path) -> None:
    """Make the names in ``directory`` survive a power cut: a rename is durable only then."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        with full_disk_named(directory):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
