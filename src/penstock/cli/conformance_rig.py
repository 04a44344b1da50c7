"""Gateways in front of what the conformance checks need behind them: a served model, and mock engines that go wrong.

In: names of gateways and where their programs are; out: one report each.  Every gateway is started once for each
kind of upstream; the others speak OpenAI's dialect to it, ours the engine protocol.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from penstock.cli.bench_peers import PEERS, program_of
from penstock.cli.bench_rig import HOST, MODEL, free_port, mock_engine, our_gateway, process
from penstock.config.mock import Fault, MockScript
from penstock.conformance import suite
from penstock.conformance.check import Behind
from penstock.conformance.endpoint import Endpoint
from penstock.conformance.suite import Finding, Report
from penstock.loadgen.doorbench import Door
from penstock.wire.errors import Problem

_OURS = "penstock"
_SERVE_WITHIN_S = 180.0
_ANSWER_TOKENS = 100_000
_SCRIPTS: dict[Behind, MockScript] = {
    "paced": MockScript(gap_s=0.010, output_tokens=_ANSWER_TOKENS),
    "silent": MockScript(ttft_s=40.0, output_tokens=8),
    "breaking": MockScript(faults=(Fault(kind="break", after=5),)),
    "failing": MockScript(faults=(Fault(kind="fail", after=5, code="internal_error"),)),
    "crashing": MockScript(faults=(Fault(kind="crash"),)),
}


async def check_gateways(
    names: str, folders: Sequence[Path], groups: Sequence[str], heard: Callable[[Finding], None]
) -> dict[str, Report]:
    """Start and check each.  Raises ``Problem`` for a name that is unknown, or a program that is not there."""
    chosen = [name.strip() for name in names.split(",") if name.strip()]
    programs = {name: _program(name, folders) for name in chosen}
    reports = {}
    for name in chosen:
        findings: list[Finding] = []
        for behind in ("any", *_SCRIPTS):
            if not any(check.behind == behind for group in groups for check in suite.GROUPS[group]):
                continue
            with tempfile.TemporaryDirectory(prefix="penstock-conformance-") as directory:
                async with _gateway(name, programs[name], behind, Path(directory)) as endpoint:
                    findings += await suite.run(endpoint, heard, behind, groups)
        reports[name] = suite.report_of(findings)
    return reports


def _program(name: str, folders: Sequence[Path]) -> str:
    if name == _OURS:
        return sys.executable
    if name not in PEERS:
        raise Problem("invalid_setting", f"{name!r} is none of {_OURS}, {', '.join(PEERS)}.", param="--gateways")
    places: list[Path | None] = [*folders, None]
    found = next(filter(None, (program_of(name, place) for place in places)), None)
    if found is None:
        raise Problem(
            "invalid_setting", f"There is no program {name}; --programs names its folder.", param="--programs"
        )
    return found


@asynccontextmanager
async def _gateway(name: str, program: str, behind: Behind, directory: Path) -> AsyncIterator[Endpoint]:
    """The gateway in front of what is to answer behind it; ours in front of a served model is that service itself."""
    async with _served(directory) if behind == "any" else mock_engine(directory, _SCRIPTS[behind]) as upstream:
        engine = None if behind == "any" else Endpoint(host=HOST, port=upstream.port, base="")
        if name == _OURS and behind == "any":
            yield Endpoint(host=HOST, port=upstream.port, model=MODEL)
            return
        start = our_gateway(upstream, directory) if name == _OURS else PEERS[name](program, upstream, directory)
        async with start as door:
            key = door.key if name == _OURS else None
            yield Endpoint(host=HOST, port=door.port, model=MODEL, api_key=key, engine=engine)


@asynccontextmanager
async def _served(directory: Path) -> AsyncIterator[Door]:
    """`penstock serve` with the bundled model."""
    port, admin_port = free_port(), free_port()
    command = [sys.executable, "-P", "-m", "penstock", "serve", "--served-name", MODEL]
    command += ["--port", str(port), "--admin-port", str(admin_port)]
    home = os.environ | {"PENSTOCK_HOME": str(directory)}
    async with process(command, port, "/ready", env=home, within_s=_SERVE_WITHIN_S) as door:
        yield door
