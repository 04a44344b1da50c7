"""The admin API's routes of rolling upgrades.

In: the acts; out: a table of routes, to be served beside the others.
"""

from __future__ import annotations

from penstock.cluster.admin.app import AdminRoute
from penstock.cluster.upgrade import NewUpgrade, Upgrades, UpgradeView


def upgrade_routes(acts: Upgrades) -> dict[tuple[str, str], AdminRoute]:
    """One upgrade at a time, so that its path needs no name."""
    return {
        ("GET", "/admin/upgrade"): AdminRoute(
            "The upgrade under way, or the last one.", answer=lambda asked: acts.show(asked.actor), gives=UpgradeView
        ),
        ("POST", "/admin/upgrade"): AdminRoute(
            "Begins to replace the replicas of a model by those of another source.",
            answer=lambda asked: acts.start(asked.actor, asked.body),
            takes=NewUpgrade,
            gives=UpgradeView,
            status=202,
        ),
        ("DELETE", "/admin/upgrade"): AdminRoute(
            "Stops the upgrade and goes back.",
            answer=lambda asked: acts.stop(asked.actor),
            gives=UpgradeView,
            status=202,
        ),
    }
