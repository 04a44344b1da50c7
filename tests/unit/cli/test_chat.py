"""``penstock chat`` as a process: on a pseudo-terminal and in a pipe, against a scripted server."""

from __future__ import annotations

import os
import pty
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

# Makes the pseudo-terminal the controlling one, so that a typed Ctrl-C becomes a signal as it does for a person;
# a test run in the background would pass on that the signal is ignored.
_ON_TERMINAL = (
    "import fcntl, os, signal, sys, termios\n"
    "fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
    "signal.signal(signal.SIGINT, signal.SIG_DFL)\n"
    "os.execv(sys.executable, [sys.executable, '-m', 'penstock', 'chat', *sys.argv[1:]])"
)
CTRL_C, CTRL_D = "\x03", "\x04"


class Terminal:
    """A person at a terminal: types, and waits until something is seen."""

    def __init__(self, master: int, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self._master = master
        self._seen = ""

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def see(self, text: str, timeout_s: float = 20.0) -> str:
        """Everything up to and with ``text`` since the last call."""
        deadline = time.monotonic() + timeout_s
        while text not in self._seen:
            ready, _, _ = select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{text!r} did not come; there is {self._seen!r}"
            try:
                self._seen += os.read(self._master, 65536).decode()
            except OSError as error:
                raise AssertionError(f"ended before {text!r}; there is {self._seen!r}") from error
        before, _, self._seen = self._seen.partition(text)
        return before + text

    def waits_for_keys(self) -> None:
        """The process sleeps.  CPython's line editor sees a signal that comes just before that only at the next key."""
        status = Path(f"/proc/{self.process.pid}/stat")
        deadline = time.monotonic() + 20
        while status.exists() and status.read_text().rpartition(")")[2].split()[0] != "S":
            assert time.monotonic() < deadline
            select.select([], [], [], 0.005)

    def ends(self) -> int:
        return self.process.wait(20)


@contextmanager
def _terminal(*arguments: str) -> Iterator[Terminal]:
    master, slave = pty.openpty()
    command = [sys.executable, "-c", _ON_TERMINAL, *arguments]
    environment = os.environ | {"TERM": "xterm", "NO_COLOR": "1"}
    process = subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True, env=environment
    )
    os.close(slave)
    try:
        yield Terminal(master, process)
    finally:
        process.kill()
        process.wait()
        os.close(master)


def _piped(text: bytes, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "penstock", "chat", *arguments]
    return subprocess.run(command, check=False, input=text, capture_output=True, timeout=60)


def _messages(server: Any, index: int) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in server.requests[index]["messages"]]


def test_answers_stream_and_history_grows(scripted_server: Any, behaviour: Any) -> None:
    """The second question is sent with the first one, its answer and the system message."""
    scripted_server.behave = lambda number, body: behaviour(text=f"<{number}>", tokens=3, gap_s=0.01)
    with _terminal("--url", scripted_server.url, "--system", "Be brief.", "--temperature", "0.5") as terminal:
        terminal.see("> ")
        terminal.type("hello\n")
        terminal.see("<0><0><0>")
        terminal.see("3 tokens, ")
        terminal.see("> ")
        terminal.type("and then?\n")
        terminal.see("<1><1><1>")
        terminal.see("> ")
        terminal.type(CTRL_D)
        assert terminal.ends() == 0
    assert _messages(scripted_server, 0) == [("system", "Be brief."), ("user", "hello")]
    assert _messages(scripted_server, 1)[1:] == [("user", "hello"), ("assistant", "<0><0><0>"), ("user", "and then?")]
    assert scripted_server.requests[0]["temperature"] == 0.5


def test_thinking_is_seen_and_not_remembered(scripted_server: Any, behaviour: Any) -> None:
    """On a terminal the reasoning comes before the answer; the conversation keeps the answer alone."""
    scripted_server.behave = lambda number, body: behaviour(text=f"<{number}>", tokens=5, thoughts=3)
    with _terminal("--url", scripted_server.url) as terminal:
        terminal.see("> ")
        terminal.type("hello\n")
        assert terminal.see("5 tokens").count("<0>") == 5
        terminal.see("> ")
        terminal.type("and then?\n")
        terminal.see("5 tokens")
    assert _messages(scripted_server, 1) == [("user", "hello"), ("assistant", "<0><0>"), ("user", "and then?")]


def test_ctrl_c_stops_the_answer_and_not_the_program(scripted_server: Any, behaviour: Any) -> None:
    """The stream is closed, so that the server aborts; the part that came stays in the history."""
    scripted_server.behave = lambda number, body: behaviour(
        text=f"<{number}>", tokens=1000 if number == 0 else 2, gap_s=0.05
    )
    with _terminal("--url", scripted_server.url) as terminal:
        terminal.see("> ")
        terminal.type("count\n")
        terminal.see("<0>")
        terminal.type(CTRL_C)
        terminal.see("stopped")
        assert scripted_server.wait_for(lambda: scripted_server.aborted == 1)
        terminal.see("> ")
        terminal.type("again\n")
        terminal.see("<1><1>")
        terminal.see("> ")
        terminal.type("/exit\n")
        assert terminal.ends() == 0
    role, partial = _messages(scripted_server, 1)[1]
    assert role == "assistant" and partial and set(partial.split("<0>")) == {""}


def test_ctrl_c_before_the_first_token_forgets_the_question(scripted_server: Any, behaviour: Any) -> None:
    """An answer stopped before it began leaves nothing in the history."""
    scripted_server.behave = lambda number, body: behaviour(first_s=60.0 if number == 0 else 0.0, text="<ok>", tokens=1)
    with _terminal("--url", scripted_server.url) as terminal:
        terminal.see("> ")
        terminal.type("never mind\n")
        assert scripted_server.wait_for(lambda: len(scripted_server.requests) == 1)
        terminal.type(CTRL_C)
        terminal.see("stopped")
        terminal.see("> ")
        terminal.type("hello\n")
        terminal.see("<ok>")
    assert _messages(scripted_server, 1) == [("user", "hello")]


def test_ctrl_c_at_the_prompt_hints_first(scripted_server: Any) -> None:
    """The first Ctrl-C at the prompt tells how to leave and drops the line; the second one leaves."""
    with _terminal("--url", scripted_server.url) as terminal:
        for typed in ("half a line", "another"):
            terminal.see("> ")
            terminal.type(typed)
            terminal.see(typed)
            terminal.waits_for_keys()
            terminal.type(CTRL_C)
            if typed == "half a line":
                terminal.see("/exit leaves")
        assert terminal.ends() == 0
    assert scripted_server.requests == []


def test_commands(scripted_server: Any, behaviour: Any) -> None:
    """/regenerate asks again without the last answer, /clear forgets, /help lists, unknown commands say so."""
    scripted_server.behave = lambda number, body: behaviour(text=f"<{number}>", tokens=2)
    with _terminal("--url", scripted_server.url) as terminal:
        for line, answer in (
            ("/regenerate", "no answer yet"),
            ("/nonsense", "no command /nonsense"),
            ("/help", "forget the conversation"),
            ("one", "<0><0>"),
            ("/regenerate", "<1><1>"),
            ("two", "<2><2>"),
            ("/clear", "is forgotten"),
            ("three", "<3><3>"),
        ):
            terminal.see("> ")
            terminal.type(f"{line}\n")
            terminal.see(answer)
    assert _messages(scripted_server, 1) == [("user", "one")]
    assert _messages(scripted_server, 2) == [("user", "one"), ("assistant", "<1><1>"), ("user", "two")]
    assert _messages(scripted_server, 3) == [("user", "three")]


def test_an_error_ends_the_answer_and_not_the_dialogue(scripted_server: Any, behaviour: Any) -> None:
    """Refusals and errors inside the stream are shown with their code; the failed question leaves the history."""
    faults = [{"status": 503}, {"fail_after": 1}, {"truncate_after": 1}, {"drop_after": 1}, {}]
    scripted_server.behave = lambda number, body: behaviour(text="<part>", **faults[number])
    with _terminal("--url", scripted_server.url) as terminal:
        for number, shown in enumerate(
            ("overloaded", "engine_lost", "without a finish_reason", "Lost http", "4 tokens")
        ):
            terminal.see("> ")
            terminal.type(f"question {number}\n")
            terminal.see(shown)
    assert _messages(scripted_server, 4) == [("user", "question 4")]


def test_control_characters_do_not_reach_the_terminal(scripted_server: Any, behaviour: Any) -> None:
    """A model cannot move the cursor or set the title: escape sequences lose their escape."""
    scripted_server.behave = lambda number, body: behaviour(text="a\x1b]0;owned\x07b\u202ec", tokens=1)
    with _terminal("--url", scripted_server.url) as terminal:
        terminal.see("> ")
        terminal.type("hello\n")
        terminal.see("a]0;ownedbc")


def test_piped_input_is_one_message(scripted_server: Any, behaviour: Any) -> None:
    """All of standard input is the message, standard output is the answer and nothing else."""
    scripted_server.behave = lambda number, body: behaviour(text="é", tokens=2)
    done = _piped("línea\nzwei\n".encode(), "--url", scripted_server.url, "--max-tokens", "9")
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, "éé\n", b"")
    assert _messages(scripted_server, 0) == [("user", "línea\nzwei")]
    assert scripted_server.requests[0]["max_tokens"] == 9


@pytest.mark.parametrize("fault", [{"status": 503}, {"fail_after": 1}, {"truncate_after": 1}, {"garbage": True}])
def test_piped_errors_are_exit_code_one(scripted_server: Any, behaviour: Any, fault: dict[str, Any]) -> None:
    """A script sees the failure: exit code 1 and the reason on standard error."""
    scripted_server.behave = lambda number, body: behaviour(**fault)
    done = _piped(b"hello", "--url", scripted_server.url)
    assert done.returncode == 1
    assert done.stderr.startswith(b"error: ") and b"Traceback" not in done.stderr


def test_a_refused_key_is_told_where_keys_are_given(scripted_server: Any, behaviour: Any) -> None:
    """401 names the flag and the variable."""
    scripted_server.behave = lambda number, body: behaviour(status=401)
    done = _piped(b"hello", "--url", scripted_server.url)
    assert b"--api-key" in done.stderr and b"PENSTOCK_API_KEY" in done.stderr


@pytest.mark.parametrize("text", [b"", b" \n", b"\xff\xfe"])
def test_piped_nothing_is_an_error(scripted_server: Any, text: bytes) -> None:
    """Empty input, and bytes that are no text, are refused without asking the server."""
    done = _piped(text, "--url", scripted_server.url)
    assert done.returncode == 1 and b"[invalid_value]" in done.stderr
    assert scripted_server.requests == []


def test_no_server_says_how_to_start_one() -> None:
    """Without a server the error names the address and the command."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        done = _piped(b"hello", "--url", f"http://127.0.0.1:{unused.getsockname()[1]}")
    assert done.returncode == 1 and b"penstock serve" in done.stderr
