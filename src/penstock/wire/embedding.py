"""Texts to embed, as a gateway asks an engine, and the vectors that it answers.

In and out: msgspec structs, one JSON object per line; the path stands with the rest of the protocol in ``wire.engine``.
Argued in docs/decisions/007-embeddings-are-sequences.md.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from penstock.wire.engine import Accepted, Failed, NumTokens


class EmbedRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Texts to embed, all of one request.  Exactly one of ``texts`` and ``token_ids`` is set, one item per input.

    ``num_dimensions`` keeps so many of a vector's first numbers; ``cache_salt``, ``tenant``, ``weight``,
    ``priority`` and ``adapter`` are as in :class:`~penstock.wire.engine.GenerateRequest`.
    Repeating a request repeats its vectors, so one that is lost is sent again.
    """

    id: str
    texts: list[str] | None = None
    token_ids: list[list[int]] | None = None
    num_dimensions: int | None = None
    cache_salt: str = ""
    tenant: str = ""
    weight: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    priority: int = 0
    adapter: str = ""


class Embedded(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="embedded"):
    """Terminal, after an ``Accepted`` with the sum of the inputs: one vector per input, in their order, as base64
    of little-endian float32, which is how OpenAI's API has them.

    ``prompt_tokens`` and ``cached_tokens`` are sums over the inputs.
    """

    vectors: list[str]
    prompt_tokens: NumTokens
    cached_tokens: NumTokens = 0


decode_embedding = msgspec.json.Decoder(Accepted | Embedded | Failed).decode_lines
