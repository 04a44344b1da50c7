"""Where oneDNN is measured to be faster, it multiplies many rows; the clock here says what the test wants."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from random_checkpoints import make_checkpoint
from torch import Tensor

from penstock.models.attention import packed_causal, packed_positions
from penstock.models.decoder import Decoder
from penstock.models.fast import bf16, onednn
from penstock.models.fast.bf16 import Bf16Weight
from penstock.models.fast.onednn import Reordered, prefer_onednn
from penstock.models.fast.pack import packing
from penstock.models.load import load_decoder
from penstock.models.packed import num_weight_bytes

pytestmark = pytest.mark.skipif(
    not bf16.is_supported() or not onednn.is_supported(), reason="oneDNN has no bfloat16 on this CPU"
)
PLENTY = 1 << 40
TRIES = 2 * 7
"""Times taken for one number of rows: ours and theirs in turn."""


class Clock:
    """Reads as if our kernels took a second each time, and oneDNN as long as is said for 64, 32 and 16 rows in turn."""

    def __init__(self, *theirs: float) -> None:
        self.reads = 0
        self._now = self._times(theirs)

    def __call__(self) -> float:
        self.reads += 1
        return next(self._now)

    def _times(self, theirs: tuple[float, ...]) -> Iterator[float]:
        now = 0.0
        while True:
            for seconds in theirs:
                for nth in range(TRIES):
                    yield now
                    now += seconds if nth % 2 else 1.0
                    yield now


def decoder_in(directory: Path) -> Decoder:
    make_checkpoint("llama", directory)
    return load_decoder(directory, "bfloat16", pack=packing()).requires_grad_(False)


def weights(decoder: Decoder) -> list[Bf16Weight]:
    return [weight for module in decoder.modules() for weight in getattr(module, "packed", ())]


def linears(decoder: Decoder) -> list[Bf16Weight]:
    head = decoder.packed[0]
    return [weight for weight in weights(decoder) if weight is not head]


@pytest.mark.parametrize(
    ("theirs", "rows"), [((0.5, 0.5, 0.5), 16), ((0.5, 0.5, 2.0), 32), ((0.5, 2.0), 64), ((0.5, 0.95), 64)]
)
def test_onednn_has_the_rows_from_which_on_it_gains(theirs: tuple[float, ...], rows: int, tmp_path: Path) -> None:
    """A tenth at least, for all numbers of rows from there on; the head stays ours; copies count as memory."""
    decoder = decoder_in(tmp_path)
    before = num_weight_bytes(decoder)
    prefer_onednn(decoder, PLENTY, Clock(*theirs))
    assert {weight.many.rows for weight in linears(decoder) if weight.many} == {rows}
    assert decoder.packed[0].many is None  # type: ignore[attr-defined]  # in bfloat16 here
    copied = sum(2 * weight.num_rows * weight.num_inputs for weight in linears(decoder))
    assert num_weight_bytes(decoder) == before + copied


def test_where_it_does_not_win_one_shape_is_measured(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The start of most machines pays for a few products, and the log says what came of them."""
    decoder, clock = decoder_in(tmp_path), Clock(2.0)
    with caplog.at_level(logging.INFO):
        prefer_onednn(decoder, PLENTY, clock)
    assert all(weight.many is None for weight in weights(decoder))
    assert clock.reads == 2 * TRIES
    assert "oneDNN is not faster" in caplog.text


def test_copies_take_no_more_than_their_room(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Shapes are copied from the smallest on while there is room for all weights of the shape."""
    decoder = decoder_in(tmp_path)
    sizes = [2 * weight.num_rows * weight.num_inputs for weight in linears(decoder)]
    room = min(sizes) * sizes.count(min(sizes))
    with caplog.at_level(logging.INFO):
        prefer_onednn(decoder, room, Clock(0.5))
    copied = [2 * weight.num_rows * weight.num_inputs for weight in linears(decoder) if weight.many]
    assert set(copied) == {min(sizes)} and sum(copied) == room
    assert "no memory for copies" in caplog.text


def values(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


@pytest.mark.parametrize(("outputs", "inputs"), [(16, 16), (33, 100), (864, 288), (300, 1024)])
@pytest.mark.parametrize("num_rows", [16, 33, 64, 97])
def test_a_copy_multiplies_as_the_weight_does(num_rows: int, outputs: int, inputs: int) -> None:
    """Sums in float32, rounded once, and after the bias: half a unit of bfloat16, and a little, from the true value."""
    weight, x, bias = values(outputs, inputs, seed=0), values(num_rows, inputs, seed=1), values(outputs, seed=2)
    expected = x.double() @ weight.double().T + bias.double()
    sizes = x.double().abs() @ weight.double().abs().T + bias.double().abs()
    found = Reordered(weight).multiply(x, bias)
    assert found.dtype == torch.bfloat16
    assert ((found - expected).abs() <= expected.abs() * 2**-8 + 1e-6 * sizes).all()


def test_a_decoder_with_copies_predicts_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Op by op, of 40 rows, which oneDNN multiplies, and of 8, which it does not."""
    plain, copied = decoder_in(tmp_path), decoder_in(tmp_path)
    prefer_onednn(copied, PLENTY, Clock(0.5))
    multiplied: list[int] = []
    multiply = Reordered.multiply

    def counted(copy: Reordered, x: Tensor, bias: Tensor | None) -> Tensor:
        multiplied.append(len(x))
        return multiply(copy, x, bias)

    monkeypatch.setattr(Reordered, "multiply", counted)
    with torch.inference_mode():
        for num_rows in (8, 40):
            token_ids = torch.arange(num_rows) * 7 % 320
            positions, causal = packed_positions([num_rows]), packed_causal([num_rows])
            ours, theirs = (decoder(token_ids, positions, causal).float() for decoder in (plain, copied))
            torch.testing.assert_close(ours, theirs, atol=0.06, rtol=0)
    assert multiplied == [40] * len(linears(copied))
