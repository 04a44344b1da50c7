"""Usage rows for tests, and a process that dies with some."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import msgspec

from penstock.store.ledger import Ledger, UsageRow
from penstock.store.spill import Spill
from penstock.store.sql.database import Database

ROW = UsageRow(
    id="r1",
    at=1000.0,
    gateway="g",
    tenant="t",
    key_id="k",
    scopes="key:k tenant:t tenant:top",
    model="m",
    route="/v1/chat/completions",
    replicas="engine-0",
    outcome="finished",
    code="",
    prompt_tokens=10,
    cached_tokens=4,
    output_tokens=5,
    reasoning_tokens=2,
    cost_nusd=700,
)


def row(id: str, **changes: object) -> UsageRow:
    return msgspec.structs.replace(ROW, id=id, **changes)


if __name__ == "__main__":
    # Adds rows and is killed by itself, as by SIGKILL from outside: nothing runs afterwards.
    directory, url, count = sys.argv[1:]
    spill = Spill(Path(directory), "killed", Ledger(Database(url)))
    for number in range(int(count)):
        spill.add(row(f"killed-{number}"))
    os.kill(os.getpid(), signal.SIGKILL)
