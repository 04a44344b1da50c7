"""LoRA adapters over HTTP, as a user has them: two real engines, kills, other content, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest
from adapters import edit_config, write_adapter

MODEL = "seeded-1"
PROMPT = "The turbine spins. " * 6


def post(url: str, **body: Any) -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.loads(answer.read())
    except HTTPError as error:
        return error.code, json.loads(error.read())


def text_of(running, model: str, max_tokens: int = 16) -> str:
    status, answer = post(
        f"{running.url}/v1/completions",
        model=model,
        prompt=PROMPT,
        max_tokens=max_tokens,
        temperature=0,
        ignore_eos=True,
    )
    assert status == 200, answer
    return str(answer["choices"][0]["text"])


def load(running, name: str, path: str) -> tuple[int, dict[str, Any]]:
    return post(f"{running.admin_url}/v1/load_lora_adapter", lora_name=name, lora_path=path)


def unload(running, name: str) -> tuple[int, dict[str, Any]]:
    return post(f"{running.admin_url}/v1/unload_lora_adapter", lora_name=name)


@pytest.fixture(scope="module")
def running(serve, tmp_path_factory: pytest.TempPathFactory):
    """Two replicas in exact mode, so that a resumed stream has the very tokens of an undisturbed one."""
    checkpoint = tmp_path_factory.mktemp("base") / MODEL
    from seeded import write_seeded_checkpoint

    write_seeded_checkpoint(checkpoint)
    root = tmp_path_factory.mktemp("lora")
    for seed, name in enumerate(["first", "second", "third"]):
        write_adapter(root / name, checkpoint, seed=seed, rank=4 + 4 * seed)
    running = serve(
        *("--replicas", "2", "--threads", "1", "--exact", "--kv-memory", "20MB"),
        *("--max-loras", "3", "--lora-dir", str(root), "--lora-modules", f"first={root / 'first'}"),
        model=str(checkpoint),
    )
    running.root = root
    running.until(lambda: running.get(f"{running.admin_url}/ready")[0] == 200, "the first adapter")
    return running


def test_adapters_come_and_go_as_models(running) -> None:
    """Loaded, listed with its parent, asked for by name, aliased, and gone again; each answers for itself."""
    base, first = text_of(running, MODEL), text_of(running, "first")
    assert load(running, "second", "second")[0] == 200
    assert text_of(running, "second") not in (base, first)
    cards = {card["id"]: card["parent"] for card in json.loads(running.get(f"{running.url}/v1/models")[1])["data"]}
    assert cards == {MODEL: None, "first": MODEL, "second": MODEL}
    request = urllib.request.Request(
        f"{running.admin_url}/admin/names",
        json.dumps({"names": {"best": {"to": "second"}}}).encode(),
        {"content-type": "application/json"},
        method="PATCH",
    )
    urllib.request.urlopen(request, timeout=30).close()
    running.until(lambda: running.get(f"{running.url}/v1/models/best")[0] == 200, "the alias")
    assert text_of(running, "best") == text_of(running, "second")
    status, answer = unload(running, "second")
    assert (status, answer["error"]["code"]) == (400, "invalid_value"), "the alias leads to it"
    request.data = json.dumps({"names": {"best": None}}).encode()
    urllib.request.urlopen(request, timeout=30).close()
    assert unload(running, "second")[0] == 200
    status, answer = post(f"{running.url}/v1/completions", model="second", prompt="a")
    assert (status, answer["error"]["code"]) == (404, "model_not_found")
    assert text_of(running, MODEL) == base and text_of(running, "first") == first
    rows = json.loads(running.get(f"{running.admin_url}/admin/audit")[1])
    assert {"adapter.load", "adapter.unload"} <= {row["action"] for row in rows}


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (lambda folder: edit_config(folder, use_dora=True), "checkpoint_unsupported"),
        (lambda folder: edit_config(folder, r=9), "checkpoint_invalid"),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"\x08" + b"\0" * 40), "checkpoint_invalid"),
        (lambda folder: (folder / "adapter_config.json").unlink(), "checkpoint_invalid"),
    ],
)
def test_a_bad_adapter_is_refused_and_the_engines_go_on(running, damage, code: str) -> None:
    """With what is wrong; nothing is listed, no engine ends, and a good one is loaded after it."""
    bad = running.root / "bad"
    shutil.copytree(running.root / "third", bad)
    try:
        damage(bad)
        pids = {member["id"]: member["pid"] for member in running.state()["members"]}
        status, answer = load(running, "bad", "bad")
        assert status == 422 and answer["error"]["code"] == code and "bad" in answer["error"]["message"]
        assert running.get(f"{running.url}/v1/models/bad")[0] == 404
        assert load(running, "third", "third")[0] == 200
        assert unload(running, "third")[0] == 200
        assert pids == {member["id"]: member["pid"] for member in running.state()["members"]}
    finally:
        shutil.rmtree(bad)


def test_a_name_that_is_loaded_again_with_other_content_computes_the_new(running) -> None:
    """Same name, same folder, other alpha: another answer at once, and the old one's when it is back."""
    assert load(running, "third", "third")[0] == 200
    old = text_of(running, "third")
    assert text_of(running, "third") == old, "cached prefixes change nothing"
    unload(running, "third")
    edit_config(running.root / "third", lora_alpha=3.0)
    assert load(running, "third", "third")[0] == 200
    assert text_of(running, "third") != old
    unload(running, "third")
    edit_config(running.root / "third", lora_alpha=16.0)
    assert load(running, "third", "third")[0] == 200
    assert text_of(running, "third") == old
    unload(running, "third")


def test_after_a_kill_the_adapter_is_back_and_streams_have_lost_nothing(running) -> None:
    """kill -9 of both engines in turn, with a stream of each model on its way: no token differs, and both are supplied
    again with all adapters.
    """
    load(running, "second", "second")
    models = [MODEL, "first", "second"]
    undisturbed = {model: text_of(running, model, 200) for model in models}
    for id in ("engine-0", "engine-1"):
        with ThreadPoolExecutor(len(models)) as clients:
            heard = {model: clients.submit(text_of, running, model, 200) for model in models}
            running.until(lambda: running.num_running() > 0, "the streams")
            [member] = [member for member in running.state()["members"] if member["id"] == id]
            os.kill(member["pid"], signal.SIGKILL)
        assert {model: text.result() for model, text in heard.items()} == undisturbed

        def supplied() -> bool:
            loads = running.loads()
            return len(loads) == 2 and all(len(load.adapters) == 2 for load in loads.values())

        running.until(supplied, "the adapters at the engine that started again")
    unload(running, "second")


def test_a_folder_outside_the_directory_is_refused(running, tmp_path: Path) -> None:
    """By path and by link: no engine reads it."""
    (running.root / "link").symlink_to(tmp_path)
    for path in (str(tmp_path), "../third", "link"):
        status, answer = load(running, "x", path)
        assert (status, answer["error"]["param"]) == (400, "lora_path")
    (running.root / "link").unlink()


def test_one_to_begin_with_that_is_damaged_ends_the_start(serve, tmp_path: Path) -> None:
    """`penstock serve` says which adapter and why, and ends."""
    from seeded import write_seeded_checkpoint

    write_seeded_checkpoint(tmp_path / "base")
    write_adapter(tmp_path / "a", tmp_path / "base", rank=17)
    running = serve("--lora-modules", f"tuned={tmp_path / 'a'}", model=str(tmp_path / "base"), wait=False)
    assert running.process.wait(90) != 0
    said = " ".join(running.log.read_text().split())
    assert "The adapter 'tuned' cannot be served" in said and "--max-lora-rank" in said
