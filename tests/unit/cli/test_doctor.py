"""``penstock doctor``: its table, its JSON and its exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from penstock.cli import doctor
from penstock.cli.diagnosis import findings
from penstock.cli.diagnosis.facts import Finding, Status


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> typer.Typer:
    """The command alone, offline and in a home of its own."""
    monkeypatch.setenv("PENSTOCK_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("COLUMNS", "200")
    app = typer.Typer()
    app.callback()(lambda: None)
    doctor.register(app)
    return app


def test_json_lists_every_finding(app: typer.Typer) -> None:
    """Standard output is one JSON array of name, status, detail and fix."""
    result = CliRunner().invoke(app, ["doctor", "--json"])
    found = json.loads(result.stdout)
    assert all(set(finding) == {"name", "status", "detail", "fix"} for finding in found)
    assert {"python", "torch", "memory", "port 8000", "port 8001", "hub"} <= {finding["name"] for finding in found}
    assert result.exit_code == any(finding["status"] == "fail" for finding in found)


def test_a_model_that_is_not_there_fails(app: typer.Typer, tmp_path: Path) -> None:
    """Exit code 1, and the table says which directory is missing."""
    result = CliRunner().invoke(app, ["doctor", str(tmp_path / "nowhere")])
    assert result.exit_code == 1
    assert "nowhere" in result.stdout and "fail" in result.stdout


def test_a_hub_model_that_is_not_fetched_is_not_fetched_now(app: typer.Typer) -> None:
    """The doctor downloads nothing and does not fail for it."""
    found = json.loads(CliRunner().invoke(app, ["doctor", "org/name", "--json"]).stdout)
    (model,) = [finding for finding in found if finding["name"] == "model"]
    assert model["status"] == "ok" and "org/name is not on this machine" in model["detail"]


def test_other_ports_are_checked_on_request(app: typer.Typer) -> None:
    """The ports are those that the same options of serve would choose."""
    found = json.loads(CliRunner().invoke(app, ["doctor", "--port", "9123", "--admin-port", "9124", "--json"]).stdout)
    assert {"port 9123", "port 9124"} <= {finding["name"] for finding in found}


@pytest.mark.parametrize(("status", "code", "advised"), [("ok", 0, False), ("warn", 0, True), ("fail", 1, True)])
def test_the_table_shows_the_fix_and_only_failures_exit_1(
    app: typer.Typer, monkeypatch: pytest.MonkeyPatch, status: Status, code: int, advised: bool
) -> None:
    """A warning is advice, not an error; brackets in a path are not taken for markup."""

    finding = Finding("disk", status, "/data[bold]: full", "Free some.")
    monkeypatch.setattr(findings, "diagnose", lambda facts: [finding])
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == code
    assert "/data[bold]: full" in result.stdout
    assert ("Free some." in result.stdout) == advised


def test_importing_the_command_is_cheap() -> None:
    """``penstock --help`` pays for no probe, no Rich and no torch."""
    code = (
        "import sys, penstock.cli.doctor; "
        "sys.exit(str({'torch', 'rich', 'psutil', 'msgspec', 'huggingface_hub'} & set(sys.modules) or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr.strip() == ""
