"""The signed copy of tenants and keys that gateways go on with while the store is lost.

In: an ``Access`` and the servers' secret; out: a file that is whole or absent.  One that was changed is not believed.
"""

from __future__ import annotations

import hmac
from pathlib import Path

import msgspec

from penstock.config.tenants import Access
from penstock.store.disk import replacing, writing

_decode = msgspec.json.Decoder(Access).decode


def write_snapshot(path: Path, access: Access, secret: bytes) -> None:
    """Replace the file.  Raises ``Problem`` when the disk is full."""
    body = msgspec.json.encode(access)
    with writing(path), replacing(path) as file:
        file.write(_sign(body, secret) + b"\n" + body)


def read_snapshot(path: Path, secret: bytes) -> Access | None:
    """What was written last; ``None`` when there is none, or none that we signed."""
    try:
        signature, _, body = path.read_bytes().partition(b"\n")
    except OSError:
        return None
    if not hmac.compare_digest(signature, _sign(body, secret)):
        return None
    try:
        return _decode(body)
    except msgspec.MsgspecError:
        return None  # of a release that wrote it differently


def _sign(body: bytes, secret: bytes) -> bytes:
    return hmac.digest(secret, b"snapshot\n" + body, "sha256").hex().encode()
