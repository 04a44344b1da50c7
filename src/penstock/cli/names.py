"""``penstock names``: the public names of a running service, and what they lead to.

In: flags, or a file; out: a table, or JSON with ``--json``.  Asks the admin listener of the service on this machine; a
change is in force within a second.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from penstock.wire.errors import Problem

if TYPE_CHECKING:
    from penstock.cluster.naming import NamesChange, NamesView
    from penstock.config.names import Name
    from penstock.config.service import ServiceFile

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Pid = Annotated[int | None, typer.Option(help="The service's process, where several run: as `penstock ps` shows it.")]
_TIMEOUT_S = 10.0


def register(app: typer.Typer) -> None:
    """Add the group of commands."""
    names = typer.Typer(
        help="Public names: aliases, splits, fallbacks, copies.", no_args_is_help=True, rich_markup_mode=None
    )
    names.command("list")(list_names)
    names.command("set")(set_name)
    names.command("delete")(delete_name)
    names.command("apply")(apply_names)
    app.add_typer(names, name="names")


def list_names(pid: Pid = None, as_json: AsJson = False) -> None:
    """List the names of a running service."""
    from penstock.cluster.naming import NamesView

    _show(_ask(pid, "GET", NamesView), as_json)


def set_name(
    name: Annotated[str, typer.Argument(help="The public name.")],
    to: Annotated[
        list[str], typer.Option("--to", metavar="MODEL[=WEIGHT]", help="What it leads to; again for a split.")
    ],
    fallback: Annotated[
        list[str] | None, typer.Option(help="A model that is asked where that cannot; again for more, in order.")
    ] = None,
    shadow: Annotated[
        str | None, typer.Option(metavar="MODEL[=SHARE]", help="A model that gets a copy of that share.")
    ] = None,
    sticky: Annotated[str, typer.Option(help="What keeps to one side of a split: caller, or conversation.")] = "caller",
    pid: Pid = None,
    as_json: AsJson = False,
) -> None:
    """Make a name, or replace what it leads to."""
    from penstock.cluster.naming import NamesChange

    weights = dict(_weighed(text, "--to") for text in to)
    whole: dict[str, Any] = {"to": weights, "fallbacks": fallback or [], "sticky": sticky}
    if shadow is not None:
        model, share = _weighed(shadow, "--shadow")
        whole["shadow"] = {"model": model, "share": share}
    _change(pid, NamesChange(names={name: _checked(whole)}), as_json)


def delete_name(
    name: Annotated[str, typer.Argument(help="The public name.")], pid: Pid = None, as_json: AsJson = False
) -> None:
    """Remove a name; requests for it are then for a model that does not exist."""
    from penstock.cluster.naming import NamesChange

    _change(pid, NamesChange(names={name: None}), as_json)


def apply_names(
    file: Annotated[Path, typer.Argument(help="The service's file; its names take the place of all that there are.")],
    pid: Pid = None,
    as_json: AsJson = False,
) -> None:
    """Make the names of a running service those of its file, in one change."""
    from penstock.cluster.naming import NamesChange

    _change(pid, NamesChange(names=dict(read_service_file(file).names), only=True), as_json)


def read_service_file(path: Path) -> ServiceFile:
    """Raises ``Problem`` ``invalid_setting``."""
    from penstock.config.service import read_service

    try:
        return read_service(path.read_bytes())
    except OSError as error:
        raise Problem("invalid_setting", f"{path} cannot be read: {error.strerror}.", param="FILE") from None
    except ValueError as error:
        raise Problem("invalid_setting", f"{path} {error}.", param="FILE") from None


def _weighed(text: str, option: str) -> tuple[str, float]:
    """``MODEL`` or ``MODEL=NUMBER``."""
    model, equals, number = text.rpartition("=")
    if not equals:
        return text, 1.0
    try:
        return model, float(number)
    except ValueError:
        raise Problem("invalid_value", f"{text!r}: {number!r} is no number.", param=option) from None


def _checked(whole: dict[str, Any]) -> Name:
    from penstock.config.names import Name

    try:
        return msgspec.convert(whole, Name)
    except msgspec.ValidationError as error:
        raise Problem("invalid_value", f"{error}.") from None


def _change(pid: int | None, asked: NamesChange, as_json: bool) -> None:
    from penstock.cluster.naming import NamesView

    _show(_ask(pid, "PATCH", NamesView, asked), as_json)


def _ask(pid: int | None, method: str, kind: type[NamesView], body: msgspec.Struct | None = None) -> NamesView:
    from penstock.cli.admin_call import call_admin
    from penstock.cli.home import penstock_home
    from penstock.cluster.rundir import running

    services = [service for service in running(penstock_home()) if pid is None or service.pid == pid]
    if len(services) != 1:
        found = "; ".join(f"{service.model} of process {service.pid}" for service in services) or "nothing"
        raise Problem("not_found", f"Which service is meant is not clear, here runs: {found}.", param="--pid")
    return call_admin(services[0], method, "/admin/names", kind, body, timeout_s=_TIMEOUT_S)


def _show(view: NamesView, as_json: bool) -> None:
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(view)).decode())
        return
    for own, name in view.names.items():
        total = sum(name.weights.values())
        sides = ", ".join(f"{to} {weight / total:.4g}" for to, weight in name.weights.items())
        words = [sides if len(name.weights) > 1 else next(iter(name.weights))]
        words += [f"then {', '.join(name.fallbacks)}"] if name.fallbacks else []
        words += [f"copies {name.shadow.share:g} to {name.shadow.model}"] if name.shadow else []
        typer.echo(f"{own}: {'; '.join(words)}")
    if not view.names:
        typer.echo(f"no names; models: {', '.join(view.models)}")
