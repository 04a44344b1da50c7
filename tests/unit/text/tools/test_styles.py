"""Tool calls in every style: what is a call, what is text, whatever the pieces it arrives in."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import pytest
from cuts import cut, places, texts_of
from hypothesis import example, given
from hypothesis import strategies as st

from penstock.text.tools.registry import LISTED, STYLES, find_style
from penstock.text.tools.style import ToolStyle, long_id

ALL = {**STYLES, LISTED.name: LISTED}
NAMES = frozenset({"f", "get_weather"})
PIECES = {
    "hermes": ["<tool_call>", "</tool_call>", '{"name": "f", "arguments": {"x": 1}}', '{"name": "', '"}', "<tool"],
    "llama3": ["<|python_tag|>", '{"name": "f", "parameters": {"x": [1]}}', '{"name": "f"', "}", "; ", "<|py"],
    "mistral": ["[TOOL_CALLS]", '[{"name": "f", "arguments": {}}]', '[{"name": "f", "arguments": {"a', ", ", "]", "f"],
    "mistral-args": ["[TOOL_CALLS]", "f[ARGS]", '{"x": "}"}', "[CALL_ID]ab1", "{}", "[TOOL"],
    "listed": ["[", '{"name": "f", "parameters": {"x": 1}}', ", ", "]", '{"name": "g"}'],
}


@dataclass
class Call:
    name: str
    arguments: str = ""


@dataclass
class Read:
    """What became of an output."""

    text: str = ""
    calls: list[Call] = field(default_factory=list)
    over: bool = False

    @property
    def pairs(self) -> list[tuple[str, str]]:
        return [(call.name, call.arguments) for call in self.calls]


def read(style: ToolStyle, pieces: list[str], *, parallel: bool = True) -> Read:
    parser, result = style.parser(NAMES, parallel), Read()
    for text, parts in [*map(parser.push, pieces), parser.flush()]:
        result.text += text
        for part in parts:
            if part.name:
                assert part.index == len(result.calls), "a call begins when the one before has"
                result.calls.append(Call(part.name))
            result.calls[part.index].arguments += part.arguments
    assert parser.num_calls == len(result.calls)
    result.over = parser.is_over
    return result


F, G = '{"name": "f", "arguments": {"x": 1}}', '{"name": "get_weather", "arguments": {"city": "Zürich"}}'
FX, GZ = ("f", '{"x": 1}'), ("get_weather", '{"city": "Zürich"}')
READ: list[tuple[str, str, str, list[tuple[str, str]]]] = [
    ("hermes", f"<tool_call>\n{F}\n</tool_call>", "", [FX]),
    ("hermes", f"I look.\n\n<tool_call>{F}</tool_call>\n<tool_call>\n{G}\n</tool_call>", "I look.", [FX, GZ]),
    ("hermes", f"<tool_call>{F}</tool_call>\nDone. ", "Done. ", [FX]),
    ("hermes", f"<tool_call>{F}", "", [FX]),
    ("hermes", f"<tool_call>{F}<tool_call>{G}", "", [FX, GZ]),
    ("hermes", '<tool_call>{"arguments": {"x": 1}, "name": "f"}</tool_call>', "", [FX]),
    ("hermes", '<tool_call>{"name": "f"}</tool_call>', "", [("f", "{}")]),
    ("hermes", '<tool_call>{"name": "f", "arguments": null}</tool_call>', "", [("f", "{}")]),
    ("hermes", '<tool_call>{"name": "f", "arguments": "{\\"x\\": 1}"}</tool_call>', "", [FX]),
    ("hermes", '<tool_call>{"id": 7, "name": "f", "arguments": {"x": 1}}</tool_call>', "", [FX]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"x": 1}</tool_call>', "", [FX]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"x": "a\nb"}}', "", [("f", '{"x": "a\\nb"}')]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"x": "</tool_call>"}}', "", [("f", '{"x": "</tool_call>"}')]),
    ("hermes", '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>', "", [("unknown", "{}")]),
    ("hermes", "<tool_call>nothing</tool_call>", "<tool_call>nothing</tool_call>", []),
    ("hermes", f"<tool_call><tool_call>{F}</tool_call>", "<tool_call>", [FX]),
    ("hermes", "<tool_call>{'name': 'f'}</tool_call>", "<tool_call>{'name': 'f'}</tool_call>", []),
    ("hermes", '<tool_call>{"name": "f", "arguments": {x: 1}}', '<tool_call>{"name": "f", "arguments": {x: 1}}', []),
    ("hermes", '<tool_call>{"name": "f", "arguments": [1]}', '<tool_call>{"name": "f", "arguments": [1]}', []),
    ("hermes", '<tool_call>{"name": 1}', '<tool_call>{"name": 1}', []),
    ("hermes", '<tool_call>{"name": "a b"}', '<tool_call>{"name": "a b"}', []),
    ("hermes", '<tool_call>{"arguments": {}}', '<tool_call>{"arguments": {}}', []),
    ("hermes", "<tool_call>{}", "<tool_call>{}", []),
    ("hermes", '<tool_call>{"name": "f", "arg', '<tool_call>{"name": "f", "arg', []),
    ("hermes", "a <tool_", "a <tool_", []),
    # What was announced stays a call: the rest is its arguments, which whoever runs it has to check anyway.
    ("hermes", '<tool_call>{"name": "f", "arguments": {"x": oh}}</tool_call>.', ".", [("f", '{"x": oh}}')]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"x": "cut', "", [("f", '{"x": "cut')]),
    ("llama3", '{"name": "f", "parameters": {"x": 1}}', "", [FX]),
    ("llama3", '\n{"type": "function", "name": "f", "parameters": {"x": 1}}\n', "", [FX]),
    ("llama3", 'I look. <|python_tag|>{"name": "f", "parameters": {"x": 1}}', "I look.", [FX]),
    ("llama3", f'{{"name": "f", "parameters": {{"x": 1}}}}; {G}', "", [FX, GZ]),
    ("llama3", f"<|python_tag|>{F}<|python_tag|>{G}", "", [FX, GZ]),
    ("llama3", '{"name": "f", "parameters": {}} and more', "and more", [("f", "{}")]),
    ("llama3", '{"name": "Bob", "parameters": {}}', '{"name": "Bob", "parameters": {}}', []),
    ("llama3", '{"city": "Paris"}', '{"city": "Paris"}', []),
    ("llama3", f"text {F}", f"text {F}", []),
    ("llama3", '<|python_tag|>search.call(query="x")', '<|python_tag|>search.call(query="x")', []),
    ("llama3", "<|python", "<|python", []),
    ("llama3", "\r<|python_tag|>", "\r<|python_tag|>", []),
    ("llama3", "  ", "  ", []),
    ("mistral", f"[TOOL_CALLS] [{F}, {G}]", "", [FX, GZ]),
    ("mistral", f"I look. [TOOL_CALLS][{F}] Done", "I look. Done".replace(" Done", "Done"), [FX]),
    ("mistral", f"[TOOL_CALLS][{F}", "", [FX]),
    ("mistral", f"[TOOL_CALLS][{F}, nonsense]", "nonsense]", [FX]),
    ("mistral", "[TOOL_CALLS][1, 2]", "[TOOL_CALLS][1, 2]", []),
    ("mistral", "[TOOL_CALLS] []", "[TOOL_CALLS] []", []),
    ("mistral", "[1, 2]", "[1, 2]", []),
    ("mistral-args", '[TOOL_CALLS]f[ARGS]{"x": 1}', "", [FX]),
    ("mistral-args", '[TOOL_CALLS]f[ARGS]{"x": 1}[TOOL_CALLS]get_weather[ARGS]{"city": "Zürich"}', "", [FX, GZ]),
    ("mistral-args", '[TOOL_CALLS]f[CALL_ID]abc123XYZ[ARGS]{"x": 1}', "", [FX]),
    ("mistral-args", '[TOOL_CALLS] f {"x": 1} .', ".", [FX]),
    ("mistral-args", '[TOOL_CALLS]f[ARGS]{"x": oh}[TOOL_CALLS]f[ARGS]{}', "", [("f", '{"x": oh}'), ("f", "{}")]),
    ("mistral-args", "[TOOL_CALLS]f[ARGS][1]", "[TOOL_CALLS]f[ARGS][1]", []),
    ("mistral-args", "[TOOL_CALLS]f[ARGS]", "[TOOL_CALLS]f[ARGS]", []),
    ("mistral-args", "[TOOL_CALLS]no, really", "[TOOL_CALLS]no, really", []),
    ("mistral-args", '[TOOL_CALLS]so [TOOL_CALLS]f[ARGS]{"x": 1}', "[TOOL_CALLS]so", [FX]),
    ("mistral-args", "[TOOL_CALLS]" + "f" * 300 + "{}", "[TOOL_CALLS]" + "f" * 300 + "{}", []),
    ("listed", f"[{F}, {G}]", "", [FX, GZ]),
    ("listed", f"  [{F}]", "", [FX]),
    ("listed", "Hello", "Hello", []),
    ("listed", "[1]", "[1]", []),
]


@pytest.mark.parametrize(("name", "output", "text", "calls"), READ)
def test_what_is_a_call_and_what_is_text(name: str, output: str, text: str, calls: list[tuple[str, str]]) -> None:
    """At once or character by character, an output has the same text and calls."""
    assert (read(ALL[name], [output]).text, read(ALL[name], [output]).pairs) == (text, calls)
    assert (read(ALL[name], list(output)).text, read(ALL[name], list(output)).pairs) == (text, calls)


@pytest.mark.parametrize("name", ALL)
@given(data=st.data(), ends=places, parallel=st.booleans())
def test_the_pieces_do_not_matter(name: str, data: st.DataObject, ends: list[int], parallel: bool) -> None:
    """However an output is cut, its text and its calls are the same."""
    output = data.draw(texts_of(*PIECES[name]))
    assert read(ALL[name], cut(output, ends), parallel=parallel) == read(ALL[name], [output], parallel=parallel)


@pytest.mark.parametrize("name", ALL)
@given(data=st.data())
def test_an_output_without_calls_is_its_text(name: str, data: st.DataObject) -> None:
    """Whatever looks like the beginning of a call and is none comes out unchanged."""
    output = data.draw(texts_of(*PIECES[name]))
    result = read(ALL[name], [output])
    if not result.calls:
        assert result.text == output


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("name", ALL)
@given(st.lists(st.dictionaries(st.text(max_size=5), _json, max_size=3), min_size=1, max_size=3), places, st.booleans())
@example([{"x": '\\"}{[,\u2028\n'}], [20, 21, 22], True)
def test_any_arguments_come_out_as_they_were_written(name: str, each: list[dict], ends: list[int], ascii: bool) -> None:
    """Every JSON object can be an argument, and is passed on to the character."""
    written = [json.dumps(arguments, ensure_ascii=ascii) for arguments in each]
    key = "parameters" if name == "llama3" else "arguments"
    objects = [f'{{"name": "f", "{key}": {arguments}}}' for arguments in written]
    output = {
        "hermes": "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in objects),
        "llama3": "; ".join(objects),
        "mistral": f"[TOOL_CALLS][{', '.join(objects)}]",
        "mistral-args": "".join(f"[TOOL_CALLS]f[ARGS]{arguments}" for arguments in written),
        "listed": f"[{', '.join(objects)}]",
    }[name]
    result = read(ALL[name], cut(output, ends))
    assert (result.text, result.pairs) == ("", [("f", arguments) for arguments in written])


@pytest.mark.parametrize("name", ALL)
def test_arguments_stream(name: str) -> None:
    """Name first, then every piece of the arguments as it comes."""
    begin = {
        "hermes": '<tool_call>{"name": "f", "arguments": ',
        "llama3": '{"name": "f", "parameters": ',
        "mistral": '[TOOL_CALLS][{"name": "f", "arguments": ',
        "mistral-args": "[TOOL_CALLS]f[ARGS]",
        "listed": '[{"name": "f", "parameters": ',
    }[name]
    parser = ALL[name].parser(NAMES, True)
    assert parser.push(begin + '{"') == ("", [])
    [first] = parser.push('x":')[1]
    assert (first.index, first.name, first.arguments) == (0, "f", '{"x":')
    for piece in [' "', "Zü", "ri", 'ch"', "}"]:
        [part] = parser.push(piece)[1]
        assert (part.index, part.name, part.arguments) == (0, "", piece)


@pytest.mark.parametrize("name", ALL)
def test_with_one_call_allowed_the_first_ends_the_output(name: str) -> None:
    """Nothing behind the first call counts, not even in the same piece."""
    output = next(output for style, output, _, calls in READ if style == name and len(calls) > 1)
    result = read(ALL[name], [output], parallel=False)
    assert result.over and result.pairs == [FX]
    assert not read(ALL[name], [output]).over


@pytest.mark.parametrize(
    ("name", "output"),
    [
        ("hermes", '<tool_call>{"name": "f", "arguments": "{\\"x\\": \\"\ud800\\"}"}'.replace("\ud800", "\\ud800")),
        ("hermes", '<tool_call>{"name": "\\ud800"}'),
        ("hermes", '<tool_call>{"name": ' + "9" * 5000 + "}"),
        ("hermes", '<tool_call>{"name": ' + "[" * 100_000),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"x": ' + "[" * 100_000),
        ("hermes", "<tool_call>" * 20_000),
        ("llama3", "<|python_tag|>" * 20_000),
        ("mistral", "[TOOL_CALLS]" * 20_000),
        ("mistral-args", "[TOOL_CALLS]f" * 20_000),
        ("listed", "[" * 100_000),
        ("hermes", " " * 300_000 + "<tool_call>" + " " * 300_000),
    ],
)
def test_hostile_outputs_are_text_in_linear_time(name: str, output: str) -> None:
    """Half characters, endless numbers, nesting and repeated marks: nothing raises, nothing is lost, nothing hangs."""
    result = read(ALL[name], cut(output, list(range(0, len(output), 50))))
    result.text.encode()
    assert result.text + "".join(call.arguments for call in result.calls) in (output, output[output.find("{", 20) :])


def test_ids_are_functions_of_request_and_index() -> None:
    """Equal for equal inputs, else different; nine letters and digits where a template wants that."""
    assert long_id("r-0", 0) == long_id("r-0", 0) != long_id("r-0", 1) != long_id("r-1", 1)
    assert long_id("r", 0).startswith("call_")
    mistral = {STYLES["mistral"].call_id(key, index) for key in ("r-0", "r-1") for index in range(100)}
    assert len(mistral) == 200 and STYLES["mistral"].call_id("r-0", 0) in mistral
    assert all(len(id) == 9 and id.isalnum() and id.isascii() for id in mistral)


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("For each call return <tool_call>\\n{...}\\n</tool_call>", "hermes"),
        ("<tool_call><function=name><parameter=x>", None),
        ("<tool_call>name\\n<arg_key>x</arg_key>", None),
        ("{{ '[TOOL_CALLS] [' }}", "mistral"),
        ("{{ '[TOOL_CALLS]' + name + '[ARGS]' }}", "mistral-args"),
        ("{{ '<|python_tag|>' }}", "llama3"),
        ('<|start_header_id|> ... {"name": function name, "parameters": ...}', "llama3"),
        ("<|start_header_id|>{{ message.role }}<|end_header_id|>", None),
        ("{{ messages }}", None),
    ],
)
def test_a_style_is_found_in_the_template(template: str, name: str | None) -> None:
    """By what the template tells the model to write; what is written otherwise under the same mark is not taken."""
    style = find_style(template)
    assert (style.name if style else None) == name
