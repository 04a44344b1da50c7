"""One request inside the engine, and the plan and result of one step.

In: token ids and limits; out: plain integers for the executor.  Knows no tensors, no text and no clock.
The executor only reads these; every write is the scheduler's.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from penstock.engine.adapters import Adapter
from penstock.wire.engine import FinishReason, Sampling, Waits
from penstock.wire.errors import Problem


@dataclass(frozen=True, slots=True)
class TokenScore:
    """Log-probability of one token and of its ``top`` alternatives, ``[(token id, logprob), ...]`` in falling order."""

    token_id: int
    logprob: float
    top: list[tuple[int, float]]


class TokenSink(Protocol):
    """Where a sequence's tokens go: the server's text stream, or a simulation's recorder."""

    def prompt_scored(self, scores: list[TokenScore]) -> None:
        """Scores of prompt tokens 1.. in order, in one or more calls (one per prefill chunk)."""

    def push(self, token_id: int, score: TokenScore | None) -> bool:
        """Take one token.  True: the text reached a stop string, so the sequence is to finish."""

    def finish(self, reason: FinishReason, stop_token_id: int | None, num_cached_tokens: int) -> None:
        """Terminal.  ``stop_token_id`` is set when a stop token ended the sequence."""

    def fail(self, problem: Problem) -> None:
        """Terminal: the engine could not compute this sequence."""


@dataclass(frozen=True, slots=True)
class Pooling:
    """How the hidden states of a prompt become one vector: an embedding.

    ``rows``: the first token's (``cls``), the last one's, or the mean of all.
    ``num_dimensions`` keeps so many of the first numbers; then ``normalize`` divides by the Euclidean length.
    """

    rows: Literal["cls", "last", "mean"]
    normalize: bool = True
    num_dimensions: int | None = None


class Constraint(Protocol):
    """What a sequence's output has to be.  Only committed tokens advance it: a dropped result leaves no trace."""

    def mask(self) -> bytes | None:
        """Which tokens may come next: bit ``i % 8`` of byte ``i // 8``, and none beyond; ``None``: any.

        Called in the step's thread, at times more than once for one position; may block for as long as it computes.
        """

    @property
    def foresees(self) -> bool:
        """Whether :meth:`foresee` is of use now."""

    def foresee(self, token_ids: list[int]) -> None:
        """These may come next, in this order: :meth:`masks` will be asked about them.  Returns at once."""

    def masks(self, token_ids: list[int]) -> list[bytes | None]:
        """:meth:`mask`, and what it will be behind each of these tokens, as far as they may come and it is known."""

    def advance(self, token_id: int) -> bool:
        """Take the next token.  False: it ends the output and is no part of it.

        Raises the ``Problem`` that ends this sequence and no other.
        """


@dataclass(slots=True, eq=False)
class Sequence:
    """A request's state.

    ``token_ids`` is prompt, then output (a resumed request starts with its emitted tokens in the output part).
    ``num_computed`` tokens have their keys and values in ``block_ids``.
    ``epoch`` counts preemptions: a step result that carries an older epoch is dropped.
    ``tenant``, ``weight``, ``priority``, ``level``, ``arrived_s`` and ``num_charged`` are what ``policy.fair`` goes by;
    ``itl_target_s`` what ``policy.pace`` does: the seconds between its tokens that are aimed at.
    ``waits`` is what it waited for so far.  ``adapter``: what is computed with beside the weights.
    With ``pooling`` there is no output: the sequence finishes with its prompt, and ``pooled`` is its vector in
    little-endian float32.  Before that ``pooled`` is what the executor goes on from; it restarts with the prompt.
    """

    id: str
    token_ids: list[int]
    num_prompt_tokens: int
    max_tokens: int
    sampling: Sampling
    sink: TokenSink
    min_tokens: int = 0
    stop_token_ids: frozenset[int] = frozenset()
    prefix_root: bytes = b""
    constraint: Constraint | None = None
    num_logprobs: int | None = None
    score_prompt: bool = False
    tenant: str = ""
    weight: float = 1.0
    priority: int = 0
    level: int = 0
    arrived_s: float = 0.0
    num_charged: int = 0
    itl_target_s: float | None = None
    waits: Waits = field(default_factory=Waits)
    adapter: Adapter | None = None
    num_prompt_scored: int = 0
    pooling: Pooling | None = None
    pooled: bytes | None = None
    num_computed: int = 0
    num_cached: int = 0
    epoch: int = 0
    block_ids: list[int] = field(default_factory=list)
    block_keys: list[bytes] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_remaining(self) -> int:
        """Tokens whose keys and values are not computed yet: 1 while decoding, more while prefilling."""
        return len(self.token_ids) - self.num_computed

    @property
    def needs_every_row(self) -> bool:
        """Whether the hidden states of all its tokens are looked at, so that no prefix may come from the cache."""
        return self.score_prompt or (self.pooling is not None and self.pooling.rows != "last")


class Draft(NamedTuple):
    """What the draft model computes of a sequence: its tokens from ``start`` on, ``num_rows`` of them.

    With ``num_proposed`` these are all that it lacks, and behind them it proposes so many.
    """

    start: int
    num_rows: int
    num_proposed: int


@dataclass(slots=True)
class StepPlan:
    """What one step computes: for sequence ``i``, tokens ``starts[i] .. starts[i] + counts[i] - 1``.

    Decodes (count 1, reaching the sequence's end) come first; ``num_decodes`` says how many.
    ``proposed[i]`` tokens that may follow sequence ``i``'s last one count among its tokens here.
    ``proposals[i]`` are these, where they are known already; else ``drafts[i]`` says how to make them.
    ``token_budget``: the most tokens that it could have been given.
    ``rounds``: so many steps may be computed as one, each of the sequences, which all decode, getting so many tokens.
    ``reaches_end(i)`` tells whether a token is sampled for sequence ``i``, or its vector due, in this step.
    """

    step: int
    sequences: list[Sequence]
    starts: list[int]
    counts: list[int]
    epochs: list[int]
    num_decodes: int
    token_budget: int = 0
    proposed: Mapping[int, int] = field(default_factory=dict)
    proposals: Mapping[int, list[int]] = field(default_factory=dict)
    drafts: Mapping[int, Draft] = field(default_factory=dict)
    rounds: int = 1

    @property
    def num_tokens(self) -> int:
        return sum(self.counts)

    @property
    def num_streams(self) -> int:
        """Sequences that decode, with a proposal or without."""
        return self.num_decodes + len(self.proposed)

    @property
    def num_proposed(self) -> int:
        return sum(self.proposed.values())

    def reaches_end(self, i: int) -> bool:
        return self.starts[i] + self.counts[i] >= self.sequences[i].num_tokens


@dataclass(slots=True)
class StepResult:
    """Aligned with the plan: the sampled token (``None`` where none was due), its score, the prompt's scores.

    ``further[i]``: tokens sampled behind that one, with their scores: one for each token of the proposal that was
    what had just been sampled before it.  ``draft_s`` of the seconds went into making proposals, and ``between_s``
    lay between the executor's calls: planning, handing over, telling the streams.
    ``later[r][i]``: the tokens of further rounds, where the plan allows and the executor computed some.
    ``prompt_scores[i]`` covers the prompt tokens predicted by this step's rows: positions
    ``starts[i] + 1 .. min(starts[i] + counts[i], num_prompt_tokens - 1)``; empty unless ``score_prompt``.
    ``pooled[i]`` is what sequence ``i``'s ``pooled`` becomes, for those that have a pooling; ``None`` at its end says
    that the model computed numbers that are not finite.
    """

    step: int
    token_ids: Items[int | None]
    scores: Items[TokenScore | None]
    prompt_scores: Items[list[TokenScore]]
    seconds: float = 0.0
    pooled: Mapping[int, bytes | None] = field(default_factory=dict)
    further: Mapping[int, list[tuple[int, TokenScore | None]]] = field(default_factory=dict)
    draft_s: float = 0.0
    between_s: float = 0.0
    later: Items[Items[int]] = ()

    @property
    def num_rounds(self) -> int:
        """Steps that were computed as one."""
        return 1 + len(self.later)

    @property
    def num_accepted(self) -> int:
        """Proposed tokens that were right."""
        return sum(map(len, self.further.values()))


class Executor(Protocol):
    """The port a simulation replaces: computes a step plan.  Blocking; called from one thread at a time."""

    def execute(self, plan: StepPlan) -> StepResult: ...
