"""Who may ask, for what, and how much: tenants, their keys, and what a request is allowed once its key is known.

In: what an administrator wrote; out: frozen values.  Secrets are not here: a key is known by its digest alone.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, get_args

import msgspec
from msgspec import Meta

Unit = Literal["requests", "tokens", "usd", "concurrency"]
Window = Literal["minute", "day", "month"]
Role = Literal["user", "admin"]


class Limit(msgspec.Struct, frozen=True, kw_only=True):
    """At most ``amount`` of ``unit`` per ``window``; for ``concurrency``, at a time, without a window.

    ``model``: counted for that model alone; ``None``: for all together.  Raises ``ValueError``.
    """

    unit: Unit
    amount: float
    window: Window | None = None
    model: str | None = None

    def __post_init__(self) -> None:
        if (self.unit == "concurrency") != (self.window is None):
            raise ValueError("concurrency has no window; every other unit is limited per minute, day or month")
        if not (math.isfinite(self.amount) and self.amount >= 0):
            raise ValueError("the amount of a limit is a finite number, 0 or more")


_LIMIT_FORM = "UNIT=AMOUNT[/WINDOW][@MODEL]"


def limit_of(text: str) -> Limit:
    """A limit as it is written: ``tokens=100000/day``, ``usd=5/month@MODEL``, ``concurrency=8``.

    Raises ``ValueError`` that says what is allowed.
    """
    rule, _, model = text.partition("@")
    unit, equals, rest = rule.partition("=")
    amount, _, window = rest.partition("/")
    units, windows = get_args(Unit), get_args(Window)
    if not equals or unit not in units or (window and window not in windows):
        allowed = f"units: {', '.join(units)}; windows: {', '.join(windows)}"
        raise ValueError(f"{text!r} is not {_LIMIT_FORM}; {allowed}.")
    try:
        return Limit(unit=unit, amount=float(amount), window=window or None, model=model or None)  # type: ignore[arg-type]
    except ValueError as error:
        raise ValueError(f"{text!r} is no limit: {error}.") from None


MOST_URGENT, LEAST_URGENT = -3, 3
"""The classes of priority, as vLLM counts them: the lower number goes first.  So few that the least urgent request has
aged to the most urgent class within the time that a request may wait (``policy.admit``)."""


class Rights(msgspec.Struct, frozen=True, kw_only=True):
    """``models`` by served name; ``None``: all.  A child's rights are never above its parent's.

    ``priority``: the most urgent class that may be asked for, and that of a request that asks for none; ``None``: that
    of whoever is above, and 0 where nobody has one.
    """

    role: Role = "user"
    models: frozenset[str] | None = None
    limits: tuple[Limit, ...] = ()
    priority: int | None = None


class Tenant(msgspec.Struct, frozen=True, kw_only=True):
    """``weight``: its share of a contended engine beside the other tenants'.  ``parent``: a tenant above it."""

    name: str
    rights: Rights = Rights()
    weight: float = 1.0
    parent: str | None = None


class DeclaredTenant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A tenant as the service's file has it; ``limits`` as :func:`limit_of` reads them, the rest as of ``Tenant``.

    Raises ``ValueError``.  Keys are not declared: their secrets have no place in a file.
    """

    parent: str = "default"
    role: Role = "user"
    models: frozenset[str] | None = None
    limits: tuple[str, ...] = ()
    weight: Annotated[float, Meta(gt=0, le=1000)] = 1.0
    priority: Annotated[int, Meta(ge=MOST_URGENT, le=LEAST_URGENT)] | None = None

    def __post_init__(self) -> None:
        self.rights()

    def rights(self) -> Rights:
        """What it may."""
        limits = tuple(map(limit_of, self.limits))
        return Rights(role=self.role, models=self.models, limits=limits, priority=self.priority)


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key of a tenant.  ``digest`` is the HMAC-SHA256 of the secret; times in seconds since the epoch.

    ``old_digest``: of the secret before the last rotation, which is still taken until ``old_until``.
    """

    id: str
    tenant: str
    digest: str
    name: str = ""
    rights: Rights = Rights()
    created_at: float = 0.0
    expires_at: float | None = None
    revoked_at: float | None = None
    old_digest: str = ""
    old_until: float = 0.0


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """All tenants and keys, as one version of the store has them; versions only grow.

    ``had_keys``: a restore gave up keys that its backup did not know; without any key it still is not open.
    """

    version: int = 0
    tenants: tuple[Tenant, ...] = ()
    keys: tuple[ApiKey, ...] = ()
    had_keys: bool = False

    @property
    def asks_for_keys(self) -> bool:
        """There was a key ever, as opposed to one that still works."""
        return self.had_keys or bool(self.keys)


class Scope(msgspec.Struct, frozen=True, kw_only=True):
    """One holder of limits on the way from a key up to the top tenant: ``key:ID`` or ``tenant:NAME``."""

    name: str
    limits: tuple[Limit, ...]


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks, as every later stage of the pipeline sees it.

    ``scopes``: the key's first, then its tenant's and that one's parents'; a request has to fit into all of them.
    """

    tenant: str
    key_id: str
    role: Role = "user"
    models: frozenset[str] | None = None
    scopes: tuple[Scope, ...] = ()
    weight: float = 1.0
    priority: int = 0


TOP = "default"
"""The tenant above all others: it always exists, and who administers it administers everything."""

ANONYMOUS = Principal(tenant=TOP, key_id="", role="user")
"""Whoever asks where no keys are configured, which is possible on loopback alone."""
