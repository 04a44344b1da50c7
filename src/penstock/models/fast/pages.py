"""How one page of a layer holds its keys and values.

In: a number format and sizes; out: bytes and shapes, and what numbers become there.
Pages of float32 are [S, D] for each head; packed ones are what kernels read register by register:

- bfloat16, S tokens of D numbers: keys [S/16][D/2][16][2], values [S/2][D][2].
- int8: keys [S/16][D/2][16][2], values [S/4][D/16][2][16][2], and behind either one scale per token [S] float32.

A line of 64 bytes then holds 2 or 4 dimensions of 16 keys, or 16 dimensions of 2 or 4 values; two that follow one
another lie side by side, as one instruction takes them.
Argued in docs/decisions/031-keys-and-values-in-eight-bits.md.
"""

from __future__ import annotations

import torch
from torch import Tensor

from penstock.models.attention import Attend

TILE = 16
"""Numbers of a register.  A page's tokens are a multiple of it, and so is a head's size."""
MOST_HEAD_DIM = MOST_BYTE_TOKENS = 512
"""So many products of a whole number of eight bits and one of sixteen add up within 32."""
SCALE_BYTES = 4
MOST = 127
"""The largest number of eight bits, one for either sign."""
TINY = 1e-30
"""What has no larger number than this is taken for zeros: its reciprocal would not be finite."""


def holds_bytes(head_dim: int, page_tokens: int = TILE) -> bool:
    """Whether such keys and values can be kept in int8."""
    whole = head_dim % TILE == page_tokens % TILE == 0
    return whole and head_dim <= MOST_HEAD_DIM and page_tokens <= MOST_BYTE_TOKENS


def vector_bytes(dtype: torch.dtype, head_dim: int) -> int:
    """Of one head's key or value of one token."""
    return head_dim * dtype.itemsize + (SCALE_BYTES if dtype == torch.int8 else 0)


def page_shape(dtype: torch.dtype, num_kv_heads: int, page_tokens: int, head_dim: int) -> tuple[int, ...]:
    """Of one page's keys, and of its values; in ``dtype``, scales included."""
    if dtype == torch.float32:
        return num_kv_heads, page_tokens, head_dim
    return num_kv_heads, page_tokens * vector_bytes(dtype, head_dim) // dtype.itemsize


def tokens_of(pages: Tensor, head_dim: int) -> int:
    """How many one of ``pages`` [P, *page_shape] holds."""
    return pages[0, 0].nbytes // vector_bytes(pages.dtype, head_dim)


def rounded(x: Tensor) -> Tensor:
    """x[..., D] as pages of int8 give it back, to a rounding to x's own format: multiples of a 127th of the largest."""
    peaks = x.float().abs().amax(-1, keepdim=True)
    factors = torch.where(peaks > TINY, MOST / peaks, 0.0)
    return ((x.float() * factors).round() * (peaks / MOST)).to(x.dtype)


def as_kept(attend: Attend) -> Attend:
    """Attention over keys and values as pages of int8 give them back."""
    return lambda spec, q, k, v: attend(spec, q, rounded(k), rounded(v))
