"""A draft model beside the model: what is loaded, what is refused, and that proposals come out of it."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from seeded import write_seeded_checkpoint
from tiny_encoder import write_tiny_encoder

from penstock.cli.boot import boot
from penstock.cli.wiring.engines import with_draft_model
from penstock.config.settings import EngineSettings, ServeSettings
from penstock.engine.sequence import Sequence, TokenScore
from penstock.engine.server.booted import Booted
from penstock.events.list import Event, StepDone
from penstock.store.sources import BUNDLED
from penstock.wire.engine import FinishReason, Sampling
from penstock.wire.errors import Problem


@dataclass
class Heard:
    token_ids: list[int] = field(default_factory=list)

    def prompt_scored(self, scores: list[TokenScore]) -> None: ...

    def push(self, token_id: int, score: TokenScore | None) -> bool:
        self.token_ids.append(token_id)
        return False

    def finish(self, reason: FinishReason, stop_token_id: int | None, num_cached_tokens: int) -> None: ...

    def fail(self, problem: Problem) -> None:
        raise problem


def booted(model: Path, draft: str, events: list[Event], **settings: object) -> Booted:
    made = EngineSettings(
        replica="0",
        socket="",
        model_dir=str(model),
        served_name="m",
        kv_memory_bytes=1 << 23,
        speculative=draft,
        **settings,  # type: ignore[arg-type]  # fields of several types
    )
    engine = boot(made, lambda share, what: None, events.append)
    engine.grammars.close()
    return engine


def answers(engine: Booted) -> list[list[int]]:
    """Of a greedy and a drawn request beside each other."""
    heard = [Heard(), Heard()]
    for i, (sink, temperature) in enumerate(zip(heard, (0.0, 0.8), strict=True)):
        sampling = Sampling(seed=i, temperature=temperature)
        prompt = engine.tokenizer.encode("def read(path):\n    ")
        engine.loop.submit(Sequence(f"s{i}", list(prompt), len(prompt), 150, sampling, sink))
    while (plan := engine.loop.plan()) is not None:
        engine.loop.commit(plan, engine.executor.execute(plan))
    return [sink.token_ids for sink in heard]


def test_a_model_that_drafts_for_itself_answers_the_same_and_is_mostly_right() -> None:
    """In exact mode to the token; both models have their keys and values in the memory that is counted."""
    events: list[Event] = []
    plain = booted(BUNDLED, "none", [], exact=True)
    drafted = booted(BUNDLED, str(BUNDLED), events, exact=True)

    assert answers(drafted) == answers(plain)

    steps = [event for event in events if isinstance(event, StepDone)]
    assert sum(event.proposed_tokens for event in steps) == sum(event.accepted_tokens for event in steps) > 0
    assert drafted.loop.scheduler.pool.num_blocks == plain.loop.scheduler.pool.num_blocks // 2


def test_what_cannot_draft_is_refused_with_the_reason(tmp_path: Path) -> None:
    """Another vocabulary, a shorter context, an encoder: each before the engine is ready."""
    write_seeded_checkpoint(tmp_path / "other")
    write_tiny_encoder(tmp_path / "encoder")
    shutil.copytree(BUNDLED, tmp_path / "short")
    config = json.loads((tmp_path / "short" / "config.json").read_text())
    (tmp_path / "short" / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 100}))
    for name, words in (("other", "another vocabulary"), ("encoder", "an encoder"), ("short", "--max-model-len 100")):
        with pytest.raises(Problem, match=words) as raised:
            booted(BUNDLED, str(tmp_path / name), [])
        assert (raised.value.code, raised.value.param) == ("invalid_setting", "speculative")


def test_a_draft_model_is_found_like_a_model_and_its_absence_says_what_there_is() -> None:
    """A directory becomes an absolute one; a word that is nothing is refused with the words that are something."""
    for own in ("none", "prompt-lookup"):
        assert with_draft_model(ServeSettings(speculative=own)).speculative == own
    for bundled in (str(BUNDLED), "pydoc"):
        assert with_draft_model(ServeSettings(speculative=bundled)).speculative == str(BUNDLED)
    with pytest.raises(Problem, match="none, prompt-lookup or a model") as raised:
        with_draft_model(ServeSettings(speculative="./eagle"))
    assert raised.value.param == "--speculative"
