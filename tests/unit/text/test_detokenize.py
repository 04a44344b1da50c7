"""Incremental detokenisation."""

from __future__ import annotations

import statistics
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.text.detokenize import Detokenizer
from penstock.text.tokenizer import Tokenizer

FAMILIES = ["byte_level", "llama2", "gemma"]
IDS = st.lists(st.integers(0, 10_000), max_size=40)
RELAXED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)


def _stream(tokenizer: Tokenizer, prompt: list[int], output: list[int]) -> str:
    detokenizer = Detokenizer(tokenizer, prompt)
    return "".join([detokenizer.push(token_id) for token_id in output] + [detokenizer.flush()])


@pytest.mark.parametrize("family", FAMILIES)
@given(text=st.text(), prompt=st.text(max_size=10))
@RELAXED
def test_text_comes_back_whole(tokenizer_of: dict[str, Tokenizer], family: str, text: str, prompt: str) -> None:
    """Pushes and flush of any text's ids add up to decode(prompt + output) minus decode(prompt), prompt or none."""
    tokenizer = tokenizer_of[family]
    before, after = tokenizer.encode(prompt), tokenizer.encode(text, add_special_tokens=False)
    whole = tokenizer.decode(before + after)
    assert tokenizer.decode(before) + _stream(tokenizer, before, after) == whole
    assert _stream(tokenizer, [], after) == tokenizer.decode(after)


@pytest.mark.parametrize("family", FAMILIES)
@given(prompt=IDS, output=IDS)
@RELAXED
def test_random_ids_stream_as_they_decode(
    tokenizer_of: dict[str, Tokenizer], family: str, prompt: list[int], output: list[int]
) -> None:
    """Garbage ids add up to the decoded bytes, and to the library's text wherever that has no U+FFFD."""
    tokenizer = tokenizer_of[family]
    prompt, output = ([i % tokenizer.vocab_size for i in ids] for ids in (prompt, output))
    streamed = _stream(tokenizer, [], output)
    visible = [i for i in output if i not in tokenizer.special_token_ids]
    expected = b"".join(map(tokenizer.token_bytes, visible)).decode("utf-8", "replace")
    if tokenizer.leading_spaces_stripped:
        expected = expected.removeprefix(" ")
    assert streamed == expected
    if family == "byte_level" or "\ufffd" not in tokenizer.decode(output):
        assert streamed == tokenizer.decode(output)
    before, whole = tokenizer.decode(prompt), tokenizer.decode(prompt + output)
    if "\ufffd" not in before and (family == "byte_level" or "\ufffd" not in whole):
        assert before + _stream(tokenizer, prompt, output) == whole


@pytest.mark.parametrize("family", FAMILIES)
@given(text=st.text(min_size=1))
@RELAXED
def test_half_a_character_is_never_emitted(tokenizer_of: dict[str, Tokenizer], family: str, text: str) -> None:
    """Whatever has been emitted is a prefix of the whole text at every moment."""
    tokenizer = tokenizer_of[family]
    ids = tokenizer.encode(text, add_special_tokens=False)
    whole = tokenizer.decode(ids)
    detokenizer, emitted = Detokenizer(tokenizer, []), ""
    for token_id in ids:
        emitted += detokenizer.push(token_id)
        assert whole.startswith(emitted)


@given(output=IDS, at=st.integers(0, 40))
@RELAXED
def test_replayed_ids_restore_the_stream(tokenizer_of: dict[str, Tokenizer], output: list[int], at: int) -> None:
    """A fresh detokenizer that replays some ids goes on exactly as the first one does."""
    for tokenizer in tokenizer_of.values():
        ids = [i % tokenizer.vocab_size for i in output]
        first, second = Detokenizer(tokenizer, [0, 5]), Detokenizer(tokenizer, [0, 5])
        for token_id in ids[:at]:
            assert first.push(token_id) == second.push(token_id)
        assert [first.push(i) for i in ids[at:]] == [second.push(i) for i in ids[at:]]
        assert first.flush() == second.flush()


@given(output=st.lists(st.sampled_from([2, 3, 4, 5, 6, 7, 8]), max_size=30))
@RELAXED
def test_other_decoders_stream_in_windows(tokenizer_of: dict[str, Tokenizer], output: list[int]) -> None:
    """A decoder that is no concatenation of bytes streams what it decodes as a whole."""
    tokenizer = tokenizer_of["word_piece"]
    assert not tokenizer.decodes_by_bytes
    assert _stream(tokenizer, [], output) == tokenizer.decode(output)
    assert tokenizer.decode([2, 3]) + _stream(tokenizer, [2, 3], output) == tokenizer.decode([2, 3, *output])


def test_a_character_split_by_the_prompt_belongs_to_the_output(tokenizer_of: dict[str, Tokenizer]) -> None:
    """Where the prompt ends inside a character, the token that completes it emits the character."""
    tokenizer = tokenizer_of["llama2"]
    byte = {value: i for i in range(tokenizer.vocab_size) if len(value := tokenizer.token_bytes(i)) == 1}
    prompt = [byte[value.to_bytes(1, "big")] for value in "🙂".encode()[:3]]
    assert _stream(tokenizer, prompt, [byte["🙂".encode()[3:]]]) == "🙂"


def test_special_and_unknown_ids_have_no_text(tokenizer_of: dict[str, Tokenizer]) -> None:
    """Special tokens, and ids of padding rows beyond the vocabulary, are silent and break no character."""
    tokenizer = tokenizer_of["byte_level"]
    eos = next(iter(tokenizer.special_token_ids))
    detokenizer = Detokenizer(tokenizer, [])
    first, *rest = tokenizer.encode("𝄞", add_special_tokens=False)
    assert rest
    assert detokenizer.push(first) + detokenizer.push(eos) + detokenizer.push(tokenizer.vocab_size + 7) == ""
    assert "".join(map(detokenizer.push, rest)) == "𝄞"


@pytest.mark.parametrize("family", ["byte_level", "llama2", "word_piece"])
def test_a_token_costs_the_same_at_ten_thousand(tokenizer_of: dict[str, Tokenizer], family: str) -> None:
    """The median push at token 10,000 takes at most five times the median at the beginning."""
    tokenizer = tokenizer_of[family]
    detokenizer = Detokenizer(tokenizer, [])
    tokenizer.token_bytes(0)
    times = []
    for i in range(10_500):
        start = time.perf_counter()
        detokenizer.push(3 + i % 5)
        times.append(time.perf_counter() - start)
    assert statistics.median(times[10_000:]) < 5 * statistics.median(times[10:510])


@pytest.mark.parametrize("family", ["byte_level", "llama2", "word_piece"])
def test_marks_that_are_special_tokens_are_seen(tokenizer_of: dict[str, Tokenizer], family: str) -> None:
    """A special token that is a mark has its text, in every kind of decoder; others stay hidden."""
    tokenizer = tokenizer_of[family]
    special = min(tokenizer.special_token_ids)
    others = tokenizer.special_token_ids - {special}
    detokenizer = Detokenizer(tokenizer, [], frozenset({special}))
    plain = tokenizer.encode("the", add_special_tokens=False)

    text = "".join(map(detokenizer.push, [*plain, special, *others, *plain])) + detokenizer.flush()

    assert text.replace(" ", "") == f"the{tokenizer.token_text(special)}the".replace(" ", "")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_shown_special_token_comes_behind_what_was_unfinished(
    tokenizer_of: dict[str, Tokenizer], family: str
) -> None:
    """A special token that is shown ends the character before it, as U+FFFD, and has its text; others have none."""
    tokenizer = tokenizer_of[family]
    shown, hidden = sorted(tokenizer.special_token_ids)[:2]
    detokenizer = Detokenizer(tokenizer, [], frozenset({shown}))
    assert [detokenizer.push(i) for i in (tokenizer.spell("é".encode())[0], hidden)] == ["", ""]
    assert detokenizer.push(shown) == "\ufffd" + tokenizer.token_text(shown)
    assert detokenizer.flush() == ""
