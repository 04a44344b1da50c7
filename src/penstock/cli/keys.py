"""``penstock keys`` and ``penstock tenants``: who may ask, for which models, with which limits.

In: flags; out: a table or JSON, and a new key's secret this once.  Goes to the store itself, as whoever can read the
servers' secret is the operator; a running service follows within a second.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from penstock.cli.console import columns, print_json, say
from penstock.cli.limit_option import Limits, limit_text

if TYPE_CHECKING:
    from penstock.config.tenants import Limit
    from penstock.store.administer import Administration
    from penstock.store.places import Opened
    from penstock.store.representations import IssuedKey, KeyView, TenantView

Store = Annotated[
    str | None,
    typer.Option("--store", envvar="PENSTOCK_STORE", metavar="URL", help="As of `penstock serve`.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Admin = Annotated[bool, typer.Option("--admin", help="It may administer tenants and keys.")]
Models = Annotated[
    list[str] | None,
    typer.Option("--model", metavar="NAME", help="A model it may use, by served name; again for more. Without: all."),
]
Priority = Annotated[
    int | None,
    typer.Option(
        "--priority",
        help="The most urgent class its requests may ask for, from -3 (first) to 3; without: that of whoever is above, "
        "in the end 0.",
        show_default=False,
    ),
]
_HOUR_S, _DAY_S = 3600.0, 86400.0


def register(app: typer.Typer) -> None:
    """Add both groups of commands."""
    keys = typer.Typer(help="Create, rotate and revoke API keys.", no_args_is_help=True, rich_markup_mode=None)
    keys.command("create")(create_key)
    keys.command("list")(list_keys)
    keys.command("rotate")(rotate_key)
    keys.command("revoke")(revoke_key)
    app.add_typer(keys, name="keys")
    tenants = typer.Typer(help="Tenants: who keys belong to.", no_args_is_help=True, rich_markup_mode=None)
    tenants.command("create")(create_tenant)
    tenants.command("list")(list_tenants)
    tenants.command("set")(set_tenant)
    tenants.command("delete")(delete_tenant)
    app.add_typer(tenants, name="tenants")


@contextmanager
def opened_store(url: str | None, *, as_it_is: bool = False, make_secret: bool = True) -> Iterator[Opened]:
    """The store of this machine's services, made and migrated if it has to be, unless it is wanted ``as_it_is``."""
    from penstock.cli.home import penstock_home
    from penstock.store.places import default_url, open_access

    home = penstock_home()
    opened = open_access(home, url or default_url(home), make_secret=make_secret)
    with closing(opened.store):
        if not as_it_is:
            opened.store.prepare()
        yield opened


@contextmanager
def _administration(url: str | None) -> Iterator[Administration]:
    from penstock.cli.served import served_here

    with opened_store(url) as opened:
        yield opened.administration(time.time, secrets.token_bytes, served_here)


def create_key(
    tenant: Annotated[str, typer.Option(help="Whose key it is.")] = "default",
    name: Annotated[str, typer.Option(help="A word to know it by.")] = "",
    admin: Admin = False,
    model: Models = None,
    limit: Limits = None,
    priority: Priority = None,
    expires_days: Annotated[
        float | None, typer.Option("--expires-days", help="Days until it ends.", show_default=False)
    ] = None,
    as_json: AsJson = False,
    store: Store = None,
) -> None:
    """Create a key.  Its secret is printed this once and cannot be shown again."""
    from penstock.store.representations import NewKey

    asked = _checked(
        NewKey,
        tenant=tenant,
        name=name,
        role="admin" if admin else "user",
        models=model or None,
        limits=limit or [],
        priority=priority,
        expires_in_s=None if expires_days is None else expires_days * _DAY_S,
    )
    with _administration(store) as acts:
        _show_issued(acts.create_key(None, asked), as_json)


def list_keys(as_json: AsJson = False, store: Store = None) -> None:
    """List all keys.  Nobody can list secrets: only their digests are kept."""
    with _administration(store) as acts:
        keys = acts.keys(None)
    if as_json:
        print_json(keys)
    elif keys:
        typer.echo(columns([("KEY", "TENANT", "NAME", "ROLE", "MODELS", "LIMITS", "STATE"), *map(_key_row, keys)]))
    else:
        typer.echo("no keys yet; make one with: penstock keys create")


def rotate_key(
    id: Annotated[str, typer.Argument(metavar="KEY", help="The key's id.")],
    grace_hours: Annotated[float, typer.Option("--grace-hours", help="How long the old secret is taken, too.")] = 0.0,
    as_json: AsJson = False,
    store: Store = None,
) -> None:
    """Give a key a new secret."""
    from penstock.store.representations import Rotation

    asked = _checked(Rotation, grace_s=grace_hours * _HOUR_S)
    with _administration(store) as acts:
        _show_issued(acts.rotate_key(None, id, asked), as_json)


def revoke_key(
    id: Annotated[str, typer.Argument(metavar="KEY", help="The key's id.")],
    as_json: AsJson = False,
    store: Store = None,
) -> None:
    """Refuse a key from now on, everywhere within a second."""
    with _administration(store) as acts:
        key = acts.revoke_key(None, id)
    _say(key, f"{key.id} is revoked", as_json)


def create_tenant(
    name: Annotated[str, typer.Argument(metavar="TENANT")],
    parent: Annotated[str, typer.Option(help="The tenant above it; rights are never above that one's.")] = "default",
    admin: Admin = False,
    model: Models = None,
    limit: Limits = None,
    priority: Priority = None,
    weight: Annotated[float, typer.Option(help="Its share of a contended engine.")] = 1.0,
    as_json: AsJson = False,
    store: Store = None,
) -> None:
    """Create a tenant."""
    from penstock.store.representations import NewTenant

    role = "admin" if admin else "user"
    asked = _checked(
        NewTenant,
        name=name,
        parent=parent,
        role=role,
        models=model or None,
        limits=limit or [],
        priority=priority,
        weight=weight,
    )
    with _administration(store) as acts:
        tenant = acts.create_tenant(None, asked)
    _remark(tenant.remarks)
    _say(tenant, f"{tenant.name} is a tenant below {tenant.parent}", as_json)


def list_tenants(as_json: AsJson = False, store: Store = None) -> None:
    """List all tenants."""
    with _administration(store) as acts:
        tenants = acts.tenants(None)
    if as_json:
        print_json(tenants)
    else:
        typer.echo(columns([("TENANT", "PARENT", "ROLE", "MODELS", "LIMITS", "WEIGHT"), *map(_tenant_row, tenants)]))


def set_tenant(
    name: Annotated[str, typer.Argument(metavar="TENANT")],
    admin: Annotated[
        bool | None, typer.Option("--admin/--no-admin", help="Whether it may have administrators.")
    ] = None,
    model: Models = None,
    all_models: Annotated[bool, typer.Option("--all-models", help="All that its parent may use.")] = False,
    limit: Limits = None,
    no_limits: Annotated[bool, typer.Option("--no-limits", help="None but its parent's.")] = False,
    priority: Priority = None,
    weight: Annotated[float | None, typer.Option(help="Its share of a contended engine.", show_default=False)] = None,
    as_json: AsJson = False,
    store: Store = None,
) -> None:
    """Change a tenant; what is not given stays."""
    from penstock.store.representations import TenantChange

    given: dict[str, Any] = {}
    if admin is not None:
        given["role"] = "admin" if admin else "user"
    if model or all_models:
        given["models"] = None if all_models else model
    if limit or no_limits:
        given["limits"] = limit or []
    if priority is not None:
        given["priority"] = priority
    if weight is not None:
        given["weight"] = weight
    with _administration(store) as acts:
        tenant = acts.set_tenant(None, name, _checked(TenantChange, **given))
    _remark(tenant.remarks)
    _say(tenant, f"{tenant.name} is changed", as_json)


def delete_tenant(
    name: Annotated[str, typer.Argument(metavar="TENANT")], as_json: AsJson = False, store: Store = None
) -> None:
    """Delete a tenant that has no keys and no tenants below it."""
    with _administration(store) as acts:
        acts.delete_tenant(None, name)
    _say({"deleted": name}, f"{name} is deleted", as_json)


def _checked(kind: type[msgspec.Struct], **fields: Any) -> Any:
    """The request, held to the bounds that the admin API holds it to."""
    from penstock.wire.errors import Problem

    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        raise Problem("invalid_value", f"{error}.") from None


def _show_issued(key: IssuedKey, as_json: bool) -> None:
    _remark(key.remarks)
    if as_json:
        print_json(key)
        return
    say(f"{key.id} of tenant {key.tenant}; this is the only time that its secret is shown:")
    typer.echo(key.secret)


def _remark(remarks: tuple[str, ...]) -> None:
    for remark in remarks:
        say(remark)


def _say(value: Any, words: str, as_json: bool) -> None:
    if as_json:
        print_json(value)
    else:
        typer.echo(words)


def _key_row(key: KeyView) -> tuple[str, ...]:
    if key.revoked_at is not None:
        state = "revoked"
    elif key.expires_at is not None:
        state = "expired" if key.expires_at <= time.time() else "expires"
    else:
        state = "valid"
    return key.id, key.tenant, key.name or "-", key.role, _models(key.models), _limits(key.limits), state


def _tenant_row(tenant: TenantView) -> tuple[str, ...]:
    models, limits = _models(tenant.models), _limits(tenant.limits)
    return tenant.name, tenant.parent or "-", tenant.role, models, limits, f"{tenant.weight:g}"


def _models(models: frozenset[str] | None) -> str:
    return "all" if models is None else ",".join(sorted(models)) or "none"


def _limits(limits: tuple[Limit, ...]) -> str:
    return ",".join(map(limit_text, limits)) or "none"
