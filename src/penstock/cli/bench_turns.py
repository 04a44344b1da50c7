"""Engines as processes that work in turns.  In: how each is started and the parts; out: seconds per part and run.

All are loaded before the first run, and one works while the others wait: whatever else the machine does meets them all.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack, suppress
from typing import IO, Any

import msgspec

from penstock.cli import engine_peer
from penstock.loadgen.turns import Part
from penstock.wire.errors import Problem


class Launch(msgspec.Struct, frozen=True):
    """How one engine is started: by which Python, on which files, with which settings of its own."""

    name: str
    python: str
    model: str
    settings: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str, taken: Collection[str]) -> Launch:
        """``NAME=PYTHON,MODEL[,SETTING...]``, with a name that is not ``taken``.  Raises ``invalid_setting``."""
        name, _, rest = text.partition("=")
        python, _, files = rest.partition(",")
        model, *settings = files.split(",")
        if name not in engine_peer.ENGINES or not python or not model:
            known = ", ".join(engine_peer.ENGINES)
            message = f"--beside: {text!r} is not NAME=PYTHON,MODEL[,SETTING...] with one of {known}."
            raise Problem("invalid_setting", message, param="--beside")
        if name in taken:
            raise Problem("invalid_setting", f"--beside: {name} runs already.", param="--beside")
        return cls(name, python, model, tuple(settings))


class Turns(msgspec.Struct, frozen=True):
    """What one engine did.  ``seconds`` by the part's name, one per run that counts."""

    version: str
    start_s: float
    seconds: dict[str, list[float]]


def in_turns(
    launches: Sequence[Launch],
    parts: Sequence[Part],
    *,
    warm_up: Sequence[Part],
    runs: int,
    prefix_caching: bool,
    say: Callable[[str], None],
) -> dict[str, Turns]:
    """Every engine's turns by its name.  Run 0 is the warm-up.  Raises ``engine_lost`` with an engine's last words."""
    with ExitStack() as stack:
        engines = {one.name: stack.enter_context(_Process(one, prefix_caching)) for one in launches}
        turns = {}
        for name, engine in engines.items():
            say(f"starting {name}")
            ready = engine.answer()
            turns[name] = Turns(ready["version"], ready["start_s"], {part.name: [] for part in parts})
        for run in range(runs + 1):
            for part in parts if run else warm_up:
                for name, engine in engines.items():
                    say(f"run {run} of {runs}: {part.name}: {name}")
                    seconds = engine.ask(*part.batch(run))
                    if run:
                        turns[name].seconds[part.name].append(seconds)
    return turns


class _Process:
    """One engine's process from its start to its end."""

    def __init__(self, launch: Launch, prefix_caching: bool) -> None:
        self._launch = launch
        prefix = "prefix" if prefix_caching else "no-prefix"
        self._command = [launch.python, engine_peer.__file__, launch.name, launch.model, prefix, *launch.settings]

    def __enter__(self) -> _Process:
        self._words: IO[str] = tempfile.TemporaryFile("w+", errors="replace")
        try:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._words, text=True
            )
        except OSError as error:
            message = f"--beside: {self._launch.python} cannot be started: {error.strerror}."
            raise Problem("invalid_setting", message, param="--beside") from None
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._words.close()

    def ask(self, prompts: list[list[int]], lengths: list[int]) -> float:
        """Seconds of one batch."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # its last words say why
            print(json.dumps({"prompts": prompts, "lengths": lengths}), file=self._process.stdin, flush=True)
        seconds: float = self.answer()["seconds"]
        return seconds

    def answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        if line := self._process.stdout.readline():
            answer: dict[str, Any] = json.loads(line)
            return answer
        self._words.seek(0)
        last = "\n".join(self._words.read().splitlines()[-12:])
        raise Problem("engine_lost", f"{self._launch.name} ended:\n{last}")
