"""What was written is read as it stands, or refused with the line of the mistake."""

from __future__ import annotations

import pytest

from penstock.config.issuers import read_issuers
from penstock.config.prices import read_prices
from penstock.config.service import read_service
from penstock.config.yaml_file import read_yaml

PRICE = "- model: a\n  since: 2026-01-01\n  input: 1\n  output: 2\n  input: 0\n"
ISSUER = "- issuer: https://a.example\n  audience: one\n  tenant: x\n  audience: two\n"


def test_plain_yaml_and_json_are_read() -> None:
    """Anchors and `<<` among them, whose keys may be given again; an empty file is nothing."""
    assert read_yaml(b'{"a": [1, {"b": null}]}') == {"a": [1, {"b": None}]}
    assert read_yaml(b"base: &b {x: 1, y: 2}\none: {<<: *b, y: 3}\ntwo: *b") == {
        "base": {"x": 1, "y": 2},
        "one": {"x": 1, "y": 3},
        "two": {"x": 1, "y": 2},
    }
    assert read_yaml(b"# nothing") is None
    assert read_yaml(b"{1: a, '1': b}") == {1: "a", "1": "b"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb: 2\na: 3", "line 3: the key 'a' stands in line 1 already"),
        ("models:\n  m: {source: x, source: y}", "line 2: the key 'source' stands in line 2 already"),
        ('{"a":\n {"b": 1,\n "b": 2}}', "line 3: the key 'b' stands in line 2 already"),
        ("- {a: 1}\n- [{b: 1, b: 2}]\n- {c: 1, c: 2}", "line 2: the key 'b'"),
        ("x: &b {k: 1}\ny:\n  <<: *b\n  <<: *b", "line 4: the key '<<'"),
        ("a: [", "line 2"),
        ("a: \x00", "not allowed"),
        ("!!python/object/apply:os.system [true]", "could not determine a constructor"),
    ],
)
def test_what_says_two_things_is_refused(text: str, words: str) -> None:
    """A key that stands twice, and what is no YAML; in no case the last one wins unseen."""
    with pytest.raises(ValueError, match=words):
        read_yaml(text.encode())


@pytest.mark.parametrize(
    ("read", "text", "line"),
    [
        (read_service, "models:\n  m: {source: a}\n  m: {source: b}\n", 3),
        (read_service, "tenants:\n  t:\n    limits: [tokens=1/day]\n    limits: []\n", 4),
        (read_prices, PRICE, 5),
        (read_issuers, ISSUER, 4),
    ],
)
def test_every_file_of_the_service_is_read_that_way(read, text: str, line: int) -> None:
    """A limit, a price or an issuer's audience that is said twice is no matter of which came last."""
    with pytest.raises(ValueError, match=f"line {line}: the key"):
        read(text.encode())
