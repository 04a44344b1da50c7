"""The bundled model with a budget in dollars that is shared through a real Redis: spent to the end, never beyond."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from commands import penstock
from redis_server import redis_server

pytestmark = [pytest.mark.debian, pytest.mark.slow]

MODEL = "pydoc"
PRICES = f"- {{model: {MODEL}, since: 2026-01-01, input: 1, output: 10}}\n"
BUDGET_NUSD = 1_000_000


def ask(running: Any, key: str) -> tuple[int, dict[str, Any]]:
    body = json.dumps({"model": MODEL, "prompt": "def f(", "max_tokens": 12, "ignore_eos": True}).encode()
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    request = urllib.request.Request(f"{running.url}/v1/completions", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def key_of(running: Any, *limits: str) -> tuple[str, str]:
    """Its id and secret."""
    made = json.loads(penstock(running.home, "keys", "create", *(w for x in limits for w in ("--limit", x)), "--json"))
    return made["id"], made["secret"]


def test_a_budget_is_spent_to_the_end_and_not_beyond(serve, tmp_path: Path) -> None:
    """Dollars by the price file, whatever Redis does meanwhile; the ledger has to the nano-dollar what was answered."""
    prices = tmp_path / "prices.yaml"
    prices.write_text(PRICES)
    with redis_server(tmp_path) as server:
        running = serve("--redis", server.url, "--prices", str(prices), model="")
        id, key = key_of(running, f"usd={BUDGET_NUSD / 1e9}/day")
        running.wait_known(key)
        spent, number, deadline = 0, 0, time.monotonic() + 90
        while True:
            assert time.monotonic() < deadline
            status, body = ask(running, key)
            if status == 200:
                usage = body["usage"]
                spent += usage["prompt_tokens"] * 1_000 + usage["completion_tokens"] * 10_000
            elif body["error"]["code"] == "insufficient_quota":
                break
            else:
                assert body["error"]["code"] == "limits_unavailable", body
                time.sleep(0.1)
            number += 1
            if number == 3:
                server.kill()
                server.start()
        assert 0 < spent <= BUDGET_NUSD
        least = 11_000 + 1_000  # of one more token and of the shortest prompt
        assert spent >= BUDGET_NUSD - 40 * least, "most of it is there to be spent"

        def booked() -> int:
            found = json.loads(penstock(running.home, "usage", "--key", id, "--json"))
            cost: int = found[0]["cost_nusd"] if found else 0
            return cost

        running.until(lambda: booked() == spent, "the ledger has it all")
        assert running.stop() == 0


def test_a_budget_without_a_price_is_told_and_concerns_nobody_else(serve, tmp_path: Path) -> None:
    """What nobody knows the cost of is not answered against a budget; keys without one are."""
    with redis_server(tmp_path) as server:
        running = serve("--redis", server.url, model="")
        _, bound = key_of(running, "usd=1/day")
        _, free = key_of(running, "requests=100/minute")
        running.until(lambda: ask(running, free)[0] == 200, "the gateway knows the keys, and its limits are shared")
        status, body = ask(running, bound)
        assert (status, body["error"]["code"]) == (503, "price_missing")
        assert f"the model '{MODEL}' has no price" in body["error"]["message"]
        assert running.stop() == 0
