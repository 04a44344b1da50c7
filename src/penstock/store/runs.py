"""Training runs at rest: a folder each, with what it is, how it stands and what it measured.

In: a recipe, stages and measurements; out: ``run.json``, ``metrics.jsonl`` and a lock that one process holds.
A line of metrics is complete or ignored; nobody reads a torn one.  Knows no torch and no model.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import msgspec

from penstock.store.disk import writing
from penstock.wire.errors import Problem

State = Literal["running", "done", "failed", "interrupted"]
_RECORD, _METRICS, _LOCK = "run.json", "metrics.jsonl", "lock"


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What ``run.json`` says.  Times are seconds since 1970; ``results`` are the figures of the stages, by stage."""

    name: str
    recipe: dict[str, Any]
    state: State
    stage: str
    started_at: float
    updated_at: float
    message: str = ""
    versions: dict[str, str] = {}
    results: dict[str, dict[str, Any]] = {}


class Run:
    """One run's folder.  Reading needs no lock; writing is for the process that holds it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Create the folder and hold its lock.  Raises ``run_busy``; a process that dies gives it back."""
        with writing(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.directory / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if not _take(descriptor):
                raise Problem("run_busy", f"Another process is training in {self.directory}.")
            yield
        finally:
            os.close(descriptor)

    def exists(self) -> bool:
        return (self.directory / _RECORD).is_file()

    def record(self) -> RunRecord:
        """How the run stands; one that says it is running while nobody holds the lock was interrupted.

        Raises ``run_not_found`` or ``artefact_invalid``.
        """
        path = self.directory / _RECORD
        try:
            record = msgspec.json.decode(path.read_bytes(), type=RunRecord)
        except (FileNotFoundError, NotADirectoryError):
            raise Problem("run_not_found", f"{self.directory} is not the folder of a run.") from None
        except msgspec.DecodeError as error:
            raise Problem("artefact_invalid", f"{path} is damaged: {error}.") from None
        if record.state == "running" and not self._is_locked():
            return msgspec.structs.replace(record, state="interrupted")
        return record

    def write(self, record: RunRecord) -> None:
        """Replace ``run.json``, whole or not at all."""
        content = msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n"
        self._replace(_RECORD, content)

    def append(self, measured: dict[str, Any]) -> None:
        """Add one line of metrics."""
        path = self.directory / _METRICS
        with writing(path), path.open("ab") as file:
            file.write(msgspec.json.encode(measured) + b"\n")

    def metrics(self) -> list[dict[str, Any]]:
        """Every complete line, in the order written."""
        path = self.directory / _METRICS
        lines = path.read_bytes().split(b"\n") if path.is_file() else []
        return [line for line in map(_decoded, lines) if line is not None]

    def rewind(self, stage: str, step: int) -> None:
        """Forget what ``stage`` measured after ``step``: it is about to be measured again."""
        kept = [line for line in self.metrics() if line.get("stage") != stage or line.get("step", 0) <= step]
        self._replace(_METRICS, b"".join(msgspec.json.encode(line) + b"\n" for line in kept))

    def _is_locked(self) -> bool:
        try:
            descriptor = os.open(self.directory / _LOCK, os.O_RDWR)
        except OSError:
            return False
        try:
            return not _take(descriptor)
        finally:
            os.close(descriptor)

    def _replace(self, name: str, content: bytes) -> None:
        path = self.directory / name
        with writing(path):
            descriptor, draft = tempfile.mkstemp(dir=self.directory, prefix=f".{name}.")
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                    os.fchmod(file.fileno(), 0o644)
                Path(draft).replace(path)
            except BaseException:
                Path(draft).unlink(missing_ok=True)
                raise


def list_runs(root: Path) -> list[Run]:
    """The runs below ``root``, the latest first.  Folders that are no runs are passed over."""
    runs = [run for path in root.glob("*") if (run := Run(path)).exists()]
    return sorted(runs, key=lambda run: -(run.directory / _RECORD).stat().st_mtime)


def _take(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _decoded(line: bytes) -> dict[str, Any] | None:
    try:
        value = msgspec.json.decode(line)
    except msgspec.DecodeError:
        return None  # torn by a crash: the step it measured is repeated
    return value if isinstance(value, dict) else None
