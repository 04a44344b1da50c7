"""What an administrator may do with the names of a service: the acts behind the admin API.

In: an actor and the names it asks for; out: the names there are now, or a ``Problem``; and a row of the audit log.
The desired state carries them: gateways follow within a second.  The service's file is what the next start begins with.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import msgspec

from penstock.cluster.catalogue import Catalogue
from penstock.cluster.permit import permit
from penstock.config.names import Name
from penstock.config.tenants import Principal
from penstock.store.audit import Act
from penstock.wire.errors import Problem


class NamesView(msgspec.Struct, frozen=True, kw_only=True):
    """All names, and the models that they may lead to."""

    names: dict[str, Name]
    models: list[str]


class NamesChange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Names to add or to replace; null: to remove.  What is left out stays; ``only``: it goes."""

    names: dict[str, Name | None]
    only: bool = False


class Naming:
    """``audit`` takes rows of the audit log.  Every act raises ``Problem``; ``actor`` is ``None`` for the operator."""

    def __init__(self, catalogue: Catalogue, audit: Callable[[Act], None]) -> None:
        self._catalogue = catalogue
        self._audit = audit
        self._one_at_a_time = threading.Lock()

    def show(self, actor: Principal | None) -> NamesView:
        permit(actor, "Names", self._audit, "names.list")
        return self._view()

    def change(self, actor: Principal | None, asked: NamesChange) -> NamesView:
        """All of it, or nothing.  Raises ``invalid_value`` where the names would not hold together."""
        subject = ", ".join(asked.names)[:200]
        who = permit(actor, "Names", self._audit, "names.set", subject)
        with self._one_at_a_time:
            names = {} if asked.only else dict(self._catalogue.names)
            for own, name in asked.names.items():
                if name is not None:
                    names[own] = name
                elif names.pop(own, None) is None and not asked.only:
                    raise Problem("not_found", f"There is no name {own[:200]!r}.")
            self._catalogue.rename(names)
        self._audit(Act(actor=who, action="names.set", subject=subject))
        return self._view()

    def _view(self) -> NamesView:
        return NamesView(names=dict(self._catalogue.names), models=self._catalogue.targets)
