"""Names in a whole service: from its file, by the command line, and seen by clients within a second."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

SERVICE = """
models:
  large: {source: "mock://", replicas: 2}
  next: {source: "mock://%(slow)s"}
  small: {source: "mock://"}
  full: {source: "mock://%(full)s", max_concurrent: 2}
names:
  assistant: {to: {large: 1, next: 0}, fallbacks: [small], shadow: {model: next, share: 1}}
  gpt-4o: {to: assistant}
  busy: {to: full, fallbacks: [small]}
"""


@pytest.fixture(scope="module")
def service(serve, tmp_path_factory):
    """Four models of mock engines under three names."""
    folder = tmp_path_factory.mktemp("service")
    (folder / "slow.json").write_text('{"gap_s": 0.001}')
    (folder / "full.json").write_text('{"faults": [{"kind": "refuse", "code": "overloaded"}]}')
    file = folder / "penstock.yaml"
    file.write_text(SERVICE % {"slow": folder / "slow.json", "full": folder / "full.json"})
    running = serve("--config", str(file), model="")
    running.file = file
    return running


def ask(service, model, path="/v1/completions", **fields):
    body = {"model": model, "prompt": "once", "max_tokens": 4} | fields
    asked = urllib.request.Request(f"{service.url}{path}", json.dumps(body).encode())
    with urllib.request.urlopen(asked, timeout=60) as answer:
        return json.load(answer) | {"header": answer.headers["x-penstock-model"]}


def answering(service, model):
    """Which model answers; ``None``: nobody is called that."""
    try:
        return ask(service, model)["model"]
    except urllib.error.HTTPError as error:
        if error.code != 404:
            raise
        return None


def penstock(service, *args, code=0):
    done = subprocess.run(
        [sys.executable, "-m", "penstock", *args],
        capture_output=True,
        text=True,
        env=os.environ | {"PENSTOCK_HOME": str(service.home)},
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def test_the_file_s_models_and_names_are_served(service):
    """Every model and every name is listed; an alias of an alias answers as its model, by body and header."""
    listed = json.loads(service.get(f"{service.url}/v1/models")[1])["data"]
    assert [card["id"] for card in listed] == ["large", "next", "small", "full", "assistant", "gpt-4o", "busy"]
    said = ask(service, "gpt-4o")
    assert (said["model"], said["header"]) == ("large", "large")


def test_what_decided_is_told_with_its_numbers(service):
    """`penstock explain` has the alias, the fallback and the copy of a request."""
    told = penstock(service, "explain", ask(service, "busy")["id"])
    assert "busy is full; then small" in told and "full answered overloaded" in told and "to small" in told
    told = penstock(service, "explain", ask(service, "assistant")["id"])
    assert "assistant is large; then small" in told and "a copy to next: one of the 1 that are copied" in told


def test_copies_are_in_metrics_of_their_own(service):
    """A copy is counted, and no request of it: the model that got it has no request metrics."""
    ask(service, "assistant")
    service.until(lambda: 'penstock_shadow_requests_total{code=""' in service.metrics(), "a copy in the metrics")
    lines = [line for line in service.metrics().splitlines() if line.startswith("penstock_requests_total")]
    assert not any('model="next"' in line for line in lines)


def test_a_canary_by_the_command_line_is_soon_in_force(service):
    """Set, soon seen by clients, refused where it does not hold together, applied back from the file."""
    penstock(service, "names", "set", "canary", "--to", "large=0", "--to", "next=1", "--fallback", "small")
    service.until(lambda: answering(service, "canary") == "next", "the new name")
    wrong = penstock(service, "names", "set", "loop", "--to", "loop", code=1)
    assert "loop -> loop" in wrong
    assert "is a model's already" in penstock(service, "names", "set", "large", "--to", "small", code=1)
    shown = json.loads(penstock(service, "names", "list", "--json"))
    assert shown["names"]["canary"]["to"] == {"large": 0.0, "next": 1.0} and "loop" not in shown["names"]
    assert "canary" not in penstock(service, "names", "apply", str(service.file))
    assert "names.set" in penstock(service, "audit", "list")


def test_a_model_without_an_engine_is_fallen_back_from(service):
    """Every engine of a model is killed again and again: its name is answered by the next model meanwhile."""
    members = [m for m in service.state()["members"] if m["kind"] == "engine"]
    victims = [m["pid"] for m in members if m["id"] in ("engine-0", "engine-1")]
    for pid in victims:
        os.kill(pid, 9)
    assert ask(service, "assistant")["model"] in ("small", "large")
    service.wait_ready()


def test_a_file_that_does_not_hold_together_is_told(serve, tmp_path):
    """A service whose names lead nowhere does not start, and says which."""
    file = tmp_path / "wrong.yaml"
    file.write_text('models: {a: {source: "mock://"}}\nnames: {b: {to: nowhere}}\n')
    running = serve("--config", str(file), model="", wait=False)
    assert running.process.wait(timeout=60) == 1
    assert "neither a model nor a name" in running.log.read_text()


def test_rights_and_limits_are_of_models_not_of_names(service):
    """A running service's name is refused, here and by the admin API; a model that it lacks is remarked on."""
    limit = {"unit": "tokens", "amount": 1, "window": "day", "model": "assistant"}
    told = penstock(service, "tenants", "create", "one", "--limit", "tokens=1/day@assistant", code=1)
    assert "'assistant' is a name; give the models behind it" in told
    body = json.dumps({"name": "one", "limits": [limit]}).encode()
    asked = urllib.request.Request(
        f"{service.admin_url}/admin/tenants", body, {"content-type": "application/json"}, method="POST"
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(asked, timeout=10)
    assert refused.value.code == 400 and json.load(refused.value)["error"]["param"] == "limits"
    made = json.loads(penstock(service, "tenants", "create", "two", "--limit", "tokens=1/day@lrage", "--json"))
    assert made["remarks"] == ["A limit that binds nobody now: no model 'lrage' is served here."]
    assert json.loads(penstock(service, "tenants", "create", "three", "--model", "large", "--json"))["remarks"] == []
    [said] = json.loads(penstock(service, "tenants", "set", "three", "--limit", "usd=5/month", "--json"))["remarks"]
    assert "no price here: 'large'; `penstock serve --prices`" in said
