"""Tenants as the service's file declares them: made, or made what the file says, when the service starts.

In: declared tenants; out: one change of the store, with its row of the audit log, or none where nothing differs.
What the file does not name stays as it is: it may have been made at the command line.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from penstock.config.tenants import TOP, DeclaredTenant, Rights, Tenant
from penstock.policy import rights as policy
from penstock.store.access import AccessStore
from penstock.store.audit import OPERATOR, Act
from penstock.store.representations import Name
from penstock.wire.errors import Problem


def declare(store: AccessStore, tenants: Mapping[str, DeclaredTenant], now: float) -> None:
    """All or none.  Raises ``Problem``: ``invalid_setting``, and what the store raises."""
    with store.change(now) as edit:
        known = {tenant.name: tenant for tenant in edit.access.tenants}
        for name in _from_the_top(tenants):
            tenant = _tenant(name, tenants[name], known)
            if known.get(name) != tenant:
                known[name] = tenant
                edit.put_tenant(tenant)
                edit.acts.append(Act(actor=OPERATOR, action="tenants.declare", subject=name))


def _from_the_top(tenants: Mapping[str, DeclaredTenant]) -> list[str]:
    """Parents before their children; each is looked at once, however many there are."""
    below: dict[str, list[str]] = {}
    order = []
    for name, one in tenants.items():
        if name == TOP or one.parent not in tenants:
            order.append(name)
        else:
            below.setdefault(one.parent, []).append(name)
    for name in order:
        order += below.pop(name, [])  # which this loop comes to, too
    if below:
        left = sorted(name for children in below.values() for name in children)
        raise _wrong(f"{', '.join(left)} are above one another")
    return order


def _tenant(name: str, asked: DeclaredTenant, known: Mapping[str, Tenant]) -> Tenant:
    try:
        msgspec.convert(name, Name)
    except msgspec.ValidationError as error:
        raise _wrong(f"{name!r} is no name: {error}") from None
    rights = asked.rights()
    if name == TOP:
        # Who administers everything does so whatever the file says.
        return Tenant(name=TOP, rights=msgspec.structs.replace(rights, role="admin"), weight=asked.weight)
    if asked.parent not in known:
        raise _wrong(f"{asked.parent!r}, above {name!r}, does not exist")
    if name not in known and len(policy.line(asked.parent, known)) >= policy.MOST_LEVELS:
        raise _wrong(f"{asked.parent!r} has {policy.MOST_LEVELS - 1} tenants above it, and {name!r} cannot be below it")
    allowed = policy.effective(asked.parent, known)
    models = allowed.models if asked.models is None else asked.models
    more = policy.excess(Rights(role=asked.role, models=models, priority=asked.priority), allowed)
    if more is not None:
        raise _wrong(f"{name!r} is to have {more}, which is more than {asked.parent!r} may")
    return Tenant(name=name, parent=asked.parent, rights=rights, weight=asked.weight)


def _wrong(what: str) -> Problem:
    return Problem("invalid_setting", f"tenants: {what}.", param="--config")
