"""What a call has used so far is kept from its first tokens on, and given up with its end."""

from __future__ import annotations

import pytest
from gateways import Engines, House

from penstock.cost.money import Rate
from penstock.events.list import RequestEnded
from penstock.gateway.call import Call, ClientGone


class Book:
    """What is kept: the last counts of every open slot, as a killed process would leave them."""

    def __init__(self) -> None:
        self.open: dict[int, list[int]] = {}
        self.begun: list[RequestEnded] = []

    def begin(self, so_far: RequestEnded, rate: Rate) -> int:
        self.begun.append(so_far)
        self.open[len(self.begun)] = [0, 0, 0, 0]
        return len(self.begun)

    def count(self, slot: int, prompt: int, cached: int, output: int, reasoning: int) -> None:
        self.open[slot] = [prompt, cached, output, reasoning]

    def count_output(self, slot: int, output: int) -> None:
        self.open[slot][2] = output

    def end(self, slot: int) -> None:
        del self.open[slot]


@pytest.mark.parametrize("n", [1, 3])
async def test_at_every_moment_it_is_what_was_delivered(n: int) -> None:
    """Prompt and output after each batch, over all choices; and the row says who, what and which replica."""
    book = Book()
    house = House(engines=Engines(num_tokens=8), running=book)
    seen = 0

    def watch(call: Call) -> None:
        nonlocal seen
        if book.open:
            [counts] = book.open.values()
            assert counts == [
                5,
                sum(call.num_cached_tokens.values()) // max(len(call.num_cached_tokens), 1),
                *counts[2:],
            ]
            assert counts[2] == sum(call.num_tokens.values())
            seen += 1

    await house.ask(n=n, watch=watch)
    assert seen > 8 and not book.open
    [row] = book.begun
    assert (row.outcome, row.code, row.tenant, row.key_id, row.model) == ("failed", "gateway_lost", "t", "k", "m")
    assert row.replicas and row.id == house.ended[0].id


async def test_an_answer_that_came_as_one_is_not_kept() -> None:
    """It costs nothing more than it did."""
    book = Book()
    house = House(engines=Whole(), running=book)
    await house.ask()
    assert not book.begun and house.ended[0].output_tokens > 0


@pytest.mark.parametrize("leave", [1, 3])
async def test_a_call_that_ends_early_gives_its_slot_up(leave: int) -> None:
    """A client that leaves."""
    book = Book()
    house = House(running=book)
    with pytest.raises(ClientGone):
        await house.ask(leave_after=leave)
    assert not book.open


class Whole(Engines):
    """Everything in one batch."""

    async def batches(self, request):
        yield [event async for events in super().batches(request) for event in events]
