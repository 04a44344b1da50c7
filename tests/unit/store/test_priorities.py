"""How urgent an administrator may make the requests of others."""

from __future__ import annotations

from typing import Any

import pytest

from penstock.store.representations import NewKey, NewTenant, TenantChange
from penstock.wire.errors import Problem


def test_nobody_gives_away_more_urgency_than_they_have(office: Any) -> None:
    """Neither to a key nor to a tenant; the operator may, within what the tenants above have."""
    acts = office.acts
    acts.create_tenant(None, NewTenant(name="lab", role="admin", priority=1))
    made = acts.create_key(None, NewKey(tenant="lab", role="admin"))
    boss = office.keyring().find(made.secret.encode(), 1000.0)
    assert boss is not None and boss.priority == 1
    with pytest.raises(Problem, match="priority 0, which is more than tenant 'lab' may"):
        acts.create_key(boss, NewKey(tenant="lab", priority=0))
    made = acts.create_key(None, NewKey(role="admin"))
    top = office.keyring().find(made.secret.encode(), 1000.0)
    with pytest.raises(Problem, match="priority -2, which is more than this key may"):
        acts.create_tenant(top, NewTenant(name="fast", priority=-2))
    acts.create_tenant(None, NewTenant(name="fast", priority=-2))
    with pytest.raises(Problem, match="priority -2, which is more than this key may"):
        acts.set_tenant(top, "lab", TenantChange(priority=-2))
    assert acts.set_tenant(top, "lab", TenantChange(priority=3)).priority == 3
