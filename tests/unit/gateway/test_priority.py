"""How urgent a request is: what its body asks for, within what its key allows."""

from __future__ import annotations

import asyncio
import json

import msgspec
import pytest
from gateways import Engines, House

from penstock.config.tenants import TOP, Access, ApiKey, Principal, Rights, Tenant
from penstock.gateway.identify import Credentials
from penstock.policy.admit import AdmitRules
from penstock.policy.rights import excess, principal
from penstock.wire.errors import Problem
from penstock.wire.openai import chat, completions

BODY = {"model": "m", "messages": [{"role": "user", "content": "a"}]}


def urgent_as(key: int | None, *tenants: int | None) -> Principal:
    """Who asks with a key below tenants from the top one down."""
    above: str | None = None
    made = []
    for level, priority in enumerate(tenants):
        name = TOP if level == 0 else f"t{level}"
        made.append(Tenant(name=name, parent=above, rights=Rights(priority=priority)))
        above = name
    access = Access(tenants=tuple(made))
    rights = Rights(priority=key)
    return principal(
        ApiKey(id="k", tenant=made[-1].name, digest="", rights=rights), {one.name: one for one in access.tenants}
    )


def test_a_key_is_no_more_urgent_than_all_above_it() -> None:
    """Whoever says nothing has what is above; in the end 0; and the least urgent of all that say something counts."""
    assert urgent_as(None, None, None).priority == 0
    assert urgent_as(None, None, -2).priority == -2
    assert urgent_as(None, None, -2, None).priority == -2
    assert urgent_as(1, None, -2).priority == 1
    assert urgent_as(-3, None, -2).priority == -2
    assert urgent_as(-3, 2, -2).priority == 2
    assert excess(Rights(priority=-1), Rights(priority=0)) == "priority -1"
    assert excess(Rights(priority=0), Rights(priority=0)) is None


@pytest.mark.parametrize(("asked", "given"), [(None, -1), (-1, -1), (0, 0), (3, 3), (1000, 3)])
async def test_a_request_may_ask_to_be_less_urgent(asked: int | None, given: int) -> None:
    """Numbers beyond the last class count as that."""
    house = House()
    house.principal = msgspec.structs.replace(house.principal, priority=-1)
    house.gateway.stages.identify._known[b"k"] = house.principal  # type: ignore[attr-defined]
    with house.gateway.open("/v1/chat/completions", Credentials(authorization=b"k")) as call:
        assert call.priority == -1
        house.gateway.prioritise(call, asked)
        assert call.priority == given


@pytest.mark.parametrize("asked", [-1, -3, -1000])
async def test_more_urgent_than_the_key_is_refused(asked: int) -> None:
    """It names the field and what may be asked for."""
    house = House()
    with (
        pytest.raises(Problem, match="priority 0 or a higher number") as refused,
        house.gateway.open("/v1/chat/completions", Credentials(authorization=b"k")) as call,
    ):
        house.gateway.prioritise(call, asked)
    assert refused.value.code == "permission_denied" and refused.value.param == "priority"


async def test_the_more_urgent_go_first() -> None:
    """Of those that wait, whatever their order."""
    house = House(kv_tokens=9, engines=Engines(num_tokens=10), admit=AdmitRules())
    order: list[int] = []

    async def one(priority: int) -> None:
        with house.gateway.open("/v1/chat/completions", Credentials(authorization=b"a")) as call:
            house.gateway.prioritise(call, priority)
            call.model = "m"
            await house.gateway.stages.limit.enter(call, 15)
            await asyncio.sleep(0)
            order.append(priority)

    await asyncio.gather(*[one(priority) for priority in (3, 2, 0, 1, 3, 0)])
    assert order == [3, 0, 0, 1, 2, 3], "the first one found room"


def test_the_body_says_it_as_vllms_does() -> None:
    """``priority``, a whole number, in both dialects; null is as if left out."""
    assert chat.decode(json.dumps(BODY | {"priority": -2}).encode()).priority == -2
    assert chat.decode(json.dumps(BODY | {"priority": None}).encode()).priority is None
    assert completions.decode(b'{"model": "m", "prompt": "a", "priority": 2}').priority == 2
    with pytest.raises(Problem) as refused:
        chat.decode(json.dumps(BODY | {"priority": "high"}).encode())
    assert refused.value.param == "priority"
