"""`penstock serve mock://`: mock engines behind the real controller and gateway."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request

from mocked import answer_of

from penstock.mock import words
from penstock.wire.engine import GenerateRequest, Sampling


def test_a_script_is_served_without_any_model(serve, tmp_path) -> None:
    """The whole service runs on mock engines, which answer what their prompt and seed say."""
    script = tmp_path / "script.json"
    script.write_text('{"gap_s": 0.002, "faults": [{"kind": "crash", "after": 4, "times": 1, "share": 0.5}]}')
    running = serve("--replicas", "2", model=f"mock://{script}")
    for seed in range(4):
        body = {"model": "mock", "prompt": "once", "seed": seed, "max_tokens": 12, "temperature": 1}
        asked = urllib.request.Request(f"{running.url}/v1/completions", json.dumps(body).encode())
        with urllib.request.urlopen(asked, timeout=60) as answer:
            said = json.load(answer)
        request = GenerateRequest(id="", sampling=Sampling(seed=seed, temperature=1), text="once")
        assert said["choices"][0]["text"] == answer_of(words.key_of(request, b"once"), 12)
        assert said["usage"]["prompt_tokens"] == 4
    assert running.stop() == 0


def test_a_request_is_explained_by_a_command(serve, tmp_path) -> None:
    """`penstock explain` finds the gateway that served it and prints what was decided."""
    script = tmp_path / "script.json"
    script.write_text("{}")
    running = serve("--replicas", "2", "--balance", "marginal-time", model=f"mock://{script}")
    body = {"model": "mock", "prompt": "long " * 300, "max_tokens": 4}
    asked = urllib.request.Request(f"{running.url}/v1/completions", json.dumps(body).encode())
    with urllib.request.urlopen(asked, timeout=60) as answer:
        id = json.load(answer)["id"]
    environment = os.environ | {"PENSTOCK_HOME": str(running.home)}
    command = [sys.executable, "-m", "penstock", "explain", id]
    said = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    assert "nothing of it is cached anywhere" in said and "s predicted" in said and "4 out" in said
