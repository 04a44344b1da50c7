"""Keys with limits before a real service: used up, also after its gateway was killed, and all of it in the books."""

from __future__ import annotations

import json
import os
import signal
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from commands import penstock

PRICES = "- {model: mock, since: 2026-01-01, input: 0.15, output: 0.6}\n"


def ask(url: str, key: str) -> tuple[int, dict[str, Any], Any]:
    body = json.dumps({"model": "mock", "messages": [{"role": "user", "content": "a"}], "max_tokens": 20}).encode()
    request = urllib.request.Request(
        f"{url}/v1/chat/completions",
        body,
        {"authorization": f"Bearer {key}", "content-type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.loads(answer.read()), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read()), error.headers


def gateway_pid(running) -> int:
    pid: int = next(member for member in running.state()["members"] if member["kind"] == "gateway")["pid"]
    return pid


def test_a_days_limit_outlives_its_gateway(serve, tmp_path: Path) -> None:
    """A key's tokens of the day are used up; killing the gateway gives none back, and the ledger has every one."""
    prices = tmp_path / "prices.yaml"
    prices.write_text(PRICES)
    running = serve("--prices", str(prices), model="mock://")
    penstock(running.home, "tenants", "create", "team", "--limit", "tokens=400/day")
    key = json.loads(penstock(running.home, "keys", "create", "--tenant", "team", "--json"))
    secret = key["secret"]
    running.wait_known(secret)
    used, answers = 0, 0
    while True:
        status, body, headers = ask(running.url, secret)
        if status != 200:
            break
        used += body["usage"]["total_tokens"]
        answers += 1
    assert (status, body["error"]["code"]) == (429, "rate_limit_exceeded") and "tenant:team" in body["error"]["message"]
    assert 0 < used <= 400 and int(headers["x-ratelimit-remaining-tokens"]) == 400 - used
    killed = gateway_pid(running)
    os.kill(killed, signal.SIGKILL)
    running.until(lambda: gateway_pid(running) not in (None, killed), "the gateway is started again")
    running.wait_ready()
    status, body, headers = ask(running.url, secret)
    assert status == 429 and int(headers["x-ratelimit-remaining-tokens"]) == 400 - used

    def total() -> dict[str, Any]:
        found = json.loads(penstock(running.home, "usage", "--key", key["id"], "--json"))
        return found[0] if found else {"requests": 0}

    running.until(lambda: total()["requests"] == answers, "all rows are in the ledger")
    found = total()
    assert found["prompt_tokens"] + found["output_tokens"] == used
    assert found["cost_nusd"] == found["prompt_tokens"] * 150 + found["output_tokens"] * 600
    assert running.stop() == 0


def test_tenants_are_declared_beside_the_models(serve, tmp_path: Path) -> None:
    """A tenant of the file is there with its limits, grants and class; a second start changes nothing."""
    config = tmp_path / "penstock.yaml"
    config.write_text(
        "models: {mock: {source: 'mock://'}}\n"
        "tenants:\n"
        "  team: {models: [mock], limits: [requests=2/day], priority: 1}\n"
        "  others: {models: [another]}\n"
    )
    running = serve("--config", str(config), model="")
    tenants = {tenant["name"]: tenant for tenant in json.loads(penstock(running.home, "tenants", "list", "--json"))}
    assert tenants["team"]["models"] == ["mock"] and tenants["team"]["priority"] == 1
    keys = {
        name: json.loads(penstock(running.home, "keys", "create", "--tenant", name, "--json"))["secret"]
        for name in ("team", "others")
    }
    running.wait_known(*keys.values())
    assert [ask(running.url, keys["team"])[0] for _ in range(3)] == [200, 200, 429]
    status, body, _ = ask(running.url, keys["others"])
    assert (status, body["error"]["code"]) == (404, "model_not_found")
    assert running.stop() == 0
