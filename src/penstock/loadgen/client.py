"""The open-loop client.  In: a target and demands; out: one outcome per demand.

Sends each request at its scheduled time whatever the server does; never waits for an answer before the next send,
never retries, never limits connections.  Argued in Schroeder, Wierman, Harchol-Balter, NSDI 2006 (open versus closed).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import aiohttp
import msgspec

from penstock.loadgen import stream
from penstock.loadgen.report import Outcome
from penstock.loadgen.workloads import Demand, prompt_ids, prompt_text
from penstock.wire.errors import Problem

BODIES_AHEAD = 4096
"""Bodies encoded before the start, so that encoding delays no send; about 4 bytes per prompt token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """An OpenAI-compatible endpoint and how it is asked.  ``url`` ends in ``/v1``; ``timeout_s`` is per request.

    ``completions`` sends token ids below ``vocabulary``, so lengths are exact; ``chat`` sends words.
    ``ignore_eos`` is an extension (Penstock, vLLM, SGLang) that makes output lengths exact.
    """

    url: str
    model: str
    endpoint: Literal["chat", "completions"] = "completions"
    api_key: str | None = None
    vocabulary: int = 256
    temperature: float | None = 0.0
    ignore_eos: bool = True
    timeout_s: float = 600.0

    @property
    def path(self) -> str:
        return f"{self.url}/chat/completions" if self.endpoint == "chat" else f"{self.url}/completions"

    def body(self, demand: Demand, index: int, seed: int) -> bytes:
        """The request of demand ``index`` as JSON."""
        fields: dict[str, object] = {
            "model": self.model,
            "max_tokens": demand.output_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.temperature is not None:
            fields["temperature"] = self.temperature
        if self.ignore_eos:
            fields["ignore_eos"] = True
        if self.endpoint == "chat":
            fields["messages"] = [{"role": "user", "content": prompt_text(demand, index, seed=seed)}]
        else:
            fields["prompt"] = prompt_ids(demand, index, seed=seed, vocabulary=self.vocabulary)
        return stream.encode(fields)


@dataclass(slots=True)
class Tally:
    """How far a run is, for whoever shows progress."""

    sent: int = 0
    ended: int = 0
    failed: int = 0


async def reach(url: str, api_key: str | None, model: str | None) -> str:
    """Check that something answers at ``url``; the model to ask for: ``model``, or the first in ``/v1/models``.

    Raises ``server_unreachable`` or ``endpoint_error``.
    """
    try:
        timeout = aiohttp.ClientTimeout(total=30, sock_connect=5)
        async with (
            aiohttp.ClientSession(timeout=timeout, headers=stream.headers(api_key)) as session,
            session.get(f"{url}/models") as reply,
        ):
            body = await reply.read()
    except (aiohttp.ClientError, OSError, ValueError) as error:
        reason = str(error) or type(error).__name__
        raise Problem("server_unreachable", f"No answer from {url}/models: {reason}.") from error
    if reply.status == 401 or (reply.status != 200 and model is None):
        refused = stream.error_of(reply.status, body)
        message = f"{url}/models answered {reply.status}: {refused.message}"
        raise Problem("endpoint_error", message, hint=stream.hint_for(reply.status))
    if model is not None:
        return model
    try:
        models = msgspec.json.decode(body, type=_Models).data
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Problem("endpoint_error", f"{url}/models did not answer a list of models: {error}.") from error
    if not models:
        raise Problem("endpoint_error", f"{url}/models lists no model.")
    return models[0].id


async def run_open_loop(
    target: Target,
    demands: Sequence[Demand],
    *,
    seed: int,
    stop: asyncio.Event,
    tally: Tally,
    now: Callable[[], float] = time.perf_counter,
) -> list[Outcome]:
    """Send every demand at its time and wait for all to end, or until ``stop`` is set: then what runs is cut short."""
    outcomes = [Outcome(demand.at_s) for demand in demands]
    bodies = [target.body(demand, index, seed) for index, demand in enumerate(demands[:BODIES_AHEAD])]
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=3)
    timeout = aiohttp.ClientTimeout(total=target.timeout_s)
    async with aiohttp.ClientSession(
        connector=connector, timeout=timeout, headers=stream.headers(target.api_key)
    ) as session:
        start = now()
        stopped = asyncio.create_task(stop.wait())
        exchanges: list[asyncio.Task[None]] = []
        for index, demand in enumerate(demands):
            body = bodies[index] if index < len(bodies) else target.body(demand, index, seed)
            await asyncio.wait([stopped], timeout=max(0.0, start + demand.at_s - now()))
            if stop.is_set():
                break
            exchange = _Exchange(session, target, outcomes[index], tally, lambda: now() - start)
            exchanges.append(asyncio.create_task(exchange.run(body)))
        ends: list[asyncio.Future[Any]] = [stopped, asyncio.gather(*exchanges)]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for task in (stopped, *exchanges):
            task.cancel()
        for result in await asyncio.gather(*exchanges, return_exceptions=True):
            if isinstance(result, Exception):
                raise result
    return outcomes


class _Exchange:
    """One request and its answer, recorded into its outcome."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        target: Target,
        outcome: Outcome,
        tally: Tally,
        elapsed_s: Callable[[], float],
    ) -> None:
        self._session = session
        self._target = target
        self._outcome = outcome
        self._tally = tally
        self._elapsed_s = elapsed_s

    async def run(self, body: bytes) -> None:
        self._outcome.sent_s = self._elapsed_s()
        self._tally.sent += 1
        try:
            async with self._session.post(self._target.path, data=body) as reply:
                if reply.status == 200:
                    await self._read(reply)
                else:
                    error = stream.error_of(reply.status, await reply.read())
                    self._fail(error.name(f"http_{reply.status}"), error.message)
        except TimeoutError:
            self._fail("timeout", f"no complete answer within {self._target.timeout_s:g} s")
        except aiohttp.ClientConnectionError as error:
            connected = not isinstance(error, aiohttp.ClientConnectorError)
            self._fail("disconnected" if connected else "connect_failed", str(error) or type(error).__name__)
        except (aiohttp.ClientError, OSError) as error:
            self._fail("disconnected", str(error) or type(error).__name__)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            self._fail("protocol", f"not an OpenAI stream: {error}")
        self._outcome.finished_s = self._outcome.finished_s or self._elapsed_s()
        self._tally.ended += 1
        self._tally.failed += self._outcome.error is not None

    async def _read(self, reply: aiohttp.ClientResponse) -> None:
        """The stream to its end; the end of the request is ``[DONE]``, not the connection's."""
        outcome, reader = self._outcome, stream.ChunkReader()
        finish_reason, done_s = None, None
        async for data in reply.content.iter_any():
            at_s = self._elapsed_s()
            for chunk in reader.feed(data):
                finish_reason = finish_reason or chunk.finish_reason
                self._take(chunk, at_s)
            if reader.done and done_s is None:
                done_s = at_s
        outcome.finished_s = done_s or self._elapsed_s()
        if outcome.error is None and not reader.done and finish_reason is None:
            self._fail("stream_truncated", "the stream ended without a finish_reason and without [DONE]")
        if outcome.first_s is None:
            outcome.first_s = outcome.last_s = outcome.finished_s
        if not outcome.usage_reported:
            outcome.output_tokens = outcome.num_chunks

    def _take(self, chunk: stream.Chunk, at_s: float) -> None:
        outcome = self._outcome
        if chunk.error is not None:
            self._fail(chunk.error.name("stream_error"), chunk.error.message)
        if chunk.usage is not None:
            details = chunk.usage.prompt_tokens_details
            outcome.usage_reported = True
            outcome.prompt_tokens = chunk.usage.prompt_tokens
            outcome.output_tokens = chunk.usage.completion_tokens
            outcome.cached_tokens = (details.cached_tokens if details else None) or 0
        if chunk.text or chunk.reasoning:
            if outcome.last_s is None:
                outcome.first_s = at_s
            else:
                outcome.gaps_s.append(at_s - outcome.last_s)
            outcome.last_s = at_s
            outcome.num_chunks += 1

    def _fail(self, code: str, message: str) -> None:
        if self._outcome.error is None:
            self._outcome.error, self._outcome.message = code, message


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]
