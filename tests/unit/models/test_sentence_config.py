"""What the files of sentence-transformers say about an embedding, and what of it is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from penstock.models.sentence import SentenceConfig
from penstock.wire.errors import Problem


def write(directory: Path, modules: list[Any] | None = None, pooling: Any = None, lengths: Any = None) -> Path:
    for name, content in (("modules.json", modules), ("sentence_bert_config.json", lengths)):
        if content is not None:
            (directory / name).write_text(json.dumps(content))
    if pooling is not None:
        (directory / "1_Pooling").mkdir()
        (directory / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return directory


def module(kind: str, path: str = "") -> dict[str, Any]:
    return {"idx": 0, "name": "0", "path": path, "type": f"sentence_transformers.models.{kind}"}


TRANSFORMER, POOLING, NORMALIZE = module("Transformer"), module("Pooling", "1_Pooling"), module("Normalize", "2")


def read(directory: Path) -> SentenceConfig:
    return SentenceConfig.from_directory(directory, default_rows="last")


def refusal(directory: Path) -> Problem:
    with pytest.raises(Problem) as caught:
        read(directory)
    return caught.value


def test_without_files_the_default_holds(tmp_path: Path) -> None:
    """A checkpoint without these files is pooled by the caller's default and normalised."""
    assert read(tmp_path) == SentenceConfig("last", True, None)


@pytest.mark.parametrize(
    ("pooling", "rows"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode": "mean"}, "mean"),
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": "lasttoken"}, "last"),
    ],
)
def test_pooling_is_read_in_both_spellings(tmp_path: Path, pooling: Any, rows: str) -> None:
    """The switches of older releases and the one word of newer ones say the same."""
    assert read(write(tmp_path, [TRANSFORMER, POOLING, NORMALIZE], pooling)).rows == rows


def test_only_a_normalize_module_normalises(tmp_path: Path) -> None:
    """Vectors of a checkpoint whose modules do not normalise keep their length, as its authors compare them."""
    assert not read(write(tmp_path, [TRANSFORMER, POOLING], {"pooling_mode": "mean"})).normalize


def test_the_recommended_length_is_read(tmp_path: Path) -> None:
    """max_seq_length is what the authors recommend; where it is null they say nothing."""
    assert read(write(tmp_path, lengths={"max_seq_length": 256, "do_lower_case": False})).max_tokens == 256
    assert read(write(tmp_path, lengths={"max_seq_length": None})).max_tokens is None


@pytest.mark.parametrize(
    "pooling",
    [
        {},
        {"pooling_mode": "max"},
        {"pooling_mode": ["mean", "cls"]},
        {"pooling_mode_weightedmean_tokens": True},
        {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True},
    ],
)
def test_other_poolings_are_refused_with_the_file(tmp_path: Path, pooling: Any) -> None:
    """A pooling that is not implemented, or several at once, would be another embedding."""
    problem = refusal(write(tmp_path, [TRANSFORMER, POOLING], pooling))
    assert problem.code == "checkpoint_unsupported" and "1_Pooling" in problem.message


@pytest.mark.parametrize("kind", ["Dense", "LSTM", "WeightedLayerPooling"])
def test_other_modules_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    """A module that changes the embedding is not left out in silence."""
    problem = refusal(write(tmp_path, [TRANSFORMER, POOLING, module(kind, "2_X")], {"pooling_mode": "mean"}))
    assert problem.code == "checkpoint_unsupported" and kind in problem.message


@pytest.mark.parametrize("path", ["../elsewhere", "/etc", "..", "a/b"])
def test_a_module_lies_in_the_checkpoint(tmp_path: Path, path: str) -> None:
    """A path that leads out of the directory is refused before anything there is read."""
    problem = refusal(write(tmp_path, [TRANSFORMER, module("Pooling", path)]))
    assert problem.code == "checkpoint_invalid" and "plain name" in problem.message


@pytest.mark.parametrize("content", ["{}", "[1]", "nonsense", '[{"path": ""}]'])
def test_broken_modules_are_refused_with_the_file(tmp_path: Path, content: str) -> None:
    """modules.json that is no list of modules is named."""
    (tmp_path / "modules.json").write_text(content)
    problem = refusal(tmp_path)
    assert problem.code == "checkpoint_invalid" and "modules.json" in problem.message


def test_lower_casing_outside_the_tokenizer_is_refused(tmp_path: Path) -> None:
    """A text is tokenised as tokenizer.json says and in no other way."""
    assert refusal(write(tmp_path, lengths={"do_lower_case": True})).code == "checkpoint_unsupported"
