"""The admin API's routes of names.

In: the acts; out: a table of routes, to be served beside the others.
"""

from __future__ import annotations

from penstock.cluster.admin.app import AdminRoute
from penstock.cluster.naming import NamesChange, NamesView, Naming


def names_routes(acts: Naming) -> dict[tuple[str, str], AdminRoute]:
    """All names at once: a change of several is one change."""
    return {
        ("GET", "/admin/names"): AdminRoute(
            "The names and what they lead to.", answer=lambda asked: acts.show(asked.actor), gives=NamesView
        ),
        ("PATCH", "/admin/names"): AdminRoute(
            "Adds, replaces and removes names.",
            answer=lambda asked: acts.change(asked.actor, asked.body),
            takes=NamesChange,
            gives=NamesView,
        ),
    }
