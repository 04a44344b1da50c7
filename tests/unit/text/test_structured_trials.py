"""Random schemas, expressions and grammars under a sampler that picks anything allowed, cut and resumed."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from decimal import Decimal

import jsonschema
import pytest
from babble import babble
from schemas import random_schema

from penstock.text.grammar import Grammars
from penstock.text.tokenizer import Tokenizer
from penstock.wire.engine import Grammar
from penstock.wire.errors import Problem

FAMILIES = ("byte_level", "llama2", "gemma")
FORMATS = jsonschema.FormatChecker(["email", "ipv4", "ipv6", "uuid"])
EXPRESSIONS = [
    r"[a-f0-9]{8}-[a-f0-9]{4}",
    r"(yes|no|maybe)( sir)?",
    r"-?\d{1,3}(\.\d+)?",
    r"[^x\n]*x",
    r"(a|b)*a(a|b){6}",
    r"é+日?",
    r"a/b\"c\\d",
]
SUMS = """
start: sum
sum: product | sum ("+" | "-") product
product: atom | product "*" atom
atom: NUMBER | "(" sum ")"
NUMBER: /[1-9][0-9]{0,2}/
"""


@pytest.fixture(scope="module")
def grammars_of(tokenizer_of: dict[str, Tokenizer]) -> Iterator[dict[str, Grammars]]:
    made = {name: Grammars(tokenizer_of[name]) for name in FAMILIES}
    for grammars in made.values():
        grammars.start()
    yield made
    for grammars in made.values():
        grammars.close()


def output_of(tokenizer_of, grammars_of, grammar: Grammar, dice: random.Random, num_cuts: int) -> str:
    family = dice.choice(FAMILIES)
    return babble(tokenizer_of[family], grammars_of[family], grammar, dice, num_cuts=num_cuts).decode()


def num_valid(tokenizer_of, grammars_of, seeds: range) -> int:
    """How many of the seeds' schemas were accepted, each output being valid; every second output is cut twice."""
    accepted = 0
    for seed in seeds:
        dice = random.Random(seed)
        schema = random_schema(dice)
        grammar = Grammar(kind="json_schema", value=json.dumps(schema))
        try:
            output = output_of(tokenizer_of, grammars_of, grammar, dice, num_cuts=2 * (seed % 2))
        except Problem as problem:
            if problem.code != "grammar_invalid":
                raise
            continue
        # Decimal: 21.7500000000000001 is more than 21.75, and equal to it once it is a double.
        value = json.loads(output, parse_float=Decimal)
        jsonschema.Draft202012Validator(schema, format_checker=FORMATS).validate(value)
        accepted += 1
    return accepted


def test_any_schema_gives_valid_json(tokenizer_of, grammars_of) -> None:
    """Of 150 random schemas nearly all are accepted, and each output is JSON of its schema, cut and resumed or not."""
    assert num_valid(tokenizer_of, grammars_of, range(150)) >= 135


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_thousand_schemas_give_valid_json(tokenizer_of, grammars_of) -> None:
    """1,000 random schemas that the quick test has not: each output is JSON of its schema, half of them cut twice."""
    accepted = num_valid(tokenizer_of, grammars_of, range(1000, 2040))
    print(f"{accepted} schemas were accepted, and every output was valid")
    assert accepted >= 1000


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_any_expression_gives_matching_text(tokenizer_of, grammars_of, expression: str) -> None:
    """Every output under a regular expression matches it as a whole."""
    for seed in range(10):
        text = output_of(
            tokenizer_of, grammars_of, Grammar(kind="regex", value=expression), random.Random(seed), seed % 2
        )
        assert re.fullmatch(expression, text), text


def test_a_grammar_gives_sentences_of_its_language(tokenizer_of, grammars_of) -> None:
    """Every output under a grammar of sums is one that Python reads as a sum."""
    for seed in range(30):
        text = output_of(tokenizer_of, grammars_of, Grammar(kind="lark", value=SUMS), random.Random(seed), seed % 3)
        assert set(text) <= set("0123456789+-*()")
        assert isinstance(eval(text), int)


def test_any_object_is_an_object(tokenizer_of, grammars_of) -> None:
    """Without a schema the output is some JSON object."""
    for seed in range(20):
        text = output_of(tokenizer_of, grammars_of, Grammar(kind="json_object", value="{}"), random.Random(seed), 1)
        assert isinstance(json.loads(text), dict)
