"""The run directory of a service: its store, sockets and logs, and what ``penstock ps`` reads.

In: PENSTOCK_HOME; out: a directory of our own, locked while we live.  The lock is the kernel's: it ends with the
process, however that dies, and unlike a process id it is never somebody else's.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from penstock.store.disk import writing

_MAX_SOCKET_BYTES = 100
"""sun_path holds 108 bytes on Linux and 104 on macOS, the final zero included."""


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """A running service, as ``controller.json`` tells it.  ``started_at``: seconds since the epoch.

    ``token`` opens its admin listener to this user, who alone can read the run directory;
    ``tls_cert`` is the certificate that it shows, empty without TLS.
    """

    pid: int
    model: str
    url: str
    admin_url: str
    started_at: float
    version: str
    token: str = ""
    tls_cert: str = ""


class RunDir:
    """One service's directory.  ``remove`` it at the end; the next service removes it otherwise."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self.sockets = path
        self._lock = lock
        longest = path / "gateway-000.sock"
        if len(os.fsencode(longest)) > _MAX_SOCKET_BYTES:
            self.sockets = Path(tempfile.mkdtemp(prefix="penstock-"))
            (path / "sockets").write_text(str(self.sockets))

    @classmethod
    def create(cls, home: Path, pid: int) -> RunDir:
        """A fresh directory ``run/<pid>`` below ``home``; what dead services left there is removed.

        Raises ``Problem`` when ``home`` cannot be written.
        """
        runs = home / "run"
        with writing(home):
            runs.mkdir(mode=0o700, parents=True, exist_ok=True)
            _remove_stale(runs)
            # Containers that share a volume all run as the same process id, so the number alone may be taken.
            for name in itertools.chain([str(pid)], (f"{pid}-{n}" for n in itertools.count(2))):
                path = runs / name
                path.mkdir(mode=0o700, exist_ok=True)
                lock = _try_lock(path)
                if lock is None:
                    continue
                return cls(path, lock)
        raise AssertionError("unreachable: the names do not end")

    def describe(self, service: Service) -> None:
        """Make the service visible to :func:`running`."""
        with writing(self.path):
            scratch = self.path / "controller.json.new"
            scratch.touch(mode=0o600)
            scratch.write_bytes(msgspec.json.encode(service))
            scratch.replace(self.path / "controller.json")

    def remove(self) -> None:
        """Delete everything and let go of the lock."""
        _remove(self.path)
        os.close(self._lock)


def running(home: Path) -> list[Service]:
    """The services that live now, oldest first; what dead ones left is removed on the way."""
    runs = home / "run"
    if not runs.is_dir():
        return []
    _remove_stale(runs)
    found = []
    for path in runs.iterdir():
        try:
            found.append(msgspec.json.decode((path / "controller.json").read_bytes(), type=Service))
        except (OSError, msgspec.MsgspecError):
            continue  # just starting, just ending, or of a release that wrote it differently
    return sorted(found, key=lambda service: service.started_at)


def gateway_sockets(home: Path) -> list[Path]:
    """Control sockets of the gateways of all services that live now."""
    found: list[Path] = []
    for path in (home / "run").glob("*/"):
        elsewhere = path / "sockets"
        folder = Path(elsewhere.read_text()) if elsewhere.exists() else path
        found += sorted(folder.glob("gateway-*.sock"))
    return found


def _remove_stale(runs: Path) -> None:
    for path in _directories(runs):
        lock = _try_lock(path)
        if lock is not None:
            _remove(path)
            os.close(lock)


def _directories(runs: Path) -> Iterator[Path]:
    yield from [path for path in runs.iterdir() if path.is_dir()]


def _remove(path: Path) -> None:
    try:
        sockets = Path((path / "sockets").read_text())
    except OSError:
        pass
    else:
        # Only what mkdtemp made above: the file is ours, yet a damaged one must not point anywhere else.
        if sockets.parent == Path(tempfile.gettempdir()) and sockets.name.startswith("penstock-"):
            shutil.rmtree(sockets, ignore_errors=True)
    shutil.rmtree(path, ignore_errors=True)


def _try_lock(path: Path) -> int | None:
    """The directory's lock, or ``None``: another process holds it, or removed the directory meanwhile."""
    try:
        lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    if os.fstat(lock).st_nlink == 0:
        os.close(lock)
        return None
    return lock
