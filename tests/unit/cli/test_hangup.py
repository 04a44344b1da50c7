"""A terminal that is closed while another program leads its session, on systems that watch terminals and others."""

from __future__ import annotations

import os
import select

import pytest

from penstock.cli.wiring import hangup


async def test_a_terminal_that_cannot_be_watched_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what says that it hung up does: macOS answers at once that it does not watch terminals."""
    answers = [[(0, select.POLLNVAL)], [(0, select.POLLNVAL)], [], [(0, select.POLLHUP | select.POLLERR)]]
    acted: list[int] = []

    class Poll:
        def register(self, terminal: int, events: int) -> None:
            pass

        def poll(self, timeout: int) -> list[tuple[int, int]]:
            return answers.pop(0)

    monkeypatch.setattr(hangup, "_POLL_S", 0.0)
    monkeypatch.setattr(hangup, "_terminal", lambda: os.open(os.devnull, os.O_RDONLY))
    monkeypatch.setattr(select, "poll", Poll)
    await hangup.at_hang_up(lambda: acted.append(len(answers)))
    assert acted == [0]
