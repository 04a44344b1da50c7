"""The port between the gateway and the engines: production speaks HTTP, tests script it.

In: a replica's socket path and a request of the engine protocol; out: its events, pushed as they come.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from penstock.wire import engine
from penstock.wire.embedding import Embedded, EmbedRequest
from penstock.wire.load import Load, Progress, ProgressRequest
from penstock.wire.tokenization import Detokenized, DetokenizeRequest, Tokenized, TokenizeRequest

Push = Callable[[list[engine.Event]], Awaitable[None] | None]
"""Takes events within the call that brought them; an awaitable: no more of them before it is done, and await it.

What it raises, or its awaitable, ends the stream and comes out of it unchanged.
"""

Accept = Callable[[engine.Accepted], None]
"""Is told how many tokens an engine has taken on; what it raises comes out unchanged."""


class Upstream(Protocol):
    """Every method raises ``Problem``: the engine's own, ``engine_lost`` or ``engine_protocol``."""

    async def generate(self, socket: str, request: engine.GenerateRequest, push: Push) -> None:
        """Push events that arrived together, up to and including the terminal one.

        Being cancelled, or ended by ``push``, aborts the request.
        """

    async def embed(self, socket: str, request: EmbedRequest, accept: Accept) -> Embedded:
        """All vectors at once; ``accept`` is called before the engine computes any.

        Being cancelled closes the connection, which aborts the request.
        """

    async def load(self, socket: str) -> Load: ...

    async def progress(self, socket: str, request: ProgressRequest) -> Progress:
        """Answered, or failed, within some seconds."""

    async def tokenize(self, socket: str, request: TokenizeRequest) -> Tokenized: ...

    async def detokenize(self, socket: str, request: DetokenizeRequest) -> Detokenized: ...

    async def forget(self, socket: str) -> None:
        """This replica is wanted no more and runs nothing of ours."""
