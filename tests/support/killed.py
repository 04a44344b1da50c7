"""A process that works on a store and is killed by SIGKILL in the middle: nothing runs afterwards.

Run as: killed.py HOME backup|restore|migrate FILE AFTER; AFTER counts statements to the database or rows written.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from sqlalchemy import event

from penstock.store.backup import write_backup
from penstock.store.places import default_url, open_access
from penstock.store.restore import restore


def killed(home: Path, act: str, file: Path, after: int) -> bool:
    """Run it; whether it was killed, and not done before."""
    command = [sys.executable, __file__, str(home), act, str(file), str(after)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode != 0


def _main(home: Path, act: str, file: Path, after: int) -> None:
    opened = open_access(home, default_url(home))
    seen = 0

    def count(*_: object) -> None:
        nonlocal seen
        seen += 1
        if seen > after:
            os.kill(os.getpid(), signal.SIGKILL)

    event.listen(opened.database._engine, "before_cursor_execute", count)
    if act == "backup":
        write_backup(opened.database, opened.secret, file, now=1.0)
    elif act == "restore":
        restore(opened, file, now=1.0, replace=True)
    else:
        opened.store.prepare()


if __name__ == "__main__":
    _main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
