"""Real releases are read as what they are: sizes, kinds of layers, contexts, and what their authors recommend."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from releases import RELEASES
from seeded import write_seeded_checkpoint

from penstock.engine.cpu.defaults import SamplingDefaults
from penstock.models.config import ModelConfig
from penstock.models.decoder import Decoder
from penstock.models.registry import FAMILIES
from penstock.models.rope import LongRopeScaling
from penstock.text.tokenizer import Tokenizer


def config_of(name: str, directory: Path) -> ModelConfig:
    (directory / "config.json").write_text(json.dumps(RELEASES[name].config))
    return ModelConfig.from_directory(directory)


@pytest.mark.parametrize("name", RELEASES)
def test_a_release_has_its_published_number_of_parameters(name: str, tmp_path: Path) -> None:
    """Built on the meta device, each has as many parameters as the hub counts, and layers of the right kinds."""
    release, config = RELEASES[name], config_of(name, tmp_path)
    with torch.device("meta"):
        decoder = Decoder(config)
    assert sum(parameter.numel() for parameter in decoder.parameters()) == release.num_parameters
    assert config.max_position == release.context and config.dtype == "bfloat16"
    assert sum(layer.window is not None for layer in config.layers) == release.windows
    assert sum(layer.experts is not None for layer in config.layers) == release.experts


@pytest.mark.parametrize("name", RELEASES)
def test_a_release_survives_writing_and_reading(name: str, tmp_path: Path) -> None:
    """What we write of a release's configuration we read back as the same."""
    config = config_of(name, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config.to_huggingface()))
    assert ModelConfig.from_directory(tmp_path) == config


@pytest.mark.parametrize("name", RELEASES)
def test_generation_settings_are_read(name: str, tmp_path: Path) -> None:
    """Every id that ends a generation does, and sampling begins from what the authors recommend."""
    release, directory = RELEASES[name], tmp_path / "model"
    write_seeded_checkpoint(directory)
    (directory / "generation_config.json").write_text(json.dumps(release.generation))
    assert release.stops and release.stops <= Tokenizer.load(directory).stop_token_ids
    defaults = SamplingDefaults.from_directory(directory)
    for field in ("temperature", "top_p", "top_k", "repetition_penalty"):
        assert getattr(defaults, field) == release.generation.get(field)


def test_every_family_has_two_releases() -> None:
    """A family without real releases to read would be a guess."""
    architectures = [release.config["architectures"][0] for release in RELEASES.values()]
    for architecture, family in FAMILIES.items():
        whole = family.whole.architecture if family.whole else architecture
        assert sum(name in (architecture, whole) for name in architectures) >= 2, architecture


def test_phi4_mini_turns_part_of_its_heads_and_phi3_turns_all(tmp_path: Path) -> None:
    """Three quarters of 128 dimensions and all of 96 are both 96, so both have 48 factors."""
    for name in ("microsoft/Phi-3-mini-128k-instruct", "microsoft/Phi-4-mini-instruct"):
        config = config_of(name, tmp_path)
        rope = config.layers[0].rope
        assert rope is not None and rope.num_rotated(config.head_dim) == 96
        assert isinstance(rope.scaling, LongRopeScaling) and rope.amplitude == pytest.approx(1.19024, abs=1e-5)


def test_gemma3_has_two_bases_and_scales_one(tmp_path: Path) -> None:
    """Sliding layers turn with a base of their own, unscaled; every sixth layer sees all."""
    layers = config_of("google/gemma-3-12b-it", tmp_path).layers
    sliding, full = layers[0].rope, layers[5].rope
    assert sliding is not None and (sliding.theta, sliding.scaling) == (1e4, None)
    assert full is not None and full.theta == 1e6 and full.scaling is not None
    assert [index for index, layer in enumerate(layers) if layer.window is None] == list(range(5, 48, 6))
