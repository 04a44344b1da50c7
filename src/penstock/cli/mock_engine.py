"""``penstock mock-engine``: an engine without a model, for tests and measurements of whatever stands in front of it.

In: flags or a script file; out: the engine protocol on a Unix socket or a port until SIGTERM or Ctrl-C.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.wire.errors import Problem

if TYPE_CHECKING:
    from penstock.config.mock import MockScript


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("mock-engine", help="Answer the engine protocol as a script says, without a model.")(mock_engine)


def mock_engine(
    socket: Annotated[Path | None, typer.Option(help="Path of the Unix socket to answer on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to answer on, on --host; 0 takes a free one.", min=0)] = None,
    host: Annotated[str, typer.Option(help="Address of --port.")] = "127.0.0.1",
    name: Annotated[str, typer.Option(help="The model it claims to be.")] = "mock",
    script: Annotated[Path | None, typer.Option(help="YAML or JSON of MockScript; flags come on top.")] = None,
    ttft: Annotated[float | None, typer.Option(help="Seconds to the first token.")] = None,
    gap: Annotated[float | None, typer.Option(help="Seconds between tokens.")] = None,
    jitter: Annotated[float | None, typer.Option(help="0 to 1: how far times stray from that.")] = None,
    prefill_rate: Annotated[float | None, typer.Option(help="Prompt tokens per second, on top of --ttft.")] = None,
    output_tokens: Annotated[int | None, typer.Option(help="Where an answer ends by itself.")] = None,
    slots: Annotated[int | None, typer.Option(help="Sequences that run at once; others wait.")] = None,
    max_waiting: Annotated[int | None, typer.Option(help="Sequences that may wait; more are refused.")] = None,
    load_time: Annotated[float | None, typer.Option(help="Seconds that it pretends to load.")] = None,
    fault: Annotated[
        list[str] | None,
        typer.Option(
            help="What goes wrong, as KIND or KIND:name=value,... with after, share, times, code, seconds. "
            "Kinds: refuse, break, torn, end, fail, garbage, stall, slow-read, crash. May be repeated."
        ),
    ] = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C; what runs then gets some seconds to finish."""
    from penstock.cli.wiring.mock import bind_mock, read_script, run_mock
    from penstock.config.mock import MockSettings
    from penstock.mock.script import checked, fault_of

    if socket is None and port is None:
        raise Problem("invalid_setting", "Give --socket, --port or both.", param="--socket")
    given: dict[str, Any] = {
        "ttft_s": ttft,
        "gap_s": gap,
        "jitter": jitter,
        "prefill_tokens_per_s": prefill_rate,
        "output_tokens": output_tokens,
        "slots": slots,
        "max_waiting": max_waiting,
        "load_s": load_time,
    }
    said = _with(read_script(script), given, tuple(map(fault_of, fault or ())))
    settings = MockSettings(
        served_name=name, socket=str(socket) if socket else None, host=host, port=port, script=checked(said)
    )
    listeners = bind_mock(settings)
    for listener in listeners:
        place = listener.getsockname()
        shown = place if isinstance(place, str) else "{} port {}".format(*place[:2])
        typer.echo(f"{name} answers the engine protocol on {shown}", err=True)
    run_mock(settings, listeners)


def _with(script: MockScript, given: dict[str, Any], faults: tuple[Any, ...]) -> MockScript:
    import msgspec

    changes = {name: value for name, value in given.items() if value is not None}
    return msgspec.structs.replace(script, **changes, faults=(*script.faults, *faults))
