"""What a mock engine is told: its times, its lengths, and what shall go wrong.

Read and checked by ``mock.script``.  Times in seconds, lengths in tokens, as the names say.
"""

from __future__ import annotations

from typing import Literal

import msgspec

SCHEME = "mock://"
"""``penstock serve mock://[SCRIPT]`` puts mock engines behind the real gateway."""

FaultKind = Literal["refuse", "break", "torn", "end", "fail", "garbage", "stall", "slow-read", "crash"]
"""``refuse``: answer with ``code``.  ``break``: cut the connection; ``torn``: inside a line; ``end``: end the body
cleanly without a terminal event.  ``fail``: end the stream with ``code``.  ``garbage``: send a line that is no event.
``stall``: stay silent for ``seconds``, then go on.  ``slow-read``: leave the request's body unread for ``seconds``.
``crash``: the whole process is killed."""


class Fault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One thing that goes wrong.  ``after``: tokens of the attempt that come first.

    ``share``: which part of all attempts it strikes; ``times``: after so many it never strikes again.
    ``seconds`` ``None``: for ever.
    """

    kind: FaultKind
    after: int = 0
    share: float = 1.0
    times: int | None = None
    code: str = "internal_error"
    seconds: float | None = None


class MockScript(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a mock engine answers.

    A prompt takes ``ttft_s`` plus its tokens at ``prefill_tokens_per_s``; ``None``: as many as there are, at once.
    ``jitter``: every time is multiplied by a number from 1 - jitter to 1 + jitter.  ``output_tokens``: where an
    answer comes to its own end.  ``slots``: sequences that run at once; ``max_waiting`` more wait for one.
    ``kv_tokens``: what its KV cache seems to hold; 0: it says nothing of one.  ``load_s``: how long it seems to load.
    ``seed`` decides which attempts the faults strike.
    ``weights``: which model it pretends to be: others draw other tokens; ``vocabulary``: of which tokens.
    ``exact``: it takes back only tokens that it would draw itself, so that a wrong resume is told; otherwise any.
    """

    ttft_s: float = 0.0
    gap_s: float = 0.0
    jitter: float = 0.0
    prefill_tokens_per_s: float | None = None
    output_tokens: int = 128
    tokens_per_delta: int = 1
    context_tokens: int = 131_072
    slots: int = 65_536
    max_waiting: int = 65_536
    kv_tokens: int = 0
    load_s: float = 0.0
    drain_s: float = 8.0
    seed: int = 0
    weights: str = ""
    vocabulary: str = ""
    exact: bool = True
    faults: tuple[Fault, ...] = ()


class MockSettings(msgspec.Struct, frozen=True, kw_only=True):
    """One mock engine process.  It answers on a Unix ``socket``, on ``host`` and ``port``, or on both."""

    served_name: str
    socket: str | None = None
    host: str = "127.0.0.1"
    port: int | None = None
    script: MockScript = MockScript()


def is_mock(source: str) -> bool:
    """Whether this model is only pretended."""
    return source.startswith(SCHEME)
