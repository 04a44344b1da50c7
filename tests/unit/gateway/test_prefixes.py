"""What a replica probably has in its prefix cache."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from penstock.gateway.prefixes import PrefixIndex, chain_of
from penstock.wire.engine import GenerateRequest, Sampling


def chain(text: str, salt: str = ""):
    return chain_of(GenerateRequest(id="r", sampling=Sampling(seed=0), text=text, cache_salt=salt))


@given(st.integers(0, 3000), st.integers(0, 3000), st.integers(0, 3000))
def test_the_overlap_is_the_common_beginning(common: int, ours: int, theirs: int) -> None:
    """In whole blocks of 128 tokens, whatever follows."""
    index = PrefixIndex()
    index.note(chain("c" * common + "o" * ours))
    assert index.overlap_tokens(chain("c" * common + "t" * theirs)) == common // 512 * 128


def test_tenants_share_no_beginning() -> None:
    """The same text under another salt overlaps with nothing and is hashed elsewhere."""
    index = PrefixIndex()
    index.note(chain("x" * 5000, "a"))
    assert index.overlap_tokens(chain("x" * 5000, "b")) == 0 < index.overlap_tokens(chain("x" * 5000, "a"))
    assert chain("x" * 5000, "a").prefix != chain("x" * 5000, "b").prefix


def test_a_conversation_goes_on_with_its_prefix() -> None:
    """A later turn overlaps with the earlier one, and is named by the same beginning."""

    def turn(*words: str):
        messages = [{"role": "user", "content": word * 400} for word in words]
        return chain_of(GenerateRequest(id="r", sampling=Sampling(seed=0), messages=messages))

    index = PrefixIndex()
    index.note(turn("system", "one"))
    assert index.overlap_tokens(turn("system", "one", "two")) > 700
    assert turn("system", "one").prefix == turn("system", "one", "two").prefix


def test_the_index_is_bounded_and_forgets_the_oldest_first() -> None:
    """Of two prompts that do not both fit the later one is remembered; a lost replica remembers nothing."""
    index = PrefixIndex(max_blocks=10)
    first, second = chain("a" * 512 * 8), chain("b" * 512 * 8)
    index.note(first)
    index.note(second)
    assert len(index) == 10
    assert index.overlap_tokens(second) == 8 * 128 and index.overlap_tokens(first) == 2 * 128
    index.clear()
    assert index.overlap_tokens(second) == 0


def test_an_index_is_no_larger_than_its_replica_s_cache() -> None:
    """Of 100 prompts sent to a replica that holds 20, the last ones alone are taken for cached there."""
    index = PrefixIndex()
    index.fit(20 * 4 * 128)
    prompts = [chain(f"{number:04}" * 512) for number in range(100)]
    for prompt in prompts:
        index.note(prompt)
    assert len(index) == 80
    assert [index.overlap_tokens(prompt) for prompt in (prompts[0], prompts[79], prompts[80])] == [0, 0, 512]
