"""The one versioned desired state: which replicas serve which model, under which names, and whether new requests are
admitted.

The controller writes it, gateways watch it and acknowledge versions.
A replica is stopped only after every gateway acknowledged a version that drains it.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from penstock.config.names import Name

Balance = Literal["least-tokens", "prefix-hash", "marginal-time"]
"""How a model's sequences are spread over its replicas: ``policy/route.py``."""


class Replica(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One engine.  ``socket`` is the Unix socket its protocol is spoken on; ``draining``: send nothing new."""

    id: str
    socket: str
    draining: bool = False


class Model(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A served name and the replicas behind it.  ``created`` in seconds since the epoch, for /v1/models.

    ``max_concurrent``: sequences that a gateway has at one replica at a time; 0: as many as come.
    ``parent``: the model that this one is a LoRA adapter of, whose replicas are its own; ``adapter``: its digest there.
    """

    name: str
    replicas: list[Replica]
    created: int = 0
    balance: Balance = "least-tokens"
    max_concurrent: int = 0
    parent: str = ""
    adapter: str = ""


class DesiredState(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Version 0 is the empty state.  ``names`` stand in front of models.

    ``admitting`` is false while the whole service drains.
    """

    version: int = 0
    models: list[Model] = []
    names: dict[str, Name] = {}
    admitting: bool = True


class Acknowledgement(msgspec.Struct, frozen=True, kw_only=True):
    """What a gateway says: the version it routes by and how many requests it holds, at ``at`` seconds of the epoch."""

    gateway: str
    version: int
    in_flight: int
    at: float
