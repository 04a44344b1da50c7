"""The command line against a running service, as a user types it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any


def penstock(*args: str, service: Any, stdin: str = "") -> subprocess.CompletedProcess[str]:
    environment = {"PENSTOCK_HOME": str(service.home), "PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "penstock", *args]
    return subprocess.run(
        command, input=stdin, capture_output=True, text=True, timeout=120, env=environment, check=False
    )


def test_ps_lists_what_runs(service: Any) -> None:
    """`penstock ps --json` names the model, its URL and the replica's phase."""
    (row,) = json.loads(penstock("ps", "--json", service=service).stdout)

    assert row["model"] == "seeded-1"
    assert row["url"].endswith(str(service.port))


def test_chat_answers_a_piped_message(service: Any) -> None:
    """A message on standard input is answered on standard output."""
    done = penstock("chat", "--url", service.url, service=service, stdin="Hello\n")

    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_doctor_reports_as_json(service: Any) -> None:
    """Each finding has a name, a status, what was found and what to do."""
    done = penstock("doctor", "--json", service=service)
    findings = json.loads(done.stdout)
    rows = findings["findings"] if isinstance(findings, dict) else findings

    assert {"python", "torch"} <= {row["name"].lower() for row in rows}
    assert all({"name", "status", "detail", "fix"} <= row.keys() for row in rows)


def test_bench_serve_measures_the_service(service: Any) -> None:
    """An open-loop run reports percentiles, throughput and goodput, with every request accounted for."""
    done = penstock(
        "bench", "serve", service.url, "--requests", "10", "--rate", "20", "--slo", "ttft=5,tpot=1", "--json",
        service=service,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)

    assert report["requests_ok"] == report["requests_sent"] == 10
    assert report["ttft_s"]["p50"] <= report["ttft_s"]["p99"]


def test_bench_engine_measures_a_checkpoint(service: Any) -> None:
    """The offline bench prints at least the four figures that scripts rely on."""
    done = penstock("bench", "engine", "--requests", "2", "--json", service=service)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)

    for field in ("output_tokens_per_s", "lone_tokens_per_s", "start_s", "peak_memory_bytes"):
        assert report[field] > 0
