"""``penstock conformance [URL]``: how well an OpenAI-compatible endpoint keeps the contract.

In: an address, or the names of gateways to start in front of mock engines; out: findings and a score on standard
output, or one JSON object with ``--json``; progress on standard error.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.config.settings import API_KEY
from penstock.wire.errors import Problem

if TYPE_CHECKING:
    from penstock.conformance.suite import Finding, Report


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("conformance", help="Check an OpenAI-compatible endpoint against the contract.")(conformance)


def conformance(
    url: Annotated[str | None, typer.Argument(help="Its address, with or without /v1.", show_default=False)] = None,
    model: Annotated[str | None, typer.Option(help="The model to ask for; by default the first listed.")] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar=API_KEY, help="The key; with one, 401 without it is checked, too.")
    ] = None,
    group: Annotated[list[str] | None, typer.Option(help="Only this group of checks; may be repeated.")] = None,
    behind: Annotated[
        str,
        typer.Option(
            help="What answers behind it: any, or a mock engine that is paced, silent, breaking, failing, crashing."
        ),
    ] = "any",
    engine: Annotated[
        str | None, typer.Option(help="URL of the mock engine behind it, to see what runs there.")
    ] = None,
    gateways: Annotated[
        str, typer.Option(help="Instead of a URL: start these and check them: penstock, litellm, smg, with commas.")
    ] = "",
    programs: Annotated[
        list[Path] | None, typer.Option(help="Folder of their programs, such as a bin; may be repeated.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Run the checks.  Ends with 1 where one failed."""
    import asyncio
    import sys

    from penstock.cli.conformance_rig import check_gateways
    from penstock.conformance.suite import report_of

    groups = _groups(group)
    if (url is None) == (not gateways):
        raise Problem("invalid_setting", "Give either an address or --gateways.", param="URL")
    if url is not None:
        findings = asyncio.run(_check(url, model, api_key, groups, behind, engine))
        reports = {url: report_of(findings)}
    else:
        reports = asyncio.run(check_gateways(gateways, programs or [], groups, _progress))
    _print(reports, as_json)
    sys.exit(any(report.passed < report.applicable for report in reports.values()))


async def _check(
    url: str, model: str | None, api_key: str | None, groups: list[str], behind: str, engine: str | None
) -> list[Finding]:
    from typing import get_args

    import msgspec

    from penstock.conformance.check import Behind
    from penstock.conformance.endpoint import endpoint_of
    from penstock.conformance.suite import first_model, run

    try:
        place = msgspec.convert(behind, Behind)
    except msgspec.ValidationError:
        known = ", ".join(get_args(Behind))
        raise Problem("invalid_setting", f"--behind {behind!r} is none of {known}.", param="--behind") from None
    shown = None if engine is None else endpoint_of(engine, is_bare=True)
    endpoint = endpoint_of(url, model=model or "", api_key=api_key, engine=shown)
    listed = await first_model(endpoint) if model is None else model
    endpoint = endpoint_of(url, model=listed, api_key=api_key, engine=shown)
    return await run(endpoint, _progress, place, groups)


def _groups(wanted: list[str] | None) -> list[str]:
    from penstock.conformance.suite import GROUPS

    unknown = [name for name in wanted or () if name not in GROUPS]
    if unknown:
        raise Problem("invalid_setting", f"{unknown[0]!r} is none of {', '.join(GROUPS)}.", param="--group")
    return wanted or list(GROUPS)


def _progress(finding: Finding) -> None:
    typer.echo(f"{finding.verdict:>14}  {finding.name}", err=True)


def _print(reports: dict[str, Report], as_json: bool) -> None:
    import msgspec
    from rich.console import Console
    from rich.table import Table

    if as_json:
        print(msgspec.json.encode(reports).decode())
        return
    console = Console(highlight=False)
    for name, report in reports.items():
        table = Table("group", "check", "", "evidence", title=f"{name}: {report.passed} of {report.applicable}")
        for finding in report.findings:
            table.add_row(finding.group, finding.truth, finding.verdict, _plain(finding.evidence))
        console.print(table)


def _plain(text: str) -> str:
    """Evidence quotes what a server said: shown as it is, without its control characters and without markup."""
    from rich.markup import escape

    return escape("".join(char if char.isprintable() else "\ufffd" for char in text[:300]))
