"""The processes of a service: who they are, how each is started, and where its metrics are asked for.

In: settings and places; out: a ``Fleet``.  Starts nothing.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from penstock.cli.wiring.answered import is_open_without_keys
from penstock.cli.wiring.mock import is_mock, mock_settings_of
from penstock.cluster.controller import Member, gateway_name
from penstock.cluster.drivers.local import Launch
from penstock.cluster.rundir import RunDir
from penstock.config.settings import EngineSettings, GatewaySettings, ServeSettings
from penstock.engine.cpu.cores import available_cores
from penstock.store.places import default_url
from penstock.store.sources import Resolved
from penstock.wire import gateway as gateway_wire
from penstock.wire.engine import LOAD, METRICS, Load


class Fleet(NamedTuple):
    """``launches`` and ``scrapes`` by member; a scrape is a socket and the route of its samples."""

    members: list[Member]
    launches: dict[str, Launch]
    scrapes: dict[str, tuple[str, str]]


def fleet_of(
    settings: ServeSettings,
    resolved: Resolved,
    also: Mapping[str, Resolved],
    home: Path,
    run: RunDir,
    data: socket.socket,
) -> Fleet:
    """One gateway on the listener ``data``, and the replicas of all models."""
    gateway = Member(id="gateway-0", kind="gateway", socket=str(run.sockets / "gateway-0.sock"))
    count = settings.replicas + sum(model.replicas for model in settings.also.values())
    served = [("", settings, resolved)] * settings.replicas
    for name, model in settings.also.items():
        own = msgspec.structs.replace(settings, source=model.source, served_name=name)
        served += [(name, own, also[name])] * model.replicas
    engines = [
        Member(id=f"engine-{n}", kind="engine", socket=str(run.sockets / f"engine-{n}.sock"), model=name)
        for n, (name, _, _) in enumerate(served)
    ]
    launches = {gateway.id: _gateway_launch(gateway, settings, home, store_path(run), data)}
    for engine, (_, own, where) in zip(engines, served, strict=True):
        launches[engine.id] = _engine_launch(engine, own, where, count)
    scrapes = {gateway.id: (gateway.socket, gateway_wire.METRICS)}
    scrapes |= {engine.id: (engine.socket, METRICS) for engine in engines}
    return Fleet([gateway, *engines], launches, scrapes)


def store_path(run: RunDir) -> Path:
    """Where the desired state of this service is kept."""
    return run.path / "store.sqlite"


def name_of(settings: ServeSettings, resolved: Resolved) -> str:
    """The model's name in requests."""
    return settings.served_name or resolved.name


def _gateway_launch(member: Member, serve: ServeSettings, home: Path, store_path: Path, data: socket.socket) -> Launch:
    def settings(incarnation: int) -> bytes:
        return msgspec.json.encode(
            GatewaySettings(
                gateway=gateway_name(member.id, incarnation),
                control_socket=member.socket,
                store_path=str(store_path),
                listen_fd=data.fileno(),
                prices=serve.prices,
                home=str(home),
                access_url=serve.store or default_url(home),
                redis=serve.redis,
                open_without_keys=is_open_without_keys(serve, serve.host),
                issuers=serve.issuers,
                tls_cert=serve.tls_cert,
                tls_key=serve.tls_key,
                trusted_proxies=serve.trusted_proxies,
            )
        )

    def answers(body: bytes) -> Load:
        said = gateway_wire.decode_load(body)
        return Load(phase="ready" if said.ready else "loading", running=said.in_flight)

    return Launch(
        argv=_command("gateway"),
        settings=settings,
        socket=member.socket,
        route=gateway_wire.LOAD,
        answers=answers,
        pass_fds=(data.fileno(),),
    )


def _engine_launch(member: Member, serve: ServeSettings, resolved: Resolved, count: int) -> Launch:
    """One of ``count`` engines on this machine."""
    name = name_of(serve, resolved)
    if serve.source is not None and is_mock(serve.source):
        pretended = msgspec.json.encode(mock_settings_of(serve.source, name, member.socket))
        return Launch(argv=_command("mock"), settings=lambda _: pretended, socket=member.socket, route=LOAD)
    settings = EngineSettings(
        replica=member.id,
        socket=member.socket,
        model_dir=str(resolved.directory),
        served_name=name,
        dtype=serve.dtype,
        exact=serve.exact,
        quantization=serve.quantization,
        max_model_len=serve.max_model_len,
        kv_memory_bytes=serve.kv_memory_bytes,
        kv_share=1.0 / count,
        max_step_tokens=serve.max_step_tokens,
        max_num_seqs=serve.max_num_seqs,
        itl_target_ms=serve.itl_target_ms,
        prefix_caching=serve.prefix_caching,
        threads=serve.threads or _threads_each(count),
        reasoning_parser=serve.reasoning_parser,
        tool_parser=serve.tool_parser,
    )
    line = msgspec.json.encode(settings)
    return Launch(argv=_command("engine"), settings=lambda _: line, socket=member.socket, route=LOAD)


def _command(kind: str) -> list[str]:
    # -P: a folder named like one of our modules in the working directory must not be imported.
    return [sys.executable, "-P", "-m", "penstock", kind]


def _threads_each(replicas: int) -> int | None:
    """One replica chooses by itself; several would each take every core."""
    return None if replicas == 1 else max(1, available_cores() // replicas)
