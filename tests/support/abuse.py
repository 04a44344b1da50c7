"""Random requests at an engine, good, bad and hostile, from clients that stay, leave and abort.

In: a seed; out: requests by number (the same for the same seed), and what each client saw.
To have the engine abused with something new, add a function to ``INGREDIENTS``.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from adapters import write_adapter

from penstock.cli.boot import boot
from penstock.config.settings import PROMPT_LOOKUP, EngineSettings
from penstock.engine.loop import Loop
from penstock.engine.sequence import StepPlan, StepResult
from penstock.engine.server.booted import Booted
from penstock.engine.server.runner import Runner
from penstock.engine.server.service import Service
from penstock.events.list import Event, StepDone
from penstock.wire.embedding import EmbedRequest
from penstock.wire.engine import (
    Accepted,
    Delta,
    Failed,
    Finished,
    GenerateRequest,
    Grammar,
    LoadAdapter,
    Sampling,
    UnloadAdapter,
)
from penstock.wire.errors import ERRORS, Problem

VOCABULARY = 256
BLOCK_TOKENS = 8
BLOCK_BYTES = 2 * 3 * 2 * 32 * 4 * BLOCK_TOKENS
"""Of the seeded checkpoint: keys and values, layers, KV heads, head size, bytes of a float32."""
NUM_BLOCKS = 48
ADAPTERS, COMES_AND_GOES = ("one", "two"), "three"
"""Folders beside the checkpoint."""
NUM_CLIENTS = 40
"""With about a hundred tokens each they ask for ten times what the blocks hold."""

Fields = dict[str, Any]


def prompt(dice: random.Random, fields: Fields) -> None:
    """Ids, text or a chat; often one of a few beginnings, so that prefixes are shared.

    Every other one ends as some hundred others do, so that whole prompts are shared, too; the rest end as none does.
    """
    beginning = dice.choice(["The turbine spins. " * 3, "", "Water falls down the pipe. " * 2])
    ending = random.Random(dice.randrange(dice.choice([300, 1 << 40])))
    text = beginning + "".join(ending.choice("abcdefgh \n") for _ in range(ending.randint(1, 40)))
    way = dice.randrange(3)
    if way == 0:
        fields["token_ids"] = list(text.encode())
    elif way == 1:
        fields["text"] = text
    else:
        fields["messages"] = [{"role": "user", "content": text}]


def sampling(dice: random.Random, fields: Fields) -> None:
    """Greedy or drawn, with all that can be set."""
    fields["sampling"] = Sampling(
        seed=dice.randrange(1 << 40),
        temperature=dice.choice([0.0, 0.0, 0.8, 1.3]),
        top_p=dice.choice([None, 0.5, 0.95]),
        top_k=dice.choice([None, 1, 40]),
        min_p=dice.choice([None, 0.05]),
        repetition_penalty=dice.choice([None, 1.2]),
        presence_penalty=dice.choice([0.0, 0.7]),
        frequency_penalty=dice.choice([0.0, -0.4]),
        logit_bias=dice.choice([None, {65: 3.0, 66: -100.0}]),
    )


def length(dice: random.Random, fields: Fields) -> None:
    """Up to about a hundred tokens; some ask for nothing but the prompt."""
    fields["max_tokens"] = dice.choice([0, 1, dice.randint(2, 100), dice.randint(2, 100)])
    fields["min_tokens"] = dice.choice([0, 0, min(3, fields["max_tokens"])])
    fields["ignore_eos"] = dice.random() < 0.5


def stops(dice: random.Random, fields: Fields) -> None:
    """Strings that are likely to come, and ids."""
    if dice.random() < 0.4:
        fields["stop"] = ["".join(dice.choice("etaoin ") for _ in range(dice.randint(1, 3))) for _ in range(3)]
    if dice.random() < 0.2:
        fields["stop_token_ids"] = [dice.randrange(32, 127)]


def scores(dice: random.Random, fields: Fields) -> None:
    """Log-probabilities, of the prompt too."""
    if dice.random() < 0.3:
        fields["logprobs"] = dice.choice([0, 5])
        fields["echo"] = dice.random() < 0.3


def owner(dice: random.Random, fields: Fields) -> None:
    """One of four tenants, the first of which floods; priorities as wild as they come."""
    tenant = dice.choice(["flood"] * 6 + ["a", "b", "c"])
    fields.update(tenant=tenant, cache_salt=tenant, weight=dice.choice([0.5, 1.0, 8.0]))
    fields["priority"] = dice.choice([0, 0, 0, 1, -1, 10**9, -(10**9)])


def grammar(dice: random.Random, fields: Fields) -> None:
    """A schema or an expression that the output has to follow."""
    if dice.random() < 0.25:
        schema = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "y"]}}}
        fields["grammar"] = dice.choice(
            [
                Grammar(kind="json_object", value="{}", param="response_format"),
                Grammar(kind="json_schema", value=json.dumps(schema), param="response_format"),
                Grammar(kind="regex", value="[a-f]{4,40}", param="structured_outputs"),
                Grammar(kind="regex", value="(ab|c)+", param="structured_outputs"),
            ]
        )


def resumed(dice: random.Random, fields: Fields) -> None:
    """From tokens that another engine is said to have emitted."""
    if dice.random() < 0.1 and "grammar" not in fields:
        fields["emitted_token_ids"] = [dice.randrange(97, 123) for _ in range(dice.randint(0, fields["max_tokens"]))]


def adapter(dice: random.Random, fields: Fields) -> None:
    """Often none; at times one that nobody has."""
    fields["adapter"] = dice.choice(["", "", *ADAPTERS]) if dice.random() > 0.01 else "nowhere"


def spoilt(dice: random.Random, fields: Fields) -> None:
    """One in twenty-five is wrong or hostile, and says so with a code."""
    if dice.random() > 0.04:
        return
    evil: Fields = dice.choice(
        [
            {"grammar": Grammar(kind="regex", value="(a|bc)*" * 150_000)},
            {"grammar": Grammar(kind="regex", value="(unclosed")},
            {"grammar": Grammar(kind="json_schema", value='{"items":' * 20_000)},
            {"grammar": Grammar(kind="json_schema", value=json.dumps({"enum": list(range(200_000))}))},
            {"grammar": Grammar(kind="regex", value="(a|b)*a(a|b){3000}")},
            {"grammar": Grammar(kind="lark", value="start: start")},
            {"text": "x" * 5000, "token_ids": None, "messages": None},
            {"token_ids": [VOCABULARY * 9], "text": None, "messages": None},
            {"token_ids": [], "text": None, "messages": None},
            {"max_tokens": 10**9},
        ]
    )
    fields.update(evil)


INGREDIENTS: tuple[Callable[[random.Random, Fields], None], ...] = (
    prompt,
    sampling,
    length,
    stops,
    scores,
    owner,
    grammar,
    resumed,
    spoilt,
    adapter,
)


def request(seed: int, number: int) -> GenerateRequest:
    """Request ``number`` of a seed, always the same."""
    dice = random.Random(seed * 1_000_003 + number)
    fields: Fields = {"id": f"r{number}"}
    for ingredient in INGREDIENTS:
        ingredient(dice, fields)
    return GenerateRequest(**fields)


def write_adapters(directory: Path) -> None:
    """Those that requests ask for, and one that comes and goes, beside the checkpoint in ``directory``."""
    for seed, name in enumerate((*ADAPTERS, COMES_AND_GOES)):
        write_adapter(directory.parent / name, directory, seed=seed, rank=4 + 6 * seed)


@dataclass(slots=True)
class Seen:
    """What a client saw.  ``ended``: each terminal event's reason or code; ``left``: it did not read to the end;
    ``cached``: tokens of its prompt that were found.
    """

    ended: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[float | None] = field(default_factory=list)
    left: bool = False
    cached: int = 0

    def note(self, event: object) -> None:
        if isinstance(event, Delta):
            assert not self.ended, "a token after the end"
            self.token_ids += event.token_ids
            self.text += event.text
            self.logprobs += [entry.logprob for entry in event.logprobs or ()]
        elif isinstance(event, Finished):
            self.ended.append(event.reason)
            self.text += event.text
            self.cached = event.usage.cached
        elif isinstance(event, Failed):
            self.ended.append(event.code)
            self.text += event.message


class _CheapRows(Loop):
    """A loop whose steps take hardly longer for more rows, a draft model's included: speculation always pays."""

    def commit(self, plan: StepPlan, result: StepResult) -> None:
        draft_s = 1e-6 * sum(draft.num_rows + draft.num_proposed for draft in plan.drafts.values())
        super().commit(plan, replace(result, seconds=0.01 + 1e-6 * plan.num_tokens + draft_s, draft_s=draft_s))


class Victim:
    """The production engine without HTTP: service, runner and executor over a checkpoint."""

    def __init__(
        self, directory: Path, *, num_blocks: int = NUM_BLOCKS, itl_target_s: float | None = 0.05, **settings: Any
    ) -> None:
        """Exact and with little room, unless ``settings`` (of :class:`EngineSettings`) say otherwise.

        One with ``speculative`` (look-up, or the checkpoint as its own draft model) is made to believe that rows are
        cheap, so that it proposes whoever else computes.
        """
        has_draft = settings.get("speculative", PROMPT_LOOKUP) != PROMPT_LOOKUP
        chosen: dict[str, Any] = {
            "replica": "abused",
            "socket": "",
            "model_dir": str(directory),
            "served_name": "m",
            "exact": True,
            "max_model_len": BLOCK_TOKENS * NUM_BLOCKS,
            "kv_memory_bytes": num_blocks * BLOCK_BYTES * (1 + has_draft),
            "block_tokens": BLOCK_TOKENS,
            "max_step_tokens": 96,
            "max_num_seqs": 24,
            "threads": 1,
            "max_loras": 6,
            **settings,
        }
        self._directory = directory
        self._digests: dict[str, str] = {}
        self.num_tokens = self.num_proposed = self.num_accepted = 0
        """Tokens computed so far; tokens proposed for the model to verify, and those that were right."""
        self.booted: Booted = boot(EngineSettings(**chosen), lambda share, what: None, self._note)
        if "speculative" in chosen:
            self.booted = replace(self.booted, loop=_CheapRows(self.booted.loop.scheduler, self._note))
        self.pool = self.booted.loop.scheduler.pool
        self.runner = Runner(self.booted.loop, self.booted.executor)
        self.service = Service(self.booted, self.runner, model="m", max_waiting=4096, itl_target_s=itl_target_s)

    def _note(self, event: Event) -> None:
        if isinstance(event, StepDone):
            self.num_tokens += event.decode_tokens + event.prefill_tokens
            self.num_proposed += event.proposed_tokens
            self.num_accepted += event.accepted_tokens

    @contextmanager
    def running(self) -> Iterator[None]:
        """Steps while the body runs, on the running event loop."""
        task = asyncio.get_running_loop().create_task(self.runner.run())
        try:
            yield
        finally:
            task.cancel()

    def close(self) -> None:
        self.booted.grammars.close()

    async def take_adapters(self) -> None:
        """Those that :func:`write_adapters` has written, for requests to call by their names."""
        for name in ADAPTERS:
            self._digests[name] = await self._load(name)

    async def _load(self, name: str) -> str:
        return (await self.service.load_adapter(LoadAdapter(path=str(self._directory.parent / name)))).digest

    async def change_adapters(self) -> None:
        """One comes and goes beside the traffic, and one that is not there is refused."""
        self.service.unload_adapter(UnloadAdapter(digest=await self._load(COMES_AND_GOES)))
        with pytest.raises(Problem, match="is not a directory"):
            await self._load("nowhere")

    async def ask(self, request: GenerateRequest, dice: random.Random | None = None) -> Seen:
        """One client.  With ``dice`` it may leave or abort at any moment; its stream is watched to its end anyway."""
        request = msgspec.structs.replace(request, adapter=self._digests.get(request.adapter, request.adapter))
        seen = Seen()
        try:
            opened = await self.service.generate(request)
        except Problem as problem:
            seen.ended.append(problem.code)
            seen.text = problem.message
            return seen
        patience = dice.choice([0, 1, dice.randint(2, 30)]) if dice is not None and dice.random() < 0.25 else 10**9
        try:
            while not seen.ended:
                if len(seen.token_ids) >= patience and not seen.left:
                    seen.left = True
                    if dice is not None and dice.random() < 0.5:
                        self.service.abort(request.id)
                    else:
                        self.service.close(request.id, opened)
                for event in await opened.stream.drain():
                    seen.note(event)
        finally:
            self.service.close(request.id, opened)
        return seen

    async def embed(self, dice: random.Random, number: int) -> None:
        """Some texts embedded beside, of which some are given up."""
        texts = ["".join(dice.choice("abc ") for _ in range(dice.randint(1, 60))) for _ in range(dice.randint(1, 5))]

        async def accept(accepted: Accepted) -> None:
            assert accepted.prompt_tokens > 0

        working = asyncio.create_task(
            self.service.embed(EmbedRequest(id=f"e{number}", texts=texts, tenant="a"), accept)
        )
        if dice.random() < 0.3:
            await asyncio.sleep(0)
            working.cancel()
        try:
            embedded = await working
        except asyncio.CancelledError:
            return
        assert len(embedded.vectors) == len(texts)

    async def round(self, seed: int, begin: int, count: int) -> dict[int, Seen]:
        """So many requests from ``NUM_CLIENTS`` clients at a time, each ended once; the engine is idle afterwards."""
        numbers = iter(range(begin, begin + count))
        seen: dict[int, Seen] = {}

        async def client(which: int) -> None:
            for number in numbers:
                dice = random.Random(seed * 77 + number)
                if dice.random() < 0.02:
                    await self.embed(dice, number)
                if self._digests and number % 40 == 7:
                    await self.change_adapters()
                seen[number] = await self.ask(request(seed, number), dice)

        await asyncio.gather(*(client(which) for which in range(NUM_CLIENTS)))
        self.check_idle()
        assert len(seen) == count
        for number, one in seen.items():
            assert len(one.ended) == 1, f"request {number} of seed {seed} ended {one.ended}"
            assert one.ended[0] in ERRORS or one.ended[0] in ("stop", "length", "cancelled")
            assert one.ended[0] not in ("internal_error", "not_finite"), f"request {number} of seed {seed}"
            assert one.ended[0] not in ERRORS or 0 < len(one.text) < 2000, f"request {number} of seed {seed}"
        return seen

    def check_idle(self) -> None:
        """Nothing runs, waits or is leased; the pool's laws hold; no tenant's counter is left behind."""
        scheduler = self.booted.loop.scheduler
        self.pool.check()
        assert self.pool.num_used == 0 and not len(self.booted.loop) and self.service.num_open == 0
        assert not scheduler.running and not len(scheduler.waiting) and not list(scheduler.lines)
        assert len(scheduler.counters.charged) <= 5


@dataclass(frozen=True, slots=True)
class Footprint:
    """What the process holds: bytes of memory (its grammar process's apart), open files, threads, Python objects."""

    memory: int
    grammar_memory: int
    files: int
    threads: int
    objects: int


def footprint() -> Footprint:
    """Of this process, after a collection."""
    gc.collect()
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return Footprint(
        memory=_resident("self"),
        grammar_memory=sum(_resident(child) for child in children),
        files=sum(1 for _ in Path("/proc/self/fd").iterdir()),
        threads=threading.active_count(),
        objects=len(gc.get_objects()),
    )


def check_flat(held: Sequence[Footprint]) -> None:
    """The last quarter holds no more than the second one, but for the allocator's slack."""
    quarter = max(1, len(held) // 4)
    before, after = _median(held[quarter : 2 * quarter]), _median(held[-quarter:])
    assert after.memory <= before.memory * 1.02 + (4 << 20), (before, after)
    assert after.files <= before.files and after.threads <= before.threads, (before, after)
    assert after.objects <= before.objects * 1.01 + 500, (before, after)


def _median(held: Sequence[Footprint]) -> Footprint:
    def middle(name: str) -> int:
        values: list[int] = sorted(getattr(one, name) for one in held)
        return values[len(values) // 2]

    return Footprint(*map(middle, ("memory", "grammar_memory", "files", "threads", "objects")))


def _resident(pid: str) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except FileNotFoundError:
        return 0


def differences(one: Seen, other: Seen) -> list[str]:
    """Where two answers to one request differ; log-probabilities are compared as bits."""
    return [name for name in ("token_ids", "text", "logprobs", "ended") if getattr(one, name) != getattr(other, name)]


def kept(seen: dict[int, Seen], dice: random.Random, count: int) -> dict[int, bytes]:
    """So many of the answers that were read to the end, packed: they are none of the objects that are counted."""
    read = [number for number, one in seen.items() if one.ended[0] in ("stop", "length")]
    return {number: msgspec.msgpack.encode(seen[number]) for number in dice.sample(read, min(count, len(read)))}


async def check_kept(reference: Victim, seed: int, packed: dict[int, bytes]) -> None:
    """Each of these is, to the bit, what an engine with all the memory answers to it alone."""
    for number, answer in packed.items():
        alone = await reference.ask(request(seed, number))
        assert not differences(msgspec.msgpack.decode(answer, type=Seen), alone), f"request {number} of seed {seed}"


def endings(seen: dict[int, Seen]) -> Counter[str]:
    """How many ended how."""
    return Counter(one.ended[0] for one in seen.values())
