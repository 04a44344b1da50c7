"""Rolling upgrades as people ask for them: one at a time, from the source that is named to an end that is told.

In: requests of the admin API, from its threads; out: a status, rows of the audit log, and calls on the controller.
What replaces what, and when, is the controller's; fetching the source and keeping the outcome is wired in.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Annotated, Literal, Protocol

import msgspec
from msgspec import Meta

from penstock.cluster.apart import apart
from penstock.cluster.controller import Controller
from penstock.cluster.permit import permit
from penstock.cluster.rollout import Member
from penstock.config.tenants import Principal
from penstock.policy.rollout import RolloutRules
from penstock.ports import Clock
from penstock.store.audit import Act
from penstock.wire.errors import Problem

State = Literal["fetching", "rolling", "rolling_back", "done", "rolled_back", "stuck", "failed"]
_OVER = frozenset({"done", "rolled_back", "stuck", "failed"})
_POLL_S = 0.1
_log = logging.getLogger(__name__)


class NewUpgrade(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to serve ``model`` from.  ``drain_timeout_s``: null for the service's own.

    ``fetch_timeout_s``: until then the source has to be found, or fetched; ``start_timeout_s``: within so long each
    new replica has to be ready.
    """

    model: Annotated[str, Meta(min_length=1, max_length=200)]
    source: Annotated[str, Meta(min_length=1, max_length=1000)]
    drain_timeout_s: Annotated[float, Meta(ge=0, le=86_400)] | None = None
    fetch_timeout_s: Annotated[float, Meta(gt=0, le=86_400)] = 3600.0
    start_timeout_s: Annotated[float, Meta(gt=0, le=86_400)] = 1800.0


class UpgradeView(msgspec.Struct, frozen=True, kw_only=True):
    """An upgrade as it is shown.  ``failed``: it ended before any replica was touched.

    ``why``: what it is doing, or how it came to its end.  ``replaced`` of ``replicas`` are of the new source.
    """

    model: str
    source: str
    state: State
    why: str
    replaced: int
    replicas: int

    @property
    def is_over(self) -> bool:
        return self.state in _OVER


class Fleet(Protocol):
    """What an upgrade needs of the place where engines run."""

    def fetch(self, source: str) -> object:
        """Make a source ready to be loaded; may take long, in a thread.  Raises ``Problem``."""

    def prepare(self, fetched: object, model: str, number: int) -> list[Member]:
        """So many engines of it, known to the driver and not started."""

    def keep(self, model: str, source: str) -> None:
        """The model is of this source from now on, also after its next start.  Raises ``Problem``."""


class Upgrades:
    """The acts of the admin API; ``run`` carries them out beside the controller, in its loop."""

    def __init__(
        self,
        controller: Controller,
        fleet: Fleet,
        clock: Clock,
        drain_timeout_s: float,
        audit: Callable[[Act], None],
    ) -> None:
        self._controller = controller
        self._fleet = fleet
        self._clock = clock
        self._drain_timeout_s = drain_timeout_s
        self._audit = audit
        self._loop = asyncio.get_running_loop()
        self._asked: asyncio.Queue[tuple[str, NewUpgrade]] = asyncio.Queue()
        self._lock = threading.Lock()
        self._view: UpgradeView | None = None
        self._stopped = asyncio.Event()
        self._stopped_by = ""

    def start(self, actor: Principal | None, asked: NewUpgrade) -> UpgradeView:
        """Begin one.  Raises ``Problem``: ``permission_denied``, ``model_not_found``, ``conflict``."""
        who = permit(actor, "Upgrades", self._audit, "upgrade.start", asked.source)
        if asked.model not in self._controller.catalogue.models:
            raise Problem("model_not_found", f"The model {asked.model!r} is not served here.", param="model")
        with self._lock:
            if self._view is not None and not self._view.is_over:
                raise Problem("conflict", f"An upgrade to {self._view.source} is under way already.")
            view = UpgradeView(
                model=asked.model,
                source=asked.source,
                state="fetching",
                why="the source is looked for, or fetched",
                replaced=0,
                replicas=len(self._controller.engines(asked.model)),
            )
            # First: what cannot be written down is not begun.
            self._audit(Act(actor=who, action="upgrade.start", subject=_subject(view)))
            self._view = view
            self._stopped, self._stopped_by = asyncio.Event(), ""
        self._loop.call_soon_threadsafe(self._asked.put_nowait, (who, asked))
        return view

    def show(self, actor: Principal | None) -> UpgradeView:
        """The present upgrade, or the last one.  Raises ``Problem`` ``not_found``."""
        permit(actor, "Upgrades", self._audit)
        if self._view is None:
            raise Problem("not_found", "Nothing was upgraded since this service started.")
        return self._view

    def stop(self, actor: Principal | None) -> UpgradeView:
        """Go back.  Raises ``Problem``: ``permission_denied``, ``conflict`` where nothing is under way."""
        who = permit(actor, "Upgrades", self._audit, "upgrade.stop")
        view = self._view
        if view is None or view.is_over:
            raise Problem("conflict", "No upgrade is under way.")
        self._audit(Act(actor=who, action="upgrade.stop", subject=_subject(view)))
        self._stopped_by = who
        self._loop.call_soon_threadsafe(self._stopped.set)
        return view

    async def run(self) -> None:
        """Carry out what is asked for, one after the other; ends by cancellation."""
        while True:
            who, asked = await self._asked.get()
            try:
                await self._carry_out(asked)
            except Problem as problem:
                self._say("failed", problem.message.rstrip("."))
            except Exception:
                _log.exception("an upgrade ended by a bug")
                self._say("failed", "something went wrong here; the log has the details")
            try:
                await asyncio.to_thread(self._audit, self._end_of(who))
            except Problem:
                _log.exception("the end of an upgrade could not be written down")

    def _end_of(self, who: str) -> Act:
        view = self._view
        assert view is not None
        return Act(
            actor=who,
            action="upgrade.end",
            subject=_subject(view),
            verdict="allowed" if view.state == "done" else "denied",
            why=f"{view.state}: {view.why}"[:200],
        )

    async def _carry_out(self, asked: NewUpgrade) -> None:
        fetched = await self._fetched(asked)
        members = self._fleet.prepare(fetched, asked.model, len(self._controller.engines(asked.model)))
        drain_timeout_s = self._drain_timeout_s if asked.drain_timeout_s is None else asked.drain_timeout_s
        rules = RolloutRules(drain_timeout_s=drain_timeout_s, start_timeout_s=asked.start_timeout_s)
        self._controller.upgrade(asked.model, members, rules, self._clock.now())
        while True:
            await asyncio.sleep(_POLL_S)
            status = self._controller.rollout
            assert status is not None
            if self._stopped.is_set() and status.state == "rolling":
                self._controller.stop_upgrade(f"{self._stopped_by} stopped it")
            if status.state == "done":
                # Before anybody hears that it is done: who then kills the service finds the new source again.
                await asyncio.to_thread(self._fleet.keep, asked.model, asked.source)
            self._say(status.state, status.why, status.num_replaced)
            if status.state in _OVER:
                return

    async def _fetched(self, asked: NewUpgrade) -> object:
        """The source, ready to be loaded.  Raises ``Problem``; also where it takes too long, or somebody stops it.

        What is being fetched then goes on by itself: a read that hangs cannot be called back.
        """
        fetching = asyncio.create_task(apart(lambda: self._fleet.fetch(asked.source)))
        stopping = asyncio.create_task(self._stopped.wait())
        try:
            await asyncio.wait([fetching, stopping], timeout=asked.fetch_timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if self._stopped.is_set():
                raise Problem("upgrade_failed", f"{self._stopped_by} stopped it before the source was there.")
            if not fetching.done():
                message = f"{asked.source} was not there after {asked.fetch_timeout_s:g} s."
                raise Problem("upgrade_failed", message)
            return fetching.result()
        finally:
            fetching.cancel()
            stopping.cancel()

    def _say(self, state: State, why: str, replaced: int = 0) -> None:
        assert self._view is not None
        self._view = msgspec.structs.replace(self._view, state=state, why=why, replaced=replaced)


def _subject(view: UpgradeView) -> str:
    return f"{view.model} to {view.source}"[:200]
