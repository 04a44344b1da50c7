"""What a service is asked for: its models, the adapters of them, and the names that mean one of these.

In: models without replicas, adapters, names; out: models as gateways are told of them, or why these do not fit.
Knows no process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from penstock.config.desired import Model, Replica
from penstock.config.names import Name
from penstock.policy.names import check, is_name
from penstock.wire.errors import Problem


class ServedAdapter(msgspec.Struct, frozen=True, kw_only=True):
    """A LoRA adapter of ``model``, in the folder ``path``, whose content has this ``digest``."""

    name: str
    model: str
    path: str
    digest: str
    created: int


class Catalogue:
    """``models``: without their replicas.  Raises ``Problem`` ``invalid_value`` where the names do not fit them."""

    def __init__(self, models: Sequence[Model], names: Mapping[str, Name]) -> None:
        self._models = {model.name: model for model in models}
        self._adapters: list[ServedAdapter] = []
        self._names: dict[str, Name] = {}
        self.rename(names)

    @property
    def models(self) -> list[str]:
        """Their names, the first one first."""
        return list(self._models)

    @property
    def adapters(self) -> list[ServedAdapter]:
        return list(self._adapters)

    @property
    def names(self) -> Mapping[str, Name]:
        return self._names

    @property
    def targets(self) -> list[str]:
        """All that a request or a name may mean: the models, and the adapters of them."""
        return [*self._models, *(adapter.name for adapter in self._adapters)]

    def rename(self, names: Mapping[str, Name]) -> None:
        """These are the names from now on.  Raises ``Problem`` ``invalid_value``, and changes none then."""
        _check_names(names, self.targets)
        self._names = dict(names)

    def check_adapters(self, adapters: Sequence[ServedAdapter]) -> None:
        """Whether these may be served.  Raises ``Problem`` ``conflict`` or ``invalid_value``."""
        loaded: set[str] = set()
        for adapter in adapters:
            if adapter.name in self._models or adapter.name in self._names:
                raise Problem("conflict", f"{adapter.name!r} is the name of something else here.", param="lora_name")
            if adapter.name in loaded:
                raise Problem("conflict", f"{adapter.name!r} is loaded; unload it first.", param="lora_name")
            loaded.add(adapter.name)
            if not is_name(adapter.name):
                message = f"{adapter.name[:200]!r} is no name: letters, digits and . _ : / @ -, at most 200."
                raise Problem("invalid_value", message, param="lora_name")
        _check_names(self._names, [*self._models, *(adapter.name for adapter in adapters)])

    def adapt(self, adapters: Sequence[ServedAdapter]) -> None:
        """These are the adapters from now on.  Raises as :meth:`check_adapters`, and changes none then."""
        self.check_adapters(adapters)
        self._adapters = list(adapters)

    def told(self, replicas: Callable[[str], list[Replica]]) -> list[Model]:
        """As gateways are told of them, with the ``replicas`` of each model; an adapter has those of its model."""
        models = {name: msgspec.structs.replace(model, replicas=replicas(name)) for name, model in self._models.items()}
        return [*models.values(), *(_adapted(models[adapter.model], adapter) for adapter in self._adapters)]


def _adapted(model: Model, adapter: ServedAdapter) -> Model:
    return msgspec.structs.replace(
        model, name=adapter.name, created=adapter.created, parent=adapter.model, adapter=adapter.digest
    )


def _check_names(names: Mapping[str, Name], targets: Sequence[str]) -> None:
    try:
        check(names, targets)
    except ValueError as error:
        raise Problem("invalid_value", f"{str(error)[:1].upper()}{str(error)[1:]}.", param="names") from None
