"""The decoder as such: packing, gradients, the table of ops, and what constructing it does."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from seeded import write_seeded_checkpoint
from torch import Tensor

from penstock.models import ops
from penstock.models.attention import packed_causal, packed_positions
from penstock.models.decoder import Decoder
from penstock.models.load import load_decoder
from penstock.models.traits import NormKind


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    directory: Path = tmp_path_factory.mktemp("models") / "seeded"
    write_seeded_checkpoint(directory)
    return load_decoder(directory)


def hidden_of(decoder: Decoder, token_ids: Tensor, lengths: list[int]) -> Tensor:
    hidden: Tensor = decoder(token_ids, packed_positions(lengths), packed_causal(lengths))
    return hidden


def test_packed_sequences_do_not_see_each_other(decoder: Decoder) -> None:
    """A sequence in a packed batch gets what it gets alone, and changing its neighbour changes nothing at all."""
    lengths = [20, 33, 17]
    token_ids = torch.randint(0, 256, (70,), generator=torch.Generator().manual_seed(1))
    other = token_ids.clone()
    other[20:53] += 1
    with torch.inference_mode():
        packed = hidden_of(decoder, token_ids, lengths)
        alone = torch.cat([hidden_of(decoder, part, [len(part)]) for part in torch.split(token_ids, lengths)])
        beside_other = hidden_of(decoder, other, lengths)
    torch.testing.assert_close(packed, alone, rtol=0, atol=1e-4)
    assert torch.equal(packed[:20], beside_other[:20]) and torch.equal(packed[53:], beside_other[53:])
    assert not torch.equal(packed[20:53], beside_other[20:53])


def test_a_token_does_not_see_the_future(decoder: Decoder) -> None:
    """Changing a token changes nothing before it, and something after it."""
    token_ids = torch.arange(40)
    changed = token_ids.clone()
    changed[25] = 200
    with torch.inference_mode():
        before, after = hidden_of(decoder, token_ids, [40]), hidden_of(decoder, changed, [40])
    assert torch.equal(before[:25], after[:25])
    assert not torch.isclose(before[39], after[39]).all()


def test_only_relative_positions_matter(decoder: Decoder) -> None:
    """Shifting all positions of a sequence leaves its hidden states as they are, up to rounding."""
    token_ids = torch.arange(30)
    with torch.inference_mode():
        near = decoder(token_ids, torch.arange(30), packed_causal([30]))
        far = decoder(token_ids, torch.arange(1000, 1030), packed_causal([30]))
        stretched = decoder(token_ids, torch.arange(0, 60, 2), packed_causal([30]))
    torch.testing.assert_close(near, far, rtol=0, atol=2e-3)
    assert (near - stretched).abs().max() > 0.05


def test_every_parameter_gets_a_gradient(decoder: Decoder) -> None:
    """The reference table is differentiable through to every parameter, and the gradient is the true slope."""
    model = copy.deepcopy(decoder).double()
    token_ids = torch.arange(60, 90)

    def loss() -> Tensor:
        hidden = hidden_of(model, token_ids, [18, 12])
        return torch.nn.functional.cross_entropy(model.logits(hidden[:-1]).double(), token_ids[1:])

    loss().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    weight = model.get_parameter("layers.0.qkv.weight")
    assert weight.grad is not None
    step = weight.grad * (1e-3 / float(weight.grad.norm()))
    with torch.no_grad():
        weight.add_(step)
        higher = loss()
        weight.sub_(2 * step)
        lower = loss()
    assert float((higher - lower) / 2e-3) == pytest.approx(float(weight.grad.norm()), rel=1e-2)


def test_serving_first_does_not_hinder_training(decoder: Decoder) -> None:
    """A decoder that has run in inference mode still trains."""
    with torch.inference_mode():
        hidden_of(decoder, torch.arange(8), [8])
    hidden_of(decoder, torch.arange(8), [8]).sum().backward()
    assert decoder.embedding.grad is not None
    decoder.zero_grad()


@pytest.mark.parametrize("entry", [field.name for field in dataclasses.fields(ops.Ops)])
def test_every_op_goes_through_the_table(decoder: Decoder, entry: str) -> None:
    """Replacing an entry of the table replaces what the decoder runs."""
    calls: list[str] = []
    reference = getattr(ops.REFERENCE, entry)

    def counted(*arguments: object) -> object:
        calls.append(entry)
        return reference(*arguments)

    table = ops.Ops(**(vars(ops.REFERENCE) | {entry: counted}))
    norm: NormKind = "layer" if entry == "layer_norm" else "rms"
    config = dataclasses.replace(decoder.config, logits_softcap=5.0, norm=norm)
    plain, model = Decoder(config), Decoder(config, table)
    biases = {name: torch.ones_like(bias) for name, bias in plain.named_parameters() if name.endswith("norm.bias")}
    for each in (plain, model):
        each.load_state_dict(decoder.state_dict() | biases)
    with torch.inference_mode():
        logits = model.logits(hidden_of(model, torch.arange(8), [8]))
        assert torch.equal(logits, plain.logits(hidden_of(plain, torch.arange(8), [8])))
        model.log_probabilities(logits, torch.arange(8)[:, None])
    expected = {
        "embed": 1,
        "norm": 3 * 4 + 1,
        "layer_norm": 3 * 4 + 1,
        "linear": 3 * 4,
        "rotation": 1,
        "rope": 3,
        "gated_activation": 3,
        "head": 1,
        "softcap": 1,
        "log_normaliser": 1,
    }
    assert len(calls) == expected[entry]


def test_meta_construction_allocates_nothing(decoder: Decoder) -> None:
    """On the meta device even an enormous decoder is free, and it takes its tensors by assignment."""
    with torch.device("meta"):
        enormous = Decoder(dataclasses.replace(decoder.config, hidden_size=1 << 17, vocab_size=1 << 24))
        empty = Decoder(decoder.config)
    assert all(parameter.is_meta for parameter in enormous.parameters())
    empty.load_state_dict(decoder.state_dict(), assign=True)
    with torch.inference_mode():
        assert torch.equal(hidden_of(empty, torch.arange(9), [9]), hidden_of(decoder, torch.arange(9), [9]))


def test_casting_keeps_the_rotary_frequencies_exact(decoder: Decoder) -> None:
    """Over long distances a model cast to bf16 still computes what the float32 one does: its frequencies are exact."""
    model = copy.deepcopy(decoder).to(torch.bfloat16)
    token_ids, positions = torch.arange(30), torch.arange(0, 2040, 68)
    with torch.inference_mode():
        exact = decoder(token_ids, positions, packed_causal([30]))
        cast = model(token_ids, positions, packed_causal([30]))
    assert cast.dtype == torch.bfloat16
    assert float((cast - exact).abs().mean()) < 0.02


def test_logits_are_float32_in_every_dtype(decoder: Decoder) -> None:
    """The sampler and the loss get float32, whatever the model computes in."""
    model = copy.deepcopy(decoder).to(torch.bfloat16)
    assert model.logits(torch.randn(2, 128, dtype=torch.bfloat16)).dtype == torch.float32
