"""What a key may do: its own rights, narrowed by those of every tenant above it.

In: tenants and keys; out: rights, principals, or why rights are too wide.  Pure.
Narrowing happens when rights are read, not only when they are written, so that a parent that loses a right takes it
from everything below at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce

from penstock.config.tenants import TOP, ApiKey, Principal, Rights, Role, Scope, Tenant

NOTHING = Rights(role="user", models=frozenset())
"""The rights of what hangs on nothing: a tenant that is missing or above itself."""

MOST_LEVELS = 16
"""Tenants on the way up to the top one, both included: each request has to fit into the limits of them all."""


def line(tenant: str, tenants: Mapping[str, Tenant]) -> tuple[Tenant, ...]:
    """The tenant and all above it, up to the top one; empty when the line does not lead there."""
    found: list[Tenant] = []
    name: str | None = tenant
    while name is not None:
        here = tenants.get(name)
        if here is None or here in found:
            return ()
        found.append(here)
        name = here.parent
    return tuple(found) if found[-1].name == TOP else ()


def meet(one: Rights, other: Rights) -> Rights:
    """What both allow, apart from limits: those add up and are never merged."""
    role: Role = "admin" if one.role == other.role == "admin" else "user"
    if one.models is None or other.models is None:
        models = other.models if one.models is None else one.models
    else:
        models = one.models & other.models
    return Rights(role=role, models=models, priority=_less_urgent(one.priority, other.priority))


def effective(tenant: str, tenants: Mapping[str, Tenant]) -> Rights:
    """The rights of a tenant, narrowed by all above it."""
    above = line(tenant, tenants)
    if not above:
        return NOTHING
    return reduce(meet, (tenant.rights for tenant in above), Rights(role="admin"))


def excess(asked: Rights, allowed: Rights) -> str | None:
    """Why ``asked`` is more than ``allowed``; ``None`` when it is not."""
    if asked.role == "admin" and allowed.role != "admin":
        return "the role admin"
    if asked.priority is not None and allowed.priority is not None and asked.priority < allowed.priority:
        return f"priority {asked.priority}"
    if allowed.models is None:
        return None
    if asked.models is None:
        return "all models"
    more = sorted(asked.models - allowed.models)
    return f"the models {', '.join(more)}"[:200] if more else None


def principal(key: ApiKey, tenants: Mapping[str, Tenant]) -> Principal:
    """Who asks with this key."""
    rights = meet(key.rights, effective(key.tenant, tenants))
    above = line(key.tenant, tenants)
    scopes = (
        Scope(name=f"key:{key.id}", limits=key.rights.limits),
        *(Scope(name=f"tenant:{tenant.name}", limits=tenant.rights.limits) for tenant in above),
    )
    return Principal(
        tenant=key.tenant,
        key_id=key.id,
        role=rights.role,
        models=rights.models,
        scopes=tuple(scope for scope in scopes if scope.limits),
        weight=above[0].weight if above else 1.0,
        priority=rights.priority or 0,
    )


def _less_urgent(one: int | None, other: int | None) -> int | None:
    if one is None or other is None:
        return one if other is None else other
    return max(one, other)
