"""``penstock store``: backup, restore and migration of tenants, keys, usage and audit log, and how they are.

In: the store and a file; out: what was done, as words or JSON.  A service may run meanwhile.
A backup goes into either kind of database; the servers' secret is not in it.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from penstock.cli.console import print_json, say
from penstock.cli.keys import AsJson, Store, opened_store

File = Annotated[Path, typer.Argument(metavar="FILE", help="The backup.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    store = typer.Typer(
        help="Back up, restore and migrate tenants, keys and records.", no_args_is_help=True, rich_markup_mode=None
    )
    store.command("status")(status)
    store.command("check")(check)
    store.command("backup")(backup)
    store.command("verify")(verify)
    store.command("restore")(restore)
    store.command("migrate")(migrate)
    app.add_typer(store, name="store")


def status(as_json: AsJson = False, store: Store = None) -> None:
    """Show what the store holds, and of which release its tables are."""
    from penstock.store.status import status

    with opened_store(store, as_it_is=True) as opened:
        found = status(opened)
    words = f"{found.store}: schema {found.schema} of {found.newest_schema}; {found.held.words()}"
    if found.waiting_bytes:
        words += f"; {found.waiting_bytes} bytes of usage wait in files"
    _show(found, words, as_json)


def check(as_json: AsJson = False, store: Store = None) -> None:
    """Read all of the store and compute its chain again; ends with 1 when something is wrong."""
    from penstock.store.status import check

    with opened_store(store, as_it_is=True) as opened:
        findings = list(check(opened))
    words = "\n".join(f"{finding.what}: {finding.problem or 'whole'}" for finding in findings)
    _show(findings, words, as_json)
    if any(finding.problem for finding in findings):
        raise typer.Exit(1)


def backup(file: File, as_json: AsJson = False, store: Store = None) -> None:
    """Write everything into FILE, as it is at one moment; an earlier backup there stays until this one is whole."""
    from penstock.cli.progress import progress_bar
    from penstock.store.audit import OPERATOR, Act
    from penstock.store.backup import write_backup

    with opened_store(store, as_it_is=True) as opened:
        with progress_bar("backing up") as progress:
            made = write_backup(opened.database, opened.secret, file, now=time.time(), progress=progress)
        opened.store.audit.append([Act(actor=OPERATOR, action="store.backup", subject=file.name)], made.made_at)
    _show(made, f"{file} holds {made.num_rows} rows of schema {made.schema}", as_json)
    if not as_json:
        say("The file `secret` in PENSTOCK_HOME is not in it: keep a copy of that elsewhere.")


def verify(file: File, as_json: AsJson = False, store: Store = None) -> None:
    """Read a backup to its end: whether it is whole, and for this installation and release."""
    from penstock.store.backup import verify_backup

    with opened_store(store, as_it_is=True, make_secret=False) as opened:
        made = verify_backup(file, opened.secret)
    at = datetime.fromtimestamp(made.made_at, UTC)
    words = f"{file} is whole: {made.num_rows} rows of schema {made.schema}, made at {at:%Y-%m-%dT%H:%M:%SZ}"
    _show(made, words, as_json)


def restore(
    file: File,
    replace: Annotated[bool, typer.Option("--replace", help="Give up what the store holds now.")] = False,
    as_json: AsJson = False,
    store: Store = None,
) -> None:
    """Make the store hold what FILE holds, in one step.  Keys that were revoked since stay revoked."""
    from penstock.cli.progress import progress_bar
    from penstock.store.restore import restore

    with opened_store(store, as_it_is=True, make_secret=False) as opened, progress_bar("restoring") as progress:
        done = restore(opened, file, now=time.time(), replace=replace, progress=progress)
    words = f"restored {done.held.words()}; the audit log is whole"
    if done.kept_secrets:
        words += f"; as known here, revoked or with another secret since: {', '.join(done.kept_secrets)}"
    _show(done, words, as_json)
    if done.is_closed:
        say("No key in it works, and services go on asking for one; `penstock keys create` makes one.")


def migrate(as_json: AsJson = False, store: Store = None) -> None:
    """Bring the tables to this release, which a service that starts does by itself."""
    from penstock.store.audit import OPERATOR, Act

    with opened_store(store, as_it_is=True) as opened:
        done = opened.store.prepare()
        if done.after > done.before:
            act = Act(actor=OPERATOR, action="store.migrate", subject=f"schema {done.before} to {done.after}")
            opened.store.audit.append([act], time.time())
    moved = f"schema {done.before} became {done.after}" if done.after > done.before else "nothing was due"
    _show(done._asdict(), f"{moved}; the store is of this release", as_json)


def _show(value: Any, words: str, as_json: bool) -> None:
    if as_json:
        print_json(value)
    else:
        typer.echo(words)
