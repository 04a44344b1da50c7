"""Nobody below has more than anybody above, whatever tree of tenants was written and however it was changed since."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from penstock.config.tenants import TOP, ApiKey, Rights, Tenant
from penstock.policy.rights import effective, excess, line, meet, principal

models = st.none() | st.frozensets(st.sampled_from("abcd"))
rights = st.builds(Rights, role=st.sampled_from(["user", "admin"]), models=models)
NAMES = [TOP, "t1", "t2", "t3", "t4"]


@st.composite
def trees(draw: st.DrawFn) -> dict[str, Tenant]:
    """Tenants with any parents: lines that end well, that end nowhere, and circles."""
    tenants = {TOP: Tenant(name=TOP, rights=draw(rights))}
    for name in NAMES[1:]:
        parent = draw(st.sampled_from([*NAMES, "missing"]) | st.none())
        tenants[name] = Tenant(name=name, parent=parent, rights=draw(rights))
    return tenants


@given(trees(), st.sampled_from(NAMES), rights)
def test_a_key_never_exceeds_any_tenant_above_it(tenants: dict[str, Tenant], tenant: str, own: Rights) -> None:
    """Its role and models lie within its own and within those of each tenant up to the top."""
    who = principal(ApiKey(id="k", tenant=tenant, digest="", rights=own), tenants)
    has = Rights(role=who.role, models=who.models)
    assert excess(has, own) is None
    for above in line(tenant, tenants):
        assert excess(has, above.rights) is None
        assert excess(has, effective(above.name, tenants)) is None


def leads_to_the_top(tenant: str | None, tenants: dict[str, Tenant]) -> bool:
    """By at most so many steps as there are tenants: a circle never ends there."""
    for _ in tenants:
        if tenant == TOP:
            return tenants[TOP].parent is None
        tenant = tenants[tenant].parent if tenant in tenants else None
    return False


@given(trees(), st.sampled_from(NAMES), rights)
def test_what_hangs_on_nothing_may_nothing(tenants: dict[str, Tenant], tenant: str, own: Rights) -> None:
    """A line of parents that does not lead to the top gives no rights at all."""
    if not leads_to_the_top(tenant, tenants):
        who = principal(ApiKey(id="k", tenant=tenant, digest="", rights=own), tenants)
        assert (who.role, who.models) == ("user", frozenset())


@given(rights, rights)
def test_a_meet_lies_within_both_and_is_the_widest_such(one: Rights, other: Rights) -> None:
    """What lies within both lies within their meet."""
    both = meet(one, other)
    assert excess(both, one) is None and excess(both, other) is None
    if excess(one, other) is None:
        assert both == Rights(role=one.role, models=one.models)
