"""Who holds a port on loopback, and whether the model hub answers.

In: a port, an environment; out: facts, within a bound, whatever the network does.  Keeps nothing open.
"""

from __future__ import annotations

import errno
import http.client
import socket
import urllib.error
import urllib.request
from collections.abc import Collection, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as Late
from threading import Thread

from penstock.cli.diagnosis.facts import Holder, Hub

HUB_TIMEOUT_S = 2.0
HUB_ENDPOINT = "https://huggingface.co"
_TRUE = {"1", "ON", "YES", "TRUE"}


def holder(number: int, ours: Collection[int], host: str = "127.0.0.1") -> Holder:
    """Try to bind it; ``ours`` are the ports of services that run now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a connection's TIME_WAIT does not hold a port
        try:
            probe.bind((host, number))
            probe.listen(1)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return "penstock" if number in ours else "other"
            return "forbidden"
    return "free"


def hub(environment: Mapping[str, str], timeout_s: float = HUB_TIMEOUT_S) -> Hub:
    """Whether the hub answers within ``timeout_s``; any answer of HTTP counts.  The token is never read out."""
    endpoint = environment.get("HF_ENDPOINT") or HUB_ENDPOINT
    has_token = bool(environment.get("HF_TOKEN"))
    if environment.get("HF_HUB_OFFLINE", "").upper() in _TRUE:
        return Hub(endpoint=endpoint, offline=True, has_token=has_token)
    answer: Future[str] = Future()
    # A thread of its own: looking a name up cannot be bounded, so it is left behind when it takes too long.
    Thread(target=lambda: answer.set_result(_reach(endpoint, timeout_s)), daemon=True).start()
    try:
        problem = answer.result(timeout_s)
    except Late:
        problem = f"no answer within {timeout_s:g} s"
    return Hub(endpoint=endpoint, problem=problem, has_token=has_token)


def _reach(endpoint: str, timeout_s: float) -> str:
    try:
        request = urllib.request.Request(endpoint, method="HEAD")
        with urllib.request.urlopen(request, timeout=timeout_s):
            return ""
    except urllib.error.HTTPError:
        return ""
    except (OSError, ValueError, http.client.HTTPException) as error:
        return str(getattr(error, "reason", "") or error) or type(error).__name__
