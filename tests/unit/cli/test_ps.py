"""What ``penstock ps`` makes of a service's state."""

from __future__ import annotations

import msgspec
import pytest

from penstock.cli.ps import Row, rows_of, table
from penstock.cluster.rundir import Service
from penstock.cluster.state import MemberState, ServiceState, Stage
from penstock.config.desired import DesiredState
from penstock.wire.load import Load, Phase

SERVICE = Service(pid=42, model="m", url="http://u:1", admin_url="http://a:2", started_at=1000.0, version="1.0")


def state(*phases: Phase, ready: bool = False, stage: Stage = "serving") -> ServiceState:
    members = [MemberState(id="gateway-0", kind="gateway", phase="ready", why="", pid=1, restarts=9, load=None)]
    members += [
        MemberState(
            id=f"engine-{n}",
            kind="engine",
            phase=phase,
            why="",
            pid=n,
            restarts=1,
            load=Load(phase=phase, kv_blocks_total=10, kv_blocks_used=n),
        )
        for n, phase in enumerate(phases)
    ]
    return ServiceState(stage=stage, ready=ready, desired=DesiredState(), members=members)


def row(seen: ServiceState | None, now: float) -> Row:
    [found] = rows_of(SERVICE, seen, now)
    return found


def test_a_row_counts_engines_only() -> None:
    """Replicas, restarts and KV use are those of the engines; the gateway is not a replica."""
    seen = row(state("ready", "loading", ready=True), 1090.0)
    assert (seen.replicas_ready, seen.replicas, seen.restarts) == (1, 2, 2)
    assert seen.kv_use == pytest.approx(1 / 20)
    assert seen.uptime_s == 90.0


@pytest.mark.parametrize(
    ("seen", "phase"),
    [
        (state("loading"), "loading"),
        (state("starting", "ready", ready=True), "ready"),
        (state("failed"), "failed"),
        (state("ready", stage="draining"), "draining"),
        (None, "unreachable"),
    ],
)
def test_the_phase_of_a_service(seen: ServiceState | None, phase: str) -> None:
    """Its stage when it is ending, else the least advanced replica until it is ready."""
    assert row(seen, 1000.0).phase == phase


def test_every_model_of_a_service_has_a_row() -> None:
    """With its own engines, and a phase of its own."""
    seen = state("ready", "loading", "ready", ready=True)
    of = dict(zip(("gateway-0", "engine-0", "engine-1", "engine-2"), ("", "m", "other", "m"), strict=True))
    members = [msgspec.structs.replace(member, model=of[member.id]) for member in seen.members]
    found = rows_of(SERVICE, msgspec.structs.replace(seen, members=members), 1000.0)
    assert [(r.model, r.replicas_ready, r.replicas, r.phase) for r in found] == [
        ("m", 2, 2, "ready"),
        ("other", 0, 1, "loading"),
    ]


def test_a_service_that_does_not_answer_is_listed_with_question_marks() -> None:
    """It holds its lock, so it lives."""
    lines = table([row(None, 1000.0)]).splitlines()
    assert "unreachable" in lines[1]
    assert "?" in lines[1]


@pytest.mark.parametrize(("seconds", "text"), [(5, "5s"), (65, "1m05s"), (3661, "1h01m"), (90000, "1d01h")])
def test_uptimes_in_two_units(seconds: float, text: str) -> None:
    """Seconds, minutes, hours or days with the next smaller unit."""
    rows: list[Row] = [row(None, 1000.0 + seconds)]
    assert text in table(rows).splitlines()[1].split()
