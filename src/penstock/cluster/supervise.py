"""The controller's loop over time: observe, decide, act, ten times a second.

In: the machine, a driver and the store; out: nothing when the service ended as asked, a ``Problem`` when it could not
go on.  Decides nothing itself; whatever happens here, no process is left behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol

from penstock.cluster.actions import Action, Finish, Forget, Kill, Publish, Start, Tell, Terminate
from penstock.cluster.controller import Controller
from penstock.cluster.reconcile import Observed
from penstock.cluster.state import ServiceState
from penstock.config.desired import Acknowledgement
from penstock.ports import Clock
from penstock.store.desired import DesiredStore
from penstock.wire.errors import Problem


class Driver(Protocol):
    """Where processes run.  All but ``close`` return at once; what they caused is seen in ``observe``."""

    def start(self, id: str, incarnation: int) -> None: ...

    def terminate(self, id: str) -> None: ...

    def kill(self, id: str) -> None: ...

    def forget(self, id: str) -> None: ...

    def observe(self) -> Mapping[str, Observed]: ...

    async def close(self) -> None:
        """End everything that still runs, and wait for it."""


async def supervise(
    controller: Controller,
    driver: Driver,
    store: DesiredStore,
    *,
    clock: Clock,
    tell: Callable[[Tell], None],
    show: Callable[[ServiceState], None],
    tick_s: float = 0.1,
) -> None:
    """Run the service until it has ended.  ``show`` gets a picture after every step, ``tell`` what people should know.

    Raises ``Problem`` when the service ended without having been asked to.
    """
    acknowledgements: list[Acknowledgement] = []
    complaint = ""
    try:
        while True:
            try:
                acknowledgements = store.acknowledgements()
            except Problem as problem:
                complaint = _complain(problem, complaint, tell)
            for action in controller.step(driver.observe(), acknowledgements, clock.now()):
                if isinstance(action, Finish):
                    if action.problem is not None:
                        raise action.problem
                    return
                try:
                    _act(action, controller, driver, store, tell)
                except Problem as problem:  # only the store raises: the machine asks again with its next step
                    complaint = _complain(problem, complaint, tell)
            show(controller.state())
            await asyncio.sleep(tick_s)
    finally:
        await driver.close()


def _act(
    action: Action, controller: Controller, driver: Driver, store: DesiredStore, tell: Callable[[Tell], None]
) -> None:
    match action:
        case Start(id, incarnation):
            driver.start(id, incarnation)
        case Terminate(id):
            driver.terminate(id)
        case Kill(id):
            driver.kill(id)
        case Forget(id):
            driver.forget(id)
        case Publish(models, admitting, names):
            controller.published(store.publish(models, admitting, names))
        case Tell():
            tell(action)


def _complain(problem: Problem, last: str, tell: Callable[[Tell], None]) -> str:
    """Said once per message: a disk that stays full would be reported ten times a second."""
    if problem.message != last:
        tell(Tell("controller", problem.message))
    return problem.message
