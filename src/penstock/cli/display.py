"""What ``penstock serve`` shows: progress on standard error, then where the service is on standard output.

In: pictures of the service; out: a spinner on a terminal, else one line per change.
"""

from __future__ import annotations

import json
import shlex
import sys
from typing import TYPE_CHECKING

from penstock.cli.console import program, say
from penstock.cluster.actions import Tell
from penstock.cluster.state import MemberState, ServiceState
from penstock.config.settings import API_KEY, DEFAULT_URL

if TYPE_CHECKING:
    from rich.status import Status


class ServeDisplay:
    """Implements ``wiring.controller.Display``."""

    def __init__(self) -> None:
        self._status: Status | None = None
        self._last = ""
        self._where = ("", "", "")
        self._is_open = True
        self._announced = False
        self._draining = False

    def note(self, line: str) -> None:
        say(line)

    def tell(self, message: Tell) -> None:
        for line in message.lines:
            self._line(f"{message.id} | {line}")
        self._line(f"{message.id}: {message.text}")

    def when_ready(self, model: str, url: str, admin_url: str, *, is_open: bool) -> None:
        self._where = (model, url, admin_url)
        self._is_open = is_open

    def show(self, state: ServiceState) -> None:
        if state.ready and not self._announced:
            self._announced = True
            self._stop()
            loads = [member.load for member in state.members if member.load is not None]
            generates = all(load.generates for load in loads)
            say(banner(*self._where, generates=generates, is_open=self._is_open), sys.stdout)
        if state.stage == "draining" and not self._draining:
            self._draining = True
            self._stop()
            say("draining: no new requests, running ones finish; Ctrl-C again to hurry")
        if not self._announced and state.stage == "serving":
            self._progress(state)
        if state.stage == "stopped":
            self._stop()

    def close(self) -> None:
        """Give the terminal back."""
        self._stop()

    def _progress(self, state: ServiceState) -> None:
        waiting = [member for member in state.members if member.kind == "engine" and member.phase != "ready"]
        coarse = ", ".join(f"{member.id} {_where(member)}" for member in waiting)
        if sys.stderr.isatty():
            if self._status is None:  # not before: a download draws its own bars
                self._status = _spinner()
            self._status.update(", ".join(f"{member.id} {_where(member)}{_percent(member)}" for member in waiting))
        elif coarse and coarse != self._last:
            say(coarse)
        self._last = coarse

    def _line(self, text: str) -> None:
        if self._status is not None:
            self._status.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            say(text)

    def _stop(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None


def banner(model: str, url: str, admin_url: str, *, generates: bool = True, is_open: bool = True) -> str:
    """Where the service is, and a request to paste, which takes a key from the environment unless it ``is_open``."""
    path = "/v1/embeddings"
    asked: dict[str, object] = {"model": model, "input": ["What does len do?"]}
    if generates:
        path = "/v1/chat/completions"
        asked = {"model": model, "messages": [{"role": "user", "content": "What does len do?"}], "max_tokens": 64}
    lines = [
        f"serving {model}",
        f"  API     {url}/v1",
        f"  admin   {admin_url}  (/health /ready /metrics /admin/state)",
        "",
        *([] if is_open else [f"export {API_KEY}=...  # a key, of `{program()} keys create`"]),
        f"curl {url}{path} -H 'content-type: application/json' \\",
        *([] if is_open else [f'  -H "authorization: Bearer ${API_KEY}" \\']),
        f"  -d {shlex.quote(json.dumps(asked, ensure_ascii=False))}",
    ]
    if generates:
        other = "" if url == DEFAULT_URL else f" --url {url}"
        key = "" if is_open else f"{API_KEY}=... "
        lines += ["", f"or talk to it from another terminal: {key}{program()} chat{other}"]
    return "\n".join(lines)


def _where(member: MemberState) -> str:
    detail = member.load.detail if member.load is not None else ""
    return f"{member.phase}: {detail}" if detail else member.phase


def _percent(member: MemberState) -> str:
    share = member.load.progress if member.load is not None else 0.0
    return f" {share:.0%}" if share > 0 else ""


def _spinner() -> Status:
    from rich.console import Console

    status = Console(stderr=True).status("starting")
    status.start()
    return status
