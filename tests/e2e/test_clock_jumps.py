"""The clock of the machine is set forward and back under a running service, whose limits go by minutes and days."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from commands import penstock

pytestmark = [pytest.mark.debian, pytest.mark.slow]

FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")
HOUR_S, DAY_S = 3600, 86_400


class Watch:
    """The clock that the service sees: noon of this day, and ``set`` to so many seconds from there."""

    def __init__(self, path: Path) -> None:
        self._path = path
        now = time.time()
        self._noon = now - now % DAY_S + DAY_S / 2 - now
        self.set(0)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "LD_PRELOAD": str(FAKETIME),
            "FAKETIME_TIMESTAMP_FILE": str(self._path),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, seconds: float) -> None:
        draft = self._path.with_suffix(".draft")
        draft.write_text(f"{self._noon + seconds:+.0f}\n")
        draft.replace(self._path)


def ask(running: Any, key: str) -> tuple[int, str]:
    """The status, and the code of an error."""
    body = json.dumps({"model": "mock", "prompt": "a", "max_tokens": 8}).encode()
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    request = urllib.request.Request(f"{running.url}/v1/completions", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, ""
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)["error"]["code"]


def test_a_clock_that_jumps_gives_nothing_away_and_takes_nothing(serve, tmp_path: Path) -> None:
    """An hour forward and two back within a day: what is used up stays so, by the minute and by the day, and whoever
    has no limits is answered.  The next day is a new one.
    """
    if not FAKETIME.exists():
        pytest.skip("libfaketime is not installed")
    watch = Watch(tmp_path / "clock")
    running = serve(model="mock://", env=watch.environment)
    keys = {
        limit: json.loads(penstock(running.home, "keys", "create", *more, "--json"))["secret"]
        for limit, more in {
            "minute": ("--limit", "requests=3/minute"),
            "day": ("--limit", "requests=3/day"),
            "none": (),
        }.items()
    }
    running.wait_known(*keys.values())
    began = time.monotonic()
    for limit in ("minute", "day"):
        assert [ask(running, keys[limit])[0] for _ in range(4)] == [200, 200, 200, 429]
    for seconds in (HOUR_S, -HOUR_S, 0, 2 * HOUR_S, -2 * HOUR_S):
        watch.set(seconds)
        assert ask(running, keys["none"]) == (200, "")
        assert ask(running, keys["day"]) == (429, "rate_limit_exceeded")
        if time.monotonic() - began < 50:
            assert ask(running, keys["minute"]) == (429, "rate_limit_exceeded")
    watch.set(DAY_S)
    assert ask(running, keys["day"])[0] == 200
    assert running.get(f"{running.url}/ready")[0] == 200
    assert running.stop() == 0
