"""train.generate: the serving engine answers for the trainer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch

from penstock.models.attention import packed_causal, packed_positions
from penstock.models.decoder import Decoder
from penstock.train.generate import answer_greedily
from penstock.wire.errors import Problem

MakeDecoder = Callable[..., Decoder]


def best_tokens(decoder: Decoder, prompt: list[int], count: int) -> list[int]:
    """Greedy decoding the slow way: the whole sequence again for each token."""
    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(count):
            hidden = decoder(torch.tensor(ids), packed_positions([len(ids)]), packed_causal([len(ids)]))
            ids.append(int(decoder.logits(hidden[-1:]).argmax()))
    return ids[len(prompt) :]


def test_answers_are_what_the_decoder_finds_most_likely(make_decoder: MakeDecoder) -> None:
    """Many prompts at once give the tokens that each alone gives without a cache, and the stop token ends them."""
    decoder = make_decoder().requires_grad_(False)
    prompts = [[1 + number, 5, 9 + number] for number in range(40)]
    expected = [best_tokens(decoder, prompt, 12) for prompt in prompts]
    stop = expected[0][4]
    done: list[int] = []
    answers = answer_greedily(decoder, prompts, max_tokens=12, stop_token_ids=frozenset({stop}), progress=done.append)
    for answer, whole in zip(answers, expected, strict=True):
        assert answer.ended == (stop in whole)
        assert answer.token_ids == (whole[: whole.index(stop)] if answer.ended else whole)
    assert answers[0].ended and done[-1] == len(prompts)


def test_a_prompt_that_leaves_no_room_is_named(make_decoder: MakeDecoder) -> None:
    """Both lengths stand in the message."""
    decoder = make_decoder().requires_grad_(False)
    with pytest.raises(Problem, match=r"Prompt 1 .* take 130 tokens; the model's context has 128"):
        answer_greedily(decoder, [[1], [1] * 100], max_tokens=30, stop_token_ids=frozenset())


def test_the_weights_may_be_bfloat16(make_decoder: MakeDecoder) -> None:
    """An exported decoder answers as well."""
    trained = make_decoder()
    decoder = Decoder(dataclasses.replace(trained.config, dtype="bfloat16")).requires_grad_(False)
    decoder.load_state_dict(trained.state_dict())
    answers = answer_greedily(decoder, [[1, 2, 3]], max_tokens=4, stop_token_ids=frozenset())
    assert len(answers[0].token_ids) == 4 and not answers[0].ended
