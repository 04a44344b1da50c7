"""The suite against an endpoint that keeps the contract, and against one that breaks it in a single place each time."""

from __future__ import annotations

import asyncio
from contextlib import closing, suppress
from typing import Any, get_args

import msgspec
import pytest
from wrong_endpoint import KEY, WrongEndpoint

from penstock.conformance.check import Behind
from penstock.conformance.endpoint import Endpoint, endpoint_of
from penstock.conformance.suite import GROUPS, Finding, find, first_model, report_of, run
from penstock.loadgen.client import reach
from penstock.wire.errors import Problem

FAULTS: dict[str, tuple[str, str]] = {
    "unlisted model": ("any", "models-list"),
    "wrong object": ("any", "answer-shape"),
    "usage that does not add up": ("any", "answer-usage"),
    "too many tokens": ("any", "answer-length"),
    "deaf to stops": ("any", "answer-stop"),
    "another answer each time": ("any", "answer-seed"),
    "wrong content type": ("any", "stream-framing"),
    "torn UTF-8": ("any", "stream-framing"),
    "no role": ("any", "stream-role"),
    "no reason": ("any", "stream-reason"),
    "no [DONE]": ("any", "stream-done"),
    "more after [DONE]": ("any", "stream-done"),
    "no end of the body": ("any", "stream-done"),
    "ids that change": ("any", "stream-identity"),
    "no usage": ("any", "stream-usage"),
    "usage everywhere": ("any", "stream-usage"),
    "usage unasked": ("any", "stream-no-usage"),
    "words lost": ("any", "stream-text"),
    "one index for all": ("any", "stream-choices"),
    "steps of 40 ms": ("paced", "stream-pace"),
    "dead silence": ("silent", "stream-alive"),
    "runs on when dropped": ("paced", "cancel-stream"),
    "runs on when a call is dropped": ("paced", "cancel-plain"),
    "clean end of a cut stream": ("breaking", "end-cut-stream"),
    "addresses in errors": ("breaking", "end-cut-stream"),
    "half an answer": ("breaking", "end-cut-answer"),
    "not a word": ("failing", "end-failed-stream"),
    "silent about crashes": ("crashing", "end-gone"),
    "400 for models": ("any", "error-model"),
    "errors in words": ("any", "error-model"),
    "stack traces": ("any", "error-model"),
    "500 for json": ("any", "error-json"),
    "500 for utf8": ("any", "error-utf8"),
    "422 for lists": ("any", "error-object"),
    "500 for depth": ("any", "error-depth"),
    "unnamed field": ("any", "error-missing"),
    "any type": ("any", "error-type"),
    "any range": ("any", "error-range"),
    "any role": ("any", "error-role"),
    "no 405": ("any", "error-method"),
    "any route": ("any", "error-route"),
    "500 for large": ("any", "error-large"),
    "open": ("any", "error-no-key"),
    "any key": ("any", "error-wrong-key"),
    "one request id": ("any", "error-request-id"),
    "more left than the limit": ("any", "limit-headers"),
    "no retry-after": ("any", "limit-retry"),
    "wrong arguments": ("any", "tool-call"),
    "no index in calls": ("any", "tool-stream"),
    "any tool": ("any", "tool-unknown"),
    "wrong text": ("any", "schema-kept"),
    "any schema": ("any", "schema-wrong"),
    "few scores": ("any", "logprob-plain"),
    "no scores in streams": ("any", "logprob-stream"),
    "any top_logprobs": ("any", "logprob-alone"),
    "vectors out of order": ("any", "embed-order"),
    "no base64": ("any", "embed-base64"),
    "500 for no input": ("any", "embed-empty"),
}
CHECKS = {check.name: (group, check) for group, checks in GROUPS.items() for check in checks}


def _endpoint(server: WrongEndpoint) -> Endpoint:
    engine = Endpoint(host="127.0.0.1", port=server.port, base="")
    return Endpoint(
        host="127.0.0.1", port=server.port, model="m", api_key=KEY, engine=engine, silence_s=1.0, timeout_s=5.0
    )


@pytest.mark.parametrize("behind", get_args(Behind))
async def test_an_endpoint_that_keeps_the_contract_passes_every_check(behind: str) -> None:
    """Nothing fails and nothing is left out where everything is there and right."""
    async with WrongEndpoint("", behind).serving() as server:
        found = await run(_endpoint(server), lambda _: None, msgspec.convert(behind, Behind))
    assert found and {finding.name: finding.evidence for finding in found if finding.verdict != "passed"} == {}


@pytest.mark.parametrize(("fault", "behind", "caught_by"), [(fault, *how) for fault, how in FAULTS.items()])
async def test_a_fault_is_caught_by_its_check(fault: str, behind: str, caught_by: str) -> None:
    """Each way to break the contract makes the check of that part fail."""
    group, check = CHECKS[caught_by]
    async with WrongEndpoint(fault, behind).serving() as server:
        found = await find(group, check, _endpoint(server))
    assert check.behind == behind
    assert found.verdict == "failed", found.evidence


def test_every_check_is_shown_to_fail() -> None:
    """A check without a fault that it catches would prove nothing."""
    # The streamed text under a schema is judged by the same words as the plain one.
    assert CHECKS.keys() - {name for _, name in FAULTS.values()} == {"schema-stream"}


def test_a_score_counts_what_applies() -> None:
    """Passed over applicable; nothing applicable is no score."""

    def found(verdict: Any) -> Finding:
        return Finding(group="g", name="n", truth="t", verdict=verdict, evidence="")

    report = report_of([found("passed"), found("failed"), found("not applicable")])
    assert (report.passed, report.applicable, report.score) == (1, 2, 0.5)
    assert report_of([found("not applicable")]).score == 0


async def test_an_endpoint_that_speaks_no_http_fails_its_checks() -> None:
    """Garbage, and a connection that closes at once, are findings and no crash."""
    for said in (b"hello\r\n\r\n", b"", b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]"):

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, said: bytes = said) -> None:
            writer.write(said)
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        endpoint = Endpoint(host="127.0.0.1", port=server.sockets[0].getsockname()[1], model="m", timeout_s=2.0)
        findings = await run(endpoint, lambda _: None)
        assert not any(finding.verdict == "passed" for finding in findings)
        server.close()


async def test_an_answer_that_never_ends_is_given_up() -> None:
    """A server that trickles for ever is left after `timeout_s`: signs of life do not extend it."""

    async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError), closing(writer):
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
            while not writer.is_closing():
                writer.write(b"3\r\n:\n\n\r\n")
                await writer.drain()
                await asyncio.sleep(0.01)
        left.set()

    left = asyncio.Event()
    server = await asyncio.start_server(trickle, "127.0.0.1", 0)
    endpoint = Endpoint(host="127.0.0.1", port=server.sockets[0].getsockname()[1], timeout_s=0.3)
    async with asyncio.timeout(10):
        assert (await endpoint.chat(stream=True)).end == "silence"
        await left.wait()
    server.close()


async def test_nobody_there_is_said_before_anything_is_checked() -> None:
    """A closed port is `server_unreachable`, with the address."""
    with pytest.raises(Problem, match=r"127\.0\.0\.1:1/v1/models") as problem:
        await first_model(endpoint_of("127.0.0.1:1"))
    assert problem.value.code == "server_unreachable"


async def test_who_asks_without_a_key_is_told_where_it_is_given() -> None:
    """The flag and the variable are named where the endpoint answers 401, by the client of loads, too."""
    async with WrongEndpoint().serving() as server:
        url = f"http://127.0.0.1:{server.port}"
        asks = (first_model(endpoint_of(url)), reach(f"{url}/v1", None, None), reach(f"{url}/v1", "pk-wrong", "m"))
        for ask in asks:
            with pytest.raises(Problem, match="401") as problem:
                await ask
            assert "--api-key" in problem.value.hint and "PENSTOCK_API_KEY" in problem.value.hint


@pytest.mark.parametrize("url", ["", "ftp://x", "http://", "http://x:port"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    """The setting is named, whatever is wrong with it."""
    with pytest.raises(Problem, match="no address"):
        endpoint_of(url)


def test_an_address_is_taken_with_or_without_v1() -> None:
    """`/v1` is added where it is missing, and a prefix before it is kept."""
    assert endpoint_of("127.0.0.1:8000").base == endpoint_of("http://127.0.0.1:8000/v1/").base == "/v1"
    assert endpoint_of("https://a.example/openai").base == "/openai/v1"
    assert endpoint_of("https://a.example").port == 443
