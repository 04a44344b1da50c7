"""A client of the gateway in a simulated world, and what it should have heard.

In: one request's choices; out: what was heard of each, and how it differs from an undisturbed run.  That run is
computed from the request, not simulated: it cannot share a fault with what it is compared with.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from penstock.config.mock import MockScript
from penstock.gateway.call import ClientGone
from penstock.gateway.identify import Credentials
from penstock.gateway.pipeline import Gateway
from penstock.mock.answer import Answer
from penstock.wire.engine import Accepted, Delta, Event, Finished, GenerateRequest, TokenLogprob


@dataclass(slots=True)
class Heard:
    """What a client got of one choice.  ``num_ends`` counts terminal events."""

    num_accepted: int = 0
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    end: Finished | None = None
    num_ends: int = 0

    def take(self, event: Event) -> None:
        if isinstance(event, Accepted):
            self.num_accepted += 1
        elif isinstance(event, Delta):
            self.tokens += event.token_ids
            self.text += event.text
            self.logprobs += event.logprobs or []
        elif isinstance(event, Finished):
            self.text += event.text
            self.end = event
            self.num_ends += 1


async def listen(
    gateway: Gateway, model: str, choices: list[GenerateRequest], heard: list[Heard], leaves_after: int | None = None
) -> None:
    """One call.  Raises ``Problem`` as the gateway tells it, ``ClientGone`` after ``leaves_after`` tokens."""
    with gateway.open("/v1/completions", Credentials()) as call:
        gateway.find(call, model)
        call.choices_per_prompt = len(choices)
        named = [msgspec.structs.replace(choice, id=f"{call.id}-{i}") for i, choice in enumerate(choices)]

        def take(index: int, events: list[Event]) -> None:
            for event in events:
                heard[index].take(event)
            if leaves_after is not None and sum(len(choice.tokens) for choice in heard) > leaves_after:
                raise ClientGone

        await gateway.generate(call, named, len(choices[0].text or ""), take)


def differences(asked: GenerateRequest, heard: Heard, script: MockScript, *, left: bool) -> list[str]:
    """What one choice has that an undisturbed run has not, and the other way round; of who left, up to there."""
    answer, right = Answer(asked, script), Heard()
    while not answer.is_over and (not left or len(right.tokens) < len(heard.tokens)):
        right.take(answer.delta([answer.next_token()]))
    if heard.end is not None:
        right.take(answer.finished())
    wrong = [] if heard.num_accepted == 1 or (left and not heard.tokens) else [f"{heard.num_accepted} beginnings"]
    if heard.num_ends != 1 and not (left and heard.num_ends == 0):
        wrong.append(f"{heard.num_ends} ends")
    for name in ("tokens", "text", "logprobs", "end"):
        if getattr(heard, name) != getattr(right, name):
            wrong.append(f"{name} {getattr(heard, name)!r}, not {getattr(right, name)!r}")
    return wrong
