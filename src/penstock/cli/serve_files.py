"""The files that ``penstock serve`` is given: the service's own, its prices, its issuers.

In: paths from the command line; out: their content, or a ``Problem`` that names the option, the file and the mistake.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from penstock.wire.errors import Problem

if TYPE_CHECKING:
    from penstock.config.issuers import Issuer
    from penstock.config.prices import Price
    from penstock.config.settings import ServeSettings

T = TypeVar("T")


def with_file(path: Path | None, settings: ServeSettings) -> ServeSettings:
    """The models and names of the service's file on top of what flags say."""
    from penstock.config.service import read_service

    if path is None:
        return settings
    file = _read(path, read_service, "--config")
    models = dict(file.models)
    if settings.source is None and models:
        name = next(iter(models))
        first = models.pop(name)
        if twice := sorted(first.lora_modules.keys() & settings.lora_modules.keys()):
            message = f"The adapter {twice[0]!r} is in {path} and in --lora-modules; name it in one of them."
            raise Problem("invalid_setting", message, param="--lora-modules")
        settings = msgspec.structs.replace(
            settings,
            source=first.source,
            served_name=name,
            replicas=first.replicas,
            balance=first.balance,
            max_concurrent=first.max_concurrent,
            lora_modules={**first.lora_modules, **settings.lora_modules},
        )
    return msgspec.structs.replace(settings, also=models, names=file.names, tenants=file.tenants)


def prices_of(path: Path) -> tuple[Price, ...]:
    """What ``--prices`` names."""
    from penstock.config.prices import read_prices

    return _read(path, read_prices, "--prices")


def issuers_of(path: Path) -> tuple[Issuer, ...]:
    """What ``--issuers`` names."""
    from penstock.config.issuers import read_issuers

    return _read(path, read_issuers, "--issuers")


def _read(path: Path, reading: Callable[[bytes], T], option: str) -> T:
    try:
        return reading(path.read_bytes())
    except OSError as error:
        raise Problem("invalid_setting", f"{path} cannot be read: {error.strerror}.", param=option) from None
    except ValueError as error:
        raise Problem("invalid_setting", f"{path} {error}.", param=option) from None
