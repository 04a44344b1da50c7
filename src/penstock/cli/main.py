"""The ``penstock`` command: which commands there are, and how an error is shown.

Every command lives in its own module with ``def register(app: typer.Typer) -> None`` and imports what it needs
inside the command, so that ``penstock --help`` stays under 0.2 s.
A command raises :class:`~penstock.wire.errors.Problem`; only this module turns it into words and an exit code:
0 done, 1 a problem, 2 a usage error, 130 interrupted.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from penstock import __version__
from penstock.cli import (
    audit,
    bench,
    chat,
    conformance,
    doctor,
    evaluate,
    explain,
    keys,
    mock_engine,
    names,
    ps,
    runs,
    serve,
    store,
    train,
    upgrade,
    usage,
)
from penstock.cli.console import print_problem
from penstock.wire.errors import Problem

_COMMANDS = (
    serve,
    upgrade,
    chat,
    keys,
    names,
    usage,
    audit,
    store,
    train,
    runs,
    ps,
    explain,
    bench,
    evaluate,
    mock_engine,
    conformance,
    doctor,
)


class _Commands(TyperGroup):
    """Says of a wrong value what is allowed, without the words of the library that noticed it."""

    _NOTICED = "Value error, "

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            error.message = error.message.removeprefix(self._NOTICED)
            raise


def build() -> typer.Typer:
    """The application with every command registered."""
    app = typer.Typer(
        name="penstock",
        cls=_Commands,
        help="Serve, route and watch open-weight language models.",
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    for command in _COMMANDS:
        command.register(app)
    return app


def main() -> None:
    """Entry point of the ``penstock`` script."""
    try:
        build()()
    except Problem as problem:
        print_problem(problem)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _root(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", callback=lambda on: _version(on), is_eager=True),
    ] = False,
) -> None:
    pass


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"penstock {__version__}")
        raise typer.Exit
