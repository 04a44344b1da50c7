"""Nobody is there any more to hear an answer: clients that leave, and a gateway that is killed, with work under way."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

CANCELLED_WITHIN_S = 0.3
NUM_STREAMS, NUM_PLAIN = 6, 3


@pytest.fixture(scope="module", params=["mock", pytest.param("native", marks=pytest.mark.slow)])
def running(request, serve, tmp_path_factory) -> Iterator[Any]:
    """Engines that would go on for a while: two scripted ones, or the real one on a small model."""
    if request.param == "mock":
        script = tmp_path_factory.mktemp("script") / "script.json"
        script.write_text(json.dumps({"gap_s": 0.02, "output_tokens": 3000}))
        service = serve("--replicas", "2", model=f"mock://{script}")
    else:
        service = serve()
    yield service
    service.stop()


def ask(running: Any, *, stream: bool) -> socket.socket:
    """A request for many tokens, sent and not read."""
    model = json.loads(running.get(f"{running.url}/v1/models")[1])["data"][0]["id"]
    body = {"model": model, "prompt": "on and on", "max_tokens": 1900, "ignore_eos": True, "stream": stream}
    content = json.dumps(body).encode()
    connection = socket.create_connection(("127.0.0.1", running.port))
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(content)}\r\n\r\n"
    connection.sendall(head.encode() + content)
    return connection


def soon(trial: Callable[[], float]) -> bool:
    """Whether it takes its time at most; a machine that is busy with other things may need more than one trial."""
    return any(trial() < CANCELLED_WITHIN_S for _ in range(3))


def free_after_s(running: Any) -> float:
    """How long until no engine has anything of ours, by the engines' own word."""
    began = time.monotonic()
    running.until(lambda: running.num_running() == 0, "engines without work")
    return time.monotonic() - began


@pytest.mark.parametrize("stream", [True, False])
def test_an_engine_is_free_soon_after_its_client_left(running: Any, stream: bool) -> None:
    """Streamed or not, a closed connection ends the work behind it within 300 ms."""

    def leave() -> float:
        with closing(ask(running, stream=stream)):
            running.until(lambda: running.num_running() == 1, "an engine at work")
        return free_after_s(running)

    assert soon(leave)


def test_a_killed_gateway_leaves_no_work_behind(running: Any) -> None:
    """SIGKILL: no client sees a clean end, engines are free within 300 ms, and the next gateway counts from 0."""

    def kill() -> float:
        connections = [ask(running, stream=n < NUM_STREAMS) for n in range(NUM_STREAMS + NUM_PLAIN)]
        running.until(lambda: running.num_running() == len(connections), "engines at work")
        [gateway] = [member for member in running.state()["members"] if member["kind"] == "gateway"]
        os.kill(gateway["pid"], signal.SIGKILL)
        took_s = free_after_s(running)
        for number, connection in enumerate(connections):
            with closing(connection):
                assert_cut(connection, streamed=number < NUM_STREAMS)
        running.wait_ready()
        running.until(lambda: running.in_flight() == 0, "a gateway that holds nothing")
        with closing(ask(running, stream=True)) as connection:
            assert connection.recv(12) == b"HTTP/1.1 200"
        running.until(lambda: running.num_running() == running.in_flight() == 0, "nothing left of that either")
        return took_s

    assert soon(kill)


def assert_cut(connection: socket.socket, *, streamed: bool) -> None:
    """What came is an incomplete response, or none at all, to any client that looks."""
    connection.settimeout(10)
    response = http.client.HTTPResponse(connection)
    try:
        response.begin()
        body = response.read()
    except (http.client.HTTPException, ConnectionError):
        return
    raise AssertionError(f"{'stream' if streamed else 'answer'} that seems whole: {body[-200:]!r}")
