"""Data and admin listeners, bound before anything is loaded.

In: host and port; out: a listening socket that outlives every restart of the process that answers on it.
Whoever connects early waits in the socket's backlog instead of being refused.
"""

from __future__ import annotations

import errno
import ipaddress
import socket

from penstock.wire.errors import Problem

_BACKLOG = 2048


def listen(host: str, port: int, *, option: str) -> socket.socket:
    """A listening TCP socket; port 0 takes any free one.  ``option`` is what the port was chosen with.

    Raises ``Problem``: ``port_in_use``, or ``invalid_setting`` for a host that is not this machine's.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
        )[0]
    except (socket.gaierror, UnicodeError) as error:
        raise Problem("invalid_setting", f"The host {host!r} cannot be resolved: {error}.", param="host") from error
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise _problem(error, host, port, option) from error
    listener.setblocking(False)
    return listener


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _problem(error: OSError, host: str, port: int, option: str) -> Problem:
    if error.errno == errno.EADDRINUSE:
        return Problem("port_in_use", f"Port {port} on {host} is in use by another program ({option}).", param=option)
    if error.errno == errno.EACCES:
        return Problem("invalid_setting", f"Port {port} may not be opened by this user ({option}).", param=option)
    return Problem("invalid_setting", f"Cannot listen on {host} port {port}: {error.strerror}.", param=option)
