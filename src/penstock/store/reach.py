"""How far an administrator reaches: which tenants and keys are theirs to see, and which rights theirs to give.

In: who acts, and the tenants there are; out: nothing, or a ``Problem``.  Changes nothing.
"""

from __future__ import annotations

from typing import NoReturn

from penstock.config.tenants import ApiKey, Principal, Rights, Tenant
from penstock.policy import rights as policy
from penstock.store.access import Edit
from penstock.wire.errors import Problem


def tenants_of(edit: Edit) -> dict[str, Tenant]:
    """The tenants that a change finds, by name."""
    return {tenant.name: tenant for tenant in edit.access.tenants}


def administers(actor: Principal | None, tenant: str, tenants: dict[str, Tenant]) -> bool:
    """Whether the tenant is the actor's own or lies below it; ``actor`` is ``None`` for the operator."""
    if actor is None:
        return True
    return actor.role == "admin" and any(above.name == actor.tenant for above in policy.line(tenant, tenants))


def check_reach(actor: Principal | None, tenant: str, tenants: dict[str, Tenant]) -> None:
    """What one does not administer looks as if it did not exist."""
    if actor is not None and actor.role != "admin":
        raise Problem("permission_denied", "This key is not an administrator's.")
    if tenant not in tenants or not administers(actor, tenant, tenants):
        missing("tenant", tenant)


def check_rights(actor: Principal | None, asked: Rights, tenant: str, tenants: dict[str, Tenant]) -> None:
    """``asked`` within what the tenant may and what the actor may; all models means all of the tenant's."""
    allowed = policy.effective(tenant, tenants)
    models = allowed.models if asked.models is None else asked.models
    asked = Rights(role=asked.role, models=models, priority=asked.priority)
    _check_within(asked, allowed, f"tenant {tenant!r}")
    check_actor(actor, asked)


def check_actor(actor: Principal | None, asked: Rights) -> None:
    """``asked`` within what the actor may itself."""
    if actor is not None:
        _check_within(asked, Rights(role=actor.role, models=actor.models, priority=actor.priority), "this key")


def _check_within(asked: Rights, allowed: Rights, holder: str) -> None:
    more = policy.excess(asked, allowed)
    if more is not None:
        raise Problem("permission_denied", f"That asks for {more}, which is more than {holder} may.", param="models")


def find_key(actor: Principal | None, id: str, edit: Edit) -> ApiKey:
    """The key, if the actor administers its tenant."""
    if actor is not None and actor.role != "admin":
        raise Problem("permission_denied", "This key is not an administrator's.")
    for key in edit.access.keys:
        if key.id == id and administers(actor, key.tenant, tenants_of(edit)):
            return key
    return missing("key", id)


def missing(kind: str, name: str) -> NoReturn:
    """Raises ``not_found``, in the same words for what is not there and for what is not to be seen."""
    raise Problem(
        "not_found", f"There is no {kind} {name[:100]!r}.", hint=f"`penstock {kind}s list` shows what there is."
    )
