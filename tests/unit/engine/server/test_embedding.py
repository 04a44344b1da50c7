"""The embedding verb over a real loop, with an executor that counts: turns, ends, cancellations, refusals."""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any, cast

import pytest

from penstock.engine.kv_cache import BlockPool
from penstock.engine.loop import Loop
from penstock.engine.scheduler import Scheduler
from penstock.engine.sequence import Pooling, StepPlan, StepResult
from penstock.engine.server.booted import Booted
from penstock.engine.server.runner import Runner
from penstock.engine.server.service import Service
from penstock.policy.batch import BatchRules
from penstock.wire.embedding import Embedded, EmbedRequest
from penstock.wire.engine import Accepted, GenerateRequest, Sampling
from penstock.wire.errors import Problem

CONTEXT, VOCAB, SIZE = 20, 50, 2
BAD = 49
"""A token whose text has no finite vector."""


class Executor:
    """A text's vector is (first token, length); ``steps`` remembers whose texts were in which step."""

    def __init__(self) -> None:
        self.steps: list[list[str]] = []
        self.problem: Exception | None = None

    def execute(self, plan: StepPlan) -> StepResult:
        self.steps.append([sequence.id for sequence in plan.sequences])
        if self.problem is not None:
            raise self.problem
        vectors = {
            i: None if BAD in s.token_ids else struct.pack("<2f", s.token_ids[0], s.num_tokens)
            for i, s in enumerate(plan.sequences)
        }
        empty: list[None] = [None] * len(vectors)
        return StepResult(plan.step, empty, empty, [[] for _ in empty], pooled=vectors)


class Letters:
    """One token per letter."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        if "\ud800" in text:
            raise Problem("invalid_value", "The text is not valid Unicode.", param="text")
        return [ord(letter) - ord("a") for letter in text]


class Engine:
    """One service that steps only when told to."""

    def __init__(self, max_waiting: int = 1000, generates: bool = False) -> None:
        self.executor = Executor()
        self.accepted: list[int] = []
        rules = BatchRules(max_step_tokens=CONTEXT, max_num_seqs=8, block_tokens=4, stateless=True)
        self.loop = Loop(Scheduler(rules, BlockPool(0), prefix_caching=False), lambda event: None)
        self.runner = Runner(self.loop, self.executor)
        booted = SimpleNamespace(
            tokenizer=Letters(),
            context_tokens=CONTEXT,
            context_limit="the model's context",
            vocab_size=VOCAB,
            pooling=Pooling("mean"),
            embedding_size=SIZE,
            generates=generates,
        )
        self.service = Service(cast(Booted, booted), self.runner, model="m", max_waiting=max_waiting)

    def step(self) -> bool:
        plan = self.loop.plan()
        if plan is None:
            return False
        try:
            self.loop.commit(plan, self.executor.execute(plan))
        except ZeroDivisionError:
            self.loop.fail(plan, Problem("internal_error", "broken"))
        return True

    async def queued(self, work: Coroutine[Any, Any, Embedded]) -> asyncio.Task[Embedded]:
        """Start a request and wait until it is in the queues, or refused."""
        before = len(self.loop)
        task = asyncio.create_task(work)
        while len(self.loop) == before and not task.done():
            await asyncio.sleep(0)
        return task

    async def accept(self, accepted: Accepted) -> None:
        self.accepted.append(accepted.prompt_tokens)

    def embed(self, id: str = "r", **fields: Any) -> Coroutine[Any, Any, Embedded]:
        return self.service.embed(EmbedRequest(id=id, **fields), self.accept)


def vector(encoded: str) -> tuple[float, ...]:
    return struct.unpack(f"<{SIZE}f", base64.b64decode(encoded))


async def refusal(engine: Engine, **fields: Any) -> Problem:
    with pytest.raises(Problem) as caught:
        await asyncio.wait_for(engine.embed(**fields), 10)
    assert len(engine.loop) == engine.service.num_open == 0
    return caught.value


async def test_vectors_come_in_the_order_of_the_inputs() -> None:
    """Three hundred texts of all lengths in many steps: each has its own vector, and nothing stays behind."""
    engine = Engine()
    inputs = [[index % 40] * (1 + index % 19) for index in range(300)]
    task = await engine.queued(engine.embed(token_ids=inputs))
    assert engine.service.num_open == 1 and engine.accepted == [sum(map(len, inputs))]
    while engine.step():
        pass
    embedded = await task
    assert [vector(item) for item in embedded.vectors] == [(ids[0], len(ids)) for ids in inputs]
    assert embedded.prompt_tokens == sum(map(len, inputs))
    assert len(engine.loop) == engine.service.num_open == 0


async def test_a_large_request_leaves_others_their_turn() -> None:
    """A text that comes after two thousand others of one request waits for a window of them, not for all."""
    engine = Engine()
    large = await engine.queued(engine.embed("large", token_ids=[[1] * 10] * 2000))
    small = await engine.queued(engine.embed("small", texts=["a"]))
    assert len(engine.loop.scheduler.waiting) == 65
    while not small.done():
        assert engine.step()
        await asyncio.sleep(0)
    assert len(engine.executor.steps) <= 33
    assert not large.done()
    large.cancel()
    await asyncio.wait([large])


async def test_a_request_that_is_cancelled_leaves_nothing() -> None:
    """When its client is gone, queued texts leave at once and no further ones come."""
    engine = Engine()
    task = await engine.queued(engine.embed(token_ids=[[1] * 10] * 500))
    engine.step()
    task.cancel()
    await asyncio.wait([task])
    assert len(engine.loop) == engine.service.num_open == 0
    assert not engine.step()


async def test_abort_by_id_ends_a_request() -> None:
    """The abort verb ends an embedding as one that another engine may take."""
    engine = Engine()
    task = await engine.queued(engine.embed(token_ids=[[1] * 10] * 500))
    engine.service.abort("r")
    with pytest.raises(Problem) as caught:
        await task
    assert caught.value.code == "draining"
    assert len(engine.loop) == engine.service.num_open == 0


async def test_one_bad_vector_is_the_request_s_end() -> None:
    """Numbers that are not finite answer an error, never a vector of NaN, and the rest is not computed."""
    engine = Engine()
    task = await engine.queued(engine.embed(token_ids=[[1], [BAD], *[[2] * 10] * 300]))
    engine.step()
    with pytest.raises(Problem) as caught:
        await task
    assert caught.value.code == "not_finite"
    assert len(engine.loop) == engine.service.num_open == 0


async def test_a_step_that_raises_ends_the_request_once() -> None:
    """All texts of the failing step fail together; the request has one problem."""
    engine = Engine()
    engine.executor.problem = ZeroDivisionError()
    task = await engine.queued(engine.embed(token_ids=[[1], [2], [3] * 20, [4]]))
    engine.step()
    with pytest.raises(Problem) as caught:
        await task
    assert caught.value.code == "internal_error"
    assert len(engine.loop) == engine.service.num_open == 0


@pytest.mark.parametrize(
    ("fields", "code", "param", "words"),
    [
        ({"token_ids": [[1], [VOCAB]]}, "invalid_value", "input[1]", "50"),
        ({"token_ids": [[-1]]}, "invalid_value", "input[0]", "-1"),
        ({"token_ids": [[1], []]}, "invalid_value", "input[1]", "no tokens"),
        ({"texts": ["a", "a" * 21]}, "context_length_exceeded", "input[1]", "21 tokens"),
        ({"texts": ["a", "\ud800"]}, "invalid_value", "input[1]", "Unicode"),
        ({"texts": ["a"], "num_dimensions": 3}, "invalid_value", "dimensions", "1 to 2"),
        ({"texts": ["a"], "num_dimensions": 0}, "invalid_value", "dimensions", "1 to 2"),
    ],
)
async def test_a_bad_input_is_named_and_nothing_is_queued(
    fields: dict[str, Any], code: str, param: str, words: str
) -> None:
    """One bad input among many refuses the request before any is computed."""
    problem = await refusal(Engine(), **fields)
    assert (problem.code, problem.param) == (code, param)
    assert words in problem.message


async def test_a_full_queue_refuses_with_a_time_to_come_back() -> None:
    """Beyond max_waiting texts in the queue a request is told to try again."""
    engine = Engine(max_waiting=10)
    first = await engine.queued(engine.embed("first", token_ids=[[1] * 10] * 20))
    with pytest.raises(Problem) as caught:
        await engine.embed("second", texts=["a"])
    assert (caught.value.code, caught.value.retry_after_s) == ("overloaded", 1.0)
    first.cancel()
    await asyncio.wait([first])


async def test_an_encoder_generates_nothing() -> None:
    """A request for text is refused with what this model does answer."""
    with pytest.raises(Problem) as caught:
        await Engine().service.generate(GenerateRequest(id="g", sampling=Sampling(seed=0), text="a"))
    assert (caught.value.code, caught.value.param) == ("invalid_value", "model")
    assert "/v1/embeddings" in caught.value.message
