"""Whether the client of a request is still there, without a task that waits for it.

In: the connection's end, from the server; out: one call to whoever watches.
"""

from __future__ import annotations

from collections.abc import Callable

PRESENCE = "penstock.presence"
"""Its name among the extensions of a request's scope."""


class Presence:
    """One request's.  Its server says when the client has left; one watcher at a time hears of it, once."""

    __slots__ = ("_gone", "_watcher")

    def __init__(self) -> None:
        self._gone = False
        self._watcher: Callable[[], None] | None = None

    def watch(self, watcher: Callable[[], None]) -> None:
        """Call it when the client leaves; at once where it has left already."""
        if self._gone:
            watcher()
        else:
            self._watcher = watcher

    def unwatch(self) -> None:
        self._watcher = None

    def leave(self) -> None:
        """The connection has ended."""
        self._gone = True
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher()
