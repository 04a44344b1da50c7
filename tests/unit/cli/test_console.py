"""Words for a person, where nobody can take them."""

from __future__ import annotations

import io
import sys

import pytest

from penstock.cli.console import say
from penstock.cli.display import ServeDisplay, banner
from penstock.cluster.actions import Tell
from penstock.cluster.state import ServiceState
from penstock.config.desired import DesiredState


class FullDisk(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


def test_a_line_that_cannot_be_written_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service whose standard output and error lie on a full disk goes on."""
    monkeypatch.setattr(sys, "stdout", FullDisk())
    monkeypatch.setattr(sys, "stderr", FullDisk())
    say("a line")
    display = ServeDisplay()
    display.when_ready("m", "http://u", "http://a", is_open=True)
    display.show(ServiceState(stage="serving", ready=True, desired=DesiredState(), members=[]))
    display.tell(Tell("engine-0", "ended", ("its last line",)))
    display.close()


@pytest.mark.parametrize(("generates", "path"), [(True, "/v1/chat/completions"), (False, "/v1/embeddings")])
def test_the_request_to_paste_is_one_that_the_model_answers(generates: bool, path: str) -> None:
    """For an encoder it is an embedding, and nobody is sent to chat with it."""
    words = banner("m", "http://u", "http://a", generates=generates)
    assert f"http://u{path}" in words
    assert ("chat" in words) == generates


def test_the_request_to_paste_shows_a_key_where_one_is_asked_for() -> None:
    """From the variable that `penstock chat` reads, too, and nothing of it where everybody is answered."""
    words = banner("m", "http://u", "http://a", is_open=False)
    assert '-H "authorization: Bearer $PENSTOCK_API_KEY"' in words and "export PENSTOCK_API_KEY=" in words
    assert "terminal: PENSTOCK_API_KEY=... " in words
    assert "PENSTOCK_API_KEY" not in banner("m", "http://u", "http://a")
