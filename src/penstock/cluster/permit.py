"""Who may do what touches every tenant and model: turn names, load adapters, upgrade.

In: who asks and for what; out: who it is for the records, or ``permission_denied``, which is written down.
"""

from __future__ import annotations

from collections.abc import Callable

from penstock.config.tenants import TOP, Principal
from penstock.store.audit import Act, actor_name
from penstock.wire.errors import Problem


def permit(
    actor: Principal | None, what: str, audit: Callable[[Act], None], action: str = "", subject: str = ""
) -> str:
    """Who asks for ``what``, which begins the sentence of a denial.  Without an ``action`` no denial is written down.

    Raises ``Problem`` ``permission_denied`` for all but administrators of the top tenant with a right to all models.
    """
    who = actor_name(actor)
    if actor is None or (actor.role == "admin" and actor.tenant == TOP and actor.models is None):
        return who
    if action:
        audit(Act(actor=who, action=action, subject=subject[:200], verdict="denied", why="permission_denied"))
    raise Problem("permission_denied", f"{what} are for administrators of {TOP!r} with a right to all models.")
