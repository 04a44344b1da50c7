"""Next-token cross-entropy over the tokens that count.

In: a decoder and a batch; out: the sum of weight times loss in nats, and the sum of weights, so that the caller
divides by the weights of the whole step: a step's loss does not depend on how it was split into passes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from penstock.models.attention import packed_causal, packed_positions
from penstock.models.decoder import Decoder
from penstock.train.attention import isolated_rows
from penstock.train.packing import Batch
from penstock.train.tokens import Document


def summed_loss(decoder: Decoder, batch: Batch) -> Tensor:
    """Sum of w * loss over the batch, a differentiable float32 scalar.

    Logits are computed only where they count: in supervised fine-tuning most places are the prompt's.
    """
    hidden = decoder(batch.token_ids, batch.positions, isolated_rows(batch.segments))
    counted = torch.nonzero(batch.weights).squeeze(1)
    logits = decoder.logits(hidden.index_select(0, counted))
    losses = F.cross_entropy(logits, batch.targets[counted], reduction="none")
    return (losses * batch.weights[counted]).sum()


def document_nats(decoder: Decoder, documents: Sequence[Document], row_tokens: int) -> list[float]:
    """Sum of -ln p over the predicted tokens of each document, which is read in pieces of ``row_tokens`` tokens."""
    rows = [
        (number, document.token_ids[at : at + row_tokens + 1], document.loss_mask[at + 1 : at + row_tokens + 1])
        for number, document in enumerate(documents)
        for at in range(0, len(document.token_ids) - 1, row_tokens)
    ]
    lengths = [len(counted) for _, _, counted in rows]
    token_ids = torch.tensor([token for _, tokens, _ in rows for token in tokens[:-1]])
    targets = torch.tensor([token for _, tokens, _ in rows for token in tokens[1:]])
    counted = torch.tensor([flag for _, _, flags in rows for flag in flags])
    with torch.inference_mode():
        hidden = decoder(token_ids, packed_positions(lengths), packed_causal(lengths))
        losses = F.cross_entropy(decoder.logits(hidden[counted]), targets[counted], reduction="none")
    owners = torch.tensor([number for number, _, flags in rows for _ in flags])[counted]
    sums = torch.zeros(len(documents), dtype=torch.float64).index_add_(0, owners, losses.double())
    return [float(nats) for nats in sums]
