"""Keys and tenants as administrators write and read them: what may be asked for, and what is shown.

In: a key or tenant of the store; out: its view, never with a secret that is kept or a digest.
Bounds of what is asked stand in the types, so that the admin API and the command line decode the same.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from penstock.config.tenants import LEAST_URGENT, MOST_URGENT, TOP, ApiKey, Limit, Role, Tenant

Name = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Text = Annotated[str, Meta(max_length=200)]
Models = Annotated[frozenset[Annotated[str, Meta(min_length=1, max_length=200)]], Meta(max_length=1000)]
Limits = Annotated[tuple[Limit, ...], Meta(max_length=100)]
Seconds = Annotated[float, Meta(ge=0, le=10 * 365 * 86400)]
Weight = Annotated[float, Meta(gt=0, le=1000)]
Priority = Annotated[int, Meta(ge=MOST_URGENT, le=LEAST_URGENT)]


class NewKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A key to create.  ``models``: null for all of its tenant's; ``expires_in_s``: null for never.

    ``priority``: the most urgent class that its requests may ask for; null for its tenant's.
    """

    tenant: Name = TOP
    name: Text = ""
    role: Role = "user"
    models: Models | None = None
    limits: Limits = ()
    priority: Priority | None = None
    expires_in_s: Seconds | None = None


class Rotation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long the old secret is taken beside the new one."""

    grace_s: Seconds = 0.0


class NewTenant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A tenant to create.  ``models``: null for all of its parent's; ``weight``: its share of a contended engine.

    ``priority``: the most urgent class that its requests may ask for, and have without asking; null for its parent's.
    """

    name: Name
    parent: Name = TOP
    role: Role = "user"
    models: Models | None = None
    limits: Limits = ()
    priority: Priority | None = None
    weight: Weight = 1.0


class TenantChange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is to change of a tenant; what is left out stays."""

    role: Role | msgspec.UnsetType = msgspec.UNSET
    models: Models | None | msgspec.UnsetType = msgspec.UNSET
    limits: Limits | msgspec.UnsetType = msgspec.UNSET
    priority: Priority | None | msgspec.UnsetType = msgspec.UNSET
    weight: Weight | msgspec.UnsetType = msgspec.UNSET


class KeyView(msgspec.Struct, frozen=True, kw_only=True):
    """A key as it is shown: never its secret or digest.  Times in seconds since the epoch.

    ``remarks``: of what was just asked for, what can hardly be meant or what whoever asked may not expect.
    """

    id: str
    tenant: str
    name: str
    role: Role
    models: frozenset[str] | None
    limits: tuple[Limit, ...]
    priority: int | None
    created_at: float
    expires_at: float | None
    revoked_at: float | None
    remarks: tuple[str, ...] = ()


class IssuedKey(KeyView, frozen=True, kw_only=True):
    """A key just made.  ``secret`` is shown this once; only its digest is kept."""

    secret: str


class TenantView(msgspec.Struct, frozen=True, kw_only=True):
    """A tenant as it is shown.  ``parent``: null for the top one; ``remarks`` as of :class:`KeyView`."""

    name: str
    parent: str | None
    role: Role
    models: frozenset[str] | None
    limits: tuple[Limit, ...]
    priority: int | None
    weight: float
    remarks: tuple[str, ...] = ()


def changed(tenant: Tenant, asked: TenantChange) -> Tenant:
    """The tenant with what was asked for, and the rest as it was."""
    given = {name: value for name, value in msgspec.structs.asdict(asked).items() if value is not msgspec.UNSET}
    weight = given.pop("weight", tenant.weight)
    return msgspec.structs.replace(tenant, rights=msgspec.structs.replace(tenant.rights, **given), weight=weight)


def key_view(key: ApiKey) -> KeyView:
    """Without remarks, which are of an act."""
    return KeyView(
        id=key.id,
        tenant=key.tenant,
        name=key.name,
        role=key.rights.role,
        models=key.rights.models,
        limits=key.rights.limits,
        priority=key.rights.priority,
        created_at=key.created_at,
        expires_at=key.expires_at,
        revoked_at=key.revoked_at,
    )


def tenant_view(tenant: Tenant) -> TenantView:
    """Without remarks, as of a key."""
    rights = tenant.rights
    return TenantView(
        name=tenant.name,
        parent=tenant.parent,
        role=rights.role,
        models=rights.models,
        limits=rights.limits,
        priority=rights.priority,
        weight=tenant.weight,
    )
