"""Whose signed tokens are taken beside our own keys: one entry per issuer and audience, as an administrator wrote it.

In: a list of issuers in YAML or JSON; out: frozen values, or a ``ValueError`` that names the mistake.
"""

from __future__ import annotations

import ipaddress
from typing import Literal
from urllib.parse import urlsplit

import msgspec

from penstock.config.tenants import TOP, Role
from penstock.config.yaml_file import read_yaml

Algorithm = Literal["RS256", "ES256", "EdDSA"]
"""What is verified; there is no way to allow ``none`` or a shared secret (RFC 8725, section 3.1)."""


class Issuer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An issuer of JSON Web Tokens.  ``jwks``: an https URL, http on this machine alone, or a file's path.

    Who shows a token belongs to the tenant that its claim ``tenant_claim`` names, by ``tenants`` if that is given;
    without the claim's name, to ``tenant``.  ``role_claim`` and ``roles`` do the same for the role, which is else
    user; ``models_claim`` holds a list of models, or words parted by spaces; without it: all of the tenant's.
    ``leeway_s``: how far clocks may be apart.
    """

    issuer: str
    audience: str
    jwks: str
    algorithms: tuple[Algorithm, ...] = ("RS256", "ES256", "EdDSA")
    tenant: str = TOP
    tenant_claim: str | None = None
    tenants: dict[str, str] = {}
    role_claim: str | None = None
    roles: dict[str, Role] = {}
    models_claim: str | None = None
    leeway_s: float = 30.0

    def __post_init__(self) -> None:
        if not self.issuer or not self.audience or not self.algorithms:
            raise ValueError("issuer, audience and algorithms must not be empty")
        if not 0 <= self.leeway_s <= 300:
            raise ValueError(f"leeway_s is {self.leeway_s}; it is from 0 to 300")
        if "://" in self.jwks and not _is_safe(self.jwks):
            raise ValueError(f"jwks is {self.jwks!r}; it is an https URL, or http on this machine")


def read_issuers(data: bytes) -> tuple[Issuer, ...]:
    """The issuers of a file's content.  Raises ``ValueError``."""
    try:
        issuers = msgspec.convert(read_yaml(data), tuple[Issuer, ...])
    except (msgspec.MsgspecError, ValueError) as error:
        raise ValueError(f"is no list of issuers: {error}") from None
    names = [(issuer.issuer, issuer.audience) for issuer in issuers]
    if len(set(names)) < len(names):
        raise ValueError("names one issuer twice with the same audience")
    return issuers


def _is_safe(url: str) -> bool:
    try:
        parts = urlsplit(url)
        if parts.scheme == "https":
            return bool(parts.hostname)
        return parts.scheme == "http" and ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return False
