"""The second stage: how much.

In: a call whose principal is known, and the events on their way to it; out: the events that its limits cover, or a
``Problem`` that says why it is not taken and when to try again.  ``gateway.limits`` keeps the books.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from penstock.config.tenants import LEAST_URGENT, MOST_URGENT
from penstock.cost.money import FREE
from penstock.events.list import RequestEnded
from penstock.gateway.call import Call
from penstock.gateway.limits import Hold, Limits
from penstock.gateway.queue import Queue, capacity_of
from penstock.gateway.replicas import Replicas
from penstock.policy.admit import AdmitRules
from penstock.policy.limit import Rule, Verdict, describe
from penstock.ports import Clock
from penstock.wire.embedding import Embedded
from penstock.wire.engine import Accepted, Delta, Event, Finished, GenerateRequest, Usage
from penstock.wire.errors import Problem


class Limit:
    """Refuses what this gateway does not take now, and ends what its limits no longer cover."""

    def __init__(self, replicas: Replicas, limits: Limits, clock: Clock, admit: AdmitRules) -> None:
        self._replicas = replicas
        self._limits = limits
        self._clock = clock
        self._admit = admit
        self._queues: dict[str, Queue] = {}
        self._one_waits: Callable[[], None] = lambda: None

    @property
    def draining(self) -> bool:
        """The desired state admits no new requests."""
        return self._replicas.version > 0 and not self._replicas.admitting

    @property
    def num_waiting(self) -> int:
        """Requests that wait for their turn at any model."""
        return sum(queue.num_waiting for queue in self._queues.values())

    def when_one_waits(self, call: Callable[[], None]) -> None:
        """Call this whenever a request has to wait."""
        self._one_waits = call

    def arrive(self, call: Call) -> None:
        """The head is read, the body is not."""
        if self.draining:
            raise Problem("draining", "This server is shutting down and takes no new requests.", retry_after_s=1.0)

    @staticmethod
    def prioritise(call: Call, asked: int | None) -> None:
        """Give the call its class: what was asked for, or what its key has.  Raises ``permission_denied``."""
        allowed = call.principal.priority
        call.priority = allowed if asked is None else min(max(asked, MOST_URGENT), LEAST_URGENT)
        if call.priority < allowed:
            message = f"This key may ask for priority {allowed} or a higher number, which is less urgent; not {asked}."
            raise Problem("permission_denied", message, param="priority")

    async def reserve(self, call: Call, body_bytes: int, choices: Sequence[GenerateRequest] = ()) -> None:
        """Hold what the call may need: the input by the bytes of its body, since no token is shorter than one.

        Waits, within a bound, only where gateways share limits and this one has nothing left to grant by itself.
        Raises ``Problem``: ``rate_limit_exceeded``, ``insufficient_quota``, ``request_exceeds_limit``,
        ``limits_unavailable``, or ``price_missing`` where a budget is to cover what nobody knows the cost of.
        """
        rate = self._limits.rate(call.model)
        call.rate = rate or FREE
        rules = self._limits.rules(call.principal, call.model)
        if not rules:
            return
        if rate is None:
            _check_no_budget(rules, call.model)
        most = [choice.max_tokens for choice in choices]
        most_output = None if None in most else sum(number for number in most if number is not None)
        hold = Hold(self._limits, rules, call.rate, most_output, len(choices))
        verdict = hold.begin(body_bytes)
        if verdict.short:
            verdict = await hold.fetch()
        call.standings = self._limits.tightest(rules)
        if not verdict.granted:
            raise _refusal(verdict)
        call.hold = hold

    def withdraw(self, call: Call) -> None:
        """The model that this was reserved for does not answer: nothing of it is held any more."""
        if call.queue is not None:
            call.queue.leave(call.id)
            call.queue = None
        if call.hold is not None:
            call.hold.end(requests=0, prompt=0, cached=0, output=0)
            call.hold = None

    async def enter(self, call: Call, tokens: int) -> None:
        """Wait for the call's turn at the engines, which ``tokens`` are estimated to be for.

        Raises ``Problem``: ``overloaded``, or ``rate_limit_exceeded`` where its tenant waits with too many.
        """
        model = self._replicas.base(call.model)  # its adapters are in the same engines
        if capacity_of(self._replicas, model) is None:
            return
        queue = self._queues.get(model)
        if queue is None:
            queue = Queue(
                lambda: capacity_of(self._replicas, model), self._clock, self._admit, lambda: self._one_waits()
            )
            self._queues[model] = queue
        call.queue = queue
        await queue.enter(call.id, call.principal, tokens, call.priority)

    def cover(self, call: Call, index: int, events: list[Event], refusal: Verdict | None = None) -> list[Event] | None:
        """What of choice ``index``'s events is covered; less than it was ends in a ``Finished`` that says why.

        ``None``: more has to be fetched, and then this asked again, with the refusal if that failed.
        Once a ``Finished`` has been given for a choice, nothing more of it is asked about.  Raises ``Problem`` when
        the input turns out larger than what was reserved for it and than what is left.
        """
        hold = call.hold
        if hold is None:
            return events
        if isinstance(events[0], Accepted):
            ends = hold.running == 1 and isinstance(events[-1], Finished)
            refused = self._know_input(hold, call, index, events[0], ends)
            if refused is not None and refused.short and refusal is None:
                return None
            if refused is not None:
                raise _refusal(refusal or refused)
        output, running = hold.used, hold.running
        for event in events:
            if isinstance(event, Delta):
                output += len(event.token_ids)
        last = events[-1]
        if isinstance(last, Finished):
            output = hold.used - call.num_tokens.get(index, 0) + last.usage.output
            running -= 1
        refused = hold.cover(output, running)
        if refused is not None and refused.short:
            if refusal is None:
                return None
            refused = refusal
        if refused is None:
            hold.used, hold.running = output, running
            return events
        hold.running -= 1
        return self._cut(hold, call, index, events, refused)

    async def cover_embedded(self, call: Call, embedded: Embedded) -> None:
        """Raises ``Problem`` when the inputs turn out larger than what was reserved and than what is left."""
        verdict = call.hold.know_input(embedded.prompt_tokens) if call.hold is not None else None
        if verdict is not None and verdict.short and call.hold is not None:
            verdict = await call.hold.fetch()
        if verdict is not None and not verdict.granted:
            raise _refusal(verdict)

    def end(self, call: Call, ended: RequestEnded) -> None:
        """Settle for what the call has used, however it ended; a request that nothing was done for counts no more."""
        if call.queue is not None:
            call.queue.leave(call.id)
        if call.hold is None:
            return
        call.hold.end(
            requests=1 if call.accepted or ended.outcome == "finished" else 0,
            prompt=ended.prompt_tokens,
            cached=ended.cached_tokens,
            output=ended.output_tokens,
        )
        call.hold = None

    @staticmethod
    def _know_input(hold: Hold, call: Call, index: int, accepted: Accepted, ends: bool) -> Verdict | None:
        """Another prompt is known; once all are, the call holds what they take, no more and no less.

        ``ends``: so does the call, with the same events, and settles then.
        """
        prompts = call.num_prompt_tokens | {index: accepted.prompt_tokens}
        whole = len(prompts) == call.num_choices and not ends
        return hold.know_input(call.once_per_prompt(prompts), whole=whole)

    def _cut(self, hold: Hold, call: Call, index: int, events: list[Event], refused: Verdict) -> list[Event]:
        covered: list[Event] = []
        output = call.num_tokens.get(index, 0)
        for event in events:
            if isinstance(event, Accepted):
                covered.append(event)
            elif isinstance(event, Delta) and len(event.token_ids) <= hold.left - hold.running:
                covered.append(event)
                output += len(event.token_ids)
                hold.used += len(event.token_ids)
            else:
                break
        prompt = next((e.prompt_tokens for e in covered if isinstance(e, Accepted)), None)
        usage = Usage(prompt=call.num_prompt_tokens.get(index, 0) if prompt is None else prompt, output=output)
        return [*covered, Finished(reason="length", usage=usage, limit=refused.why)]


def _check_no_budget(rules: Sequence[Rule], model: str) -> None:
    for rule in rules:
        if rule.unit == "usd":
            message = f"{rule.scope} has a budget of {describe(rule)}, and the model {model!r} has no price"
            raise Problem("price_missing", f"{message}: --prices gives it one.", param="model")


def _refusal(verdict: Verdict) -> Problem:
    rule = verdict.refused
    assert rule is not None
    if verdict.away:
        return Problem("limits_unavailable", f"Now nobody is admitted: {verdict.why}.", retry_after_s=1.0)
    if verdict.retry_after_s is None:
        message = f"This request can never fit: {verdict.why}."
        return Problem("request_exceeds_limit", message)
    if rule.unit == "usd":
        return Problem("insufficient_quota", f"The budget is used up: {verdict.why}.")
    return Problem(
        "rate_limit_exceeded",
        f"Over the limit of {describe(rule)}: {verdict.why}; try again in {verdict.retry_after_s:.3g} s.",
        retry_after_s=verdict.retry_after_s,
    )
