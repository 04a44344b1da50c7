"""The grammars of required calls: what they allow is a valid call, read back by the style's own parser."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import jsonschema
import llguidance
import pytest
from scripted import write_scripted_checkpoint

from penstock.text.answer import AnswerFormat
from penstock.text.grammar_child import Worker, _Gtokenizer
from penstock.text.grammar_messages import Allowed, Open, Vocabulary
from penstock.text.grammar_source import compiled
from penstock.text.tokenizer import Tokenizer
from penstock.text.tools.registry import LISTED, STYLES
from penstock.wire.engine import Grammar, ToolUse
from penstock.wire.errors import Problem

SCHEMAS: dict[str, Any] = {
    "get_weather": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 8}, "days": {"type": "integer", "maximum": 99}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "set_mode": {
        "properties": {"mode": {"enum": ["a", 'b "quoted"']}},
        "required": ["mode"],
        "additionalProperties": False,
    },
    "now": None,
}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": schema}} for name, schema in SCHEMAS.items()]
ALL = {**STYLES, "listed": LISTED}


@pytest.fixture(scope="module", params=[True, False], ids=["special", "plain"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Bytes, and marks that are tokens of their own or not."""
    directory: Path = tmp_path_factory.mktemp("model")
    marks = ("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]") if request.param else ()
    write_scripted_checkpoint(directory, {"A": "x"}, "", special=marks)
    return Tokenizer.load(directory)


class _Tokens:
    """The vocabulary as llguidance takes it."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokens = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
        self.special_token_ids = sorted(tokenizer.special_token_ids)
        self.eos_token_id = min(tokenizer.stop_token_ids)
        self.is_tokenizer_wrapper = True

    def __call__(self, text: Any) -> list[int]:
        return []


def written(tokenizer: Tokenizer, grammar: Grammar, dice: random.Random, most: int = 400) -> str:
    """What a model that knows nothing writes under a grammar; it ends as soon as it may, one time in two."""
    tokens: Any = _Tokens(tokenizer)
    matcher = compiled(llguidance.LLTokenizer(tokens), grammar)
    text = b""
    for _ in range(most):
        mask = matcher.compute_bitmask()
        assert not matcher.is_error(), matcher.get_error()
        allowed = [i for i in range(tokenizer.vocab_size) if mask[i // 8] >> i % 8 & 1]
        if matcher.is_accepting() and (allowed == [tokens.eos_token_id] or dice.random() < 0.5):
            return text.decode()
        # The end of a string rather often, so that it comes.
        choices = [i for i in allowed if i != tokens.eos_token_id]
        token_id = dice.choice([*choices, *[i for i in choices if i in (34, 125)] * 40])
        text += tokenizer.token_bytes(token_id)
        assert matcher.consume_token(token_id)
    raise AssertionError(f"no end within {most} tokens: {text!r}")


def calls_in(answers: AnswerFormat, tokenizer: Tokenizer, use: ToolUse, text: str) -> list[tuple[str, Any]]:
    parser = answers.parser(tokenizer, "", use=use)
    parts, last = parser.push(text), parser.flush()
    assert parts.text + last.text == ""
    calls: dict[int, list[str]] = {}
    for part in [*parts.calls, *last.calls]:
        calls.setdefault(part.index, [part.name, ""])[1] += part.arguments
    return [(name, json.loads(arguments)) for name, arguments in calls.values()]


@pytest.mark.parametrize("style", ALL)
@pytest.mark.parametrize("name", [None, "set_mode"])
@pytest.mark.parametrize("parallel", [True, False])
def test_a_required_call_is_valid_whatever_the_model_knows(
    tokenizer: Tokenizer, style: str, name: str | None, parallel: bool
) -> None:
    """Random choices among what is allowed make calls of functions on offer, with arguments of their schema."""
    answers = AnswerFormat(style=None if style == "listed" else ALL[style])
    use = ToolUse(tools=TOOLS, key="r", required=True, name=name, parallel=parallel)
    grammar = answers.grammar(tokenizer, use, None)
    assert grammar is not None
    dice, seen = random.Random(1), set()
    for _ in range(12):
        calls = calls_in(answers, tokenizer, use, written(tokenizer, grammar, dice))
        assert len(calls) == 1 or (parallel and calls)
        for called, arguments in calls:
            seen.add(called)
            jsonschema.validate(arguments, SCHEMAS[called] or {"maxProperties": 0})
    assert seen == ({name} if name else set(SCHEMAS))


def test_an_answer_in_json_may_be_a_call_instead(tokenizer: Tokenizer) -> None:
    """With tools and a JSON format both, an output is one or the other."""
    answers = AnswerFormat(style=STYLES["hermes"])
    use = ToolUse(tools=TOOLS, key="r")
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    grammar = answers.grammar(
        tokenizer, use, Grammar(kind="json_schema", value=json.dumps(schema), param="response_format")
    )
    assert grammar is not None
    dice = random.Random(1)
    texts = [written(tokenizer, grammar, dice) for _ in range(20)]
    answered = [text for text in texts if not text.startswith("<tool_call>")]
    assert 0 < len(answered) < len(texts)
    assert all(set(json.loads(text)) == {"ok"} for text in answered)
    assert all(calls_in(answers, tokenizer, use, text) for text in texts if text not in answered)


def test_what_leaves_no_room_for_calls_is_refused(tokenizer: Tokenizer) -> None:
    """A required call and another format, or calls and an expression, exclude each other."""
    answers = AnswerFormat(style=STYLES["hermes"])
    kinds: Any = ((True, "json_object"), (False, "regex"))
    for required, kind in kinds:
        with pytest.raises(Problem) as refused:
            grammar = Grammar(kind=kind, value="{}", param="response_format")
            answers.grammar(tokenizer, ToolUse(tools=TOOLS, key="r", required=required), grammar)
        assert (refused.value.code, refused.value.param) == ("invalid_value", "response_format")


def test_an_output_cannot_end_before_its_call(tokenizer: Tokenizer) -> None:
    """Where a mark that is a special token has to come, the end of the text may not."""
    use = ToolUse(tools=TOOLS, key="r", required=True)
    tokens = [tokenizer.token_bytes(token_id) for token_id in range(tokenizer.vocab_size)]
    wrapper: Any = _Gtokenizer(Vocabulary(tokens, sorted(tokenizer.special_token_ids)))
    worker = Worker(llguidance.LLTokenizer(wrapper))
    for session, style in enumerate(ALL.values()):
        grammar = AnswerFormat(style=style).grammar(tokenizer, use, None)
        assert grammar is not None
        reply = worker.answer(Open(session, grammar, []))
        assert isinstance(reply, Allowed)
        allowed = {token_id for token_id in range(len(tokens) + 1) if reply.mask[token_id // 8] >> token_id % 8 & 1}
        mark = tokenizer.id_of(style.marks[0]) if style.marks else None
        # A mark that is a token of its own is written as that token, whose embedding the model knows.
        assert allowed == ({mark} if mark in tokenizer.special_token_ids and style.name != "llama3" else allowed)
        assert allowed and not allowed & {len(tokens), *tokenizer.stop_token_ids}


def test_a_schema_that_would_not_hold_is_refused_with_its_function(tokenizer: Tokenizer) -> None:
    """What the library would take and not enforce is told as it is for a format, and of which function it is."""
    wrapper: Any = _Tokens(tokenizer)
    for schema, words in (({"uniqueItems": True}, "uniqueItems"), ({"properties": {"x": {"if": {}}}}, "if")):
        tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
        grammar = AnswerFormat(style=LISTED).grammar(tokenizer, ToolUse(tools=tools, key="r", required=True), None)
        assert grammar is not None
        with pytest.raises(Problem, match=rf"^f: #.*{words}") as refused:
            compiled(llguidance.LLTokenizer(wrapper), grammar)
        assert refused.value.code == "grammar_invalid"


def test_without_a_required_call_there_is_no_grammar(tokenizer: Tokenizer) -> None:
    """What a model may call and need not is not enforced."""
    assert AnswerFormat(style=STYLES["hermes"]).grammar(tokenizer, ToolUse(tools=TOOLS, key="r"), None) is None
