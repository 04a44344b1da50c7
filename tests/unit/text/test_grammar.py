"""Following a grammar: what is allowed, who ends it, what hostile ones cost, and whom they do not touch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from babble import allowed_ids
from tokenizers import AddedToken

from penstock.text import grammar_process
from penstock.text.answer import AnswerFormat
from penstock.text.grammar import MAX_GRAMMAR_CHARS, GrammarConstraint, Grammars
from penstock.text.grammar_messages import Open, Vocabulary
from penstock.text.grammar_process import GrammarProcess
from penstock.text.reasoning import MARKS, Thinking
from penstock.text.tokenizer import Tokenizer
from penstock.wire.engine import Grammar
from penstock.wire.errors import Problem


@pytest.fixture(scope="module")
def tokenizer(tokenizer_of: dict[str, Tokenizer]) -> Tokenizer:
    return tokenizer_of["byte_level"]


@pytest.fixture(scope="module")
def stops(tokenizer: Tokenizer) -> frozenset[int]:
    end = tokenizer.id_of("</s>")
    assert end is not None
    return frozenset({end})


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> Iterator[Grammars]:
    made = Grammars(tokenizer)
    made.start()
    yield made
    made.close()


def test_whoever_asks_for_masks_loads_no_library_for_grammars() -> None:
    """What runs callers' grammars is in the process that the kernel may end, and in no other."""
    code = "import sys, penstock.text.grammar, penstock.text.answer; sys.exit('llguidance' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", code], timeout=60, check=False).returncode == 0


@pytest.mark.parametrize("killed", [False, True])
def test_a_process_may_end_before_it_began(killed: bool) -> None:
    """Closing at once, or after the process was killed over its vocabulary, raises nothing in any thread."""
    process = GrammarProcess(Vocabulary([b"word"] * 300_000, []))
    if killed:
        process._process.kill()
        process._process.wait()
    process.close()


class Follow:
    """One output, written as text."""

    def __init__(self, tokenizer: Tokenizer, constraint: GrammarConstraint) -> None:
        self.tokenizer = tokenizer
        self.constraint = constraint

    def write(self, text: str) -> Follow:
        for token_id in self.tokenizer.spell(text.encode()):
            assert self.constraint.advance(token_id), f"{text!r} ended the output"
        return self

    @property
    def ids(self) -> set[int]:
        mask = self.constraint.mask()
        assert mask is not None
        return set(allowed_ids(mask))

    @property
    def bytes(self) -> set[bytes]:
        """What may come next, as bytes; stop tokens are left out."""
        return {self.tokenizer.token_bytes(i) for i in self.ids} - {b"</s>"}


@pytest.fixture
def follow(tokenizer: Tokenizer, grammars: Grammars, stops: frozenset[int]) -> Any:
    def start(kind: Any, value: str, emitted: list[int] | None = None, **fields: Any) -> Follow:
        grammar = Grammar(kind=kind, value=value, param="field")
        fields = {"stop_token_ids": stops, "emitted_token_ids": emitted or [], **fields}
        return Follow(tokenizer, grammars.constrain(grammar, **fields))

    return start


def test_only_what_the_grammar_allows_may_come(follow, stops) -> None:
    """Whole tokens and parts of them count alike; stop tokens may come exactly where the text may end."""
    text = follow("regex", "th(e|y)?")
    assert text.bytes == {b"t", b"the"}
    assert not text.ids & stops
    text.write("th")
    assert text.bytes == {b"e", b"y"} and stops < text.ids
    text.write("e")
    assert text.ids == set(stops)


def test_a_stop_token_ends_and_is_no_part_of_the_output(follow, stops) -> None:
    """The constraint tells the token that ends an output from those that continue it."""
    text = follow("regex", "a*").write("aa")
    assert text.constraint.advance(next(iter(stops))) is False


def test_where_ends_are_ignored_a_complete_text_still_ends(follow, tokenizer: Tokenizer) -> None:
    """Without stop tokens of its own an output goes on as long as it can, and then ends by the model's."""
    ended = follow("regex", "ab?", stop_token_ids=frozenset()).write("a")
    assert ended.bytes == {b"b"}
    ended.write("b")
    assert ended.ids == set(tokenizer.stop_token_ids)
    assert ended.constraint.advance(ord("x")) is False


@pytest.mark.parametrize("proposed", ["", "b", "bcd", "bcx", "xbc", "bcdefgh"])
@pytest.mark.parametrize("written", ["bcd", "bcdef", "bce", "c"])
def test_what_is_foreseen_changes_no_mask(follow, tokenizer: Tokenizer, proposed: str, written: str) -> None:
    """Masks are those of an output for which nothing is foreseen, whether it comes as proposed or not."""
    pattern = "a(b|c)(c|d|e)*(f|g)?"
    foreseeing, plain = follow("regex", pattern).write("a"), follow("regex", pattern).write("a")
    ahead = tokenizer.spell(proposed.encode())
    if ahead:
        foreseeing.constraint.foresee(list(ahead))
    masks = foreseeing.constraint.masks(ahead)
    for depth, token_id in enumerate(tokenizer.spell(written.encode())):
        if depth < len(masks) and written[:depth] == proposed[:depth]:
            assert masks[depth] == plain.constraint.mask()
        assert foreseeing.constraint.mask() == plain.constraint.mask()
        if token_id not in plain.ids:
            break
        assert foreseeing.constraint.advance(token_id) and plain.constraint.advance(token_id)
    assert foreseeing.constraint.mask() == plain.constraint.mask()


def test_masks_are_foreseen_as_far_as_the_grammar_goes(follow, tokenizer: Tokenizer, stops) -> None:
    """Up to what may not come, for the proposal that was foreseen and for no other; an end is foreseen, too."""
    text = follow("regex", "abc?")
    ahead = tokenizer.spell(b"abx")
    text.constraint.foresee(list(ahead))
    masks = text.constraint.masks(ahead)
    assert len(masks) == 3 and stops < set(allowed_ids(masks[2]))
    assert len(text.constraint.masks(tokenizer.spell(b"x"))) == 1
    assert len(text.constraint.masks(tokenizer.spell(b"ab"))) == 3
    text.write("ab")
    assert text.bytes == {b"c"} and stops < text.ids


def test_special_tokens_are_no_text(follow, tokenizer: Tokenizer) -> None:
    """Neither their ids nor empty tokens appear inside a JSON string, and what spells them in bytes may."""
    text = follow("json_schema", '{"type": "string"}').write('"<s')
    special = tokenizer.special_token_ids
    assert not text.ids & special
    assert b"" not in text.bytes
    text.write('>"')


def test_no_name_is_spelled_with_escapes(follow) -> None:
    """A name that no list has cannot be one of the list in disguise, nor can a text hold what only escapes write."""
    value = '{"properties": {"a": {"type": "integer"}}, "additionalProperties": {"type": "string"}}'
    text = follow("json_schema", value[:-1] + ', "type": "object"}').write('{"\\')
    assert {data[:1] for data in text.bytes} == {bytes([char]) for char in b'nrbtf\\"'}


def test_white_space_is_bounded(follow) -> None:
    """Two spaces in a line, or one end of a line and its indentation; then something else has to come."""
    text = follow("json_schema", '{"type": "array"}').write("[ ")
    assert {b" ", b"1"} <= text.bytes and not {b"\n", b"\t", b"\r"} & text.bytes
    assert not {b" ", b"\n"} & text.write(" ").bytes
    text = follow("json_schema", '{"type": "array"}').write("[\n" + " " * 31)
    assert b" " in text.bytes and not {b"\n", b"\t"} & text.bytes
    assert b" " not in text.write(" ").bytes
    assert b"1" in follow("json_schema", '{"type": "array"}').write("[\r\n" + "\t" * 16).bytes


def test_an_answer_says_what_thinking_a_grammar_lets_pass(tokenizer: Tokenizer) -> None:
    """Thinking that the prompt opened, that the model may open, and none: as the rendered prompt ends."""
    format = AnswerFormat(thinking=MARKS["think"])
    assert format.parser(tokenizer, "user: hi<think>\n").thinking == Thinking("</think>", None, True)
    assert format.parser(tokenizer, "user: hi").thinking == Thinking("</think>", "<think>", False)
    assert format.parser(tokenizer, "<think>\n\n</think>\n\n").thinking is None
    assert AnswerFormat().parser(tokenizer, "<think>").thinking is None


def test_the_mask_does_not_change_until_a_token_is_taken(follow) -> None:
    """Asked twice for one position, as after a preemption, a constraint answers the same."""
    text = follow("regex", "[ab]c").write("a")
    assert text.constraint.mask() == text.constraint.mask()
    assert text.bytes == {b"c"}


def test_emitted_tokens_restore_the_state(follow, tokenizer: Tokenizer) -> None:
    """An output that begins with its emitted tokens allows what the undisturbed one allowed; others are refused."""
    value = '{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}'
    text = '{"a": -12, "b": ["'
    ids = tokenizer.spell(text.encode())
    whole = follow("json_schema", value).write(text)
    assert follow("json_schema", value, ids).ids == whole.ids
    with pytest.raises(Problem, match="does not fit") as caught:
        follow("json_schema", value, tokenizer.spell(b'{"a": "'))
    assert caught.value.code == "invalid_value"


def test_a_token_that_is_not_allowed_fails_the_output(follow) -> None:
    """A model whose logits are not finite can draw anything; the output then ends with a problem."""
    with pytest.raises(Problem, match="does not allow"):
        follow("regex", "a+").constraint.advance(ord("b"))


def test_a_grammar_binds_behind_open_thinking(follow, tokenizer: Tokenizer) -> None:
    """With thinking open at the prompt's end everything may come until its mark, and the grammar's start after it."""
    text = follow("regex", "[0-9]+", thinking=Thinking(closes="</think>", is_open=True))
    assert text.constraint.mask() is None
    text.write("hm </thin </think>")
    assert text.bytes == {bytes([digit]) for digit in b"0123456789"}
    ids = tokenizer.spell(b"hm</think>4")
    resumed = follow("regex", "4(5|6)", ids, thinking=Thinking(closes="</think>", is_open=True))
    assert resumed.bytes == {b"5", b"6"}


def test_a_model_may_open_its_thinking_or_answer_at_once(follow, tokenizer: Tokenizer) -> None:
    """Before its first token an output may go either way, and only one way afterwards."""
    thinking = Thinking(closes="</think>", opens="<think>")
    opens = tokenizer.id_of("<think>")
    assert opens is not None
    answering = follow("regex", "[0-9]+", thinking=thinking)
    assert opens in answering.ids and b"7" in answering.bytes and b"a" not in answering.bytes
    answering.write("7")
    assert opens not in answering.ids

    thoughtful = follow("regex", "[0-9]+", thinking=thinking)
    assert thoughtful.constraint.advance(opens)
    assert thoughtful.constraint.mask() is None
    assert thoughtful.write("so</think>").bytes == {bytes([digit]) for digit in b"0123456789"}


def test_an_opening_mark_of_several_tokens_is_forced_through(follow, tokenizer: Tokenizer) -> None:
    """Once a model has begun to open its thinking it goes on to do so."""
    text = follow("regex", "[0-9]+", thinking=Thinking(closes="[/THINK]", opens="[THINK]"))
    ids = tokenizer.encode("[THINK]", add_special_tokens=False)
    assert len(ids) > 1 and ids[0] in text.ids
    for index, token_id in enumerate(ids):
        assert text.constraint.advance(token_id)
        if index + 1 < len(ids):
            assert text.ids == {ids[index + 1]}
    assert text.constraint.mask() is None


def test_text_behind_a_mark_in_one_token_counts(tmp_path: Path, stops) -> None:
    """What the token that ends the thinking holds beyond its mark is the beginning of the answer; spaces are not."""
    import tokenizers

    backend = tokenizers.Tokenizer.from_file(str(_saved_byte_level(tmp_path)))
    backend.add_tokens([AddedToken("k>4"), AddedToken("k>\n\n")])
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    grammars = Grammars(tokenizer)
    grammars.start()
    for token, expected in (("k>4", {b"5"}), ("k>\n\n", {b"4"})):
        last = tokenizer.id_of(token)
        constraint = grammars.constrain(
            Grammar(kind="regex", value="45"),
            stop_token_ids=stops,
            emitted_token_ids=[*tokenizer.spell(b"x</thin"), last] if last else [],
            thinking=Thinking(closes="</think>", is_open=True),
        )
        assert Follow(tokenizer, constraint).bytes == expected
    grammars.close()


def _saved_byte_level(directory: Path) -> Path:
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.save(str(directory / "tokenizer.json"))
    return directory / "tokenizer.json"


def test_a_tokenizer_without_bytes_is_refused(tokenizer_of: dict[str, Tokenizer]) -> None:
    """Where text is not the sum of the tokens' bytes, an output cannot be constrained, and that is said."""
    grammars = Grammars(tokenizer_of["word_piece"])
    grammars.start()
    with pytest.raises(Problem) as caught:
        grammars.constrain(Grammar(kind="regex", value="a"), stop_token_ids=frozenset(), emitted_token_ids=[])
    assert caught.value.code == "unsupported_parameter"


def _chain(length: int) -> str:
    return "\n".join(["start: r0", *(f'r{i}: r{i + 1} "a"' for i in range(length)), f'r{length}: "b"'])


def _nested(depth: int) -> Any:
    schema: Any = {"type": "string"}
    for _ in range(depth):
        schema = {"properties": {"a": schema}}
    return schema


HOSTILE = {
    "an intersection of many expressions": (
        "lark",
        "start: A\nA: " + " & ".join(f"/(.*a.{{{i}}}b.*)/" for i in range(40)),
    ),
    "a chain of rules deep enough to exhaust the stack": ("lark", _chain(3000)),
    "terminals that double forty times": (
        "lark",
        "start: A0\n" + "\n".join(f"A{i}: A{i + 1} A{i + 1}" for i in range(40)) + '\nA40: "b"',
    ),
    "nesting of brackets": ("lark", "start: " + "(" * 50_000 + '"a"' + ")" * 50_000),
    "a long expression": ("regex", "(a|bc)*" * 30_000),
    "an expression of a megabyte": ("regex", "(a|bc)*" * 150_000),
    "groups in groups": ("regex", "(" * 20_000 + "a" + ")" * 20_000),
    "a long pattern": ("json_schema", json.dumps({"type": "string", "pattern": "ab?" * 80_000})),
    "a product of alternatives": (
        "json_schema",
        json.dumps({"allOf": [{"anyOf": [{"pattern": f"a{i}.*b{j}"} for j in range(4)]} for i in range(12)]}),
    ),
    "three thousand bounded properties": (
        "json_schema",
        json.dumps(
            {"properties": {f"p{i}": {"type": "integer", "minimum": i, "maximum": 977 * i + 9} for i in range(3000)}}
        ),
    ),
    "a divisor that is a large prime": ("json_schema", '{"type": "integer", "multipleOf": 982451653}'),
    "a bound of three hundred digits": ("json_schema", '{"type": "number", "minimum": 1e-300, "maximum": 1e300}'),
    "deep schemas": ("json_schema", json.dumps(_nested(200))),
    "brackets without end": ("json_schema", '{"items":' * 20_000),
    "a million choices": ("json_schema", json.dumps({"enum": list(range(1_000_000))})),
    "eight megabytes": ("json_schema", json.dumps({"description": "x" * (8 << 20)})),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_grammar_is_refused_and_costs_little(follow, case: str) -> None:
    """Each is refused with a code of its own after less than half a second of the grammar process's time."""
    kind, value = HOSTILE[case]
    begin = time.monotonic()
    with pytest.raises(Problem) as caught:
        follow(kind, value)
    assert caught.value.code in ("grammar_too_complex", "grammar_invalid")
    assert caught.value.param == "field"
    assert len(caught.value.message) < 500
    # On an idle machine this is below one second; the bound is in processor time, and other tests may run beside this.
    assert time.monotonic() - begin < 5


DEAR = {
    "ambiguity that grows with the text": ("lark", 'start: s\ns: s s s s | s s s | s s | "a" | b\nb: "a" | ""'),
    "a state per prefix": ("regex", "(a|b)*a(a|b){3000}"),
    "repetition of repetition": ("regex", "x((a{1000}){1000}){1000}"),
    "rules of ten to the twelfth symbols": ("lark", 'start: a{1000}\na: b{1000}\nb: c{1000}\nc: d{1000}\nd: "x" start'),
}


@pytest.mark.parametrize("case", DEAR)
def test_a_dear_grammar_is_followed_or_fails_in_bounded_steps(follow, case: str) -> None:
    """No step takes long: the output goes on or ends with a problem, and another one is not disturbed."""
    kind, value = DEAR[case]
    other = follow("regex", "[0-9]+")
    dear = follow(kind, value)
    longest = 0.0
    try:
        for _ in range(300):
            begin = time.monotonic()
            ids = sorted(dear.ids - dear.constraint._stops)
            if not ids:
                break
            dear.constraint.advance(ids[0])
            longest = max(longest, time.monotonic() - begin)
    except (Problem, AssertionError):
        pass  # mask() answers None, or advance() says why: the output is over
    assert longest < 3
    assert b"7" in other.write("12").bytes


@pytest.fixture
def own(tokenizer: Tokenizer, stops: frozenset[int]) -> Iterator[tuple[Grammars, Any, int]]:
    """Grammars with a process of their own, a way to follow one, and the process id of the worker that follows."""
    grammars = Grammars(tokenizer)
    grammars.start()

    def start(value: str) -> Follow:
        grammar = Grammar(kind="regex", value=value)
        return Follow(tokenizer, grammars.constrain(grammar, stop_token_ids=stops, emitted_token_ids=[]))

    start("a")
    assert grammars._process is not None
    yield grammars, start, max(child.pid for child in psutil.Process(grammars._process._process.pid).children())
    grammars.close()


@pytest.mark.parametrize("foreseen", ["", "3-", "3-a"])
def test_a_worker_that_dies_over_one_output_disturbs_no_other(own, tokenizer: Tokenizer, foreseen: str) -> None:
    """The output whose step ended the worker fails; the others are replayed and allow what they allowed before.

    Also where the worker was not told of their last tokens yet, since their masks had been foreseen.
    """
    grammars, start, worker = own
    others = [start("[0-9]{3}-[a-z]+").write("12") for _ in range(3)]
    for other in others:
        if ahead := tokenizer.spell(foreseen.encode()):
            other.constraint.foresee(list(ahead))
            assert len(other.constraint.masks(ahead)) == 1 + len(ahead)
        other.write("3-")
    expected = others[0].ids
    culprit = start("z+")
    channel = grammars._process.steps
    # As if its next step exhausted the stack: a grammar that has not been tried is put in its place.
    deep = Grammar(kind="lark", value=_chain(3000))
    channel._ask(culprit.constraint._session, Open(culprit.constraint._session.number, deep, []))

    assert culprit.constraint.mask() is None
    with pytest.raises(Problem) as caught:
        culprit.constraint.advance(ord("z"))
    assert caught.value.code == "grammar_too_complex"
    psutil.wait_procs([psutil.Process(worker)] if psutil.pid_exists(worker) else [], timeout=10)
    for other in others:
        assert other.ids == expected
        assert other.write("abc").bytes >= {b"x", b"the"}
    assert start("new").bytes == {b"n"}


def test_a_worker_killed_over_nothing_fails_what_it_followed_and_no_later_output(own, tokenizer: Tokenizer) -> None:
    """When the machine ends an idle worker the outputs under way fail, and the next ones are followed by a new one."""
    grammars, start, worker = own
    running, [one] = start("[0-9]+"), tokenizer.spell(b"1")
    os.kill(worker, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(grammars._process._process.pid)], timeout=10)
    with pytest.raises(Problem, match="does not answer") as caught:
        for _ in range(3):
            running.constraint.advance(one)
    assert caught.value.code == "internal_error"
    assert start("new").bytes == {b"n"}


def test_a_process_that_stands_still_is_given_up_and_replaced(
    own, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that stops without dying costs its outputs one wait, not one at each step, and later outputs nothing."""
    grammars, start, worker = own
    running, [one] = start("[0-9]+"), tokenizer.spell(b"1")
    os.kill(worker, signal.SIGSTOP)
    try:
        with monkeypatch.context() as patched:
            patched.setattr(grammar_process, "_REPLY_TIMEOUT_S", 0.1)
            running.constraint.advance(one)
            assert running.constraint.mask() is None
        begin = time.monotonic()
        with pytest.raises(Problem, match="does not answer"):
            running.constraint.advance(one)
        assert time.monotonic() - begin < grammar_process._REPLY_TIMEOUT_S / 2
        assert start("new").bytes == {b"n"}
    finally:
        os.kill(worker, signal.SIGKILL)


def test_many_outputs_at_once_share_the_process_that_replaces_a_lost_one(own) -> None:
    """Outputs that begin while a lost process is replaced wait for the new one."""
    grammars, start, _ = own
    lost = grammars._process
    lost.trial._lose()
    with ThreadPoolExecutor(8) as threads:
        assert all(follow.bytes == {b"n"} for follow in threads.map(start, ["new"] * 8))
    assert lost._process.poll() is not None


def test_the_process_ends_with_its_engine(tokenizer: Tokenizer) -> None:
    """Closing the sockets, as the end of an engine does, ends workers and process."""
    grammars = Grammars(tokenizer)
    grammars.start()
    grammars.constrain(Grammar(kind="regex", value="a"), stop_token_ids=frozenset(), emitted_token_ids=[])
    assert grammars._process is not None
    process = psutil.Process(grammars._process._process.pid)
    family = [process, *process.children()]
    grammars.close()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive


def test_a_grammar_of_the_largest_size_is_looked_at(follow) -> None:
    """The bound on length is exact, and what is within it is judged by what it says."""
    comment = "# " + "x" * (MAX_GRAMMAR_CHARS - len('start: "a"\n# '))
    assert follow("lark", f'start: "a"\n{comment}').bytes == {b"a"}
    with pytest.raises(Problem, match="at most"):
        follow("lark", f'start: "a"\n{comment}x')
