"""The one HTTP upstream: the engine protocol over an engine's Unix socket.

In: a replica's socket path and a request; out: the engine's events, or a ``Problem``.
A connection that breaks is ``engine_lost``; closing the iterator closes the connection, which aborts the request.
Never retries: that is ``policy.retry``'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import NoReturn, TypeVar

import aiohttp
import msgspec

from penstock.wire import engine
from penstock.wire.errors import Problem

T = TypeVar("T")

_BASE = "http://engine"
_MAX_LINE_BYTES = 64 * 1024 * 1024
_MAX_ERROR_BYTES = 64 * 1024
_CONNECT_TIMEOUT_S = 5.0
_IDLE_CONNECTION_S = 30.0
_END_TIMEOUT_S = 0.1
_STREAM_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S)
_LOAD_TIMEOUT = aiohttp.ClientTimeout(total=5.0, sock_connect=1.0)
_HEADERS = {"content-type": "application/json"}


class _ErrorMember(msgspec.Struct, frozen=True):
    message: str
    code: str
    param: str | None = None


class _ErrorBody(msgspec.Struct, frozen=True):
    error: _ErrorMember


_decode_error = msgspec.json.Decoder(_ErrorBody).decode
_decode_progress = msgspec.json.Decoder(engine.Progress).decode
_decode_embedded = msgspec.json.Decoder(engine.Embedded).decode
_decode_tokenized = msgspec.json.Decoder(engine.Tokenized).decode
_decode_detokenized = msgspec.json.Decoder(engine.Detokenized).decode


class HttpUpstream:
    """Speaks to any number of engines, each by its socket path; connections are kept and never counted."""

    def __init__(self) -> None:
        self._sessions: dict[str, aiohttp.ClientSession] = {}

    async def generate(self, socket: str, request: engine.GenerateRequest) -> AsyncGenerator[list[engine.Event], None]:
        """Yield the events that arrived together, up to and including the terminal one.

        Raises ``Problem``: the engine's own before the stream began, ``engine_lost`` when the connection broke or
        ended without a terminal event, ``engine_protocol`` for lines that are not the protocol's.
        """
        response = await self._post(socket, engine.GENERATE, engine.encode(request), _STREAM_TIMEOUT)
        # Leaving a stream for whatever reason closes the connection: a half-read one cannot be used again,
        # and its closing is what tells the engine to abort.
        ended = False
        try:
            rest = b""
            while not ended:
                data = await response.content.readany()
                if not data:
                    raise Problem("engine_lost", "The engine ended the stream without a terminal event.")
                if rest:
                    data = rest + data
                lines = data.split(b"\n")
                rest = lines.pop()
                if len(rest) > _MAX_LINE_BYTES:
                    raise Problem("engine_protocol", f"The engine sent a line of {len(rest)} bytes.")
                events = [engine.decode_event(line) for line in lines if line]
                if events:
                    ended = isinstance(events[-1], engine.Finished | engine.Failed)
                    yield events
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            _raise_lost(error)
        except msgspec.MsgspecError as error:
            raise Problem("engine_protocol", f"The engine sent a line that is no event: {error}.") from error
        finally:
            if ended:
                await _read_end(response)
            else:
                response.close()

    async def load(self, socket: str) -> engine.Load:
        """How the engine is doing.  Raises ``Problem``, ``engine_lost`` if nobody answers there."""
        try:
            async with self._session(socket).get(_BASE + engine.LOAD, timeout=_LOAD_TIMEOUT) as response:
                body = await response.read()
                status = response.status
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            _raise_lost(error)
        if status != 200:
            raise _problem_of(status, body)
        return self._decode(engine.decode_load, body)

    async def progress(self, socket: str, request: engine.ProgressRequest) -> engine.Progress:
        """Raises ``Problem``, ``engine_lost`` if nobody answers in time."""
        return self._decode(_decode_progress, await self._call(socket, engine.PROGRESS, request, _LOAD_TIMEOUT))

    async def embed(self, socket: str, request: engine.EmbedRequest) -> engine.Embedded:
        return self._decode(_decode_embedded, await self._call(socket, engine.EMBED, request))

    async def tokenize(self, socket: str, request: engine.TokenizeRequest) -> engine.Tokenized:
        return self._decode(_decode_tokenized, await self._call(socket, engine.TOKENIZE, request))

    async def detokenize(self, socket: str, request: engine.DetokenizeRequest) -> engine.Detokenized:
        return self._decode(_decode_detokenized, await self._call(socket, engine.DETOKENIZE, request))

    async def forget(self, socket: str) -> None:
        """Close what is kept for a replica that is gone."""
        session = self._sessions.pop(socket, None)
        if session is not None:
            await session.close()

    async def close(self) -> None:
        """Close every connection; running streams end as ``engine_lost``."""
        for socket in list(self._sessions):
            await self.forget(socket)

    def _session(self, socket: str) -> aiohttp.ClientSession:
        session = self._sessions.get(socket)
        if session is None:
            session = self._sessions[socket] = aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(path=socket, limit=0, keepalive_timeout=_IDLE_CONNECTION_S),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                skip_auto_headers=("user-agent", "accept-encoding", "accept"),
                timeout=_STREAM_TIMEOUT,
            )
        return session

    async def _post(
        self, socket: str, path: str, body: bytes, timeout: aiohttp.ClientTimeout
    ) -> aiohttp.ClientResponse:
        try:
            response = await self._session(socket).post(
                _BASE + path, data=body, headers=_HEADERS, timeout=timeout, allow_redirects=False
            )
            if response.status == 200:
                return response
            try:
                error_body = b""
                async for part in response.content.iter_any():
                    error_body += part
                    if len(error_body) > _MAX_ERROR_BYTES:
                        break
            finally:
                response.close()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            _raise_lost(error)
        raise _problem_of(response.status, error_body)

    async def _call(
        self, socket: str, path: str, request: msgspec.Struct, timeout: aiohttp.ClientTimeout = _STREAM_TIMEOUT
    ) -> bytes:
        response = await self._post(socket, path, engine.encode(request), timeout)
        try:
            return await response.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            _raise_lost(error)
        finally:
            response.release()

    @staticmethod
    def _decode(decode: Callable[[bytes], T], body: bytes) -> T:
        try:
            return decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise Problem("engine_protocol", f"The engine answered an unknown body: {error}.") from error


async def _read_end(response: aiohttp.ClientResponse) -> None:
    """Read the end of the body, which hands the connection back for the next request."""
    try:
        async with asyncio.timeout(_END_TIMEOUT_S):
            while await response.content.readany():
                pass
    except (aiohttp.ClientError, OSError, TimeoutError):
        response.close()
    except BaseException:
        response.close()
        raise


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
