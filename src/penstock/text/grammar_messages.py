"""What an engine and its grammar process say to each other: frames on a socket, in order.

In: messages; out: bytes, and the way back.  Each request but ``Close`` has one reply.
Knows no grammar and no library for them, so that whoever only asks loads none.
"""

from __future__ import annotations

import socket

import msgspec

from penstock.wire.engine import Grammar

REQUEST_CPU_S = 0.4
"""The processor time that one request may take: compiling a grammar and its first mask, or one step."""
_HEADER_BYTES = 4


class Vocabulary(msgspec.Struct, frozen=True, array_like=True):
    """What each token stands for, in bytes; ``special_ids`` are no text.  Token ``len(tokens)`` is a text's end."""

    tokens: list[bytes]
    special_ids: list[int]


class Open(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Follow ``grammar`` from its start over ``token_ids``."""

    session: int
    grammar: Grammar
    token_ids: list[int]


class Advance(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """More tokens, which are taken, and ``ahead`` of them some that may come behind these."""

    session: int
    token_ids: list[int]
    ahead: list[int]


class Close(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Forget a session.  Not answered."""

    session: int


class Allowed(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Bit ``i % 8`` of byte ``i // 8``: token ``i`` may come next; ``i = len(tokens)``: the text may end here.

    ``further``: so behind each of the tokens that were asked about ahead, up to the first that may not come, or fewer.
    """

    session: int
    mask: bytes
    further: list[bytes] = []


class Refused(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A problem of this session, which is closed with it."""

    session: int
    code: str
    message: str


class Unknown(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """This worker has no such session: the one before it died.  Open it again, with all its tokens."""

    session: int


class Died(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The worker ended over this session's request, by ``signal``; all its sessions are lost."""

    session: int
    signal: int


Request = Open | Advance | Close
Reply = Allowed | Refused | Unknown | Died


def send(channel: socket.socket, frame: bytes) -> None:
    """One frame: its length in four bytes, then itself."""
    channel.sendall(len(frame).to_bytes(_HEADER_BYTES, "big") + frame)


def receive(channel: socket.socket) -> bytes | None:
    """The next frame, or ``None`` at the end.  Reads not one byte further: another worker may go on behind it."""
    header = _exactly(channel, _HEADER_BYTES)
    return None if header is None else _exactly(channel, int.from_bytes(header, "big"))


def _exactly(channel: socket.socket, size: int) -> bytes | None:
    data = bytearray()
    while len(data) < size:
        part = channel.recv(size - len(data))
        if not part:
            return None
        data += part
    return bytes(data)
