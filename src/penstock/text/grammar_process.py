"""The engine's side of the grammar process: sessions that outlive its workers.

In: grammars and committed tokens; out: which tokens may come next.  Safe to call from several threads.
When a worker dies over a hostile grammar, that session fails and every other one is replayed in the next worker.
"""

from __future__ import annotations

import contextlib
import itertools
import signal
import socket
import subprocess
import sys
import threading
from collections import deque

import msgspec

from penstock.text import grammar_messages as messages
from penstock.wire.engine import Grammar
from penstock.wire.errors import Problem

_CHILD = "penstock.text.grammar_child"
"""Not imported here: it loads the library that runs callers' grammars."""
_REPLY_TIMEOUT_S = 20.0
"""Wall-clock.  The process itself bounds processor time, so only a machine that stands still comes here."""
_END_TIMEOUT_S = 5.0
_ENDED_BY = {
    signal.SIGPROF: f"takes more than {messages.REQUEST_CPU_S} s of processor time",
    signal.SIGSEGV: "is nested too deeply",
    signal.SIGABRT: "needs too much memory",
}


class Session:
    """One grammar being followed.  Made by :meth:`Channel.open`, and for that channel's eyes only."""

    def __init__(self, number: int, grammar: Grammar, token_ids: list[int]) -> None:
        self.number = number
        self.grammar = grammar
        self.token_ids = token_ids
        self.num_unanswered = 0
        self.reply: messages.Reply | None = None
        """The answer to the last request, once there is one, or what ended the session: nothing comes behind that."""

    @property
    def has_ended(self) -> bool:
        return isinstance(self.reply, messages.Refused | messages.Died)


class Channel:
    """One worker of the grammar process: requests in order, answers in order."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._numbers = itertools.count()
        self._sending = threading.Lock()
        self._pending: deque[Session] = deque()
        """Whose answers are due, in the order of the requests; written under ``_sending``."""
        self._answered = threading.Condition()
        self.is_lost = False
        self._listener = threading.Thread(target=self._listen, name="grammar", daemon=True)
        self._listener.start()

    def open(self, grammar: Grammar, token_ids: list[int]) -> Session:
        """Start to follow ``grammar`` behind ``token_ids``; returns at once."""
        session = Session(next(self._numbers), grammar, token_ids)
        self._ask(session, messages.Open(session.number, grammar, token_ids))
        return session

    def advance(self, session: Session, token_ids: list[int], ahead: list[int]) -> None:
        """More tokens, which the last answers allowed, and ``ahead`` what may come behind them; returns at once."""
        session.token_ids += token_ids
        self._ask(session, messages.Advance(session.number, token_ids, ahead))

    def close(self, session: Session) -> None:
        """Forget a session."""
        with self._sending:
            self._send(messages.Close(session.number))

    def wait(self, session: Session) -> messages.Allowed:
        """What may come behind the session's tokens.  Raises the ``Problem`` that ended the session."""
        while isinstance(reply := self._reply(session), messages.Unknown):
            self._ask(session, messages.Open(session.number, session.grammar, session.token_ids))
        if isinstance(reply, messages.Allowed):
            return reply
        if isinstance(reply, messages.Refused):
            raise Problem(reply.code, reply.message, param=session.grammar.param)
        by = _ENDED_BY.get(signal.Signals(reply.signal)) if reply.signal else None
        message = f"The grammar {by or 'ended the process that follows it'}."
        raise Problem("grammar_too_complex", message, param=session.grammar.param)

    def _reply(self, session: Session) -> messages.Reply:
        with self._answered:
            self._answered.wait_for(lambda: session.reply is not None or self.is_lost, _REPLY_TIMEOUT_S)
            if session.reply is None:
                # Given up for all: each further output would hold up its step as long, and a lost process is replaced.
                self._lose()
                raise Problem("internal_error", "The grammar process does not answer.")
            return session.reply

    def _ask(self, session: Session, request: messages.Open | messages.Advance) -> None:
        with self._sending:
            with self._answered:
                if not session.has_ended:
                    session.reply = None
                session.num_unanswered += 1
            self._pending.append(session)
            self._send(request)

    def _send(self, request: messages.Request) -> None:
        try:
            messages.send(self._socket, msgspec.msgpack.encode(request))
        except OSError:
            self._lose()

    def _listen(self) -> None:
        """Never sends and never waits for a sender: a worker that cannot write does not read either."""
        decode = msgspec.msgpack.Decoder(messages.Reply).decode
        while (frame := self._receive()) is not None:
            reply = decode(frame)
            session = self._pending.popleft()
            with self._answered:
                session.num_unanswered -= 1
                # Requests may have been sent behind the one that ended it, whose answers say that it is unknown.
                ends = isinstance(reply, messages.Refused | messages.Died)
                if not session.has_ended and (ends or not session.num_unanswered):
                    session.reply = reply
                    self._answered.notify_all()
        self._lose()
        self._socket.close()

    def _receive(self) -> bytes | None:
        try:
            return messages.receive(self._socket)
        except OSError:  # the process was killed with requests unread
            return None

    def _lose(self) -> None:
        with self._answered:
            self.is_lost = True
            self._answered.notify_all()

    def shut(self) -> None:
        """Close: the worker ends, and whoever waits hears of it."""
        self._lose()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._listener.join()


class GrammarProcess:
    """The process and its two workers: ``trial`` compiles what nobody has tried yet, ``steps`` follows it.

    A grammar that has passed ``trial`` delays others no longer than it took there.
    """

    def __init__(self, vocabulary: messages.Vocabulary) -> None:
        ours, theirs = zip(*(socket.socketpair() for _ in range(2)), strict=True)
        descriptors = [end.fileno() for end in theirs]
        # -P: a folder named like one of our modules in the working directory must not be imported.
        command = [sys.executable, "-P", "-m", _CHILD, *map(str, descriptors)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, pass_fds=descriptors
        )
        for end in theirs:
            end.close()
        self.trial, self.steps = map(Channel, ours)
        self._feeding = threading.Thread(target=self._feed, args=(vocabulary,), name="grammar", daemon=True)
        self._feeding.start()

    def _feed(self, vocabulary: messages.Vocabulary) -> None:
        assert self._process.stdin is not None
        # A process that ended before it was told its words: whoever waits for it hears so from the channels.
        with contextlib.suppress(BrokenPipeError), self._process.stdin as pipe:
            pipe.write(msgspec.msgpack.encode(vocabulary))

    def close(self) -> None:
        """End the process; open sessions fail."""
        for channel in (self.trial, self.steps):
            channel.shut()
        try:
            self._process.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._feeding.join()

    @property
    def is_lost(self) -> bool:
        return self.trial.is_lost or self.steps.is_lost
