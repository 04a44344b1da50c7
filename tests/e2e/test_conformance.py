"""`penstock conformance` against Penstock itself: the contract holds through the real processes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from penstock.cli.conformance_rig import check_gateways
from penstock.conformance.suite import Report

OPEN = {"error-no-key", "error-wrong-key", "limit-headers", "limit-retry"}
"""What does not apply to a service without keys and limits."""


def failed(report: Report) -> dict[str, str]:
    return {found.name: found.evidence for found in report.findings if found.verdict == "failed"}


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_service_keeps_the_contract(service) -> None:
    """The command finds nothing wrong with `penstock serve`, says so as JSON, and ends with 0."""
    command = [sys.executable, "-m", "penstock", "conformance", service.url, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    (report,) = json.loads(done.stdout).values()
    wrong = [found for found in report["findings"] if found["verdict"] == "failed"]
    left_out = {found["name"] for found in report["findings"] if found["verdict"] == "not applicable"}
    assert (wrong, done.returncode) == ([], 0)
    assert left_out == OPEN, report
    assert report["score"] == 1


async def test_who_leaves_is_not_computed_for() -> None:
    """Through the real gateway process, a dropped stream and a dropped call reach the engine within 300 ms."""
    report = (await check_gateways("penstock", [], ["cancelling"], lambda _: None))["penstock"]
    assert (failed(report), report.applicable) == ({}, 2)


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_every_end_is_truthful() -> None:
    """Engines that break, fail or are gone behind the real gateway process: an answer is whole or says it is not."""
    report = (await check_gateways("penstock", [], ["ends"], lambda _: None))["penstock"]
    assert (failed(report), report.applicable) == ({}, 4)


def test_errors_are_the_contracts_and_a_failure_is_an_exit_code(service) -> None:
    """Of the errors only the checks of a key fail, at a service that asks for none; and the command ends with 1."""
    command = [sys.executable, "-m", "penstock", "conformance", service.url, "--group", "errors", "--json"]
    done = subprocess.run([*command, "--api-key", "x"], capture_output=True, text=True, timeout=110, check=False)
    (report,) = json.loads(done.stdout).values()
    wrong = {found["name"]: found["evidence"] for found in report["findings"] if found["verdict"] == "failed"}
    assert wrong.keys() == {"error-no-key", "error-wrong-key"}, wrong
    assert done.returncode == 1
