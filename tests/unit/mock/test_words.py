"""What a mock engine says."""

from __future__ import annotations

import codecs

from mocked import answer_of

from penstock.mock import words
from penstock.wire.engine import GenerateRequest, Sampling


def request(seed: int = 1, temperature: float | None = None, text: str = "hello") -> GenerateRequest:
    return GenerateRequest(id="r", sampling=Sampling(seed=seed, temperature=temperature), text=text)


def key(asked: GenerateRequest) -> int:
    return words.key_of(asked, words.prompt_bytes(asked))


def test_tokens_depend_on_prompt_seed_and_position_alone() -> None:
    """The same request says the same; another seed or prompt says something else; greedy ones ignore the seed."""
    assert key(request()) == key(request())
    assert len({key(request()), key(request(seed=2)), key(request(text="hullo"))}) == 3
    assert key(request(seed=1, temperature=0)) == key(request(seed=2, temperature=0)) != key(request(seed=1))


def test_pieces_add_up_to_the_text() -> None:
    """The text of each token, one after the other, is what an incremental UTF-8 decoder makes of their bytes."""
    split = 0
    for seed in range(50):
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        this = key(request(seed=seed))
        ids = [words.token_of(this, position) for position in range(120)]
        for token_id in ids:
            piece = words.piece(token_id)
            assert decoder.decode(words.token_bytes(token_id)) == piece
            split += piece == ""
        assert "".join(map(words.piece, ids)) == answer_of(this, 120)
    assert split > 100


def test_every_token_can_be_taken_apart_and_put_together() -> None:
    """A prompt's tokens are its bytes, and turn back into it."""
    text = "naïve ₿ 𝄞 text\n"
    assert words.text_of(list(words.prompt_bytes(request(text=text)))) == text
