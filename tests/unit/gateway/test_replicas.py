"""What a gateway knows of a replica is what that last said, and what was sent there since."""

from __future__ import annotations

import pytest

from penstock.config.desired import DesiredState, Model, Replica
from penstock.gateway.replicas import Replicas
from penstock.wire.load import Load


def test_memory_in_use_counts_what_was_sent_since_it_was_said() -> None:
    """Those who come between two observations do not all take the replica that looked emptiest at the last one."""
    replicas = Replicas()
    replicas.adopt(DesiredState(version=1, models=[Model(name="m", replicas=[Replica(id="a", socket="a")])]))
    model = replicas.find("m")
    state = model.replicas[0]
    load = Load(phase="ready", kv_blocks_total=100, kv_blocks_used=50, kv_block_tokens=10)
    replicas.observe(state, load, 0)
    lease = replicas.lease(model, (150, 50), 0.0)
    assert lease is not None and state.kv_use == pytest.approx(0.7)
    replicas.observe(state, load, 0)
    assert state.kv_use == pytest.approx(0.5)
    lease.end(1.0)
    assert state.kv_use == pytest.approx(0.3)
    for _ in range(10):
        replicas.lease(model, (1000, 0), 0.0)
    assert state.kv_use == 1.0
