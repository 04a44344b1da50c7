"""What the services of this machine serve: what rights and limits at the command line are held against.

In: nothing; out: models and names, as far as services are running and answer.
"""

from __future__ import annotations

from penstock.store.served import Served

_TIMEOUT_S = 2.0


def served_here() -> Served:
    """Of all services of this PENSTOCK_HOME."""
    from penstock.cli.admin_call import call_admin
    from penstock.cli.home import penstock_home
    from penstock.cluster.rundir import running
    from penstock.cluster.state import ServiceState
    from penstock.wire.errors import Problem

    served = Served()
    for service in running(penstock_home()):
        try:
            state = call_admin(service, "GET", "/admin/state", ServiceState, timeout_s=_TIMEOUT_S)
        except Problem:
            continue  # it is starting or ending; rights are given all the same
        models = served.models.union(model.name for model in state.desired.models)
        served = Served(models, served.names.union(state.desired.names), served.unpriced.union(state.unpriced))
    return served
