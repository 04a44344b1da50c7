"""The open-loop client on real sockets, against a server with known delays and faults."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from penstock.loadgen.client import Tally, Target, reach, run_open_loop
from penstock.loadgen.report import Outcome, summarise
from penstock.loadgen.workloads import Demand
from penstock.wire.errors import Problem


def _run(server: Any, demands: list[Demand], **target: Any) -> list[Outcome]:
    asked = Target(url=f"{server.url}/v1", model="scripted", **target)
    return asyncio.run(_with_stop(asked, demands))


async def _with_stop(target: Target, demands: list[Demand]) -> list[Outcome]:
    return await run_open_loop(target, demands, seed=0, stop=asyncio.Event(), tally=Tally())


def test_figures_match_the_servers_delays(scripted_server: Any, behaviour: Any) -> None:
    """TTFT, TPOT, inter-token and end-to-end times are what the server did, within what a busy machine adds."""
    scripted_server.behave = lambda number, body: behaviour(first_s=0.15, gap_s=0.03)
    outcomes = _run(scripted_server, [Demand(0.05 * i, 12, 6) for i in range(6)])
    report = summarise(outcomes, target={}, workload={})
    assert report.requests_ok == 6 and report.usage_missing == 0
    assert report.ttft_s.p50 == pytest.approx(0.15, abs=0.08)
    assert report.tpot_s.p50 == pytest.approx(0.03, abs=0.02)
    assert report.itl_s.p50 == pytest.approx(0.03, abs=0.02) and report.itl_s.count == 30
    assert report.e2e_s.p50 == pytest.approx(0.30, abs=0.15)
    assert (report.input_tokens, report.cached_input_tokens, report.output_tokens) == (72, 6, 36)
    assert report.duration_s == pytest.approx(0.25 + 0.30, abs=0.25)


def test_a_slow_server_does_not_slow_the_sends(scripted_server: Any, behaviour: Any) -> None:
    """All requests are sent on time although the first answer comes only after the last send."""
    scripted_server.behave = lambda number, body: behaviour(first_s=1.0)
    outcomes = _run(scripted_server, [Demand(0.01 * i, 5, 2) for i in range(40)])
    assert all(outcome.ok for outcome in outcomes)
    last_send = max(outcome.sent_s or 0.0 for outcome in outcomes)
    assert last_send < min(outcome.first_s or 0.0 for outcome in outcomes)
    assert max((outcome.sent_s or 0.0) - outcome.scheduled_s for outcome in outcomes) < 0.5


def test_requests_say_what_was_asked(scripted_server: Any) -> None:
    """Completions carry token ids of the exact length, chat a user message; both ask for usage and exact outputs."""
    _run(scripted_server, [Demand(0.0, 9, 3)], api_key="secret")
    _run(scripted_server, [Demand(0.0, 9, 3)], endpoint="chat", ignore_eos=False)
    completions, chat = scripted_server.requests
    assert len(completions["prompt"]) == 9 and completions["max_tokens"] == 3 and completions["ignore_eos"] is True
    assert completions["stream_options"] == {"include_usage": True} and completions["temperature"] == 0
    assert len(chat["messages"][0]["content"].split()) == 9 and "ignore_eos" not in chat
    assert scripted_server.headers[0]["Authorization"] == "Bearer secret"
    assert "Authorization" not in scripted_server.headers[1]


def test_chunks_stand_in_for_missing_usage(scripted_server: Any, behaviour: Any) -> None:
    """A server without usage gets its chunks counted, and the report says so."""
    scripted_server.behave = lambda number, body: behaviour(usage=False)
    report = summarise(_run(scripted_server, [Demand(0.0, 5, 4)]), target={}, workload={})
    assert (report.output_tokens, report.usage_missing) == (4, 1)


def test_an_answer_without_text_is_still_timed(scripted_server: Any, behaviour: Any) -> None:
    """Where no chunk carries text, the first token is taken to be the end of the answer."""
    scripted_server.behave = lambda number, body: behaviour(text="", first_s=0.05)
    (outcome,) = _run(scripted_server, [Demand(0.0, 5, 4)])
    assert outcome.ok and outcome.first_s == outcome.finished_s and outcome.output_tokens == 4


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ({"status": 503}, "overloaded"),
        ({"status": 500, "reply": b"oops"}, "http_500"),
        ({"fail_after": 2}, "engine_lost"),
        ({"truncate_after": 2}, "stream_truncated"),
        ({"drop_after": 2}, "disconnected"),
        ({"garbage": True}, "protocol"),
        ({"first_s": 5.0}, "timeout"),
    ],
)
def test_every_failure_has_a_code_and_is_not_retried(
    scripted_server: Any, behaviour: Any, fault: dict[str, Any], code: str
) -> None:
    """A fault fails its own request, once, under its own code; the others succeed."""
    scripted_server.behave = lambda number, body: behaviour(**(fault if body["max_tokens"] == 5 else {}))
    outcomes = _run(scripted_server, [Demand(0.0, 5, 4), Demand(0.02, 5, 5), Demand(0.04, 5, 4)], timeout_s=0.5)
    assert [outcome.error for outcome in outcomes] == [None, code, None]
    assert outcomes[1].message
    assert len(scripted_server.requests) == 3


def test_stopping_cuts_the_running_short(scripted_server: Any, behaviour: Any) -> None:
    """Once told to stop, the client sends nothing more, closes what runs, and keeps what had ended."""
    scripted_server.behave = lambda number, body: behaviour(first_s=0.0 if number == 0 else 30.0)

    async def run() -> list[Outcome]:
        stop = asyncio.Event()
        target = Target(url=f"{scripted_server.url}/v1", model="scripted")
        demands = [Demand(0.0, 5, 1), Demand(0.1, 5, 1), Demand(60.0, 5, 1)]
        running = asyncio.create_task(run_open_loop(target, demands, seed=0, stop=stop, tally=Tally()))
        await asyncio.to_thread(scripted_server.wait_for, lambda: len(scripted_server.requests) == 2)
        stop.set()
        return await asyncio.wait_for(running, 5)

    outcomes = asyncio.run(run())
    assert [outcome.ok for outcome in outcomes] == [True, False, False]
    assert [outcome.sent_s is not None for outcome in outcomes] == [True, True, False]
    assert [outcome.error for outcome in outcomes] == [None, None, None]
    assert scripted_server.wait_for(lambda: scripted_server.aborted == 1)


def test_three_hundred_at_once(scripted_server: Any) -> None:
    """There is no limit on connections: all requests at second 0 are in flight together."""
    outcomes = _run(scripted_server, [Demand(0.0, 5, 3) for _ in range(300)])
    assert sum(outcome.ok for outcome in outcomes) == 300


def test_nobody_listening_is_an_error_with_a_hint() -> None:
    """Without a server the error names the address and says how to start one."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        with pytest.raises(Problem) as caught:
            asyncio.run(reach(url, None, None))
    assert caught.value.code == "server_unreachable" and url in caught.value.message
    assert "penstock serve" in caught.value.spec.hint


@pytest.mark.parametrize("url", ["http://", "http://host:notaport/v1", "nonsense://x/v1"])
def test_an_address_that_is_none_is_an_error(url: str) -> None:
    """An address that cannot be one is a clear error too."""
    with pytest.raises(Problem) as caught:
        asyncio.run(reach(url, None, None))
    assert caught.value.code == "server_unreachable"


def test_the_first_model_is_the_default(scripted_server: Any) -> None:
    """Without a name the first listed model is asked; an empty list is an error; a given name is taken as it is."""
    url = f"{scripted_server.url}/v1"
    assert asyncio.run(reach(url, None, None)) == "scripted"
    assert asyncio.run(reach(url, None, "mine")) == "mine"
    scripted_server.models = []
    with pytest.raises(Problem) as caught:
        asyncio.run(reach(url, None, None))
    assert caught.value.code == "endpoint_error"
