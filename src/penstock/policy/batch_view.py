"""What the batch policy is shown, what it goes by, and what it says.

In: nothing; out: the protocols of a sequence and of the queues, the rules of a step, the verdict with its why.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import Generic, Literal, Protocol, TypeVar

from penstock.policy.fair import FairRules, Line
from penstock.policy.speculate import Allowance, Candidate
from penstock.policy.step_time import StepModel
from penstock.policy.yielding import Holder

Held = Literal["", "budget", "target", "blocks", "sequences", "preempting", "whole"]


class Work(Holder, Protocol):
    """A sequence as the policy sees it.  ``itl_target_s``: its tokens should come no further apart than that."""

    @property
    def itl_target_s(self) -> float | None: ...
    @property
    def num_tokens(self) -> int: ...
    @property
    def num_computed(self) -> int: ...
    @property
    def num_remaining(self) -> int: ...


W = TypeVar("W", bound=Work)
V = TypeVar("V", bound=Work)


class BatchView(Protocol[V]):
    """Live state, read-only.  ``running`` is in order of protection: by level, then by admission.

    ``step_model``: what is known of how long steps take.
    """

    @property
    def running(self) -> Items[V]: ...
    @property
    def lines(self) -> Iterable[Line[V]]: ...
    @property
    def num_idle_blocks(self) -> int: ...
    @property
    def step_model(self) -> StepModel: ...
    def allowance(self, num_decodes: int, /) -> Allowance:
        """What speculation may still lose in steps of about so many decodes."""

    def candidates(self, works: Items[V], /) -> Items[Candidate | None]:
        """What these works, which decode and are all of the step, could propose; ``None``: nothing."""

    def count_private_blocks(self, work: V, /) -> int: ...
    def cached_prefix(self, work: V, /) -> tuple[int, int]:
        """Cached blocks that ``work`` would start from, and how many of those are idle."""


@dataclass(frozen=True, slots=True)
class BatchRules:
    """Limits of one step.  ``max_step_tokens`` bounds how long a prompt's chunk may hold up the running streams.

    ``stateless``: the model keeps nothing from one step to the next (an encoder, where every token sees the later
    ones too), so that a prompt is computed whole and needs no blocks.
    ``speculative_tokens``: the most that a sequence proposes; 0: none does.  ``drafts``: a draft model does it for
    them, not the sequence's own text.
    """

    max_step_tokens: int
    max_num_seqs: int
    block_tokens: int
    stateless: bool = False
    speculative_tokens: int = 0
    drafts: bool = False
    fair: FairRules = FairRules()


@dataclass(slots=True)
class BatchVerdict(Generic[W]):
    """Who computes how many tokens: decodes first.  ``held`` says why the first waiting sequence was not admitted.

    Behind the decodes come ``num_proposing`` others that verify ``counts[i] - 1`` proposed tokens, too.
    ``levels`` are those of the admitted.  ``again``: these gave way to somebody who waits; carry it out and ask again.
    ``token_budget``: the most tokens that this step could have been given.
    """

    works: list[W] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    num_decodes: int = 0
    num_proposing: int = 0
    admitted: list[W] = field(default_factory=list)
    levels: list[int] = field(default_factory=list)
    preempted: list[W] = field(default_factory=list)
    held: Held = ""
    again: bool = False
    token_budget: int = 0
