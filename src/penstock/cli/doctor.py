"""``penstock doctor [MODEL]``: is this machine fit to serve, and what to do where it is not.

In: a model and ports; out: a table or JSON of findings, exit code 1 when one of them fails.
Changes nothing: facts are gathered by ``diagnosis.probe`` and judged by ``diagnosis.findings``.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from penstock.cli.diagnosis.facts import Finding


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("doctor", help="Check this machine, and say what to fix.")(doctor)


def doctor(
    model: Annotated[
        str | None, typer.Argument(help="A directory or org/name to check the memory against.", show_default=False)
    ] = None,
    port: Annotated[int, typer.Option(help="Port that the API would listen on.", min=1, max=65535)] = 8000,
    admin_port: Annotated[int, typer.Option(help="Port for health and metrics.", min=1, max=65535)] = 8001,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Check this machine, and say what to fix."""
    import msgspec

    from penstock.cli.diagnosis import checkpoint
    from penstock.cli.diagnosis.findings import diagnose
    from penstock.cli.diagnosis.probe import gather
    from penstock.cli.home import penstock_home

    home = penstock_home()
    facts = gather(checkpoint.find(model), home, {"--port": port, "--admin-port": admin_port}, os.environ)
    findings = diagnose(facts)
    if as_json:
        typer.echo(msgspec.json.encode(findings).decode())
    else:
        _print(findings)
    if any(finding.status == "fail" for finding in findings):
        raise typer.Exit(1)


def _print(findings: list[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    colours = {"ok": "green", "warn": "yellow", "fail": "bold red"}
    table = Table(box=None, pad_edge=False, show_header=False)
    for finding in findings:
        said = Text(finding.detail)
        if finding.status != "ok" and finding.fix:
            said.append(f"\n{finding.fix}", style="bold")
        table.add_row(Text(finding.status, style=colours[finding.status]), Text(finding.name), said)
    Console().print(table)
