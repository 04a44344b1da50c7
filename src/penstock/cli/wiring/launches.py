"""The processes of a service: who they are, how each is started, and where its metrics are asked for.

In: settings and places; out: a ``Fleet``.  Starts nothing.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from penstock.cli.wiring.answered import is_open_without_keys
from penstock.cli.wiring.commands import command
from penstock.cli.wiring.engines import Engines, Source
from penstock.cluster.controller import gateway_name
from penstock.cluster.drivers.local import Launch
from penstock.cluster.rollout import Member
from penstock.cluster.rundir import RunDir
from penstock.config.settings import GatewaySettings, ServeSettings
from penstock.store.places import default_url
from penstock.wire import gateway as gateway_wire
from penstock.wire.engine import METRICS
from penstock.wire.load import Load


class Fleet(NamedTuple):
    """``launches`` and ``scrapes`` by member; a scrape is a socket and the route of its samples.

    ``engines`` makes the members that an upgrade brings.
    """

    members: list[Member]
    launches: dict[str, Launch]
    scrapes: dict[str, tuple[str, str]]
    engines: Engines


def fleet_of(
    settings: ServeSettings, name: str, sources: Mapping[str, Source], home: Path, run: RunDir, data: socket.socket
) -> Fleet:
    """One gateway on the listener ``data``, and the replicas of all models; ``name`` is the first one's."""
    gateway = Member(id="gateway-0", kind="gateway", socket=str(run.sockets / "gateway-0.sock"))
    engines = Engines(settings, name, home, run)
    counts = {name: settings.replicas} | {other: model.replicas for other, model in settings.also.items()}
    made = [pair for model, source in sources.items() for pair in engines.make(source, model, counts[model])]
    launches = {gateway.id: _gateway_launch(gateway, settings, home, store_path(run), data)}
    launches |= {engine.id: launch for engine, launch in made}
    scrapes = {gateway.id: (gateway.socket, gateway_wire.METRICS)}
    scrapes |= {engine.id: (engine.socket, METRICS) for engine, _ in made}
    return Fleet([gateway, *(engine for engine, _ in made)], launches, scrapes, engines)


def store_path(run: RunDir) -> Path:
    """Where the desired state of this service is kept."""
    return run.path / "store.sqlite"


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
        argv=command("gateway"),
        settings=settings,
        socket=member.socket,
        route=gateway_wire.LOAD,
        answers=answers,
        pass_fds=(data.fileno(),),
    )
