"""What holds for every family alike."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from random_checkpoints import CASES, make_checkpoint

import penstock.models.families
from penstock.models import registry
from penstock.models.config import ModelConfig
from penstock.models.fast.actions import NotPlain
from penstock.models.fast.plan import plan_of
from penstock.models.registry import FAMILIES

FILES = sorted(Path(penstock.models.families.__path__[0]).glob("[!_]*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_family_is_one_short_file(file: Path) -> None:
    """A family takes 120 lines at most and stands in the registry."""
    assert len(file.read_text().splitlines()) <= 120
    assert hasattr(registry, file.stem.upper())


def test_every_family_has_a_parity_case() -> None:
    """Each registered architecture is compared with transformers, in two cases at least."""
    compared = [family for family, _ in CASES.values()]
    for architecture in FAMILIES:
        assert compared.count(architecture.removesuffix("ForCausalLM")) >= 2


@pytest.mark.parametrize("case", CASES)
def test_a_step_of_every_family_without_experts_is_one_call(case: str, tmp_path: Path) -> None:
    """docs/reference/models.md says which families have a plan; this is that list."""
    make_checkpoint(case, tmp_path)
    config = dataclasses.replace(ModelConfig.from_directory(tmp_path), dtype="bfloat16")
    if any(layer.experts is not None for layer in config.layers):
        with pytest.raises(NotPlain):
            plan_of(config)
    else:
        assert plan_of(config).actions


def test_the_howtos_example_is_a_family() -> None:
    """The file that docs/howto/add-a-model-family.md shows is the one in families/, to the letter."""
    howto = (Path(__file__).parents[3] / "docs" / "howto" / "add-a-model-family.md").read_text()
    shown = re.search(r'```python\n(""".*?)```', howto, re.DOTALL)
    (olmo2,) = (file for file in FILES if file.stem == "olmo2")
    assert shown is not None and shown[1] == olmo2.read_text()
