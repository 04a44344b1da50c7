"""Which beginnings of prompts each replica probably has in its prefix cache: what was sent there, lately.

In: prompts as bytes, and where they went; out: estimated overlaps.  Bounded: the oldest are forgotten.
A running CRC names each beginning; a false match misleads a routing decision and nothing else.
"""

from __future__ import annotations

import zlib
from collections import OrderedDict

import msgspec

from penstock.wire.engine import GenerateRequest

_BLOCK_BYTES = 512
_BYTES_PER_TOKEN = 4
_NAME_BLOCKS = 4
"""How many blocks, at most, name the beginning that is hashed to a replica."""
_MAX_BLOCKS = 65_536

_encode = msgspec.json.Encoder().encode


class Chain(msgspec.Struct, frozen=True):
    """A prompt's beginnings, each one block longer than the one before."""

    names: tuple[int, ...]

    @property
    def prefix(self) -> int | None:
        return self.names[min(len(self.names), _NAME_BLOCKS) - 1] if self.names else None


def chain_of(request: GenerateRequest) -> Chain:
    """Of a request.  What one tenant sent is no beginning of another's: their salts differ; so with adapters."""
    prompt = (
        request.text.encode("utf-8", "surrogatepass")
        if request.text is not None
        else _encode(request.messages if request.messages is not None else request.token_ids)
    )
    name = zlib.crc32(request.adapter.encode(), zlib.crc32(request.cache_salt.encode()))
    view = memoryview(prompt)
    names = []
    for start in range(0, len(prompt) - _BLOCK_BYTES + 1, _BLOCK_BYTES):
        name = zlib.crc32(view[start : start + _BLOCK_BYTES], name)
        names.append(name)
    return Chain(tuple(names))


NO_CHAIN = Chain(())


class PrefixIndex:
    """The beginnings at one replica."""

    def __init__(self, max_blocks: int = _MAX_BLOCKS) -> None:
        self._max_blocks = max_blocks
        self._names: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._names)

    def overlap_tokens(self, chain: Chain) -> int:
        """How many of the prompt's tokens are probably cached there."""
        low, high = 0, len(chain.names)
        while low < high:  # a beginning was sent with all the shorter ones
            middle = (low + high + 1) // 2
            if chain.names[middle - 1] in self._names:
                low = middle
            else:
                high = middle - 1
        return low * _BLOCK_BYTES // _BYTES_PER_TOKEN

    def note(self, chain: Chain) -> None:
        """It was sent there."""
        for name in reversed(chain.names):  # the longest is the first to be forgotten
            self._names[name] = None
            self._names.move_to_end(name)
        while len(self._names) > self._max_blocks:
            self._names.popitem(last=False)

    def fit(self, kv_tokens: int) -> None:
        """Its KV cache holds so many tokens, so no more of what was sent there can be cached."""
        self._max_blocks = min(max(kv_tokens * _BYTES_PER_TOKEN // _BLOCK_BYTES, 1), _MAX_BLOCKS)

    def clear(self) -> None:
        """The replica was lost, and its cache with it."""
        self._names.clear()
