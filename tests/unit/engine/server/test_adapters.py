"""Adapters inside one engine: several in one batch, loaded and dropped beside running streams, never mixed up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from abuse import Seen, Victim
from adapters import edit_config, write_adapter
from seeded import write_seeded_checkpoint

from penstock.wire.embedding import EmbedRequest
from penstock.wire.engine import Accepted, GenerateRequest, LoadAdapter, Sampling, UnloadAdapter
from penstock.wire.errors import Problem

PROMPT = "The turbine spins. " * 4


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("base") / "seeded"
    write_seeded_checkpoint(directory)
    return directory


def in_engine(base: Path, act: Callable[[Victim], Awaitable[None]], **settings: object) -> None:
    engine = Victim(base, **{"max_loras": 3, "max_lora_rank": 16, **settings})  # type: ignore[arg-type]

    async def live() -> None:
        with engine.running():
            await act(engine)
            engine.check_idle()

    try:
        asyncio.run(live())
    finally:
        engine.close()


def asked(id: str, adapter: str = "", max_tokens: int = 12) -> GenerateRequest:
    sampling = Sampling(seed=1, temperature=0.0)
    return GenerateRequest(
        id=id, text=PROMPT, sampling=sampling, max_tokens=max_tokens, adapter=adapter, ignore_eos=True, logprobs=0
    )


async def load(engine: Victim, directory: Path, digest: str = "") -> str:
    return (await engine.service.load_adapter(LoadAdapter(path=str(directory), digest=digest))).digest


def test_each_has_its_own_answer_alone_and_together(base: Path, tmp_path: Path) -> None:
    """Three adapters and the base in one batch: each answers, to the bit, what it answers alone; all are different."""

    async def act(engine: Victim) -> None:
        digests = [""]
        for seed in range(3):
            write_adapter(tmp_path / str(seed), base, seed=seed, rank=3 + 5 * seed)
            digests.append(await load(engine, tmp_path / str(seed)))
        alone = [await engine.ask(asked(f"a{i}", digest)) for i, digest in enumerate(digests)]
        together = await asyncio.gather(*(engine.ask(asked(f"t{i}", digest)) for i, digest in enumerate(digests * 2)))
        for i, seen in enumerate(together):
            assert (seen.token_ids, seen.logprobs) == (alone[i % 4].token_ids, alone[i % 4].logprobs)
        assert len({tuple(seen.token_ids) for seen in alone}) == 4

    in_engine(base, act)


def test_no_prefix_is_found_under_another_adapter(base: Path, tmp_path: Path) -> None:
    """Nor under other content of the same folder: each finds its own blocks, and none of another's."""

    async def act(engine: Victim) -> None:
        write_adapter(tmp_path, base, seed=1)
        old = await load(engine, tmp_path)
        cached = [(await engine.ask(asked(f"{i}", digest))).cached for i, digest in enumerate(["", old, "", old])]
        assert cached[:2] == [0, 0] and min(cached[2:]) > 0
        engine.service.unload_adapter(UnloadAdapter(digest=old))
        edit_config(tmp_path, lora_alpha=17)
        new = await load(engine, tmp_path)
        assert new != old
        fresh = await engine.ask(asked("n", new))
        assert fresh.cached == 0
        engine.service.unload_adapter(UnloadAdapter(digest=new))
        edit_config(tmp_path, lora_alpha=16.0)
        assert await load(engine, tmp_path) == old
        assert (await engine.ask(asked("o", old))).cached > 0

    in_engine(base, act)


def test_what_runs_keeps_its_adapter_when_it_is_unloaded(base: Path, tmp_path: Path) -> None:
    """The stream ends with the tokens of an undisturbed one; new requests are refused, and its memory comes free."""

    async def act(engine: Victim) -> None:
        write_adapter(tmp_path / "a", base, seed=1)
        write_adapter(tmp_path / "b", base, seed=2)
        digest = await load(engine, tmp_path / "a")
        undisturbed = await engine.ask(asked("u", digest, 60))
        running = asyncio.create_task(engine.ask(asked("r", digest, 60)))
        while not engine.booted.loop.scheduler.running:
            await asyncio.sleep(0)
        engine.service.unload_adapter(UnloadAdapter(digest=digest))
        with pytest.raises(Problem, match="still use"):
            await load(engine, tmp_path / "b")
        with pytest.raises(Problem) as refused:
            await engine.service.generate(asked("n", digest))
        assert refused.value.code == "not_ready"
        assert not running.done()
        assert (await running).token_ids == undisturbed.token_ids
        del running
        await load(engine, tmp_path / "b")

    in_engine(base, act, max_loras=1)


def test_loading_and_dropping_beside_traffic_changes_no_answer(base: Path, tmp_path: Path) -> None:
    """While one adapter comes and goes, and bad ones are refused, streams of others get what they get alone."""

    async def act(engine: Victim) -> None:
        write_adapter(tmp_path / "stays", base, seed=1)
        write_adapter(tmp_path / "comes", base, seed=2)
        write_adapter(tmp_path / "large", base, rank=17)
        stays = await load(engine, tmp_path / "stays")
        alone = {digest: (await engine.ask(asked(f"a{digest}", digest, 100))).token_ids for digest in ("", stays)}
        streams = [
            asyncio.create_task(engine.ask(asked(f"{digest}{number}", digest, 100)))
            for number in range(3)
            for digest in ("", stays)
        ]
        seen: list[Seen] = []
        while not all(stream.done() for stream in streams):
            comes = await load(engine, tmp_path / "comes")
            seen.append(await engine.ask(asked(f"c{len(seen)}", comes, 5)))
            engine.service.unload_adapter(UnloadAdapter(digest=comes))
            with pytest.raises(Problem) as refused:
                await load(engine, tmp_path / "large")
            assert refused.value.code == "checkpoint_unsupported"
        assert [stream.result().token_ids for stream in streams] == [alone[""], alone[stays]] * 3
        assert seen and all(one.token_ids == seen[0].token_ids for one in seen)

    in_engine(base, act)


def test_the_content_has_to_be_the_one_that_was_asked_for(base: Path, tmp_path: Path) -> None:
    """With a digest, other content is refused; asked for again, what is there is not read again."""

    async def act(engine: Victim) -> None:
        write_adapter(tmp_path, base)
        with pytest.raises(Problem) as refused:
            await load(engine, tmp_path, "another")
        assert refused.value.code == "conflict"
        digest = await load(engine, tmp_path)
        (tmp_path / "adapter_config.json").unlink()
        assert await load(engine, tmp_path, digest) == digest
        assert engine.service.load("ready").adapters == [digest]

    in_engine(base, act)


def test_embeddings_have_adapters_too(base: Path, tmp_path: Path) -> None:
    """A text has another vector with one, the same again, and the base's without."""

    async def accept(accepted: Accepted) -> None:
        assert accepted.prompt_tokens == len(PROMPT)

    async def act(engine: Victim) -> None:
        write_adapter(tmp_path, base)
        digest = await load(engine, tmp_path)
        vectors = [
            (await engine.service.embed(EmbedRequest(id=f"{i}", texts=[PROMPT], adapter=adapter), accept)).vectors[0]
            for i, adapter in enumerate(["", digest, "", digest])
        ]
        assert vectors[0] == vectors[2] != vectors[1] == vectors[3]

    in_engine(base, act)


@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
def test_beside_packed_weights(quantization: str, base: Path, tmp_path: Path) -> None:
    """In bfloat16 and in whole numbers the adapter changes the answer, and each is the same beside the other."""

    async def act(engine: Victim) -> None:
        write_adapter(tmp_path, base)
        digest = await load(engine, tmp_path)
        plain, adapted = await engine.ask(asked("p")), await engine.ask(asked("a", digest))
        assert plain.token_ids != adapted.token_ids
        together = await asyncio.gather(engine.ask(asked("q")), engine.ask(asked("b", digest)))
        # In bfloat16 company moves the last bits, so that a close choice may fall otherwise: the first token is near.
        assert together[0].logprobs[0] == pytest.approx(plain.logprobs[0], abs=0.05)
        assert together[1].logprobs[0] == pytest.approx(adapted.logprobs[0], abs=0.05)

    if quantization != "none":
        pytest.importorskip("penstock.models.fast.int8").is_supported() or pytest.skip("no AVX512-VNNI here")
    in_engine(base, act, exact=False, dtype="bfloat16", quantization=quantization)
