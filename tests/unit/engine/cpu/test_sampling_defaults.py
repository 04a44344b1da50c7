"""What generation_config.json contributes to a request's sampling."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from penstock.engine.cpu.defaults import Rules, SamplingDefaults
from penstock.wire.engine import Sampling
from penstock.wire.errors import Problem


def test_a_model_without_the_file_has_neutral_defaults(tmp_path: Path) -> None:
    """Without generation_config.json a bare request samples at temperature 1 from all tokens."""
    assert SamplingDefaults.from_directory(tmp_path).resolve(Sampling(seed=5)) == Rules(seed=5)


def test_the_file_fills_what_the_request_leaves_open(tmp_path: Path) -> None:
    """Fields of the file stand in for absent ones and yield to present ones; unknown fields are passed over."""
    (tmp_path / "generation_config.json").write_text(
        '{"do_sample": true, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "eos_token_id": [1, 2]}'
    )
    rules = SamplingDefaults.from_directory(tmp_path).resolve(Sampling(seed=0, top_p=0.5, presence_penalty=1.0))
    assert rules == Rules(seed=0, temperature=0.6, top_k=20, top_p=0.5, presence_penalty=1.0)


def test_a_request_can_ask_for_the_neutral_value(tmp_path: Path) -> None:
    """An explicit 0 is not mistaken for absence."""
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.6, "top_k": 20, "min_p": 0.1}')
    rules = SamplingDefaults.from_directory(tmp_path).resolve(Sampling(seed=0, temperature=0.0, top_k=0, min_p=0.0))
    assert rules == Rules(seed=0, temperature=0.0)


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        ("{", "truncated"),
        ("[]", "object"),
        ('{"temperature": "warm"}', "temperature"),
        ('{"temperature": -1}', "temperature"),
        ('{"top_p": 1.5}', "top_p"),
        ('{"repetition_penalty": 0}', "repetition_penalty"),
    ],
)
def test_a_wrong_file_is_named_with_its_field(tmp_path: Path, text: str, detail: str) -> None:
    """A file that is not JSON or holds a senseless value is a problem that names file and field."""
    path = tmp_path / "generation_config.json"
    path.write_text(text)
    with pytest.raises(Problem, match=detail) as raised:
        SamplingDefaults.from_directory(tmp_path)
    assert raised.value.code == "checkpoint_invalid"
    assert str(path) in raised.value.message


def test_what_is_no_file_is_passed_over(tmp_path: Path) -> None:
    """A folder or a pipe of that name is as if there were no file: the start neither fails nor waits for a writer."""
    path = tmp_path / "generation_config.json"
    path.mkdir()
    assert SamplingDefaults.from_directory(tmp_path) == SamplingDefaults()
    path.rmdir()
    os.mkfifo(path)
    assert SamplingDefaults.from_directory(tmp_path) == SamplingDefaults()
