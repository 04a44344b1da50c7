"""Listeners that are bound before anything is loaded."""

from __future__ import annotations

import socket
from contextlib import closing

import pytest

from penstock.cluster.listen import is_loopback, listen
from penstock.wire.errors import Problem


def test_a_port_in_use_names_port_host_and_option() -> None:
    """The second listener on a port is refused at once with what to change."""
    with closing(listen("127.0.0.1", 0, option="--port")) as first:
        port = first.getsockname()[1]
        with pytest.raises(Problem, match=rf"Port {port} on 127\.0\.0\.1 .*--admin-port") as caught:
            listen("127.0.0.1", port, option="--admin-port")
    assert caught.value.code == "port_in_use"


def test_an_early_client_waits_instead_of_being_refused() -> None:
    """The kernel takes connections before any process answers on them."""
    with closing(listen("127.0.0.1", 0, option="--port")) as listener:
        socket.create_connection(listener.getsockname(), timeout=5).close()


@pytest.mark.parametrize("host", ["no such host", "192.0.2.1", "a" * 300])
def test_a_host_that_is_not_ours_is_an_invalid_setting(host: str) -> None:
    """Unknown names and other machines' addresses are refused with the host in the message."""
    with pytest.raises(Problem, match=host) as caught:
        listen(host, 0, option="--port")
    assert caught.value.code == "invalid_setting"


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("example.org", False),
        ("", False),
    ],
)
def test_what_only_this_machine_reaches(host: str, loopback: bool) -> None:
    """A name that could resolve to anything is not loopback."""
    assert is_loopback(host) is loopback
