"""One HTTP/1.1 exchange as bytes and times.  In: a request; out: status, headers, every piece as it came, how it ended.

On plain sockets, because a client library hides what is judged here: pieces, silences, and whether a body that
stopped was whole.  Every exchange has a connection of its own.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

import httptools
import msgspec

from penstock.wire.errors import Problem

End = Literal["open", "whole", "eof", "cut", "silence", "not HTTP"]
"""``whole``: as HTTP says it; ``eof``: the connection closed and nothing said how long the body is; ``cut``: closed
before that; ``silence``: nothing more came."""

_READ_BYTES = 65_536
_CONNECT_S = 5.0
PROMPT = "Write two short sentences in French about rivers and water, with all their accents."


@dataclass(slots=True)
class Reply:
    """What came back.  Times in seconds since the request was sent; header names in lower case."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    pieces: list[tuple[float, bytes]] = field(default_factory=list)
    end: End = "open"
    ended_s: float = 0.0

    @property
    def body(self) -> bytes:
        return b"".join(piece for _, piece in self.pieces)

    def json(self) -> Any:
        """The decoded body; ``None`` for anything but JSON."""
        try:
            return msgspec.json.decode(self.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None

    def __str__(self) -> str:
        said = self.body[:160].decode("utf-8", "replace").replace("\n", " ")
        return f"{self.status or 'no status'} ({self.end}) {said}"


class Exchange:
    """A running exchange; ``reply`` grows with every ``more``."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> None:
        self.reply = Reply()
        self._reader, self._writer = reader, writer
        self._parser = httptools.HttpResponseParser(self)
        self._now = asyncio.get_running_loop().time
        self._sent = self._now()
        # Beside the reading: an endpoint may answer before it has read everything.
        self._writing = asyncio.create_task(self._write(request))

    async def more(self, within_s: float) -> bool:
        """Wait for more of the answer; whether there may be yet more."""
        try:
            async with asyncio.timeout(within_s):
                data = await self._reader.read(_READ_BYTES)
        except TimeoutError:
            self._ends("silence")
        except OSError:
            self._ends("cut")
        else:
            self._feed(data)
        return self.reply.end == "open"

    def drop(self) -> None:
        """Go away, as a client does that is no longer interested."""
        self._writing.cancel()
        self._writer.close()

    def _feed(self, data: bytes) -> None:
        if not data:
            framed = {"content-length", "transfer-encoding"} & self.reply.headers.keys()
            self._ends("cut" if framed or not self.reply.status else "eof")
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._ends("not HTTP")

    def _ends(self, end: End) -> None:
        if self.reply.end == "open":
            self.reply.end, self.reply.ended_s = end, self._now() - self._sent

    async def _write(self, request: bytes) -> None:
        with suppress(OSError):  # whoever answers early closes early
            self._writer.write(request)
            await self._writer.drain()

    # What httptools calls.

    def on_header(self, name: bytes, value: bytes) -> None:
        self.reply.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.reply.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self.reply.pieces.append((self._now() - self._sent, body))

    def on_message_complete(self) -> None:
        self._ends("whole")


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where to ask, as whom, for which model.

    ``base``: what its routes begin with, such as ``/v1``.  ``engine``: a mock engine behind it that shows its load.
    ``silence_s``: how long an open answer may say nothing at all; ``timeout_s``: how long a whole one takes.
    """

    host: str
    port: int
    is_tls: bool = False
    base: str = "/v1"
    model: str = ""
    api_key: str | None = None
    engine: Endpoint | None = None
    silence_s: float = 20.0
    timeout_s: float = 90.0

    @asynccontextmanager
    async def exchange(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[Exchange]:
        """Send a request; ``body`` is bytes as they are, or a value that is sent as JSON.  Raises ``OSError``."""
        context = ssl.create_default_context() if self.is_tls else None
        async with asyncio.timeout(_CONNECT_S):
            reader, writer = await asyncio.open_connection(self.host, self.port, ssl=context)
        exchange = Exchange(reader, writer, self._request(method, path, body, headers or {}))
        try:
            yield exchange
        finally:
            exchange.drop()

    async def ask(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Reply:
        """Send a request and read the whole answer, for ``timeout_s`` at most; an empty header is left out."""
        now = asyncio.get_running_loop().time
        deadline = now() + self.timeout_s
        async with self.exchange(method, path, body, headers) as exchange:
            while await exchange.more(max(deadline - now(), 0.0)):
                pass
            return exchange.reply

    async def chat(self, **fields: Any) -> Reply:
        """Ask for a chat completion: a short greedy one but for what ``fields`` say."""
        return await self.ask("POST", "/chat/completions", self.chat_body(**fields))

    def chat_body(self, **fields: Any) -> dict[str, Any]:
        messages = [{"role": "user", "content": PROMPT}]
        return {"model": self.model, "messages": messages, "max_tokens": 24, "temperature": 0} | fields

    def _request(self, method: str, path: str, body: Any, headers: Mapping[str, str]) -> bytes:
        sent = b"" if body is None else body if isinstance(body, bytes) else msgspec.json.encode(body)
        fields = {"host": f"{self.host}:{self.port}", "accept": "*/*", "connection": "close"}
        if body is not None:
            fields |= {"content-type": "application/json", "content-length": str(len(sent))}
        if self.api_key:
            fields["authorization"] = f"Bearer {self.api_key}"
        fields |= headers
        lines = [
            f"{method} {self.base}{path} HTTP/1.1",
            *(f"{name}: {value}" for name, value in fields.items() if value),
        ]
        return "\r\n".join([*lines, "", ""]).encode() + sent


def endpoint_of(url: str, *, is_bare: bool = False, **fields: Any) -> Endpoint:
    """The endpoint at a URL, given with or without ``/v1``; ``is_bare``: its routes begin where the URL ends.

    Raises ``Problem`` ``invalid_setting``.
    """
    parts = urlsplit(url if "://" in url else f"http://{url}")
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
        raise Problem("invalid_setting", f"{url!r} is no address such as http://127.0.0.1:8000.", param="URL")
    is_tls = parts.scheme == "https"
    base = parts.path.rstrip("/")
    if not is_bare and not base.endswith("/v1"):
        base += "/v1"
    return Endpoint(host=parts.hostname, port=port or (443 if is_tls else 80), is_tls=is_tls, base=base, **fields)
