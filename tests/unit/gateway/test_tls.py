"""The data listener over TLS, and behind proxies."""

from __future__ import annotations

import asyncio
import json
import ssl

import pytest
from certificates import write_certificate

from penstock.asgi.tls import client_context, server_context
from penstock.wire.errors import Problem

BODY = {"model": "org/m", "messages": [{"role": "user", "content": "a b"}], "max_tokens": 20, "stream": True}


def request(body: bytes, *headers: bytes) -> bytes:
    head = [b"POST /v1/chat/completions HTTP/1.1", b"host: x", b"content-length: %d" % len(body), *headers]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


async def over_tls(world, context: ssl.SSLContext, raw: bytes) -> bytes:
    """All that comes back until the end; an end without TLS's own farewell raises."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", world.port, ssl=context, server_hostname="penstock.test"
    )
    writer.write(raw)
    answer = await reader.read()
    writer.close()
    return answer


@pytest.fixture
def certificate(tmp_path):
    return write_certificate(tmp_path)


async def test_streams_and_refusals_over_tls(start_world, certificate):
    """A stream is whole, an oversized head is answered, and plain HTTP is not."""
    cert, key = certificate
    world = await start_world(1, tls_cert=str(cert), tls_key=str(key), ready=False)
    context = client_context(cert)
    while (
        b" 200 "
        not in (await over_tls(world, context, b"GET /ready HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"))[:20]
    ):
        await asyncio.sleep(0.01)
    answer = await over_tls(world, context, request(json.dumps(BODY).encode(), b"connection: close"))
    assert answer.count(b'"content"') >= 20 and b"data: [DONE]" in answer and answer.endswith(b"0\r\n\r\n")
    flooded = await over_tls(world, context, b"GET /health HTTP/1.1\r\n" + b"x-a: " + b"b" * 200_000)
    assert b" 431 " in flooded
    plain = await world.exchange(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
    assert b"HTTP" not in plain


async def test_a_cut_stream_over_tls_never_ends_cleanly(start_world, certificate, make_behaviour):
    """The chunked body has no end, so that no client takes it for a whole answer."""
    cert, key = certificate
    world = await start_world(1, tls_cert=str(cert), tls_key=str(key), ready=False, max_resumes=1)
    world.engines[0].behave = lambda request: make_behaviour(cut_after=0 if request.emitted_token_ids else 3)
    context = client_context(cert)
    while (
        b" 200 "
        not in (await over_tls(world, context, b"GET /ready HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"))[:20]
    ):
        await asyncio.sleep(0.01)
    answer = await over_tls(world, context, request(json.dumps(BODY).encode()))
    assert b"engine_lost" in answer and b"[DONE]" not in answer and not answer.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1])
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1:DeprecationWarning")  # being old is the point
async def test_old_versions_of_tls_are_refused(start_world, certificate, version):
    """TLS 1.2 is the oldest."""
    cert, key = certificate
    world = await start_world(1, tls_cert=str(cert), tls_key=str(key), ready=False)
    context = client_context(cert)
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.maximum_version = version
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await over_tls(world, context, b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")


def test_files_that_are_no_certificate_are_a_problem(certificate, tmp_path):
    """Missing, swapped, garbage or of another key: named before anything starts."""
    cert, key = certificate
    (tmp_path / "other").mkdir()
    _, other = write_certificate(tmp_path / "other")
    garbage = tmp_path / "garbage"
    garbage.write_text("no certificate")
    for pair in ((key, cert), (garbage, key), (cert, tmp_path / "missing"), (cert, other)):
        with pytest.raises(Problem) as refused:
            server_context(*pair)
        assert refused.value.code == "invalid_setting"


async def test_denials_name_the_client_that_a_trusted_proxy_names(start_world):
    """And the peer itself where nobody is trusted, whatever it writes."""
    ask = request(b"{}", b"x-forwarded-for: 1.2.3.4, 5.6.7.8", b"connection: close")
    world = await start_world(1, open_without_keys=False, trusted_proxies=("127.0.0.1",))
    assert b" 401 " in await world.exchange(ask)
    assert world.denials == [("5.6.7.8", "invalid_api_key")]


async def test_without_trusted_proxies_a_forwarded_address_is_a_word_of_the_client(start_world):
    """The record names the peer."""
    ask = request(b"{}", b"x-forwarded-for: 1.2.3.4", b"connection: close")
    world = await start_world(1, open_without_keys=False)
    assert b" 401 " in await world.exchange(ask)
    assert world.denials == [("127.0.0.1", "invalid_api_key")]
