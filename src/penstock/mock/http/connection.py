"""One connection to a mock engine: HTTP/1.1 read by httptools, answered at once or by a stream.

In: bytes; out: what the verbs answer, and streams, which ``stream`` plays.  A mock that measures others has to cost
less than they do: no framework, no task.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import httptools
import msgspec

from penstock.config.mock import Fault
from penstock.mock import words
from penstock.mock.engine import MockEngine
from penstock.mock.http.dialect import ENGINE_LINES, Dialect, head, openai_request
from penstock.mock.http.stream import Stream
from penstock.observe import samples
from penstock.observe.folds import Folds
from penstock.wire import engine as protocol
from penstock.wire.embedding import EmbedRequest
from penstock.wire.errors import Problem
from penstock.wire.load import ProgressRequest
from penstock.wire.tokenization import Detokenized, DetokenizeRequest, Tokenized, TokenizeRequest

_MAX_BODY_BYTES = 64 * 1024 * 1024


class Connection(asyncio.Protocol):
    """``open_connections`` is the listener's own set, so that it can end what is left."""

    def __init__(self, engine: MockEngine, open_connections: set[Connection], folds: Folds) -> None:
        self._engine = engine
        self._folds = folds
        self._connections = open_connections
        self._routes: dict[tuple[bytes, str], Callable[[bytes], None]] = {
            (b"POST", protocol.GENERATE): self._generate,
            (b"POST", protocol.EMBED): self._embed,
            (b"POST", protocol.ABORT): self._abort,
            (b"POST", protocol.PROGRESS): self._progress,
            (b"POST", protocol.DRAIN): self._drain,
            (b"POST", protocol.TOKENIZE): self._tokenize,
            (b"POST", protocol.DETOKENIZE): self._detokenize,
            (b"POST", protocol.LOAD_ADAPTER): self._load_adapter,
            (b"POST", protocol.UNLOAD_ADAPTER): self._unload_adapter,
            (b"GET", protocol.LOAD): self._load,
            (b"GET", protocol.METRICS): self._metrics,
            (b"POST", "/v1/chat/completions"): self._chat,
            (b"GET", "/v1/models"): self._models,
            (b"GET", "/health"): self._health,
        }
        self.stream: Stream | None = None
        self._busy = False
        self._slow: Fault | None = None
        self._url = b""
        self._body: list[bytes] = []
        self._num_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        self._parser = httptools.HttpRequestParser(self)
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        if self.stream is not None:
            self.stream.close()
            self.stream = None

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.abort()

    def pause_writing(self) -> None:
        if self.stream is not None:
            self.stream.paused = True

    def resume_writing(self) -> None:
        if self.stream is not None:
            self.stream.resume()

    def abort(self) -> None:
        """Cut it."""
        self._transport.abort()

    # What httptools calls, in this order.

    def on_message_begin(self) -> None:
        if self._busy:  # a caller that pipelines is none of ours
            self._transport.abort()
        self._url, self._num_bytes = b"", 0
        self._body.clear()

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_headers_complete(self) -> None:
        self._slow = None
        if self._url == protocol.GENERATE.encode():
            self._slow = self._engine.fault("", ("slow-read",))
            if self._slow is not None:
                self._transport.pause_reading()
                if self._slow.seconds is not None:
                    asyncio.get_running_loop().call_later(self._slow.seconds, self._resume_reading)

    def on_body(self, body: bytes) -> None:
        self._num_bytes += len(body)
        if self._num_bytes > _MAX_BODY_BYTES:
            self._transport.abort()
        self._body.append(body)

    def on_message_complete(self) -> None:
        route = self._routes.get((self._parser.get_method(), self._url.decode("latin-1")))
        body = b"".join(self._body)
        if self._slow is None:
            self._answer(route, body)
        elif self._slow.seconds is not None:  # what came with the head counts as unread until then
            asyncio.get_running_loop().call_later(self._slow.seconds, self._answer, route, body)

    def _answer(self, route: Callable[[bytes], None] | None, body: bytes) -> None:
        if self._transport.is_closing():
            return
        try:
            if route is None:
                raise Problem("not_found", f"There is no route {self._url!r} here.")
            route(body)
        except Problem as problem:
            self._respond(msgspec.json.encode(problem.body()), problem.spec.status)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            wrong = Problem("invalid_json", f"This is not the engine protocol: {error}.")
            self._respond(msgspec.json.encode(wrong.body()), wrong.spec.status)

    def _resume_reading(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def _generate(self, body: bytes) -> None:
        self._play(_decode_generate(body), ENGINE_LINES)

    def _chat(self, body: bytes) -> None:
        self._play(*openai_request(body, self._engine.num_attempts))

    def _models(self, _body: bytes) -> None:
        card = {"id": self._engine.model, "object": "model", "created": 1, "owned_by": "penstock"}
        self._respond(msgspec.json.encode({"object": "list", "data": [card]}))

    def _play(self, request: protocol.GenerateRequest, dialect: Dialect) -> None:
        attempt = self._engine.open(request)
        self._busy = True
        self.stream = Stream(attempt, dialect, self._engine, self._transport, self._stream_done)
        self.stream.accept()

    def _stream_done(self) -> None:
        self.stream, self._busy = None, False

    def _abort(self, body: bytes) -> None:
        request = msgspec.json.decode(body, type=protocol.AbortRequest)
        for attempt in self._engine.abort(request.id):
            for connection in list(self._connections):
                if connection.stream is not None and connection.stream.attempt is attempt:
                    connection.stream.cancel()
        self._respond(b"{}")

    def _drain(self, _body: bytes) -> None:
        self._engine.draining = True
        self._load(b"")

    def _load(self, _body: bytes) -> None:
        self._respond(protocol.encode(self._engine.load()))

    def _progress(self, body: bytes) -> None:
        request = msgspec.json.decode(body, type=ProgressRequest)
        self._respond(protocol.encode(self._engine.progress(request.ids)))

    def _metrics(self, _body: bytes) -> None:
        self._respond(samples.encode(self._folds.samples()))

    def _health(self, _body: bytes) -> None:
        self._respond(b"{}")

    def _tokenize(self, body: bytes) -> None:
        request = msgspec.json.decode(body, type=TokenizeRequest)
        ids = list(words.prompt_bytes(request))
        texts = [bytes([token_id]).decode("utf-8", "replace") for token_id in ids]
        context = self._engine.script.context_tokens
        self._respond(protocol.encode(Tokenized(token_ids=ids, token_texts=texts, context_tokens=context)))

    def _detokenize(self, body: bytes) -> None:
        request = msgspec.json.decode(body, type=DetokenizeRequest)
        if not all(0 <= token_id < words.VOCABULARY for token_id in request.token_ids):
            raise Problem("invalid_value", f"Token ids go from 0 to {words.VOCABULARY - 1}.", param="tokens")
        self._respond(protocol.encode(Detokenized(text=words.text_of(request.token_ids))))

    def _load_adapter(self, body: bytes) -> None:
        self._engine.refuse_new()
        request = msgspec.json.decode(body, type=protocol.LoadAdapter)
        digest = self._engine.load_adapter(request.path)
        self._respond(protocol.encode(protocol.LoadedAdapter(digest=digest)))

    def _unload_adapter(self, body: bytes) -> None:
        self._engine.unload_adapter(msgspec.json.decode(body, type=protocol.UnloadAdapter).digest)
        self._respond(b"{}")

    def _embed(self, body: bytes) -> None:
        self._engine.refuse_new()
        request = msgspec.json.decode(body, type=EmbedRequest)
        refusal = self._engine.fault(request.id, ("refuse",))
        if refusal is not None:
            raise Problem(refusal.code, "The script of this mock engine refuses it.", retry_after_s=1.0)
        embedded = words.embedded(request)
        accepted = protocol.encode_line(protocol.Accepted(prompt_tokens=embedded.prompt_tokens))
        vectors = protocol.encode_line(embedded)
        self._busy = True
        self._transport.write(head(200, len(accepted) + len(vectors), b"application/x-ndjson") + accepted)
        asyncio.get_running_loop().call_later(self._engine.script.ttft_s, self._give_vectors, vectors)

    def _give_vectors(self, vectors: bytes) -> None:
        if self._transport.is_closing():
            return
        self._busy = False
        self._transport.write(vectors)

    def _respond(self, body: bytes, status: int = 200) -> None:
        if self._transport.is_closing():
            return
        self._busy = False
        self._transport.write(head(status, len(body)) + body)


_decode_generate = msgspec.json.Decoder(protocol.GenerateRequest).decode
