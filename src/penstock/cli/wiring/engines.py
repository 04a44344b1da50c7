"""The engines of one service: from a source to processes that can be started, and the sources that are kept.

In: settings and a source; out: members and how each is launched.  Implements ``cluster.upgrade.Fleet``.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

from penstock.cli.wiring.commands import command, engine_id
from penstock.cli.wiring.mock import mock_settings_of
from penstock.cluster.adapters import unservable
from penstock.cluster.admin.gather import Gather
from penstock.cluster.drivers.local import Launch, LocalDriver
from penstock.cluster.rollout import Member
from penstock.cluster.rundir import RunDir
from penstock.config.mock import SCHEME, MockSettings, is_mock
from penstock.config.settings import NO_SPECULATION, PROMPT_LOOKUP, EngineSettings, ServeSettings
from penstock.engine.cpu.cores import available_cores
from penstock.models.adapter_config import read_folder
from penstock.store.sources import BUNDLED, Resolved, is_bundled, resolve
from penstock.store.upgraded import Upgraded, write_upgraded
from penstock.wire.engine import LOAD, METRICS
from penstock.wire.errors import Problem

Source = Resolved | MockSettings
"""A checkpoint, or what a mock engine is told; each engine has a socket of its own."""


def source_of(source: str | None) -> Source:
    """What ``penstock serve`` and ``penstock upgrade`` name.  May download.  Raises ``Problem``."""
    if source is not None and is_mock(source):
        return mock_settings_of(source, "mock", "")
    return resolve(source)


def name_of(settings: ServeSettings, source: Source) -> str:
    """The model's name in requests."""
    return settings.served_name or (source.served_name if isinstance(source, MockSettings) else source.name)


def absolute(source: str) -> str:
    """The same source as it is named from any directory."""
    if is_bundled(source):
        return str(BUNDLED)
    scheme = SCHEME if is_mock(source) else ""
    path = Path(source.removeprefix(scheme)).expanduser()
    return scheme + str(path.absolute()) if source != scheme and path.exists() else source


def with_draft_model(settings: ServeSettings) -> ServeSettings:
    """With the directory of the draft model, if one is named.  May download.  Raises ``Problem``."""
    return msgspec.structs.replace(settings, speculative=speculative_of(settings.speculative))


def speculative_of(named: str) -> str:
    """What ``--speculative`` names: the directory of a draft model, or as it is."""
    if named in (NO_SPECULATION, PROMPT_LOOKUP):
        return named
    try:
        return str(resolve(named).directory)
    except Problem as problem:
        message = f"--speculative is none, prompt-lookup or a model: {problem.message}"
        raise Problem(problem.code, message, param="--speculative") from problem


def given_source(settings: ServeSettings) -> str:
    """What the command line asks for, in a form that an upgrade back can name."""
    return str(BUNDLED) if settings.source is None else absolute(settings.source)


def first_adapters(settings: ServeSettings, name: str) -> dict[str, tuple[str, str]]:
    """The adapters to begin with: names to the model, the first of which is ``name``, and the folder.

    Raises ``invalid_setting`` for a name that two models' adapters have.
    """
    of_models = {name: settings.lora_modules} | {other: model.lora_modules for other, model in settings.also.items()}
    found: dict[str, tuple[str, str]] = {}
    for model, modules in of_models.items():
        for adapter, path in modules.items():
            if adapter in found:
                message = (
                    f"The adapter {adapter!r} is of {found[adapter][0]!r} and of {model!r}; give one another name."
                )
                raise Problem("invalid_setting", message, param="lora_modules")
            found[adapter] = model, str(Path(path).expanduser().absolute())
    return found


def check_adapters(first: Mapping[str, tuple[str, str]], sources: Mapping[str, Source], max_rank: int) -> None:
    """What their folders show, before an engine reads them.  Raises ``Problem`` for one that none can serve."""
    for name, (model, path) in first.items():
        if isinstance(sources[model], MockSettings):  # which takes whatever it is told
            continue
        try:
            config, _ = read_folder(Path(path))
            if config.rank > max_rank and not config.ranks:
                message = f"{config.file}: it has rank {config.rank}; the most is {max_rank}. "
                raise Problem("checkpoint_unsupported", message + "Start with a larger --max-lora-rank.")
        except Problem as problem:
            raise unservable(name, problem) from problem


class Engines:
    """Numbers them: an engine's id is never used again, whatever source it is of."""

    def __init__(self, settings: ServeSettings, name: str, home: Path, run: RunDir) -> None:
        self._settings = settings
        self._name = name
        self._home = home
        self._run = run
        self._number = 0
        self.driver: LocalDriver | None = None
        self.page: Gather | None = None

    def make(self, source: Source, model: str, number: int) -> list[tuple[Member, Launch]]:
        """The next engines of a model, and how each is launched."""
        made = []
        count = self._settings.replicas + sum(other.replicas for other in self._settings.also.values())
        for _ in range(number):
            id = engine_id(self._number)
            of = "" if model == self._name else model
            member = Member(id=id, kind="engine", socket=str(self._run.sockets / f"{id}.sock"), model=of)
            made.append((member, _launch(member, self._settings, model, source, count)))
            self._number += 1
        return made

    def fetch(self, source: str) -> Source:
        return source_of(source)

    def prepare(self, fetched: object, model: str, number: int) -> list[Member]:
        """So many of them, known to the driver and to the page of metrics."""
        assert self.driver is not None and self.page is not None and isinstance(fetched, Source)
        made = self.make(fetched, model, number)
        for member, launch in made:
            self.driver.know(member.id, launch)
            self.page.know(member.id, member.socket, METRICS)
        return [member for member, _ in made]

    def keep(self, model: str, source: str) -> None:
        serve = self._settings
        if model != self._name:
            serve = msgspec.structs.replace(serve, source=serve.also[model].source, served_name=model)
        upgraded = Upgraded(model=model, given=given_source(serve), source=source, at=time.time())
        write_upgraded(self._home, serve.served_name or "", upgraded)


def _launch(member: Member, serve: ServeSettings, name: str, source: Source, count: int) -> Launch:
    """One of ``count`` engines on this machine."""
    if isinstance(source, MockSettings):
        pretended = msgspec.json.encode(msgspec.structs.replace(source, served_name=name, socket=member.socket))
        return Launch(argv=command("mock"), settings=lambda _: pretended, socket=member.socket, route=LOAD)
    own = serve.also[name].lora_modules if name in serve.also else serve.lora_modules
    settings = EngineSettings(
        replica=member.id,
        socket=member.socket,
        model_dir=str(source.directory),
        served_name=name,
        dtype=serve.dtype,
        exact=serve.exact,
        quantization=serve.quantization,
        kv_cache_dtype=serve.kv_cache_dtype,
        max_model_len=serve.max_model_len,
        kv_memory_bytes=serve.kv_memory_bytes,
        kv_share=1.0 / count,
        max_step_tokens=serve.max_step_tokens,
        max_num_seqs=serve.max_num_seqs,
        itl_target_ms=serve.itl_target_ms,
        prefix_caching=serve.prefix_caching,
        speculative=serve.speculative,
        speculative_tokens=serve.speculative_tokens,
        threads=serve.threads or _threads_each(count),
        reasoning_parser=serve.reasoning_parser,
        tool_parser=serve.tool_parser,
        max_loras=max(serve.max_loras, len(own)),
        max_lora_rank=serve.max_lora_rank,
    )
    line = msgspec.json.encode(settings)
    return Launch(argv=command("engine"), settings=lambda _: line, socket=member.socket, route=LOAD)


def _threads_each(replicas: int) -> int | None:
    """One replica chooses by itself; several would each take every core."""
    return None if replicas == 1 else max(1, available_cores() // replicas)
