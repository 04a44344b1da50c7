"""An OpenAI-compatible endpoint that keeps the contract, but for the one fault it is told.

In: a fault's name, or none; out: a server on a socket.  Its model answers the same words every time.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

WORDS = ["Les", " fleuves", " coulent", " où", " l'eau", " naît", "."]
USAGE = {"prompt_tokens": 12, "completion_tokens": 7, "total_tokens": 19}
KEY = "the-key"
_LARGEST_BYTES = 1 << 20


class Refusal(Exception):
    """An error answer."""

    def __init__(self, status: int, param: str | None = None, code: str | None = "wrong") -> None:
        super().__init__(param)
        self.status, self.param, self.code = status, param, code


class WrongEndpoint:
    """Serves ``/v1`` and, like a mock engine, ``/engine/load``."""

    def __init__(self, fault: str = "", behind: str = "any") -> None:
        self.fault, self.behind = fault, behind
        self.running = 0
        self.port = 0
        self._numbers = itertools.count()
        self._asked = 0
        self._connections: set[asyncio.Task[Any]] = set()
        self._stopping: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[WrongEndpoint]:
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            tasks = [*self._connections, *filter(None, [self._stopping])]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.sleep(0)  # what was closed is told so

    def has(self, *faults: str) -> bool:
        return self.fault in faults

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        try:
            await self._exchange(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        method, path, _ = head.split(" ", 2)
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head.split("\r\n")[1:])}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        try:
            value = self._checked(method, path, headers, body)
            answer = await self._answer(path, value, reader, writer)
        except Refusal as refusal:
            self._refuse(writer, refusal)
        else:
            if answer is not None:
                self._write(writer, 200, json.dumps(answer).encode())
        await writer.drain()

    def _checked(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Any:
        key = headers.get("authorization", "")
        if path == "/engine/load":
            return None
        if (not key and not self.has("open")) or (key and key != f"Bearer {KEY}" and not self.has("any key")):
            raise Refusal(401, code="invalid_api_key")
        if path == "/v1/models":
            return None
        if path not in ("/v1/chat/completions", "/v1/embeddings"):
            raise Refusal(200 if self.has("any route") else 404)
        if method != "POST":
            raise Refusal(404 if self.has("no 405") else 405)
        if len(body) > _LARGEST_BYTES and not self.has("500 for large"):
            raise Refusal(413)
        return self._checked_body(path, body)

    def _checked_body(self, path: str, body: bytes) -> Any:
        if len(body) > _LARGEST_BYTES:
            raise Refusal(500)
        try:
            value = json.loads(body)
        except UnicodeDecodeError:
            raise Refusal(500 if self.has("500 for utf8") else 400) from None
        except RecursionError:
            raise Refusal(500 if self.has("500 for depth") else 400) from None
        except ValueError:
            raise Refusal(500 if self.has("500 for json") else 400) from None
        if not isinstance(value, dict):
            raise Refusal(422 if self.has("422 for lists") else 400)
        if value.get("model") != "m":
            raise Refusal(400 if self.has("400 for models") else 404, "model", "model_not_found")
        if path == "/v1/embeddings":
            if not value.get("input"):
                raise Refusal(500 if self.has("500 for no input") else 400, "input")
            return value
        if "messages" not in value:
            raise Refusal(400, None if self.has("unnamed field") else "messages")
        if value["messages"][0].get("role") != "user" and not self.has("any role"):
            raise Refusal(400, "messages[0].role")
        temperature = value.get("temperature", 0)
        if not isinstance(temperature, int | float) and not self.has("any type"):
            raise Refusal(400, "temperature")
        if temperature == 99 and not self.has("any range"):
            raise Refusal(400, "temperature")
        if value.get("top_logprobs") and not value.get("logprobs") and not self.has("any top_logprobs"):
            raise Refusal(400, "top_logprobs")
        schema = (value.get("response_format") or {}).get("json_schema", {}).get("schema", {})
        if schema.get("type") == "no-such-type" and not self.has("any schema"):
            raise Refusal(400, "response_format")
        choice = value.get("tool_choice")
        if isinstance(choice, dict) and choice["function"]["name"] != "depth" and not self.has("any tool"):
            raise Refusal(400, "tool_choice")
        self._asked += 1
        if value.get("max_tokens") == 1 and self._asked % 2 and not self.has("no limits"):
            raise Refusal(429, code="rate_limit_exceeded")
        return value

    async def _answer(
        self, path: str, value: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> dict[str, Any] | None:
        if path == "/engine/load":
            return {"running": self.running}
        if path == "/v1/models":
            name = "another" if self.has("unlisted model") else "m"
            return {"object": "list", "data": [{"id": name, "object": "model"}]}
        if path == "/v1/embeddings":
            return self._embeddings(value)
        if self.behind == "crashing":
            raise Refusal(200 if self.has("silent about crashes") else 502, code="engine_lost")
        if self.behind == "breaking" and not value.get("stream"):
            if not self.has("half an answer"):
                raise Refusal(502)
            return self._completion(value)
        if self.behind == "paced":
            self.running += 1
            self._stopping = asyncio.create_task(self._stop(reader, value))
        if value.get("stream"):
            await self._stream(value, writer)
            return None
        if self.behind == "paced":
            await asyncio.sleep(3)
        return self._completion(value)

    async def _stop(self, reader: asyncio.StreamReader, value: Any) -> None:
        """The engine notices that the client left."""
        with suppress(ConnectionError):
            await reader.read()
        if not self.has("runs on when dropped") or not value.get("stream"):
            if self.has("runs on when a call is dropped") and not value.get("stream"):
                return
            self.running -= 1

    def _completion(self, value: Any) -> dict[str, Any]:
        message, reason, tokens = self._message(value)
        total = USAGE["prompt_tokens"] + tokens + self.has("usage that does not add up")
        choice = {"index": 0, "message": message, "finish_reason": reason}
        if value.get("logprobs"):
            choice["logprobs"] = {"content": [self._entry(word) for word in self._words(value)]}
        return {
            "id": f"c-{next(self._numbers)}",
            "object": "chunk" if self.has("wrong object") else "chat.completion",
            "created": 1,
            "model": "m",
            "choices": [choice],
            "usage": {"prompt_tokens": 12, "completion_tokens": tokens, "total_tokens": total},
        }

    def _message(self, value: Any) -> tuple[dict[str, Any], str, int]:
        if value.get("tools"):
            arguments = '{"unit": "mile"}' if self.has("wrong arguments") else '{"unit": "foot"}'
            call = {"id": "call-1", "type": "function", "function": {"name": "depth", "arguments": arguments}}
            return {"role": "assistant", "content": None, "tool_calls": [call]}, "tool_calls", 5
        words = self._words(value)
        bound = value.get("max_completion_tokens") or value.get("max_tokens", 100)
        reason = "length" if bound < len(WORDS) else "stop"
        if self.has("too many tokens"):
            words, reason = WORDS, "stop"
        text = "".join(words)
        for stop in value.get("stop") or ():
            if not self.has("deaf to stops") and stop in text:
                text, reason = text[: text.index(stop)], "stop"
        if self.has("another answer each time"):
            text += str(next(self._numbers))
        return {"role": "assistant", "content": text}, reason, len(words)

    def _words(self, value: Any) -> list[str]:
        if value.get("response_format"):
            return ["{", '"deep": true' + ("" if self.has("wrong text") else ', "unit": "foot"'), "}"]
        bound = value.get("max_completion_tokens") or value.get("max_tokens", 100)
        return WORDS[:bound]

    def _entry(self, word: str) -> dict[str, Any]:
        top = [{"token": word, "logprob": -0.1, "bytes": list(word.encode())}] * (2 if self.has("few scores") else 3)
        return {"token": word, "logprob": -0.1, "bytes": list(word.encode()), "top_logprobs": top}

    def _embeddings(self, value: Any) -> dict[str, Any]:
        given = value["input"] if isinstance(value["input"], list) else [value["input"]]
        vectors = [[float(len(text)), 1.0] for text in given]
        if self.has("vectors out of order"):
            vectors.reverse()
        if value.get("encoding_format") == "base64" and not self.has("no base64"):
            shown: list[Any] = [base64.b64encode(struct.pack("<2f", *vector)).decode() for vector in vectors]
        else:
            shown = vectors
        data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(shown)]
        return {"object": "list", "data": data, "model": "m", "usage": {"prompt_tokens": 9, "total_tokens": 9}}

    async def _stream(self, value: Any, writer: asyncio.StreamWriter) -> None:
        kind = "application/json" if self.has("wrong content type") else "text/event-stream"
        writer.write(self._head(200, kind) + b"transfer-encoding: chunked\r\n\r\n")
        for frame in self._frames(value):
            writer.write(b"%x\r\n%b\r\n" % (len(frame), frame))
            await writer.drain()
            if self.behind == "paced":
                await asyncio.sleep(0.04 if self.has("steps of 40 ms") else 0.01)
        if self.behind == "silent":
            await asyncio.sleep(5 if self.has("dead silence") else 0.1)
            writer.write(b"e\r\n: keep-alive\n\n\r\n")
        if self.behind in ("breaking", "failing") and not self.has("clean end of a cut stream"):
            return
        if not self.has("no end of the body"):
            writer.write(b"0\r\n\r\n")

    def _frames(self, value: Any) -> list[bytes]:
        if self.behind == "silent":
            return [self._frame(value, 0, {"role": "assistant"})]
        if self.behind == "paced":
            return [self._frame(value, 0, {"content": "a"}) for _ in range(300)]
        if self.behind in ("breaking", "failing"):
            told = b'data: {"error": {"message": "lost at 10.0.0.1:80", "type": "t", "param": null, "code": null}}\n\n'
            if not self.has("addresses in errors"):
                told = told.replace(b" at 10.0.0.1:80", b"")
            told = b"" if self.has("not a word", "clean end of a cut stream") else told
            return [self._frame(value, 0, {"role": "assistant"}), told] if told else [self._frame(value, 0, {})]
        frames = [frame for index in range(value.get("n", 1)) for frame in self._choice_frames(value, index)]
        if (value.get("stream_options") or {}).get("include_usage") and not self.has("no usage"):
            frames.append(self._frame(value, None, {}))
        elif self.has("usage unasked"):
            frames.append(self._frame(value | {"stream_options": {"include_usage": True}}, None, {}))
        if not self.has("no [DONE]"):
            frames.append(b"data: [DONE]\n\n")
        if self.has("more after [DONE]"):
            frames.append(self._frame(value, 0, {"content": "more"}))
        if self.has("torn UTF-8"):
            frames[2] = frames[2].replace(b"fleuves", b"fl\xc3")
        return frames

    def _choice_frames(self, value: Any, index: int) -> list[bytes]:
        shown = 0 if self.has("one index for all") else index
        first: dict[str, Any] = {} if self.has("no role") else {"role": "assistant", "content": ""}
        message, reason, _ = self._message(value)
        deltas: list[dict[str, Any]] = [{"content": word} for word in self._words(value)]
        if self.has("words lost"):
            deltas = deltas[:-1]
        if "tool_calls" in message:
            deltas = self._call_deltas(message["tool_calls"][0])
        frames = [self._frame(value, shown, first), *(self._frame(value, shown, delta) for delta in deltas)]
        return [*frames, self._frame(value, shown, {}, "" if self.has("no reason") else reason)]

    def _call_deltas(self, call: dict[str, Any]) -> list[dict[str, Any]]:
        name, text = call["function"]["name"], call["function"]["arguments"]
        first = {"index": 0, "id": call["id"], "type": "function", "function": {"name": name, "arguments": ""}}
        later: dict[str, Any] = {"index": 0, "function": {"arguments": text}}
        if self.has("no index in calls"):
            del later["index"]
        return [{"tool_calls": [first]}, {"tool_calls": [later]}]

    def _frame(self, value: Any, index: int | None, delta: dict[str, Any], reason: str = "") -> bytes:
        number = next(self._numbers) if self.has("ids that change") else 0
        chunk: dict[str, Any] = {"id": f"s-{number}", "object": "chat.completion.chunk", "created": 1, "model": "m"}
        chunk["choices"] = []
        if index is not None:
            choice: dict[str, Any] = {"index": index, "delta": delta, "finish_reason": reason or None}
            if value.get("logprobs") and delta.get("content") and not self.has("no scores in streams"):
                choice["logprobs"] = {"content": [self._entry(delta["content"])]}
            chunk["choices"] = [choice]
        if (value.get("stream_options") or {}).get("include_usage"):
            chunk["usage"] = USAGE if index is None or self.has("usage everywhere") else None
        return b"data: " + json.dumps(chunk).encode() + b"\n\n"

    def _refuse(self, writer: asyncio.StreamWriter, refusal: Refusal) -> None:
        message = f"{refusal.param or 'something'} is wrong"
        if self.has("stack traces"):
            message += ' Traceback: File "/srv/app.py", line 3'
        error = {"message": message, "type": "invalid_request_error", "param": refusal.param, "code": refusal.code}
        body = b"Not so." if self.has("errors in words") else json.dumps({"error": error}).encode()
        self._write(writer, refusal.status, body)

    def _write(self, writer: asyncio.StreamWriter, status: int, body: bytes) -> None:
        after = b"retry-after: 2\r\n" if status == 429 and not self.has("no retry-after") else b""
        length = f"content-length: {len(body)}\r\n\r\n".encode()
        writer.write(self._head(status, "application/json") + after + length + body)

    def _head(self, status: int, kind: str) -> bytes:
        number = 0 if self.has("one request id") else next(self._numbers)
        left = 9 if self.has("more left than the limit") else 4
        limits = f"x-ratelimit-limit-requests: 5\r\nx-ratelimit-remaining-requests: {left}\r\n"
        limits += "x-ratelimit-reset-requests: 12ms\r\n"
        head = (
            f"HTTP/1.1 {status} \r\ncontent-type: {kind}\r\nx-request-id: r-{number}\r\n{limits}connection: close\r\n"
        )
        return head.encode()
