"""train.packing and train.order: what counts is trained on once per epoch, in an order that is a formula."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from penstock.train.order import rows_of_step
from penstock.train.packing import PADDING, PackedRows

documents = st.lists(st.lists(st.tuples(st.integers(1, 500), st.booleans()), min_size=1, max_size=40), max_size=30)


def packed(texts: list[list[tuple[int, bool]]], row_tokens: int, seed: int = 0) -> PackedRows:
    tokens = np.array([token for text in texts for token, _ in text], np.uint16)
    mask = np.array([counts and i > 0 for text in texts for i, (_, counts) in enumerate(text)], np.bool_)
    offsets = np.concatenate([[0], np.cumsum([len(text) for text in texts])]).astype(np.int64)
    return PackedRows(tokens, mask, offsets, row_tokens=row_tokens, seed=seed)


@given(texts=documents, row_tokens=st.integers(2, 24))
def test_every_counted_token_is_predicted_once_and_from_its_document(
    texts: list[list[tuple[int, bool]]], row_tokens: int
) -> None:
    """The (token before, token) pairs that count are those of the documents, however rows cut and mix them."""
    rows = packed(texts, row_tokens)
    batch = rows.batch(np.arange(len(rows)))
    counted = batch.weights > 0
    seen = sorted(zip(batch.token_ids[counted].tolist(), batch.targets[counted].tolist(), strict=True))
    due = sorted(
        (before, token) for text in texts for (before, _), (token, counts) in itertools.pairwise(text) if counts
    )
    assert seen == due


@given(texts=documents, row_tokens=st.integers(2, 24))
def test_a_row_holds_whole_segments_whose_positions_begin_at_zero(
    texts: list[list[tuple[int, bool]]], row_tokens: int
) -> None:
    """Within a row each segment is contiguous and counts its positions from 0; the rest is padding without weight."""
    rows = packed(texts, row_tokens)
    batch = rows.batch(np.arange(len(rows)))
    shape = batch.segments.shape
    assert shape == (len(rows), row_tokens)
    positions, weights = batch.positions.view(shape), batch.weights.view(shape)
    for row in range(len(rows)):
        segments = batch.segments[row]
        for segment in segments.unique().tolist():
            places = (segments == segment).nonzero().squeeze(1)
            assert places.tolist() == list(range(int(places[0]), int(places[-1]) + 1))
            if segment == PADDING:
                assert not weights[row][places].any()
            else:
                assert positions[row][places].tolist() == list(range(len(places)))


def test_rows_are_nearly_full() -> None:
    """Best fit leaves less than four places in a hundred empty for documents of ordinary lengths."""
    lengths = np.random.default_rng(3).integers(10, 90, 2000)
    rows = packed([[(1, True)] * int(length) for length in lengths], 160)
    assert rows.num_filled / (len(rows) * 160) > 0.96


def test_what_predicts_nothing_takes_no_place() -> None:
    """A document of which no token counts is left out."""
    rows = packed([[(1, True), (2, False), (3, False)], [(4, True), (5, True)]], 8)
    assert (len(rows), rows.num_filled) == (1, 1)


@given(st.integers(1, 40), st.integers(1, 17), st.integers(0, 3))
def test_each_epoch_shows_each_row_once(num_rows: int, rows_per_step: int, seed: int) -> None:
    """Steps laid end to end are permutations laid end to end, whatever divides what."""
    steps = -(-3 * num_rows // rows_per_step)
    drawn = [rows_of_step(seed, step, num_rows=num_rows, rows_per_step=rows_per_step) for step in range(steps)]
    order = np.concatenate(drawn)[: 3 * num_rows]
    for epoch in range(3):
        assert sorted(order[epoch * num_rows : (epoch + 1) * num_rows]) == list(range(num_rows))


def test_the_order_differs_between_epochs_and_seeds_and_not_between_calls() -> None:
    """A step's rows depend on seed and step alone."""
    first = rows_of_step(1, 0, num_rows=100, rows_per_step=100)
    assert (first == rows_of_step(1, 0, num_rows=100, rows_per_step=100)).all()
    assert (first != rows_of_step(1, 1, num_rows=100, rows_per_step=100)).any()
    assert (first != rows_of_step(2, 0, num_rows=100, rows_per_step=100)).any()


@pytest.mark.parametrize("row_tokens", [2, 7, 160])
def test_a_long_document_is_cut_without_losing_a_token(row_tokens: int) -> None:
    """A document of n tokens has n - 1 predictions however it is cut."""
    rows = packed([[(i + 1, True) for i in range(400)]], row_tokens)
    batch = rows.batch(np.arange(len(rows)))
    assert int(batch.weights.sum()) == 399
    assert sorted(batch.targets[batch.weights > 0].tolist()) == list(range(2, 401))
    assert batch.token_ids.dtype == torch.int64
