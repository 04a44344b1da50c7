"""``penstock audit``: the log of administrative acts and denials, and whether it is whole.

In: the store; out: rows, or JSON with ``--json``; ``verify`` ends with 1 when rows were changed or removed.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import msgspec
import typer

from penstock.cli.console import print_json
from penstock.cli.keys import AsJson, Store, opened_store


def register(app: typer.Typer) -> None:
    """Add ``audit list`` and ``audit verify``."""
    audit = typer.Typer(help="Administrative acts and denials.", no_args_is_help=True, rich_markup_mode=None)
    audit.command("list")(list_command)
    audit.command("verify")(verify)
    app.add_typer(audit, name="audit")


def list_command(
    newest: Annotated[int, typer.Option("--newest", min=1, help="How many rows.")] = 50,
    as_json: AsJson = False,
    store: Store = None,
) -> None:
    """List the newest rows."""
    with opened_store(store) as opened:
        rows = opened.store.audit.list(newest=newest)
    if as_json:
        print_json(rows)
        return
    for row in rows:
        at = datetime.fromtimestamp(row.at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        typer.echo(
            "  ".join(filter(None, (str(row.seq), at, row.actor, row.action, row.subject, row.verdict, row.why)))
        )


def verify(as_json: AsJson = False, store: Store = None) -> None:
    """Compute the chain again; the first row that is missing or was changed is named."""
    with opened_store(store) as opened:
        rows = opened.store.audit.verify()
    typer.echo(msgspec.json.encode({"rows": rows}).decode() if as_json else f"{rows} rows, all whole and in place")
