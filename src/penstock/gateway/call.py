"""One data request from its head to its one terminal event: what is measured on the way.

In: what the stages learn, and every engine event that goes to the client; out: ``RequestEnded``.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from penstock.config.tenants import ANONYMOUS, Principal
from penstock.cost.money import FREE, Rate, cost_nusd
from penstock.events.list import Outcome, RequestEnded
from penstock.policy.budget import BudgetVerdict
from penstock.policy.fallback import FallbackVerdict
from penstock.policy.names import NameVerdict
from penstock.policy.retry import RetryVerdict
from penstock.policy.route import RouteVerdict
from penstock.policy.shadow import ShadowVerdict
from penstock.wire.embedding import Embedded
from penstock.wire.engine import Accepted, Delta, Event, Finished, Waits
from penstock.wire.errors import Problem

if TYPE_CHECKING:
    from penstock.config.names import Shadow
    from penstock.gateway.limits import Hold
    from penstock.gateway.queue import Queue
    from penstock.policy.limit import Standing

_CLIENT_GONE_STATUS = 499
_REFUSALS = frozenset({"draining", "not_ready", "overloaded"})

Verdict = NameVerdict | FallbackVerdict | ShadowVerdict | RouteVerdict | RetryVerdict | BudgetVerdict
Trail = list[tuple[float, Verdict]]
"""What was decided about a call and its sequences, and when by the clock."""


class ClientGone(Exception):
    """The client closed the connection; nobody is there to answer."""


@dataclass(slots=True, eq=False)
class Call:
    """Times are the clock's seconds.  ``num_tokens[i]``: tokens that choice ``i`` has delivered so far.

    ``hold``: what it holds of its limits, where there are any; ``standings``: how it stood with them at first;
    ``trail``: what was decided on the way, and when; ``waits``: what its choices waited for inside their engines, as
    these told at the end; ``refusal``: the words of what ended it; ``request_id``: the ``x-request-id`` of its answer;
    ``queue``: where it waited for its turn; ``rate``: what it costs; ``priority``: its class, the lower number first;
    ``running_slot``: where what it has used is kept for the case of a kill, if ``is_kept``.
    ``session``: as the caller names it; ``chain``: the models to ask, of which ``model`` is the one that answers, or
    the first; ``shadow``: who gets a copy.
    """

    id: str
    route: str
    started: float
    principal: Principal = ANONYMOUS
    model: str = ""
    session: str = ""
    chain: tuple[str, ...] = ()
    shadow: Shadow | None = None
    streamed: bool = False
    choices_per_prompt: int = 1
    num_choices: int = 1
    hold: Hold | None = None
    queue: Queue | None = None
    standings: list[Standing] = field(default_factory=list)
    accepted: bool = False
    response_started: bool = False
    client_gone: bool = False
    first_token_at: float | None = None
    last_token_at: float = 0.0
    num_tokens: dict[int, int] = field(default_factory=dict)
    num_prompt_tokens: dict[int, int] = field(default_factory=dict)
    num_cached_tokens: dict[int, int] = field(default_factory=dict)
    num_reasoning_tokens: int = 0
    request_id: str = ""
    trail: Trail = field(default_factory=list)
    waits: list[tuple[float, Waits]] = field(default_factory=list)
    refusal: str = ""
    ended_as: RequestEnded | None = None
    rate: Rate = FREE
    is_kept: bool = False
    running_slot: int | None = None
    priority: int = 0

    @property
    def served_by(self) -> list[str]:
        """The replicas of its attempts."""
        return [v.replica for _, v in self.trail if isinstance(v, RouteVerdict) and v.replica is not None]

    def note(self, index: int, events: list[Event], now: float) -> None:
        """Count what choice ``index`` delivers."""
        for event in events:
            if isinstance(event, Delta):
                if self.first_token_at is None:
                    self.first_token_at = now
                self.last_token_at = now
                self.num_tokens[index] = self.num_tokens.get(index, 0) + len(event.token_ids)
            elif isinstance(event, Accepted):
                self.accepted = True
                self.num_prompt_tokens[index] = event.prompt_tokens
            elif isinstance(event, Finished):
                self.num_tokens[index] = event.usage.output
                self.num_prompt_tokens[index] = event.usage.prompt
                self.num_cached_tokens[index] = event.usage.cached
                self.num_reasoning_tokens += event.usage.reasoning
                if event.waits is not None:
                    self.waits.append((now, event.waits))

    def note_embedded(self, embedded: Embedded) -> None:
        """Count what an embedding took; it has no output."""
        self.accepted = True
        self.num_prompt_tokens[0] = embedded.prompt_tokens
        self.num_cached_tokens[0] = embedded.cached_tokens

    def ended(self, error: BaseException | None, now: float) -> RequestEnded:
        """The terminal event; ``error`` is what ended the call early."""
        outcome, status, code = self._outcome(error)
        longest = max(self.num_tokens.values(), default=0)
        prompt, cached = self.once_per_prompt(self.num_prompt_tokens), self.once_per_prompt(self.num_cached_tokens)
        output = sum(self.num_tokens.values())
        ttft_s = tpot_s = None
        if self.first_token_at is not None:
            ttft_s = self.first_token_at - self.started
            if longest > 1:
                tpot_s = (self.last_token_at - self.first_token_at) / (longest - 1)
        return RequestEnded(
            id=self.id,
            route=self.route,
            model=self.model,
            outcome=outcome,
            status=status,
            code=code,
            streamed=self.streamed,
            duration_s=now - self.started,
            ttft_s=ttft_s,
            tpot_s=tpot_s,
            prompt_tokens=prompt,
            cached_tokens=cached,
            output_tokens=output,
            reasoning_tokens=self.num_reasoning_tokens,
            tenant=self.principal.tenant,
            key_id=self.principal.key_id,
            scopes=tuple(scope.name for scope in self.principal.scopes),
            replicas=tuple(dict.fromkeys(self.served_by)),
            cost_nusd=cost_nusd(self.rate, prompt, cached, output),
        )

    def once_per_prompt(self, counts: dict[int, int]) -> int:
        """The sum of a count that all choices of a prompt share."""
        if self.choices_per_prompt == 1:
            return sum(counts.values())
        return sum(count for index, count in counts.items() if index % self.choices_per_prompt == 0)

    def _outcome(self, error: BaseException | None) -> tuple[Outcome, int, str]:
        if error is None:
            return "finished", 200, ""
        if isinstance(error, ClientGone | asyncio.CancelledError):
            return "cancelled", 200 if self.response_started else _CLIENT_GONE_STATUS, "cancelled"
        code = error.code if isinstance(error, Problem) else "internal_error"
        status = error.spec.status if isinstance(error, Problem) else 500
        if self.response_started:
            return "failed", 200, code
        refused = not self.accepted and (status < 500 or code in _REFUSALS)
        return ("rejected" if refused else "failed"), status, code
