"""train.recipe_file: a recipe says exactly what is trained, and a wrong one says what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.train.recipe_file import load_recipe
from penstock.wire.errors import Problem

SHIPPED = Path(__file__).parents[3] / "recipes" / "pydoc.yaml"


def refused(*overrides: str, path: Path = SHIPPED) -> Problem:
    with pytest.raises(Problem) as caught:
        load_recipe(path, overrides)
    return caught.value


def test_the_shipped_recipe_is_valid() -> None:
    """recipes/pydoc.yaml loads."""
    assert load_recipe(SHIPPED).name == "pydoc"


def test_an_override_replaces_one_value() -> None:
    """--set changes the named key and nothing else; 1e-3 is a number although YAML 1.1 reads text."""
    recipe = load_recipe(SHIPPED, ["sft.steps=700", "sft.learning_rate=1e-3", "seed=5"])
    assert (recipe.sft.steps, recipe.sft.learning_rate, recipe.seed) == (700, 1e-3, 5)
    assert recipe.pretrain == load_recipe(SHIPPED).pretrain


def test_an_override_of_a_section_that_an_alias_shares_changes_one_of_them(tmp_path: Path) -> None:
    """`sft: *loop` reuses pretrain's values, but --set sft.steps leaves pretrain.steps."""
    lines = SHIPPED.read_text().replace("pretrain:\n", "pretrain: &loop\n").splitlines()
    begin = lines.index("sft:")
    end = next(i for i in range(begin + 1, len(lines)) if not lines[i].startswith(" "))
    path = tmp_path / "recipe.yaml"
    path.write_text("\n".join([*lines[:begin], "sft: *loop", *lines[end:]]))
    recipe = load_recipe(path, ["sft.steps=777"])
    assert recipe.sft.steps == 777 and recipe.pretrain == load_recipe(SHIPPED).pretrain


def test_an_unknown_key_is_named_with_its_place_and_the_keys_that_are_known() -> None:
    """The message has the section, the key, the likely meant one and the whole list."""
    problem = refused("pretrain.learning_rat=1")
    assert problem.code == "recipe_invalid" and problem.param == "pretrain.learning_rat"
    for word in ("pretrain", "'learning_rat'", "Did you mean learning_rate?", "rows_per_step", str(SHIPPED)):
        assert word in problem.message


@pytest.mark.parametrize("section", ["corpus", "tokenizer", "model", "pretrain", "sft", "evaluate", "export"])
def test_a_missing_stage_is_named(section: str, tmp_path: Path) -> None:
    """No section may be left out: there is no such thing as half a pipeline."""
    lines = SHIPPED.read_text().splitlines()
    begin = lines.index(f"{section}:")
    end = next((i for i in range(begin + 1, len(lines)) if lines[i] and not lines[i].startswith(" ")), len(lines))
    path = tmp_path / "recipe.yaml"
    path.write_text("\n".join(lines[:begin] + lines[end:]))
    problem = refused(path=path)
    assert f"the recipe lacks the section {section}" in problem.message


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("sft.steps=0", "sft.steps: Expected int >= 1"),
        ("sft.steps=many", "sft.steps: Expected int, got str"),
        ("pretrain.learning_rate=.nan", "pretrain.learning_rate"),
        ("pretrain.beta2=1", "pretrain.beta2: Expected float < 1.0"),
        ("pretrain.precision=float16", "pretrain.precision: Invalid enum value 'float16'"),
        ("name=../elsewhere", "name: Expected str matching regex"),
        ("export=3", "export must be a section of keys, not 3"),
        ("model.num_kv_heads=3", "model.num_kv_heads is 3; it must divide num_heads, 4"),
        ("sft.row_tokens=9999", "sft.row_tokens is 9999; it must not exceed model.max_position, 512"),
        ("sft.rows_per_pass=5", "sft.rows_per_pass is 5; it must divide rows_per_step, 16"),
        ("sft.warmup_steps=999999", "sft.warmup_steps is 999999; it must not exceed steps"),
        ("sft.steps", "must be section.key=value"),
        ("seed.x=1", "seed is a value, not a section"),
        ("seed=[", "the value is not valid YAML"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(override: str, words: str) -> None:
    """Type, range and the agreement of keys with one another are checked before anything is done."""
    problem = refused(override)
    assert problem.code == "recipe_invalid" and words in problem.message


def test_a_file_that_is_no_recipe_says_why(tmp_path: Path) -> None:
    """A missing file, broken YAML and a list are told apart."""
    path = tmp_path / "recipe.yaml"
    assert refused(path=path).code == "recipe_invalid"
    path.write_text("name: [")
    assert "is not valid YAML" in refused(path=path).message
    path.write_text("- 1")
    assert "not a list" in refused(path=path).message
    assert refused(path=tmp_path).code == "recipe_invalid"
