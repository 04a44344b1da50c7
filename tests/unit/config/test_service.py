"""The service's file is read whole, or refused with words that name the mistake."""

from __future__ import annotations

import pytest

from penstock.config.names import Name, Shadow
from penstock.config.service import read_service

GOOD = b"""
models:
  large: {source: ./large, replicas: 2, balance: marginal-time}
names:
  assistant: {to: {large: 90}, fallbacks: [large], shadow: {model: large, share: 0.5}, sticky: conversation}
  alias: {to: assistant}
"""


def test_models_and_names_are_read() -> None:
    """Everything that can be written is; an empty file is an empty service."""
    file = read_service(GOOD)
    assert file.models["large"].replicas == 2 and file.models["large"].balance == "marginal-time"
    shadow = Shadow(model="large", share=0.5)
    assert file.names["assistant"] == Name(
        to={"large": 90.0}, fallbacks=("large",), shadow=shadow, sticky="conversation"
    )
    assert file.names["alias"].weights == {"assistant": 1.0}
    assert not read_service(b"").names


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("models: {a: {}}", "source"),
        ("models: {a: {source: x, replica: 2}}", "replica"),
        ("models: {a: {source: x, replicas: 0}}", "replicas"),
        ("models: {a: {source: x, balance: fair}}", "balance"),
        ("names: {a: {to: [x]}}", "to"),
        ("names: {a: {to: {x: much}}}", "to"),
        ("names: {a: {to: x, shadow: {model: y, share: 2}}}", "share"),
        ("names: {a: {to: x, sticky: always}}", "sticky"),
        ("{names: {n: {to: x}}, tenants: {a: {limits: [tokens=1/day@n]}}}", "'a' has a right or a limit of 'n'"),
        ("{names: {n: {to: x}}, tenants: {a: {models: [n]}}}", "'a' has a right or a limit of 'n'"),
        ("[1, 2]", "object"),
        ("a: b: c", "no service"),
    ],
)
def test_what_cannot_be_meant_is_told(text: str, words: str) -> None:
    """The path of the mistake is part of the words."""
    with pytest.raises(ValueError, match=words):
        read_service(text.encode())
