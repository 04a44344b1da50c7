"""The one HTTP upstream: the engine protocol over an engine's Unix socket.

In: a replica's socket path and a request; out: the engine's events, or a ``Problem``.
A connection that breaks is ``engine_lost``; leaving a stream closes the connection, which aborts the request.
Never retries: that is ``policy.retry``'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, TypeVar

import msgspec

from penstock.runtimes.connection import BrokenConnectionError, Connection
from penstock.runtimes.pool import Pool
from penstock.wire import engine
from penstock.wire.embedding import Embedded, EmbedRequest, decode_embedding
from penstock.wire.errors import Problem
from penstock.wire.load import Load, Progress, ProgressRequest, decode_load
from penstock.wire.tokenization import Detokenized, DetokenizeRequest, Tokenized, TokenizeRequest

T = TypeVar("T")

Accept = Callable[[engine.Accepted], None]
Push = Callable[[list[engine.Event]], Awaitable[None] | None]
"""Takes events within the read that brought them; an awaitable: no more of them before it is done."""

_MAX_LINE_BYTES = 128 * 1024 * 1024
"""Room for the vectors of 2,048 texts with 12,000 numbers each."""
_MAX_BODY_BYTES = 128 * 1024 * 1024
"""Room for a token in every byte of a request, with its text."""
_MAX_ERROR_BYTES = 64 * 1024
_MAX_STATUS_BYTES = 1024 * 1024
_SOON_S = 5.0
"""Within so long an engine that is well answers how it is."""


class _ErrorMember(msgspec.Struct, frozen=True):
    message: str
    code: str
    param: str | None = None


class _ErrorBody(msgspec.Struct, frozen=True):
    error: _ErrorMember


_TERMINAL = (engine.Finished, engine.Failed, Embedded)
_decode_error = msgspec.json.Decoder(_ErrorBody).decode
_decode_progress = msgspec.json.Decoder(Progress).decode
_decode_tokenized = msgspec.json.Decoder(Tokenized).decode
_decode_adapter = msgspec.json.Decoder(engine.LoadedAdapter).decode
_decode_detokenized = msgspec.json.Decoder(Detokenized).decode


class HttpUpstream:
    """Speaks to any number of engines, each by its socket path; connections are kept and never counted."""

    def __init__(self) -> None:
        self._pools: dict[str, Pool] = {}

    async def generate(self, socket: str, request: engine.GenerateRequest, push: Push) -> None:
        """Push the events that arrived together, up to and including the terminal one.

        Raises ``Problem``: the engine's own before the stream began, ``engine_lost`` when the connection broke or
        ended without a terminal event, ``engine_protocol`` for lines that are not the protocol's; and what ``push``,
        or what it wants awaited, raises.
        """
        await self._relay(socket, _post(engine.GENERATE, engine.encode(request)), _Stream(engine.decode_events, push))

    async def embed(self, socket: str, request: EmbedRequest, accept: Accept) -> Embedded:
        """The vectors; ``accept`` is told what the engine has taken on.  Raises ``Problem`` as :meth:`generate`."""
        said: list[engine.Accepted | Embedded | engine.Failed] = []

        def take(events: list[engine.Accepted | Embedded | engine.Failed]) -> None:
            for event in events:
                if isinstance(event, engine.Accepted):
                    accept(event)
            said.append(events[-1])

        await self._relay(socket, _post(engine.EMBED, engine.encode(request)), _Stream(decode_embedding, take))
        if isinstance(said[-1], engine.Failed):
            raise engine.problem_of(said[-1])
        assert isinstance(said[-1], Embedded), "the relay ends with a terminal event"
        return said[-1]

    async def _relay(self, socket: str, request: bytes, stream: _Stream) -> None:
        connection = await self._begin(socket, request)
        # Leaving a stream for whatever reason closes the connection: a half-read one cannot be used again,
        # and its closing is what tells the engine to abort.
        try:
            while not stream.ended:
                if not await connection.relay(stream.take):
                    raise Problem("engine_lost", "The engine ended the stream without a terminal event.")
                if stream.wait is not None:
                    await stream.wait
        except BrokenConnectionError as error:
            _raise_lost(error)
        except BaseException:
            connection.abort()
            raise
        connection.release()

    async def load(self, socket: str) -> Load:
        """How the engine is doing.  Raises ``Problem``, ``engine_lost`` if nobody answers there."""
        return self._decode(decode_load, await self._soon(socket, _get(engine.LOAD)))

    async def progress(self, socket: str, request: ProgressRequest) -> Progress:
        """Raises ``Problem``, ``engine_lost`` if nobody answers in time."""
        return self._decode(_decode_progress, await self._soon(socket, _post(engine.PROGRESS, engine.encode(request))))

    async def tokenize(self, socket: str, request: TokenizeRequest) -> Tokenized:
        return self._decode(_decode_tokenized, await self._call(socket, engine.TOKENIZE, request))

    async def detokenize(self, socket: str, request: DetokenizeRequest) -> Detokenized:
        return self._decode(_decode_detokenized, await self._call(socket, engine.DETOKENIZE, request))

    async def load_adapter(self, socket: str, request: engine.LoadAdapter) -> engine.LoadedAdapter:
        """Once the engine has it.  May take as long as reading it does."""
        return self._decode(_decode_adapter, await self._call(socket, engine.LOAD_ADAPTER, request))

    async def unload_adapter(self, socket: str, request: engine.UnloadAdapter) -> None:
        await self._call(socket, engine.UNLOAD_ADAPTER, request)

    async def forget(self, socket: str) -> None:
        """Close what is kept for a replica that is gone."""
        pool = self._pools.pop(socket, None)
        if pool is not None:
            pool.close()

    async def close(self) -> None:
        """Close every connection; running streams end as ``engine_lost``."""
        for socket in list(self._pools):
            await self.forget(socket)

    async def _begin(self, socket: str, request: bytes) -> Connection:
        """A response with status 200 whose body is to be read.  Raises ``Problem``."""
        pool = self._pools.get(socket)
        if pool is None:
            pool = self._pools[socket] = Pool(socket)
        try:
            connection = await pool.lend()
            try:
                connection.send(request)
                status = await connection.head()
                if status == 200:
                    return connection
                body = await _error_body(connection)
            except BaseException:
                connection.abort()
                raise
        except OSError as error:
            _raise_lost(error)
        connection.abort()
        raise _problem_of(status, body)

    async def _whole(self, socket: str, request: bytes, most_bytes: int) -> bytes:
        connection = await self._begin(socket, request)
        parts, num_bytes = [], 0
        try:
            while part := await connection.read():
                num_bytes += len(part)
                if num_bytes > most_bytes:
                    raise Problem("engine_protocol", f"The engine answered more than {most_bytes} bytes.")
                parts.append(part)
        except OSError as error:
            connection.abort()
            _raise_lost(error)
        except BaseException:
            connection.abort()
            raise
        connection.release()
        return b"".join(parts)

    async def _soon(self, socket: str, request: bytes) -> bytes:
        try:
            async with asyncio.timeout(_SOON_S):
                return await self._whole(socket, request, _MAX_STATUS_BYTES)
        except TimeoutError as error:
            _raise_lost(error)

    async def _call(self, socket: str, path: str, request: msgspec.Struct) -> bytes:
        return await self._whole(socket, _post(path, engine.encode(request)), _MAX_BODY_BYTES)

    @staticmethod
    def _decode(decode: Callable[[bytes], T], body: bytes) -> T:
        try:
            return decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise Problem("engine_protocol", f"The engine answered an unknown body: {error}.") from error


class _Stream:
    """The lines of one stream, as events, on to whoever takes them.  ``wait``: what that wants awaited."""

    def __init__(
        self, decode: Callable[[bytes], list[Any]], push: Callable[[list[Any]], Awaitable[None] | None]
    ) -> None:
        self.ended = False
        self.wait: Awaitable[None] | None = None
        self._decode = decode
        self._push = push
        self._lines = _Lines()

    def take(self, data: bytes) -> bool:
        """Whether that is enough for now: it has ended, or somebody has to wait."""
        try:
            events = self._decode(self._lines.whole(data))
        except msgspec.MsgspecError as error:
            raise Problem("engine_protocol", f"The engine sent a line that is no event: {error}.") from error
        if not events:
            return False
        self.ended = isinstance(events[-1], _TERMINAL)
        self.wait = self._push(events)
        return self.ended or self.wait is not None


class _Lines:
    """Puts lines together again, however they were cut."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._num_bytes = 0

    def whole(self, data: bytes) -> bytes:
        """The lines that are complete with ``data``.  Raises ``Problem`` for one that is too long."""
        end = data.rfind(b"\n") + 1
        if end == len(data) and not self._parts:
            return data
        if not end:
            self._keep(data)
            return b""
        whole = b"".join((*self._parts, data[:end]))
        self._parts.clear()
        self._num_bytes = 0
        if end < len(data):
            self._keep(data[end:])
        return whole

    def _keep(self, part: bytes) -> None:
        self._parts.append(part)
        self._num_bytes += len(part)
        if self._num_bytes > _MAX_LINE_BYTES:
            raise Problem("engine_protocol", f"The engine sent a line of {self._num_bytes} bytes.")


async def _error_body(connection: Connection) -> bytes:
    body = b""
    while len(body) <= _MAX_ERROR_BYTES and (part := await connection.read()):
        body += part
    return body


def _get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nhost: engine\r\n\r\n".encode()


def _post(path: str, body: bytes) -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nhost: engine\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _raise_lost(error: BaseException) -> NoReturn:
    """The cause stays with the exception, for the log; who asked learns no paths and no library's words."""
    raise Problem("engine_lost", "The engine cannot be reached or broke off the connection.") from error


def _problem_of(status: int, body: bytes) -> Problem:
    """An error answer as the ``Problem`` that the engine raised."""
    try:
        error = _decode_error(body).error
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return Problem("engine_protocol", f"The engine answered {status} without an error body.")
    return engine.problem_of(engine.Failed(code=error.code, message=error.message, param=error.param))
