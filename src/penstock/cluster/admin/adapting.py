"""The admin API's routes of LoRA adapters, by the names that vLLM gave them.

In: the acts; out: a table of routes, to be served beside the others.
"""

from __future__ import annotations

from penstock.cluster.adapters import Adapters, AdapterView, NewAdapter, OldAdapter
from penstock.cluster.admin.app import AdminRoute


def adapter_routes(acts: Adapters) -> dict[tuple[str, str], AdminRoute]:
    """What there is, /v1/models of the data listener lists."""
    return {
        ("POST", "/v1/load_lora_adapter"): AdminRoute(
            "Loads an adapter into every engine of a model; requests choose it by its name.",
            answer=lambda asked: acts.load(asked.actor, asked.body),
            takes=NewAdapter,
            gives=AdapterView,
        ),
        ("POST", "/v1/unload_lora_adapter"): AdminRoute(
            "Unloads an adapter; what runs with it ends as it would.",
            answer=lambda asked: acts.unload(asked.actor, asked.body),
            takes=OldAdapter,
            gives=AdapterView,
        ),
    }
