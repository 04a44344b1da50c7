"""``penstock bench serve`` as a process against a scripted server."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def _bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "penstock", "bench", "serve", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)


def test_json_has_the_documented_fields(scripted_server: Any, behaviour: Any) -> None:
    """Standard output is one JSON object with latencies, throughput, goodput and the workload; nothing else."""
    scripted_server.behave = lambda number, body: behaviour(first_s=0.02, gap_s=0.005)
    flags = ("--rate", "50", "--requests", "10", "--prompt-tokens", "8", "--output-tokens", "4", "--slo", "ttft=10")
    done = _bench(scripted_server.url, *flags, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["requests_ok"] == 10 and report["output_tokens"] == 40 and report["input_tokens"] == 80
    assert set(report["ttft_s"]) == {"count", "mean", "p50", "p90", "p99", "max"}
    assert report["goodput"]["share"] == 1.0
    assert report["target"]["model"] == "scripted"
    assert report["workload"] == {"rate": 50.0, "prompt_tokens": "8", "output_tokens": "4", "seed": 0}


def test_same_seed_sends_the_same_requests(scripted_server: Any) -> None:
    """Two runs with one seed send the same bodies; another seed sends others."""
    for seed in ("3", "3", "4"):
        assert _bench(scripted_server.url, "--rate", "inf", "--requests", "4", "--seed", seed).returncode == 0
    bodies = [sorted(json.dumps(body) for body in scripted_server.requests[i : i + 4]) for i in (0, 4, 8)]
    assert bodies[0] == bodies[1] != bodies[2]


def test_the_table_says_what_failed(scripted_server: Any, behaviour: Any) -> None:
    """The table has the figures, the errors with their first message, and the note on missing usage."""
    scripted_server.behave = lambda number, body: behaviour(status=503) if number == 1 else behaviour(usage=False)
    done = _bench(scripted_server.url, "--rate", "inf", "--requests", "3", "--endpoint", "chat")
    assert done.returncode == 0, done.stderr
    assert "first token (TTFT)" in done.stdout
    assert "2 ok, 1 failed" in done.stdout
    assert "1 x overloaded: try later" in done.stdout
    assert "no usage" in done.stdout


def test_a_trace_is_replayed(scripted_server: Any, tmp_path: Path) -> None:
    """A trace decides times and lengths; the caps and the limit hold."""
    trace = tmp_path / "trace.csv"
    rows = "".join(f"2024-01-01 00:00:0{i}.0,{50 + i},{20 + i}\n" for i in range(5))
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + rows)
    flags = ("--trace", str(trace), "--time-scale", "0.1", "--limit", "3", "--max-prompt-tokens", "51", "--json")
    report = json.loads(_bench(scripted_server.url, *flags).stdout)
    sent = [(len(body["prompt"]), body["max_tokens"]) for body in scripted_server.requests]
    assert sent == [(50, 20), (51, 21), (51, 22)]
    assert report["offered_requests_per_s"] == pytest.approx(15.0)


def test_interrupting_prints_what_was_measured(scripted_server: Any, behaviour: Any) -> None:
    """Ctrl-C ends the run at once with the figures so far and exit code 130."""
    scripted_server.behave = lambda number, body: behaviour(first_s=0.0 if number < 2 else 60.0)
    command = [sys.executable, "-m", "penstock", "bench", "serve", scripted_server.url]
    flags = ["--rate", "inf", "--requests", "4", "--output-tokens", "2", "--json"]
    with subprocess.Popen([*command, *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert scripted_server.wait_for(lambda: len(scripted_server.requests) == 4)
        os.kill(running.pid, signal.SIGINT)
        out, err = running.communicate(timeout=30)
    assert running.returncode == 130, err
    report = json.loads(out)
    assert report["interrupted"] and report["requests_cut_short"] >= 2 and report["requests_failed"] == 0
    assert scripted_server.wait_for(lambda: scripted_server.aborted >= 2)


def test_nobody_listening_says_how_to_start() -> None:
    """Without a server the command ends at once with exit code 1 and the command that starts one."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        done = _bench(f"http://127.0.0.1:{unused.getsockname()[1]}")
    assert done.returncode == 1 and done.stdout == ""
    assert "penstock serve" in done.stderr and "Traceback" not in done.stderr


def test_all_failed_is_exit_code_one(scripted_server: Any, behaviour: Any) -> None:
    """A run without a single success is a failure for scripts."""
    scripted_server.behave = lambda number, body: behaviour(status=503)
    done = _bench(scripted_server.url, "--rate", "inf", "--requests", "2", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["errors"] == {"overloaded": 2}


@pytest.mark.parametrize(
    "flags",
    [
        ("--rate", "0"),
        ("--rate", "nan"),
        ("--endpoint", "embeddings"),
        ("--slo", "speed=1"),
        ("--prompt-tokens", "5:2"),
        ("--trace", "/no/such/trace.csv"),
        ("--duration", "0.001", "--rate", "0.001"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_sent(flags: tuple[str, ...]) -> None:
    """A wrong flag is one clear line and exit code 1, without a server having to exist."""
    done = _bench("http://127.0.0.1:9", *flags)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr
    assert "server_unreachable" not in done.stderr
