"""train.attention and train.loss: documents in one row do not know of each other, and a loss counts what counts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from penstock.models.attention import packed_causal, packed_positions
from penstock.models.decoder import Decoder
from penstock.train.attention import isolated_rows
from penstock.train.loss import document_nats, summed_loss
from penstock.train.packing import Batch, PackedRows
from penstock.train.tokens import Document

MakeDecoder = Callable[..., Decoder]


def logits(decoder: Decoder, batch: Batch) -> Tensor:
    with torch.inference_mode():
        return decoder.logits(decoder(batch.token_ids, batch.positions, isolated_rows(batch.segments)))


def test_a_document_does_not_see_its_neighbours(make_decoder: MakeDecoder, rows: PackedRows) -> None:
    """Changing every token of one document of a row moves no logit of the others, to the last bit."""
    decoder, batch = make_decoder(), rows.batch(np.arange(4))
    segment = batch.segments.flatten()
    changed = (segment == 0) & (torch.arange(len(segment)) < batch.segments.shape[1])
    other = dataclasses.replace(batch, token_ids=torch.where(changed, (batch.token_ids + 1) % 64, batch.token_ids))
    before, after = logits(decoder, batch), logits(decoder, other)
    assert (before[changed] != after[changed]).any()
    assert torch.equal(before[~changed], after[~changed])


def test_masked_rows_agree_with_one_call_per_document(make_decoder: MakeDecoder, rows: PackedRows) -> None:
    """The batched mask computes what models.attention.packed_causal computes."""
    decoder, batch = make_decoder(), rows.batch(np.arange(4))
    row_tokens = batch.segments.shape[1]
    keys = batch.segments + torch.arange(4).unsqueeze(1) * 1000
    lengths = torch.unique_consecutive(keys.flatten(), return_counts=True)[1].tolist()
    assert sum(lengths) == 4 * row_tokens
    with torch.inference_mode():
        apart = decoder.logits(decoder(batch.token_ids, batch.positions, packed_causal(lengths)))
    kept = (batch.segments >= 0).flatten()
    torch.testing.assert_close(logits(decoder, batch)[kept], apart[kept], rtol=1e-5, atol=1e-5)


def test_only_counted_tokens_are_in_the_loss(make_decoder: MakeDecoder, rows: PackedRows) -> None:
    """The loss is the weighted sum of each token's cross-entropy; a token without weight adds nothing."""
    decoder, batch = make_decoder(), rows.batch(np.arange(4))
    weights = batch.weights * (torch.arange(len(batch.weights)) % 3 > 0)
    batch = dataclasses.replace(batch, weights=weights)
    each = F.cross_entropy(logits(decoder, batch), batch.targets, reduction="none")
    assert summed_loss(decoder, batch).item() == pytest.approx(float((each * weights).sum()), rel=1e-5)


def test_the_gradient_does_not_depend_on_the_passes(make_decoder: MakeDecoder, rows: PackedRows) -> None:
    """A step over 8 rows at once and one over 4 passes of 2 divide by the same global weight."""
    whole, parts = make_decoder(), make_decoder()
    batch = rows.batch(np.arange(8))
    counted = float(batch.weights.sum())
    torch.autograd.backward(summed_loss(whole, batch) / counted)
    for at in range(0, 8, 2):
        torch.autograd.backward(summed_loss(parts, rows.batch(np.arange(at, at + 2))) / counted)
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-7)


def test_bfloat16_computes_on_float32_weights(make_decoder: MakeDecoder, rows: PackedRows) -> None:
    """The mixed table gives nearly the float32 loss, and its gradients are float32."""
    exact, mixed = make_decoder(), make_decoder("bfloat16")
    batch = rows.batch(np.arange(8))
    loss = summed_loss(mixed, batch)
    torch.autograd.backward(loss)
    assert {p.dtype for p in mixed.parameters()} == {p.grad.dtype for p in mixed.parameters() if p.grad is not None}
    assert all(p.dtype == torch.float32 for p in mixed.parameters())
    expected = summed_loss(exact, batch).item()
    assert loss.item() == pytest.approx(expected, rel=2e-3) and loss.item() != expected


def test_nats_of_a_document_do_not_depend_on_the_company(make_decoder: MakeDecoder) -> None:
    """A document scored alone and among others has the same sum, and masked tokens add nothing."""
    decoder = make_decoder()
    documents = [Document([1, 2, 3, 4], [False, True, False, True], 3), Document([9] * 50, [False] + [True] * 49, 49)]
    together = document_nats(decoder, documents, 16)
    apart = [document_nats(decoder, [document], 16)[0] for document in documents]
    assert together == pytest.approx(apart, rel=1e-5)
    with torch.inference_mode():
        hidden = decoder(torch.tensor([1, 2, 3]), packed_positions([3]), packed_causal([3]))
        logs = F.log_softmax(decoder.logits(hidden), dim=-1)
    assert together[0] == pytest.approx(-float(logs[0, 2] + logs[2, 4]), rel=1e-5)
    assert math.isfinite(together[1])
