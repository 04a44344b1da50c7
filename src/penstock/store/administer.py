"""What an administrator may do with tenants and keys: the one set of acts behind the admin API and the command line.

In: an actor and what it asks for; out: what there is now, or a ``Problem``; and a row of the audit log either way.
Nobody gives away more than they have, nor reaches outside the tenants below their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec

from penstock.config.tenants import TOP, ApiKey, Principal, Rights, Tenant
from penstock.policy import rights as policy
from penstock.store.access import AccessStore, Edit
from penstock.store.audit import Act, Entry, actor_name
from penstock.store.reach import (
    administers,
    check_actor,
    check_reach,
    check_rights,
    find_key,
    missing,
    tenants_of,
)
from penstock.store.representations import (
    IssuedKey,
    KeyView,
    NewKey,
    NewTenant,
    Rotation,
    TenantChange,
    TenantView,
    changed,
    key_view,
    tenant_view,
)
from penstock.store.served import AskServed, nothing_known, remarks
from penstock.wire.credentials import SECRET_BYTES, digest_of, new_secret
from penstock.wire.errors import Problem

FIRST_KEY = "This is the first key: whoever sends none is not answered any more, also where a service was open."
"""What is remarked on it."""


class Administration:
    """The acts.  ``now``: seconds since the epoch; ``entropy(n)``: random bytes nobody can guess.

    Every act raises ``Problem``: ``permission_denied``, ``not_found``, ``conflict``, ``invalid_value``, and what the
    store raises.  ``actor`` is ``None`` for the operator.  ``served``: the models and names there are.
    """

    def __init__(
        self,
        store: AccessStore,
        secret: bytes,
        now: Callable[[], float],
        entropy: Callable[[int], bytes],
        served: AskServed = nothing_known,
    ) -> None:
        self._served = served
        self._store = store
        self._secret = secret
        self._now = now
        self._entropy = entropy

    def keys(self, actor: Principal | None) -> list[KeyView]:
        """All keys of the tenants that the actor administers."""
        access = self._store.read()
        tenants = {tenant.name: tenant for tenant in access.tenants}
        return [key_view(key) for key in access.keys if administers(actor, key.tenant, tenants)]

    def key(self, actor: Principal | None, id: str) -> KeyView:
        return next((key for key in self.keys(actor) if key.id == id), None) or missing("key", id)

    def create_key(self, actor: Principal | None, asked: NewKey) -> IssuedKey:
        """A new key and its secret."""
        now, id = self._now(), f"key_{self._entropy(8).hex()}"
        secret = new_secret(self._entropy(SECRET_BYTES))
        rights = Rights(role=asked.role, models=asked.models, limits=asked.limits, priority=asked.priority)
        served = self._served()
        with self._change(actor, "keys.create", f"{id} of {asked.tenant}", now) as edit:
            tenants = tenants_of(edit)
            check_reach(actor, asked.tenant, tenants)
            check_rights(actor, rights, asked.tenant, tenants)
            may_use = policy.meet(rights, policy.effective(asked.tenant, tenants)).models
            said = remarks(rights, actor, served, may_use)
            if not edit.access.asks_for_keys:
                said = (FIRST_KEY, *said)
            key = ApiKey(
                id=id,
                tenant=asked.tenant,
                digest=digest_of(secret.encode(), self._secret),
                name=asked.name,
                rights=rights,
                created_at=now,
                expires_at=None if asked.expires_in_s is None else now + asked.expires_in_s,
            )
            edit.put_key(key)
        return IssuedKey(secret=secret, **msgspec.structs.asdict(key_view(key)) | {"remarks": said})

    def rotate_key(self, actor: Principal | None, id: str, asked: Rotation) -> IssuedKey:
        """A new secret for a key; the old one is taken for ``grace_s`` more."""
        now, secret = self._now(), new_secret(self._entropy(SECRET_BYTES))
        with self._change(actor, "keys.rotate", id, now) as edit:
            key = find_key(actor, id, edit)
            # A key with more rights than one's own would be in one's hands with its new secret.
            check_actor(actor, policy.meet(key.rights, policy.effective(key.tenant, tenants_of(edit))))
            if key.revoked_at is not None:
                raise Problem("conflict", f"The key {id} is revoked; create another one.")
            key = msgspec.structs.replace(
                key,
                digest=digest_of(secret.encode(), self._secret),
                old_digest=key.digest,
                old_until=now + asked.grace_s,
            )
            edit.put_key(key)
        return IssuedKey(secret=secret, **msgspec.structs.asdict(key_view(key)))

    def revoke_key(self, actor: Principal | None, id: str) -> KeyView:
        """The key is refused from now on; revoking it again changes nothing."""
        now = self._now()
        with self._change(actor, "keys.revoke", id, now) as edit:
            key = find_key(actor, id, edit)
            if key.revoked_at is None:
                key = msgspec.structs.replace(key, revoked_at=now, old_digest="", old_until=0.0)
                edit.put_key(key)
        return key_view(key)

    def tenants(self, actor: Principal | None) -> list[TenantView]:
        """All tenants that the actor administers."""
        tenants = {tenant.name: tenant for tenant in self._store.read().tenants}
        return [tenant_view(tenant) for tenant in tenants.values() if administers(actor, tenant.name, tenants)]

    def tenant(self, actor: Principal | None, name: str) -> TenantView:
        return next((one for one in self.tenants(actor) if one.name == name), None) or missing("tenant", name)

    def create_tenant(self, actor: Principal | None, asked: NewTenant) -> TenantView:
        """A new tenant below its parent."""
        rights = Rights(role=asked.role, models=asked.models, limits=asked.limits, priority=asked.priority)
        served = self._served()
        with self._change(actor, "tenants.create", f"{asked.name} below {asked.parent}", self._now()) as edit:
            tenants = tenants_of(edit)
            check_reach(actor, asked.parent, tenants)
            if asked.name in tenants:
                raise Problem("conflict", f"There already is a tenant {asked.name!r}.", param="name")
            check_rights(actor, rights, asked.parent, tenants)
            may_use = policy.meet(rights, policy.effective(asked.parent, tenants)).models
            said = remarks(rights, actor, served, may_use)
            if len(policy.line(asked.parent, tenants)) >= policy.MOST_LEVELS:
                message = f"{asked.parent!r} has {policy.MOST_LEVELS - 1} tenants above it, and none can be below it."
                raise Problem("invalid_value", message, param="parent")
            tenant = Tenant(name=asked.name, parent=asked.parent, rights=rights, weight=asked.weight)
            edit.put_tenant(tenant)
        return msgspec.structs.replace(tenant_view(tenant), remarks=said)

    def set_tenant(self, actor: Principal | None, name: str, asked: TenantChange) -> TenantView:
        """Change a tenant.  Nobody changes the tenant of their own key: its limits are there to bind them."""
        served = self._served()
        with self._change(actor, "tenants.set", name, self._now()) as edit:
            tenants = tenants_of(edit)
            check_reach(actor, name, tenants)
            if actor is not None and actor.tenant == name and name != TOP:
                raise Problem("permission_denied", "A key cannot change the tenant that it belongs to.")
            tenant = changed(tenants[name], asked)
            if tenant.parent is not None:
                check_rights(actor, tenant.rights, tenant.parent, tenants)
            may_use = policy.effective(name, tenants | {name: tenant}).models
            said = remarks(changed(Tenant(name=name), asked).rights, actor, served, may_use)
            edit.put_tenant(tenant)
        return msgspec.structs.replace(tenant_view(tenant), remarks=said)

    def delete_tenant(self, actor: Principal | None, name: str) -> None:
        """Remove a tenant that has no tenants below it and no key that still works."""
        now = self._now()
        with self._change(actor, "tenants.delete", name, now) as edit:
            tenants = tenants_of(edit)
            check_reach(actor, name, tenants)
            if name == TOP or (actor is not None and actor.tenant == name):
                raise Problem("permission_denied", f"The tenant {name!r} cannot be deleted with this key.")
            if any(tenant.parent == name for tenant in tenants.values()):
                raise Problem("conflict", f"There are tenants below {name!r}; delete them first.")
            if any(key.tenant == name and key.revoked_at is None for key in edit.access.keys):
                raise Problem("conflict", f"The tenant {name!r} has keys; revoke them first.")
            edit.delete_tenant(name)

    def audit(self, actor: Principal | None, newest: int) -> list[Entry]:
        """The newest rows of the audit log, for who administers everything."""
        if actor is not None and (actor.role != "admin" or actor.tenant != TOP):
            raise Problem("permission_denied", f"The audit log is for administrators of {TOP!r}.")
        return self._store.audit.list(newest=newest)

    @contextmanager
    def _change(self, actor: Principal | None, action: str, subject: str, now: float) -> Iterator[Edit]:
        who = actor_name(actor)
        act = Act(actor=who, action=action, subject=subject[:200])
        try:
            with self._store.change(now) as edit:
                edit.acts.append(act)
                yield edit
        except Problem as problem:
            if problem.code in ("permission_denied", "not_found", "conflict"):
                denied = msgspec.structs.replace(act, verdict="denied", why=problem.code)
                self._store.audit.append([denied], now)
            raise
