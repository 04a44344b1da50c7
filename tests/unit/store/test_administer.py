"""What administrators may do: nobody gives away more than they have, nor reaches beside or above themselves."""

from __future__ import annotations

import msgspec
import pytest

from penstock.config.tenants import TOP, Limit
from penstock.store.administer import FIRST_KEY
from penstock.store.representations import NewKey, NewTenant, Rotation, TenantChange
from penstock.store.served import Served
from penstock.wire.errors import Problem


@pytest.fixture
def lab(office):
    """A tenant `lab` with administrators and the models a and b, a sibling, and a principal of its admin key."""
    office.acts.create_tenant(None, NewTenant(name="lab", role="admin", models=frozenset("ab")))
    office.acts.create_tenant(None, NewTenant(name="sibling"))
    issued = office.acts.create_key(None, NewKey(tenant="lab", role="admin"))
    return office.keyring().find(issued.secret.encode(), 0.0)


def refused(act, *arguments) -> str:
    with pytest.raises(Problem) as problem:
        act(*arguments)
    return problem.value.code


def test_an_administrator_works_below_their_own_tenant(office, lab):
    """They see, create, rotate and revoke there."""
    office.acts.create_tenant(lab, NewTenant(name="team", parent="lab", models=frozenset("a")))
    issued = office.acts.create_key(lab, NewKey(tenant="team", models=frozenset("a")))
    assert {tenant.name for tenant in office.acts.tenants(lab)} == {"lab", "team"}
    assert {key.tenant for key in office.acts.keys(lab)} == {"lab", "team"}
    rotated = office.acts.rotate_key(lab, issued.id, Rotation())
    assert rotated.secret != issued.secret
    assert office.acts.revoke_key(lab, issued.id).revoked_at == 1000.0
    office.acts.delete_tenant(lab, "team")
    assert {tenant.name for tenant in office.acts.tenants(lab)} == {"lab"}


@pytest.mark.parametrize("tenant", [TOP, "sibling", "nowhere"])
def test_what_is_not_below_looks_as_if_it_did_not_exist(office, lab, tenant):
    """Above, beside and nowhere get the same answer."""
    others = office.acts.create_key(None, NewKey()).id
    assert refused(office.acts.create_key, lab, NewKey(tenant=tenant)) == "not_found"
    assert refused(office.acts.create_tenant, lab, NewTenant(name="x", parent=tenant)) == "not_found"
    assert refused(office.acts.set_tenant, lab, tenant, TenantChange(weight=9.0)) == "not_found"
    assert refused(office.acts.delete_tenant, lab, tenant) == "not_found"
    assert refused(office.acts.tenant, lab, tenant) == "not_found"
    for act in (office.acts.revoke_key, office.acts.key):
        assert refused(act, lab, others) == "not_found"
    assert refused(office.acts.rotate_key, lab, others, Rotation()) == "not_found"


def test_nobody_gives_away_more_than_they_have(office, lab):
    """Not a further model, and a user's tenant has no administrators, whoever asks."""
    assert refused(office.acts.create_key, lab, NewKey(tenant="lab", models=frozenset("abc"))) == "permission_denied"
    wider = NewTenant(name="x", parent="lab", models=frozenset("bc"))
    assert refused(office.acts.create_tenant, lab, wider) == "permission_denied"
    assert refused(office.acts.create_key, None, NewKey(tenant="sibling", role="admin")) == "permission_denied"
    assert refused(office.acts.create_key, None, NewKey(tenant="lab", models=frozenset("c"))) == "permission_denied"


def test_nobody_widens_the_tenant_they_belong_to(office, lab):
    """Its limits and models bind its own administrators."""
    change = TenantChange(limits=(Limit(unit="usd", amount=1e9, window="month"),))
    assert refused(office.acts.set_tenant, lab, "lab", change) == "permission_denied"
    assert refused(office.acts.delete_tenant, lab, "lab") == "permission_denied"


def test_a_user_administers_nothing(office, lab):
    """Every act of a user's key is refused, and its listings are empty."""
    issued = office.acts.create_key(None, NewKey(tenant="lab", models=frozenset("a")))
    user = office.keyring().find(issued.secret.encode(), 0.0)
    assert office.acts.keys(user) == [] and office.acts.tenants(user) == []
    for act, asked in ((office.acts.create_key, NewKey(tenant="lab")), (office.acts.audit, 5)):
        assert refused(act, user, asked) == "permission_denied"
    assert refused(office.acts.revoke_key, user, issued.id) == "permission_denied"
    assert refused(office.acts.rotate_key, user, issued.id, Rotation()) == "permission_denied"


def test_a_weaker_administrator_cannot_take_over_a_stronger_key(office, lab):
    """Rotating hands out a secret, so it needs the rights of the key that it is for."""
    weak = office.acts.create_key(None, NewKey(tenant="lab", role="admin", models=frozenset("a")))
    actor = office.keyring().find(weak.secret.encode(), 0.0)
    assert refused(office.acts.create_key, actor, NewKey(tenant="lab")) == "permission_denied"
    strong = office.acts.create_key(None, NewKey(tenant="lab", role="admin", models=frozenset("ab")))
    assert refused(office.acts.rotate_key, actor, strong.id, Rotation()) == "permission_denied"


def test_a_rotated_secret_is_taken_for_its_grace(office):
    """Both secrets until then, the new one alone after that; a second rotation ends the oldest at once."""
    first = office.acts.create_key(None, NewKey())
    second = office.acts.rotate_key(None, first.id, Rotation(grace_s=60.0))
    ring = office.keyring()
    assert ring.find(first.secret.encode(), 1059.0) == ring.find(second.secret.encode(), 1059.0) is not None
    with pytest.raises(Problem):
        ring.find(first.secret.encode(), 1060.0)
    office.acts.rotate_key(None, first.id, Rotation(grace_s=60.0))
    assert office.keyring().find(first.secret.encode(), 1000.0) is None


def test_a_revoked_key_has_no_old_secret_left(office):
    """Revoking ends the grace of an earlier rotation, and a revoked key is not rotated back to life."""
    first = office.acts.create_key(None, NewKey())
    second = office.acts.rotate_key(None, first.id, Rotation(grace_s=60.0))
    office.acts.revoke_key(None, first.id)
    assert office.keyring().find(first.secret.encode(), 1000.0) is None
    with pytest.raises(Problem, match="revoked"):
        office.keyring().find(second.secret.encode(), 1000.0)
    assert refused(office.acts.rotate_key, None, first.id, Rotation()) == "conflict"


def test_an_expired_key_is_refused(office):
    """At its end, not after it."""
    issued = office.acts.create_key(None, NewKey(expires_in_s=10.0))
    assert office.keyring().find(issued.secret.encode(), 1009.9) is not None
    with pytest.raises(Problem, match="expired"):
        office.keyring().find(issued.secret.encode(), 1010.0)


def test_a_tenant_in_use_is_not_deleted(office, lab):
    """Neither with keys that work nor with tenants below it, and the top one never."""
    office.acts.create_tenant(None, NewTenant(name="team", parent="sibling"))
    assert refused(office.acts.delete_tenant, None, "lab") == "conflict"
    assert refused(office.acts.delete_tenant, None, "sibling") == "conflict"
    assert refused(office.acts.delete_tenant, None, TOP) == "permission_denied"
    assert refused(office.acts.create_tenant, None, NewTenant(name="lab")) == "conflict"


def test_no_line_of_tenants_is_endless(office, lab):
    """Every request below has to fit into the limits of all above: fifteen, the top one included."""
    parent = "lab"
    for number in range(14):
        office.acts.create_tenant(lab, NewTenant(name=f"d{number}", parent=parent, models=frozenset("a")))
        parent = f"d{number}"
    deeper = NewTenant(name="deeper", parent=parent, models=frozenset("a"))
    assert refused(office.acts.create_tenant, lab, deeper) == "invalid_value"
    assert refused(office.acts.create_tenant, None, deeper) == "invalid_value"


def of(model: str) -> Limit:
    return Limit(unit="tokens", amount=1.0, window="day", model=model)


BUDGET = Limit(unit="usd", amount=500.0, window="month")
SERVED = Served(models=frozenset({"a", "b", "large"}), names=frozenset({"assistant", "large"}))


@pytest.mark.parametrize("rights", [{"limits": (of("assistant"),)}, {"models": frozenset({"a", "assistant"})}])
def test_a_name_has_no_rights_and_no_limits(office, rights):
    """What is counted and allowed are models: a limit of a name would bind nobody, so it is refused by every act."""
    office.served = SERVED
    office.acts.create_tenant(None, NewTenant(name="team"))
    for act in (
        lambda: office.acts.create_key(None, NewKey(tenant="team", **rights)),
        lambda: office.acts.create_tenant(None, NewTenant(name="other", **rights)),
        lambda: office.acts.set_tenant(None, "team", TenantChange(**rights)),
    ):
        with pytest.raises(Problem, match="'assistant' is a name; give the models behind it"):
            act()
    assert [tenant.name for tenant in office.acts.tenants(None)] == [TOP, "team"]


def test_a_model_that_nobody_serves_is_remarked_on(office):
    """It may be another service's of the same store, so it is taken; whoever asks is told that it binds nobody here."""
    asked = NewKey(limits=(of("large"), of("lrage")), models=frozenset({"lrage", "b", "c"}))
    assert office.acts.create_key(None, asked).remarks == (FIRST_KEY,)  # no service is running: nothing is known
    office.served = SERVED
    issued = office.acts.create_key(None, asked)
    assert issued.remarks == (
        "A right to nothing now: no model 'c' is served here.",
        "A limit that binds nobody now: no model 'lrage' is served here.",
    )
    assert office.acts.key(None, issued.id).limits == asked.limits
    # What was given before is not remarked on again.
    office.acts.create_tenant(None, NewTenant(name="team", limits=(of("lrage"),)))
    assert office.acts.set_tenant(None, "team", TenantChange(weight=2.0)).remarks == ()


@pytest.mark.parametrize(
    ("rights", "named"),
    [
        ({"limits": (BUDGET,)}, "'a', 'large'"),
        ({"limits": (BUDGET,), "models": frozenset({"a", "b"})}, "'a'"),
        ({"limits": (msgspec.structs.replace(BUDGET, model="large"),)}, "'large'"),
        ({"limits": (msgspec.structs.replace(BUDGET, model="b"), of("a"))}, ""),
        ({"limits": (BUDGET,), "models": frozenset({"b"})}, ""),
    ],
)
def test_a_budget_of_what_has_no_price_is_remarked_on(office, rights, named):
    """Every request for it would be 503 price_missing; what the budget does not bind is not named."""
    office.served = SERVED._replace(unpriced=frozenset({"a", "large"}))
    [*said] = office.acts.create_tenant(None, NewTenant(name="team", **rights)).remarks
    assert [f"no price here: {named};" in remark for remark in said] == [True] * bool(named)


def test_the_first_key_is_said_to_close_what_was_open(office):
    """Once: neither the second one, nor one after all were revoked, changes who is answered."""
    first = office.acts.create_key(None, NewKey())
    assert first.remarks == (FIRST_KEY,)
    office.acts.revoke_key(None, first.id)
    assert office.acts.create_key(None, NewKey()).remarks == ()


def test_nobody_learns_of_models_from_remarks(office, lab):
    """What is served to others is remarked on in the words for what is not served."""
    office.served = SERVED
    office.acts.create_tenant(lab, NewTenant(name="team", parent="lab"))
    change = TenantChange(limits=(of("a"), of("large"), of("nothing")))
    said = office.acts.set_tenant(lab, "team", change).remarks
    assert [remark.partition(": ")[2] for remark in said] == [
        "no model 'large' is served here.",
        "no model 'nothing' is served here.",
    ]
