"""All checks by group, run one after the other.  In: an endpoint and what answers behind it; out: a report.

An exception that a check does not expect is a failed check: whoever answers in unforeseen ways breaks the contract.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

import msgspec

from penstock.config.settings import KEY_HINT
from penstock.conformance import (
    answers,
    cancelling,
    embeddings,
    ends,
    errors,
    limits,
    logprobs,
    streaming,
    structured,
    tools,
)
from penstock.conformance.check import Behind, Check, NotApplicable, NotTrue, answered
from penstock.conformance.endpoint import Endpoint
from penstock.wire.errors import Problem

GROUPS: dict[str, tuple[Check, ...]] = {
    "answers": answers.CHECKS,
    "streaming": streaming.CHECKS,
    "cancelling": cancelling.CHECKS,
    "ends": ends.CHECKS,
    "errors": errors.CHECKS,
    "limits": limits.CHECKS,
    "tools": tools.CHECKS,
    "structured": structured.CHECKS,
    "logprobs": logprobs.CHECKS,
    "embeddings": embeddings.CHECKS,
}


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one check."""

    group: str
    name: str
    truth: str
    verdict: Literal["passed", "failed", "not applicable"]
    evidence: str


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """``score``: passed of those that apply, 0 to 1; 0 where none applies."""

    passed: int
    applicable: int
    score: float
    findings: list[Finding]


def report_of(findings: list[Finding]) -> Report:
    passed = sum(finding.verdict == "passed" for finding in findings)
    applicable = sum(finding.verdict != "not applicable" for finding in findings)
    return Report(
        passed=passed, applicable=applicable, score=passed / applicable if applicable else 0.0, findings=findings
    )


async def run(
    endpoint: Endpoint,
    heard: Callable[[Finding], None],
    behind: Behind = "any",
    groups: Iterable[str] = tuple(GROUPS),
) -> list[Finding]:
    """Run the checks that are for what answers ``behind``; ``heard`` gets each finding as it is made."""
    findings = []
    for group in groups:
        for check in GROUPS[group]:
            if check.behind == behind:
                finding = await find(group, check, endpoint)
                findings.append(finding)
                heard(finding)
    return findings


async def find(group: str, check: Check, endpoint: Endpoint) -> Finding:
    """What becomes of one check."""
    verdict: Literal["passed", "failed", "not applicable"] = "failed"
    try:
        evidence, verdict = await check.run(endpoint), "passed"
    except NotTrue as error:
        evidence = str(error)
    except NotApplicable as error:
        evidence, verdict = str(error), "not applicable"
    except (OSError, TimeoutError) as error:
        evidence = f"no connection: {str(error) or type(error).__name__}"
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        # Where the answer has another shape than every client expects.
        evidence = f"the answer has an unexpected shape: {type(error).__name__} {error}"
    return Finding(group=group, name=check.name, truth=check.truth, verdict=verdict, evidence=evidence)


async def first_model(endpoint: Endpoint) -> str:
    """The first model that is listed.  Raises ``Problem`` where nothing answers or nothing is listed."""
    where = f"{endpoint.host}:{endpoint.port}{endpoint.base}/models"
    try:
        reply = await endpoint.ask("GET", "/models")
        cards = answered(reply).get("data")
    except (OSError, TimeoutError) as error:
        raise Problem("server_unreachable", f"No answer from {where}: {str(error) or type(error).__name__}.") from error
    except NotTrue as error:
        hint = KEY_HINT if reply.status == 401 else ""
        raise Problem("endpoint_error", f"{where}: {error}.", hint=hint) from None
    if not isinstance(cards, list) or not cards or not isinstance(cards[0], dict) or "id" not in cards[0]:
        raise Problem("endpoint_error", f"{where} lists no model.")
    return str(cards[0]["id"])
