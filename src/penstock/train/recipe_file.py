"""Reading a recipe from its file.

In: a YAML file and ``section.key=value`` overrides; out: a :class:`~penstock.config.recipe.Recipe`.
A key that is not known, a section that is missing and a value out of range are refused with the file, the place,
the value and what is allowed.  Imports no torch, so that a wrong recipe is refused at once.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from penstock.config.recipe import Recipe
from penstock.config.yaml_file import read_yaml
from penstock.wire.errors import Problem


def load_recipe(path: Path, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe in ``path`` with each ``section.key=value`` of ``overrides`` put in; values are written as in YAML.

    Raises ``recipe_invalid``: file, place, value and what is allowed are named.
    """
    data = _read(path)
    for override in overrides:
        _override(data, override)
    _check_keys(data, Recipe, path, "")
    try:
        # Not strict: YAML 1.1 reads 1e-3 as text.
        recipe = msgspec.convert(data, Recipe, strict=False)
    except msgspec.ValidationError as error:
        raise _wrong_value(path, str(error)) from None
    _check_sizes(recipe, path)
    return recipe


def _read(path: Path) -> dict[str, Any]:
    try:
        data = read_yaml(path.read_bytes())
    except FileNotFoundError:
        raise Problem("recipe_invalid", f"There is no recipe {path}.") from None
    except OSError as error:
        raise Problem("recipe_invalid", f"{path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise Problem("recipe_invalid", f"{path} is not valid YAML: {error}.") from None
    if not isinstance(data, dict):
        raise Problem("recipe_invalid", f"{path} must hold sections such as `pretrain:`, not a {type(data).__name__}.")
    return data


def _override(data: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    place = key.strip().split(".")
    if not equals or not all(place):
        raise Problem("recipe_invalid", f"--set {override!r} must be section.key=value.", param="--set")
    for name in place[:-1]:
        section = data.get(name, {})
        if not isinstance(section, dict):
            raise Problem("recipe_invalid", f"--set {override!r}: {name} is a value, not a section.", param="--set")
        # A copy: a YAML alias may have given two sections one object.
        copy = dict(section)
        data[name] = copy
        data = copy
    try:
        data[place[-1]] = read_yaml(text.encode())
    except ValueError:
        raise Problem("recipe_invalid", f"--set {override!r}: the value is not valid YAML.", param="--set") from None


def _check_keys(data: object, section: type[msgspec.Struct], path: Path, place: str) -> None:
    """msgspec names an unknown key too, but neither its neighbours nor the likely meant one."""
    where = place.rstrip(".") or "the recipe"
    if not isinstance(data, dict):
        raise Problem("recipe_invalid", f"{path}: {where} must be a section of keys, not {data!r}.", param=where)
    fields = {field.name: field for field in msgspec.structs.fields(section)}
    for key in data:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, 1)
            meant = f" Did you mean {near[0]}?" if near else ""
            known = ", ".join(fields)
            message = f"{path}: {where} has the unknown key {key!r}.{meant} Known there: {known}."
            raise Problem("recipe_invalid", message, param=f"{place}{key}")
    for name, field in fields.items():
        if name not in data and field.required:
            what = "section" if _section_of(field.type) else "key"
            raise Problem("recipe_invalid", f"{path}: {where} lacks the {what} {name}.", param=f"{place}{name}")
        inner = _section_of(field.type)
        if inner is not None and name in data:
            _check_keys(data[name], inner, path, f"{place}{name}.")


def _section_of(kind: object) -> type[msgspec.Struct] | None:
    return kind if isinstance(kind, type) and issubclass(kind, msgspec.Struct) else None


def _wrong_value(path: Path, words: str) -> Problem:
    """msgspec ends its sentence with "- at `$.pretrain.steps`"."""
    said, _, at = words.partition(" - at ")
    place = at.strip("`").removeprefix("$.")
    return Problem("recipe_invalid", f"{path}: {place}: {said.replace('`', '')}.", param=place)


def _check_sizes(recipe: Recipe, path: Path) -> None:
    """What one key asks of another."""
    model = recipe.model
    if model.num_heads % model.num_kv_heads:
        raise _conflict(path, "model.num_kv_heads", model.num_kv_heads, f"must divide num_heads, {model.num_heads}")
    for name, loop in (("pretrain", recipe.pretrain), ("sft", recipe.sft)):
        if loop.row_tokens > model.max_position:
            limit = f"must not exceed model.max_position, {model.max_position}"
            raise _conflict(path, f"{name}.row_tokens", loop.row_tokens, limit)
        if loop.rows_per_pass is not None and loop.rows_per_step % loop.rows_per_pass:
            limit = f"must divide rows_per_step, {loop.rows_per_step}"
            raise _conflict(path, f"{name}.rows_per_pass", loop.rows_per_pass, limit)
        if loop.warmup_steps > loop.steps:
            raise _conflict(path, f"{name}.warmup_steps", loop.warmup_steps, f"must not exceed steps, {loop.steps}")


def _conflict(path: Path, place: str, value: object, limit: str) -> Problem:
    return Problem("recipe_invalid", f"{path}: {place} is {value}; it {limit}.", param=place)
