"""What the controller has done: its words to whoever carries them out.

In and out: values.  ``supervise`` gives them to a driver, the store and the display, in their order.
"""

from __future__ import annotations

import msgspec

from penstock.config.desired import Model
from penstock.config.names import Name
from penstock.wire.errors import Problem


class Start(msgspec.Struct, frozen=True):
    """Start this member; ``incarnation`` counts from 1."""

    id: str
    incarnation: int


class Terminate(msgspec.Struct, frozen=True):
    """Ask it to finish what it does and exit."""

    id: str


class Kill(msgspec.Struct, frozen=True):
    """End it and whatever it started, at once."""

    id: str


class Forget(msgspec.Struct, frozen=True):
    """It has ended and that has been dealt with."""

    id: str


class Publish(msgspec.Struct, frozen=True):
    """Make this the next desired state; answer with :meth:`Controller.published`."""

    models: list[Model]
    admitting: bool
    names: dict[str, Name] = {}


class Tell(msgspec.Struct, frozen=True):
    """Something a person should know; ``lines`` is the end of the log of the process it is about."""

    id: str
    text: str
    lines: tuple[str, ...] = ()


class Finish(msgspec.Struct, frozen=True):
    """Nothing runs any more.  ``problem`` is why, when nobody had asked for it."""

    problem: Problem | None


Action = Start | Terminate | Kill | Forget | Publish | Tell | Finish
