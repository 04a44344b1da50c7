"""Limits at the command line."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import typer
from typer.testing import CliRunner

from penstock.cli.limit_option import limit_text, parse_limit
from penstock.cli.main import build
from penstock.config.tenants import Limit


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("tokens=100000/day", Limit(unit="tokens", amount=100_000, window="day")),
        ("usd=0.5/month@org/m", Limit(unit="usd", amount=0.5, window="month", model="org/m")),
        ("concurrency=8", Limit(unit="concurrency", amount=8)),
        ("requests=0/minute", Limit(unit="requests", amount=0, window="minute")),
    ],
)
def test_a_limit_is_read_and_written(text: str, limit: Limit) -> None:
    """What is written is what is read."""
    assert parse_limit(text) == limit and limit_text(limit) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "tokens", "tokens=5", "words=5/day", "tokens=5/week", "tokens=x/day", "tokens=-1/day"),
        *("tokens=nan/day", "concurrency=5/day", "usd=inf/month", "=5/day", "tokens=/day"),
    ],
)
def test_what_is_no_limit_is_refused(text: str) -> None:
    """With the text and what is allowed."""
    with pytest.raises(typer.BadParameter, match=r"is not UNIT=|is no limit"):
        parse_limit(text)


def test_tenants_and_keys_take_limits(tmp_path: Path) -> None:
    """Given at creation, shown by the lists, replaced by ``set`` and taken away by ``--no-limits``."""
    runner, app = CliRunner(), build()

    def run(*words: str) -> str:
        result = runner.invoke(app, list(words), env={"PENSTOCK_HOME": str(tmp_path)}, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    def limits(kind: str) -> list[list[str]]:
        rows = msgspec.json.decode(run(kind, "list", "--json"))
        return [[limit_text(msgspec.convert(limit, Limit)) for limit in row["limits"]] for row in rows]

    run("tenants", "create", "team", "--limit", "tokens=1000/minute", "--limit", "usd=5/month")
    run("keys", "create", "--tenant", "team", "--limit", "concurrency=2")
    assert ["tokens=1000/minute", "usd=5/month"] in limits("tenants")
    assert limits("keys") == [["concurrency=2"]] and "concurrency=2" in run("keys", "list")
    run("tenants", "set", "team", "--limit", "requests=5/day@m")
    assert ["requests=5/day@m"] in limits("tenants")
    run("tenants", "set", "team", "--no-limits")
    assert all(found == [] for found in limits("tenants"))
