"""One page's keys or values against all queries of a unit, as many at a time as registers hold.

In: addresses of the page's numbers, and queries or shares; out: scores, or sums that grew.
Queries and shares are float32, or int16 where pages hold bytes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from penstock.models.fast.attention_parts import (
    mix_1,
    mix_2,
    mix_4,
    mix_8,
    score_1,
    score_2,
    score_4,
    score_8,
)
from penstock.models.fast.compiled import compiled
from penstock.models.fast.pages import TILE

Floats = npt.NDArray[np.float32]
Bits = npt.NDArray[np.uint16]
Bytes = npt.NDArray[np.int8]
Numbers = Bits | Bytes
"""Of packed pages, scales included."""


@compiled
def score_page(
    like: Numbers,
    keys: int,
    num_tiles: int,
    queries: int,
    head_dim: int,
    scores: int,
    score_width: int,
    num_queries: int,
    ahead: int,
) -> None:
    """scores[i, :16 * num_tiles] of queries [num_queries, D]; fetches as many bytes as the keys have from ``ahead``.

    Rows of scores are ``score_width`` float32 apart.  ``like``: any array of the keys' numbers.
    """
    query_bytes, score_bytes, num_lines = 4 * head_dim, 4 * score_width, head_dim * like.itemsize // 4
    done = 0
    while done < num_queries:
        query, score = queries + done * query_bytes, scores + done * score_bytes
        left = num_queries - done
        if left >= 8:
            score_8(like.dtype, keys, num_tiles, num_lines, query, query_bytes, score, score_bytes, ahead)
            done += 8
        elif left >= 4:
            score_4(like.dtype, keys, num_tiles, num_lines, query, query_bytes, score, score_bytes, ahead)
            done += 4
        elif left >= 2:
            score_2(like.dtype, keys, num_tiles, num_lines, query, query_bytes, score, score_bytes, ahead)
            done += 2
        else:
            score_1(like.dtype, keys, num_tiles, num_lines, query, query_bytes, score, score_bytes, ahead)
            done += 1


@compiled
def mix_page(
    like: Numbers,
    values: int,
    num_tokens: int,
    shares: int,
    share_width: int,
    scales: int,
    mixed: int,
    head_dim: int,
    num_queries: int,
    ahead: int,
) -> None:
    """mixed[i] += shares[i] @ values for all queries; ``ahead`` and ``like`` as above.

    Rows of shares are ``share_width`` float32 apart, also where they are int16 of ``scales``.
    """
    depth = 4 // like.itemsize
    share_bytes, mixed_bytes, groups = 4 * share_width, 4 * head_dim, head_dim // TILE
    num_rows, done = (num_tokens + depth - 1) // depth, 0
    while done < num_queries:
        share, sums = shares + done * share_bytes, mixed + done * mixed_bytes
        scale = scales + 4 * done
        left = num_queries - done
        if left >= 8:
            mix_8(like.dtype, values, num_rows, groups, share, share_bytes, scale, sums, mixed_bytes, ahead)
            done += 8
        elif left >= 4:
            mix_4(like.dtype, values, num_rows, groups, share, share_bytes, scale, sums, mixed_bytes, ahead)
            done += 4
        elif left >= 2:
            mix_2(like.dtype, values, num_rows, groups, share, share_bytes, scale, sums, mixed_bytes, ahead)
            done += 2
        else:
            mix_1(like.dtype, values, num_rows, groups, share, share_bytes, scale, sums, mixed_bytes, ahead)
            done += 1
