"""The configuration of docs/howto/behind-nginx.md with the real nginx in front of a real gateway."""

from __future__ import annotations

import asyncio
import io
import json
import re
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from certificates import write_certificate

from penstock.asgi.tls import client_context
from penstock.config.tenants import TOP, Access, ApiKey, Rights, Tenant
from penstock.wire.credentials import digest_of

pytestmark = pytest.mark.debian
PAGE = Path(__file__).parents[3] / "docs" / "howto" / "behind-nginx.md"
NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin")
KEY = ApiKey(id="k", tenant=TOP, digest=digest_of(b"pk-good", b"s" * 32))
KEYS = Access(version=2, tenants=(Tenant(name=TOP, rights=Rights(role="admin")),), keys=(KEY,))
BODY = {"model": "org/m", "messages": [{"role": "user", "content": "a"}], "max_tokens": 50, "stream": True}
HEADERS = {"authorization": "Bearer pk-good"}


def configuration(directory: Path, port: int, upstream: int) -> str:
    """The page's block, with this test's ports and files in the place of the page's."""
    found = re.search(r"```nginx\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found is not None
    cert, key = write_certificate(directory, "llm.example.com")
    block = found[1]
    for old, new in [
        ("127.0.0.1:8000", f"127.0.0.1:{upstream}"),
        ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
        ("/etc/ssl/llm.example.com.pem", str(cert)),
        ("/etc/ssl/llm.example.com.key", str(key)),
    ]:
        assert block.count(old) == 1, old
        block = block.replace(old, new)
    temporary = "".join(
        f"{name}_temp_path {directory};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return (
        f"daemon off;\nuser root;\npid {directory}/nginx.pid;\nerror_log {directory}/error.log;\n"
        f"events {{}}\nhttp {{\naccess_log off;\n{temporary}{block}\n}}\n"
    )


@asynccontextmanager
async def nginx(directory: Path, upstream: int) -> AsyncIterator[str]:
    if NGINX is None:
        pytest.skip("nginx is not installed")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    directory.mkdir()
    (directory / "nginx.conf").write_text(configuration(directory, port, upstream))
    arguments = ("-p", str(directory), "-c", str(directory / "nginx.conf"), "-e", str(directory / "error.log"))
    process = await asyncio.create_subprocess_exec(NGINX, *arguments)
    try:
        async with asyncio.timeout(20):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except ConnectionError:
                    assert process.returncode is None, (directory / "error.log").read_text()
                    await asyncio.sleep(0.02)
                else:
                    writer.close()
                    break
        yield f"https://127.0.0.1:{port}"
    finally:
        process.terminate()
        await process.wait()


@pytest.fixture
async def front(start_world, tmp_path):
    """World, URL and session of a guarded gateway behind nginx."""
    world = await start_world(1, access=KEYS, trusted_proxies=("127.0.0.1",), max_resumes=1)
    async with nginx(tmp_path / "nginx", world.port) as url:
        connector = aiohttp.TCPConnector(ssl=client_context(tmp_path / "nginx" / "cert.pem"))
        async with aiohttp.ClientSession(connector=connector, headers=HEADERS) as session:
            yield world, url + "/v1/chat/completions", session


async def test_a_stream_is_whole_and_arrives_as_it_is_made(front, make_behaviour, script):
    """The first token is there while the engine still computes the others."""
    world, url, session = front
    world.engines[0].behave = lambda request: make_behaviour(gap_s=0.01)
    text = ""
    async with session.post(url, json=BODY | {"seed": 3}) as answer:
        assert answer.status == 200
        async for line in answer.content:
            if line.startswith(b"data: {"):
                if not text:
                    assert world.engines[0].sent_tokens < 50
                for choice in json.loads(line[6:])["choices"]:
                    text += choice["delta"].get("content", "")
    assert text == script.text(3, 50)


async def test_a_client_that_leaves_frees_the_engine(front, make_behaviour, script):
    """nginx passes the leaving on."""
    world, url, session = front
    world.engines[0].behave = lambda request: make_behaviour(gap_s=0.02)
    async with session.post(url, json=BODY | {"max_tokens": 5000}) as answer:
        await answer.content.readany()
        answer.close()
    await script.until(lambda: world.engines[0].running == 0)
    assert await world.in_flight() == 0


async def test_a_cut_stream_does_not_end_cleanly(front, make_behaviour):
    """The client's library raises."""
    world, url, session = front
    world.engines[0].behave = lambda request: make_behaviour(cut_after=0 if request.emitted_token_ids else 3)
    with pytest.raises(aiohttp.ClientPayloadError):
        async with session.post(url, json=BODY) as answer:
            await answer.read()
    assert len(world.engines[0].requests) == 2, "nginx repeated the request"


async def test_the_clients_address_is_nginx_word_and_not_the_clients(front):
    """A forged header is replaced; the denial names who connected to nginx."""
    world, url, session = front
    forged = {"authorization": "Bearer pk-wrong", "x-forwarded-for": "6.6.6.6"}
    async with session.post(url, json=BODY, headers=forged) as answer:
        assert answer.status == 401 and (await answer.json())["error"]["code"] == "invalid_api_key"
    assert world.denials == [("127.0.0.1", "invalid_api_key")]


async def test_nothing_but_the_api_is_passed_on(front):
    """Neither the probes nor, of course, another listener."""
    _, url, session = front
    base = url.removesuffix("/v1/chat/completions")
    for path in ("/health", "/admin/keys", "/metrics", "/v1/../metrics", "//v1/models/../../metrics"):
        async with session.get(base + path) as answer:
            assert answer.status == 404 and b"penstock" not in (await answer.read()).lower()


async def test_a_large_body_passes(front):
    """Up to what the gateway takes, beyond nginx's own megabyte: it is the gateway that answers."""
    _, url, session = front
    body = BODY | {"model": "none", "messages": [{"role": "user", "content": "x" * 3_000_000}]}
    async with session.post(url, data=io.BytesIO(json.dumps(body).encode())) as answer:
        assert (await answer.json())["error"]["code"] == "model_not_found"
