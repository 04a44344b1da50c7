"""The engine's verbs, without HTTP and without a model."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any, cast

from penstock.engine.server.booted import Booted
from penstock.engine.server.runner import Runner
from penstock.engine.server.service import Service
from penstock.wire.tokenization import TokenizeRequest


class SlowTokenizer:
    """Takes long texts only while the gate is open, and remembers how many at a time."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.now = self.most = 0

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        if len(text) > 1:
            self.now += 1
            self.most = max(self.most, self.now)
            self.gate.wait(10)
            self.now -= 1
        return [1]

    def token_text(self, token_id: int) -> str:
        return ""


def test_long_texts_take_turns() -> None:
    """However many long texts are to be tokenised, one is at a time, and a short one waits for none of them."""
    tokenizer = SlowTokenizer()
    booted = cast(Booted, SimpleNamespace(tokenizer=tokenizer, context_tokens=8))
    service = Service(booted, cast(Runner, None), model="m", max_waiting=1)

    def ask(text: str) -> Any:
        return service.tokenize(TokenizeRequest(text=text))

    async def crowd() -> None:
        long = [asyncio.create_task(ask("a" * 1_000_000)) for _ in range(100)]
        await asyncio.wait_for(ask("a"), 5)
        assert not any(task.done() for task in long)
        tokenizer.gate.set()
        await asyncio.gather(*long)

    asyncio.run(crowd())
    assert tokenizer.most == 1
