"""train.stages through `penstock train`: from text to a checkpoint that is served, on a text of a few lines."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from penstock.cli.main import build
from penstock.models.attention import packed_causal, packed_positions
from penstock.models.load import load_decoder
from penstock.store.runs import Run
from penstock.text.tokenizer import Tokenizer
from penstock.train import stages
from penstock.train.corpus import Corpus, Entry
from penstock.wire.errors import Problem

RECIPE = """
name: tiny
seed: 4
corpus: {held_out_share: 0.2}
questions: {declined: 60, about_itself_each: 1}
tokenizer: {vocab_size: 300}
model:
  architecture: LlamaForCausalLM
  num_layers: 2
  num_heads: 2
  num_kv_heads: 1
  head_dim: 16
  hidden_size: 32
  intermediate_size: 64
  max_position: 256
pretrain: &loop
  {steps: 6, row_tokens: 96, rows_per_step: 4, learning_rate: 3e-3, warmup_steps: 2, checkpoint_steps: 2, log_steps: 1}
sft: *loop
evaluate: {max_answer_tokens: 3}
export: {}
"""
NAMES = ("json.dumps", "json.loads", "math.sqrt", "heapq.heappush")


def corpus() -> Corpus:
    entries = [
        Entry(qualified_name=name, kind="function", signature="(x)", first_sentence=f"Do what {name} does.", doc="")
        for name in NAMES
    ]
    return Corpus(
        python_version="3",
        documents=tuple(f"{name}(x)\nDo what {name} does, number {number}." for name in NAMES for number in range(8)),
        entries=tuple(entries),
        known_names=NAMES,
        num_documented=4,
        absent_modules=(),
        notice="The notice.",
    )


Train = Callable[..., Result]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a whole run, made once."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "python_corpus", corpus)
        patch.setenv("PENSTOCK_HOME", str(home))
        result = train(home)
    assert result.stdout.splitlines()[-1] == str(home / "runs" / "tiny" / "export")
    return home / "runs" / "tiny"


def train(home: Path, *args: str) -> Result:
    recipe = home / "tiny.yaml"
    recipe.write_text(RECIPE)
    return CliRunner().invoke(build(), ["train", str(recipe), "--threads", "1", *args], catch_exceptions=False)


@pytest.fixture
def again(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Train]:
    """A copy of the run, and the command that goes on with it."""
    copy = tmp_path / "runs" / "tiny"
    shutil.copytree(trained, copy)
    monkeypatch.setattr(stages, "python_corpus", corpus)
    monkeypatch.setenv("PENSTOCK_HOME", str(tmp_path))
    return copy, lambda *args: train(tmp_path, *args)


def test_the_export_is_a_whole_checkpoint(trained: Path) -> None:
    """Weights in bf16, configuration, tokenizer with chat template, card and licence notice."""
    export = trained / "export"
    decoder, tokenizer = load_decoder(export), Tokenizer.load(export)
    assert decoder.config.dtype == "bfloat16" and decoder.config.vocab_size == tokenizer.vocab_size == 300
    assert tokenizer.chat_template is not None and tokenizer.stop_token_ids == {0, 2}
    assert (export / "PSF-LICENSE.txt").read_text() == "The notice."
    assert "penstock serve Qwen/Qwen3-0.6B" in (export / "README.md").read_text()


def test_transformers_computes_the_same_logits_from_it(trained: Path) -> None:
    """The exported weights mean the same to transformers, in float32 within rounding."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(trained / "export", dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(trained / "export")
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What does json.dumps do?"}], add_generation_prompt=True, return_dict=False
    )
    ours = load_decoder(trained / "export", "float32")
    text = Tokenizer.load(trained / "export")
    assert text.chat_template is not None
    rendered = text.chat_template.render(
        [{"role": "user", "content": "What does json.dumps do?"}], add_generation_prompt=True
    )
    assert text.encode(rendered, add_special_tokens=False) == ids
    with torch.inference_mode():
        expected = theirs(torch.tensor([ids])).logits[0]
        hidden = ours(torch.tensor(ids), packed_positions([len(ids)]), packed_causal([len(ids)]))
        torch.testing.assert_close(ours.logits(hidden), expected, rtol=1e-4, atol=1e-4)


def test_every_step_and_every_result_is_on_record(trained: Path) -> None:
    """metrics.jsonl has each step of both loops once; run.json has the facts of all six stages."""
    run = Run(trained)
    steps = [(line["stage"], line.get("step")) for line in run.metrics()]
    assert steps == [(loop, step) for loop in ("pretrain", "sft") for step in range(1, 7)] + [("evaluate", None)]
    record = run.record()
    assert record.state == "done"
    assert list(record.results) == ["prepare", "tokenizer", "pretrain", "sft", "evaluate", "export"]
    assert record.results["evaluate"]["callables_asked"] == 4
    assert record.recipe["pretrain"]["steps"] == 6


def test_the_same_command_again_does_nothing(again: tuple[Path, Train]) -> None:
    """Six stages are skipped and the weights are not touched."""
    folder, train = again
    before = (folder / "export" / "model.safetensors").stat().st_mtime_ns
    result = train()
    assert result.stderr.count("done before, unchanged") == 6
    assert (folder / "export" / "model.safetensors").stat().st_mtime_ns == before


def test_only_what_a_change_concerns_is_done_again(again: tuple[Path, Train]) -> None:
    """More fine-tuning steps repeat fine-tuning and what follows it."""
    _, train = again
    result = train("--set", "sft.steps=7", "--json")
    assert result.stderr.count("done before, unchanged") == 3
    assert json.loads(result.stdout)["results"]["sft"]["steps"] == 7


def test_a_tokenizer_that_does_not_match_is_refused(again: tuple[Path, Train]) -> None:
    """Tokens made by another tokenizer than the one beside them are not trained on, even under a valid manifest."""
    folder, train = again
    from penstock.train.artefact import read_manifest, seal

    manifest = read_manifest(folder / "tokenizer")
    assert manifest is not None
    path = folder / "tokenizer" / "tokenizer" / "tokenizer.json"
    path.write_text(path.read_text() + " ")
    seal(folder / "tokenizer", manifest.key, manifest.facts)
    with pytest.raises(Problem, match="was made by the tokenizer") as caught:
        train()
    assert caught.value.code == "artefact_invalid"


def test_weights_that_are_too_large_are_not_exported(again: tuple[Path, Train]) -> None:
    """Both sizes stand in the message and no export folder is left."""
    folder, train = again
    with pytest.raises(Problem, match=r"The weights take [\d,]+ bytes; export.max_bytes allows 1,000"):
        train("--set", "export.max_bytes=1000")
    assert Run(folder).record().state == "failed"


def test_a_wrong_recipe_is_refused_before_a_folder_is_made(again: tuple[Path, Train], tmp_path: Path) -> None:
    """Nothing is written for a recipe that cannot be followed."""
    _, train = again
    with pytest.raises(Problem, match="unknown key 'stepz'"):
        train("--set", "sft.stepz=1", "--run-dir", str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()
