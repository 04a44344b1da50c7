"""The processor time that following a grammar may take: who is charged for what, and that its end is one."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from penstock.text import grammar_child as child
from penstock.text import grammar_messages as messages
from penstock.text.grammar_process import Channel
from penstock.wire.engine import Grammar
from penstock.wire.errors import Problem

GRAMMAR = Grammar(kind="regex", value="a*", param="field")
ANY = b"\xff"


@pytest.fixture
def ends() -> Iterator[tuple[Channel, socket.socket]]:
    """A channel, and its other end, on which a test is the worker."""
    ours, theirs = socket.socketpair()
    channel = Channel(ours)
    yield channel, theirs
    channel.shut()
    theirs.close()


@pytest.mark.parametrize(
    "end", [messages.Refused(0, "grammar_too_complex", "Too long."), messages.Died(0, signal.SIGPROF)]
)
def test_what_ended_a_session_is_not_forgotten_over_a_later_request(
    ends: tuple[Channel, socket.socket], end: messages.Refused | messages.Died
) -> None:
    """More was asked before anybody read it, which the worker knows no session for: nothing is opened again."""
    channel, worker = ends
    session = channel.open(GRAMMAR, [])
    channel.advance(session, [1], [])
    channel.advance(session, [], [1, 1])
    for reply in (messages.Allowed(0, ANY), end, messages.Unknown(0)):
        messages.send(worker, msgspec.msgpack.encode(reply))
    for _ in range(2):
        with pytest.raises(Problem) as caught:
            channel.wait(session)
        assert (caught.value.code, caught.value.param) == ("grammar_too_complex", "field")
        channel.advance(session, [1], [])
    channel.shut()
    decode = msgspec.msgpack.Decoder(messages.Request).decode
    asked = [decode(frame) for frame in iter(lambda: messages.receive(worker), None)]
    assert [type(request) for request in asked] == [messages.Open] + [messages.Advance] * 4


class Clock:
    """Processor time, which making masks takes; also the matcher that makes them."""

    def __init__(self, mask_s: float) -> None:
        self.mask_s, self.now_s, self.num_masks = mask_s, 0.0, 0

    def compute_bitmask(self) -> bytes:
        self.now_s += self.mask_s
        self.num_masks += 1
        return ANY

    def deep_copy(self) -> Clock:
        return self

    def consume_token(self, token_id: int) -> bool:
        return True

    def try_consume_tokens(self, token_ids: list[int]) -> int:
        return len(token_ids)

    def is_accepting(self) -> bool:
        return True

    def is_error(self) -> bool:
        return False


def opened(monkeypatch: pytest.MonkeyPatch, mask_s: float) -> tuple[child.Worker, Clock]:
    """A worker with session 0, whose every mask takes so long."""
    clock = Clock(mask_s)
    monkeypatch.setattr(child, "time", SimpleNamespace(process_time=lambda: clock.now_s))
    tokenizer: Any = SimpleNamespace(eos_token=7)
    worker = child.Worker(tokenizer)
    monkeypatch.setattr(worker, "_started", lambda grammar: clock)
    assert isinstance(worker.answer(messages.Open(0, GRAMMAR, [])), messages.Allowed)
    return worker, clock


def test_only_tokens_bring_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking ahead between them brings none: masks that take more than a token may end the output as soon."""
    taken = {}
    for asks in (False, True):
        worker, _ = opened(monkeypatch, 0.038)
        taken[asks] = 0
        while isinstance(worker.answer(messages.Advance(0, [1], [])), messages.Allowed):
            taken[asks] += 1
            for _ in range(3 * asks):
                worker.answer(messages.Advance(0, [], []))
        assert isinstance(worker.answer(messages.Advance(0, [1], [])), messages.Unknown)
    assert 20 < taken[True] == taken[False] < 40


def test_looking_ahead_is_charged(monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on while there is time to spare, and stops before it ends an output that could be followed."""
    worker, clock = opened(monkeypatch, 0.018)
    num_ahead = 0
    for _ in range(1000):
        assert isinstance(worker.answer(messages.Advance(0, [1], [])), messages.Allowed)
        reply = worker.answer(messages.Advance(0, [], [1, 1]))
        assert isinstance(reply, messages.Allowed) and reply.mask == ANY
        num_ahead += len(reply.further)
    assert clock.num_masks == 1 + 1000 + num_ahead
    assert 10 < num_ahead < 1000 / 4
