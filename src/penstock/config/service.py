"""The service's file: the models of one service, the names in front of them, and the tenants who may use them.

In: YAML or JSON that somebody wrote; out: frozen values, or a ``ValueError`` that names the mistake.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from penstock.config.desired import Balance
from penstock.config.names import Name
from penstock.config.tenants import DeclaredTenant
from penstock.config.yaml_file import read_yaml


class ServedModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model.  ``source`` as of ``penstock serve``; ``max_concurrent`` as of the desired state.

    ``lora_modules``: LoRA adapters to begin with, names to folders.
    """

    source: str
    replicas: Annotated[int, Meta(ge=1, le=64)] = 1
    balance: Balance = "least-tokens"
    max_concurrent: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    lora_modules: dict[str, str] = {}


class ServiceFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Models by served name, names, and tenants; secrets of keys have no place here."""

    models: dict[str, ServedModel] = {}
    names: dict[str, Name] = {}
    tenants: dict[str, DeclaredTenant] = {}

    def __post_init__(self) -> None:
        for tenant, declared in self.tenants.items():
            of_models = {*(declared.models or ()), *(limit.model for limit in declared.rights().limits)}
            for name in sorted(of_models & self.names.keys()):
                message = f"{tenant!r} has a right or a limit of {name!r}, which is a name"
                raise ValueError(f"{message}; what is counted and allowed are the models behind it")


def read_service(data: bytes) -> ServiceFile:
    """A file's content.  Raises ``ValueError``."""
    try:
        return msgspec.convert(read_yaml(data) or {}, ServiceFile)
    except (msgspec.MsgspecError, ValueError) as error:
        raise ValueError(f"is no service: {error}") from None
