"""Slices of limits from Redis, for several gateways at once: one script, atomic on the server.

In: what a gateway holds and wants of its rules; out: what it is given, or a ``Problem`` when Redis does not answer.
Windows and leases are of Redis' clock.  The URL's password is in no message.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from penstock.wire.errors import Problem
from penstock.wire.slices import SEED_S, SETTLE_S, SHARE_OF_LEFT, Answer, Ask, Status, Taken

SCHEMES = ("redis", "rediss", "unix")
TIMEOUT_S = 1.0
_STATUS: tuple[Status, ...] = ("given", "another window", "settling", "unusable")
_log = logging.getLogger(__name__)
_encode = msgspec.json.Encoder().encode


class RedisSlices:
    """Implements ``ports.Slices``.  ``secret``: the servers' own; services with another one share nothing with us."""

    def __init__(self, url: str, secret: bytes, writer: str, *, timeout_s: float = TIMEOUT_S) -> None:
        check_url(url)
        from redis.asyncio import Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff

        self._writer = writer
        self._number = 0
        self._epoch = b""
        self._prefix = f"penstock:{{{hmac.new(secret, b'slices', hashlib.sha256).hexdigest()[:16]}}}:"
        try:
            self._redis = Redis.from_url(
                url,
                single_connection_client=True,
                socket_timeout=timeout_s,
                socket_connect_timeout=timeout_s,
                retry=Retry(NoBackoff(), 0),  # whoever asks decides when to ask again
            )
        except (ValueError, TypeError) as error:
            raise Problem("invalid_setting", f"--redis: {type(error).__name__} in its URL.", param="--redis") from None
        self._script = self._redis.register_script(_script())

    async def take(self, asks: Sequence[Ask]) -> Taken:
        """State what is held, and take more.  Raises ``Problem`` ``limits_unavailable``."""
        from redis.exceptions import RedisError

        self._number += 1
        keys = [self._prefix + name for name in ("epoch", f"last|{self._writer}", *map(_key, asks))]
        try:
            reply = await self._script(
                keys=keys, args=[self._writer, self._number, _encode([*asks]), SETTLE_S, SEED_S, SHARE_OF_LEFT]
            )
        except (RedisError, OSError) as error:
            raise Problem("limits_unavailable", f"Redis: {type(error).__name__}: {str(error)[:200]}") from None
        seconds, microseconds, epoch, *answers = reply
        if epoch != self._epoch:
            self._epoch = epoch
            await self._look_at_eviction()
        return Taken(int(seconds) + int(microseconds) / 1e6, epoch.decode(), [_answer(*answer) for answer in answers])

    async def _look_at_eviction(self) -> None:
        """Tell whoever runs it: a Redis that drops keys when it is full forgets what was granted, and nobody hears."""
        from redis.exceptions import RedisError

        with suppress(RedisError, OSError):  # not every server lets everybody ask
            memory = await self._redis.info("memory")
            policy = memory.get("maxmemory_policy", "noeviction")
            if memory.get("maxmemory") and policy != "noeviction":
                _log.warning("Redis forgets limits when it is full (maxmemory-policy %s): set noeviction", policy)

    async def close(self) -> None:
        await self._redis.aclose()


def check_url(url: str) -> None:
    """Raises ``Problem`` ``invalid_setting``, which does not repeat the URL: it may hold a password."""
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in SCHEMES and "," not in parts.netloc and (parts.port or True)
    except ValueError:
        is_good = False
    if not is_good:
        message = (
            "--redis is no URL like redis://HOST:6379/0, rediss://:PASSWORD@HOST:6379 or unix:///PATH. "
            "It names one server: Redis Cluster and Sentinel are not supported."
        )
        raise Problem("invalid_setting", message, param="--redis")
    try:
        import redis  # noqa: F401
    except ImportError:
        message = "--redis needs the redis package: pip install 'penstock[redis]'."
        raise Problem("invalid_setting", message, param="--redis") from None


def _script() -> str:
    return (Path(__file__).parent / "take.lua").read_text(encoding="utf-8")


def _key(ask: Ask) -> str:
    return f"{ask.key}|{ask.begin}" if ask.end else ask.key


def _answer(status: int, given: int, left: int, whole_ms: int, *fits_ms: int) -> Answer:
    fits = tuple(None if ms < 0 else ms / 1000 for ms in fits_ms)
    return Answer(_STATUS[status], given, left, whole_ms / 1000, fits)
