"""The ledger's sums are the engines' sums, whatever happens to engines and clients."""

from __future__ import annotations

import asyncio
import datetime as dt
import random
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from zlib import crc32

import pytest
from gateways import Engines, House, losing

from penstock.config.prices import Price
from penstock.config.tenants import Limit
from penstock.cost.money import Tariff, cost_nusd
from penstock.gateway.call import ClientGone
from penstock.store.ledger import Ledger, row_of
from penstock.store.spill import Spill
from penstock.store.sql.database import Database
from penstock.store.sql.migrations import migrate
from penstock.wire import engine as protocol
from penstock.wire.errors import Problem

PRICE = Price(model="m", since=dt.date(2026, 1, 1), input=0.15, cached=0.03, output=0.61)


class Witness(Engines):
    """Engines that write down what each sequence was told to have taken: the other side of the books."""

    def __init__(self, dice: random.Random) -> None:
        super().__init__(
            num_tokens=30,
            prompt_tokens=lambda request: 3 + crc32(request.id.split("-")[0].encode()) % 40,
            lose=losing(dice, 0.3),
            batch=lambda: dice.randrange(1, 5),
        )
        self.prompts: dict[str, int] = {}
        self.cached: dict[str, int] = {}
        self.outputs: dict[str, int] = {}

    async def batches(self, request: protocol.GenerateRequest) -> AsyncGenerator[list[protocol.Event], None]:
        name = request.id.split(".")[0]
        async with aclosing(super().batches(request)) as batches:
            async for events in batches:
                for event in events:
                    if isinstance(event, protocol.Accepted):
                        self.prompts[name] = event.prompt_tokens
                    elif isinstance(event, protocol.Delta):
                        self.outputs[name] = self.outputs.get(name, 0) + len(event.token_ids)
                    elif isinstance(event, protocol.Finished):
                        self.outputs[name], self.cached[name] = event.usage.output, event.usage.cached
                yield events


@pytest.mark.parametrize("seed", range(8))
async def test_both_sides_add_up(seed: int, tmp_path: Path) -> None:
    """Under lost engines, resumed streams, clients that leave and several choices, the ledger has to the token and to
    the nano-dollar what the engines reported, and the budget has been charged the same.
    """
    dice = random.Random(seed)
    witness = Witness(dice)
    budget = Limit(unit="usd", amount=1.0, window="month")
    house = House(budget, engines=witness, tariff=Tariff([PRICE]))
    whole: set[str] = set()

    async def one() -> None:
        n = dice.randrange(1, 4)
        leave = dice.choice([None, None, dice.randrange(1, 15)])
        try:
            await house.ask(body_bytes=60, n=n, leave_after=leave, watch=lambda call: house.heal())
        except (Problem, ClientGone):
            house.heal()

    for _ in range(6):
        await asyncio.gather(*[one() for _ in range(5)])
    database = Database(f"sqlite:///{tmp_path / 'l.sqlite'}")
    database.create()
    migrate(database)
    ledger = Ledger(database)
    spill = Spill(tmp_path / "usage", "g", ledger)
    for ended in house.ended:
        row = row_of(ended, "g", 1.0)
        if row is not None:
            spill.add(row)
        if ended.outcome == "finished":
            whole.add(ended.id)
    spill.close()
    [total] = ledger.totals()
    assert total.cost_nusd == sum(ended.cost_nusd for ended in house.ended) == house.granted()
    by_id = {ended.id: ended for ended in house.ended}
    for id in whole:
        prompt, cached = witness.prompts[f"{id}-0"], witness.cached[f"{id}-0"]
        output = sum(count for name, count in witness.outputs.items() if name.split("-")[0] == id)
        ended = by_id[id]
        assert (ended.prompt_tokens, ended.cached_tokens, ended.output_tokens) == (prompt, cached, output)
        rate = house.limits.rate("m")
        assert rate is not None and ended.cost_nusd == cost_nusd(rate, prompt, cached, output)
        assert set(ended.replicas) <= {"a", "b"} and ended.replicas
    for ended in house.ended:
        # A call that was left took what had arrived of it: at most a batch per choice less than the engines sent.
        sent = sum(count for name, count in witness.outputs.items() if name.split("-")[0] == ended.id)
        assert sent - 3 * 5 <= ended.output_tokens <= sent
    assert len(whole) > 5 and any(len(by_id[id].replicas) == 2 for id in whole)
    database.close()
