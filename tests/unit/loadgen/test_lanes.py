"""Closed-loop lanes and the account of a process."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from penstock.cli.wiring.clock import Monotonic
from penstock.config.mock import Fault, MockScript
from penstock.loadgen.account import Account
from penstock.loadgen.doorbench import Figures, OpenStreams, median_of
from penstock.loadgen.lanes import Lap, Load, chat_request, run
from penstock.mock.http.serve import serve_mock


@asynccontextmanager
async def mock_port(script: MockScript) -> AsyncIterator[int]:
    import socket

    listener = socket.create_server(("127.0.0.1", 0))
    stop = asyncio.Event()
    serving = asyncio.create_task(serve_mock([listener], model="m", script=script, clock=Monotonic(), stop=stop))
    try:
        yield listener.getsockname()[1]
    finally:
        stop.set()
        await serving


async def lap(script: MockScript, *, lanes: int, requests: int, stream: bool) -> Lap:
    async with mock_port(script) as port:
        asked = chat_request("/v1/chat/completions", "m", "hello", max_tokens=10, stream=stream)
        return await run(Load("127.0.0.1", port, asked, lanes, requests), Monotonic())


async def test_whole_answers_are_counted() -> None:
    """Every request gets its answer over kept connections; no first token is known of what does not stream."""
    done = await lap(MockScript(), lanes=4, requests=50, stream=False)
    assert (done.answers, done.failures, done.chunks, done.first_token_s) == (50, 0, 0, [])


async def test_frames_and_first_tokens_are_counted() -> None:
    """Role, ten tokens and the end are twelve frames; the first token comes after the engine's time to it."""
    done = await lap(MockScript(ttft_s=0.05), lanes=3, requests=9, stream=True)
    assert (done.answers, done.failures, done.chunks) == (9, 0, 9 * 12)
    assert len(done.first_token_s) == 9 and min(done.first_token_s) >= 0.05


async def test_lanes_may_begin_one_after_the_other() -> None:
    """Over the time that they are spread over, so that 32 in parallel are not 32 at once."""
    async with mock_port(MockScript()) as port:
        asked = chat_request("/v1/chat/completions", "m", "hello", max_tokens=10, stream=True)
        begin = time.monotonic()
        done = await run(Load("127.0.0.1", port, asked, lanes=4, requests=4, spread_s=0.4), Monotonic())
    assert done.answers == 4 and done.failures == 0 and time.monotonic() - begin >= 0.3


async def test_a_slow_gateway_gets_no_more_than_there_is_time_for() -> None:
    """What was sent is answered and counted; the rest of the load is never sent."""
    async with mock_port(MockScript(ttft_s=0.05)) as port:
        asked = chat_request("/v1/chat/completions", "m", "hello", max_tokens=1, stream=False)
        done = await run(Load("127.0.0.1", port, asked, lanes=2, requests=1000, within_s=0.2), Monotonic())
    assert 2 <= done.answers <= 20 and done.failures == 0


async def test_broken_answers_are_failures() -> None:
    """A connection that breaks in a stream and a status that is not 200 count against the gateway."""
    faults = (Fault(kind="break", after=2, times=2), Fault(kind="refuse", times=1, code="overloaded"))
    done = await lap(MockScript(faults=faults), lanes=1, requests=6, stream=True)
    assert (done.answers, done.failures) == (3, 3)


def test_an_account_covers_what_a_process_started() -> None:
    """CPU time and memory of a child's child count, and only grow while it works."""
    inner = "b = bytearray(64 << 20); print(flush=True)\nwhile True: sum(range(10000))"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    with subprocess.Popen([sys.executable, "-c", outer], stdout=subprocess.PIPE, process_group=0) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            account = Account(process.pid)
            before = account.cpu_s()
            assert account.memory_bytes() > 64 << 20
            deadline = time.monotonic() + 20
            while account.cpu_s() - before < 0.05:
                assert time.monotonic() < deadline
        finally:
            os.killpg(process.pid, 9)


def test_several_runs_are_shown_by_their_medians() -> None:
    """Each figure by itself; open streams are those of the run that had them."""
    opened = OpenStreams(count=5, alive=5, memory_bytes=10, bytes_per_stream=2)
    names = [name for name in Figures.__struct_fields__ if name != "open_streams"]
    runs = [Figures(**dict.fromkeys(names, n), open_streams=opened if n == 3 else None) for n in (3, 1, 2)]
    assert median_of(runs) == Figures(**dict.fromkeys(names, 2), open_streams=opened)


@pytest.mark.slow
def test_the_gateway_is_measured_from_outside() -> None:
    """`penstock bench gateway --json` runs the real gateway process and prints the figures under their names."""
    import json

    command = [sys.executable, "-m", "penstock", "bench", "gateway", "--quick", "--open-streams", "50", "--json"]
    done = subprocess.run([*command, "--peers", "haproxy"], capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    assert "penstock, run 1 of 1: " in done.stderr and report["partial"] == ""
    for name in ("cpu_ms_per_request", "cpu_ms_per_chunk", "memory_bytes", "start_s"):
        assert report[name] > 0
    assert "added_ttft_p50_ms" in report and set(report["peers"]) == {"haproxy"}
    assert report["open_streams"]["alive"] == report["open_streams"]["count"] == 50


@pytest.mark.slow
def test_a_bench_of_the_gateway_that_is_stopped_prints_what_it_has() -> None:
    """After the first of its runs, by SIGTERM: that run's figures, and that there should have been more."""
    import json

    command = [sys.executable, "-m", "penstock", "bench", "gateway", "--quick", "--open-streams", "0", "--json"]
    with subprocess.Popen([*command, "--runs", "50"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as bench:
        assert bench.stdout is not None and bench.stderr is not None
        while b"run 2 of 50" not in bench.stderr.readline():
            assert bench.poll() is None
        bench.terminate()
        report = json.loads(bench.stdout.read())
    assert bench.returncode == 128 + 15 and report["partial"] == "stopped by SIGTERM"
    assert report["cpu_ms_per_request"] > 0 and len(report["runs"]["penstock"]) == 1


@pytest.mark.soak
def test_one_gateway_holds_five_thousand_streams() -> None:
    """All of them alive at once in one process, for a bounded amount of memory each."""
    import json

    command = [sys.executable, "-m", "penstock", "bench", "gateway", "--quick", "--open-streams", "5000", "--json"]
    opened = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)["open_streams"]
    assert opened["alive"] == opened["count"] == 5000
    assert opened["bytes_per_stream"] < 64_000
