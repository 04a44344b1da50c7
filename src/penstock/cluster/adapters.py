"""LoRA adapters of a service: loaded and unloaded while it runs, and brought to every engine that starts later.

In: requests of the admin API, from its threads, and the adapters to begin with; out: calls on engines and on the
controller, whose desired state lists an adapter as a model; rows of the audit log.
A load is for all engines that are ready, or for none.  What an engine lacks later it is given again and again.
Argued in docs/decisions/022-adapters.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar

import msgspec
from msgspec import Meta

from penstock.cluster.catalogue import ServedAdapter
from penstock.cluster.controller import Controller, Engine
from penstock.cluster.permit import permit
from penstock.config.tenants import Principal
from penstock.store.audit import Act
from penstock.wire.engine import LoadAdapter, LoadedAdapter, UnloadAdapter
from penstock.wire.errors import Fault, Problem

T = TypeVar("T")

_POLL_S = 0.1
_AGAIN_S = 5.0
"""After so long an engine that could not take an adapter, or give one up, is asked again."""
_PASSING = ("not_ready", "draining", "engine_lost")
"""What an engine answers that begins or ends: nobody has to hear of it."""
_CALL_TIMEOUT_S = 120.0
_FOLLOWED_TIMEOUT_S = 5.0
_WEIGHTS_FILES = ("adapter_config.json", "adapter_model.safetensors")


class NewAdapter(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``lora_path``: a folder as PEFT writes it, in the service's directory of adapters; relative ones are meant there.

    ``model``: whose adapter it is; null where one model is served.
    """

    lora_name: Annotated[str, Meta(min_length=1, max_length=200)]
    lora_path: Annotated[str, Meta(min_length=1, max_length=4000)]
    model: Annotated[str, Meta(max_length=200)] | None = None


class OldAdapter(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which one to unload."""

    lora_name: Annotated[str, Meta(min_length=1, max_length=200)]


class AdapterView(msgspec.Struct, frozen=True, kw_only=True):
    """An adapter as it is shown.  ``digest`` is that of its content."""

    lora_name: str
    model: str
    digest: str


class EngineCalls(Protocol):
    """How engines are spoken to, each by its socket.  Raises ``Problem``: the engine's own, or ``engine_lost``."""

    async def load_adapter(self, socket: str, request: LoadAdapter) -> LoadedAdapter: ...

    async def unload_adapter(self, socket: str, request: UnloadAdapter) -> None: ...


class Adapters:
    """The acts of the admin API; ``run`` brings the adapters to begin with, and keeps engines supplied.

    ``root``: what lies below it may be loaded while the service runs.  ``first``: names to (model, folder).
    ``tell`` takes an engine's id and words for people; ``now`` gives seconds of the epoch.
    """

    def __init__(
        self,
        controller: Controller,
        calls: EngineCalls,
        root: Path,
        audit: Callable[[Act], None],
        tell: Callable[[str, str], None],
        first: Mapping[str, tuple[str, str]],
        now: Callable[[], float],
    ) -> None:
        self._controller = controller
        self._catalogue = controller.catalogue
        self._calls = calls
        self._root = root
        self._audit = audit
        self._tell = tell
        self._first = dict(first)
        self._now = now
        self._loop = asyncio.get_running_loop()
        self._turn = asyncio.Lock()
        self._has: dict[Engine, set[str]] = {}
        self._again_at: dict[tuple[Engine, str], float] = {}
        controller.awaits_adapters = bool(self._first)

    def load(self, actor: Principal | None, asked: NewAdapter) -> AdapterView:
        """Of a thread.  Raises ``Problem``: ``permission_denied``, ``invalid_value``, ``conflict``, or the engines'."""
        who = permit(actor, "Adapters", self._audit, "adapter.load", asked.lora_name)
        path = permitted(self._root, asked.lora_path)
        view = self._done(self._load(asked.lora_name, self._parent(asked.model), path))
        self._audit(Act(actor=who, action="adapter.load", subject=_subject(view)))
        return view

    def unload(self, actor: Principal | None, asked: OldAdapter) -> AdapterView:
        """Of a thread.  What runs with it ends as it would.  Raises ``Problem``: also ``not_found``, ``conflict``."""
        who = permit(actor, "Adapters", self._audit, "adapter.unload", asked.lora_name)
        view = self._done(self._unload(asked.lora_name))
        self._audit(Act(actor=who, action="adapter.unload", subject=_subject(view)))
        return view

    async def run(self) -> None:
        """Ends by cancellation."""
        for name, (model, path) in self._first.items():
            if not await self._begin_with(name, model, Path(path)):
                return
        self._controller.awaits_adapters = False
        while True:
            async with self._turn:
                await self._supply()
            await asyncio.sleep(_POLL_S)

    async def _begin_with(self, name: str, model: str, path: Path) -> bool:
        """Once an engine is ready.  False: it cannot be, which ends the service."""
        told = ""
        while True:
            try:
                await self._load(name, model, path)
                return True
            except Problem as problem:
                refused = unservable(name, problem)
                if problem.spec.fault is Fault.CALLER:
                    self._controller.give_up(refused)
                    return False
                if problem.code not in _PASSING and refused.message != told:
                    self._tell(model, refused.message)
                    told = refused.message
            await asyncio.sleep(_POLL_S)

    def _done(self, act: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(act, self._loop).result()

    async def _load(self, name: str, model: str, path: Path) -> AdapterView:
        async with self._turn:
            served = ServedAdapter(name=name, model=model, path=str(path), digest="", created=int(self._now()))
            self._catalogue.check_adapters([*self._catalogue.adapters, served])
            digest = await self._load_everywhere(model, str(path))
            self._catalogue.adapt([*self._catalogue.adapters, msgspec.structs.replace(served, digest=digest)])
            await self._followed()
        return AdapterView(lora_name=name, model=model, digest=digest)

    async def _load_everywhere(self, model: str, path: str) -> str:
        """Its digest, which is the same at every engine that is ready.  Raises ``Problem`` and leaves none with it."""
        engines = self._controller.ready_engines(model)
        if not engines:
            raise Problem("not_ready", f"No engine of {model!r} is ready.", retry_after_s=1)
        digest, done = "", []
        try:
            for engine in engines:
                digest = await self._give(engine, LoadAdapter(path=path, digest=digest))
                done.append(engine)
        except Problem:
            if digest not in self._wanted(model):
                for engine in done:
                    await self._take(engine, digest)
            raise
        return digest

    async def _unload(self, name: str) -> AdapterView:
        async with self._turn:
            left = [served for served in self._catalogue.adapters if served.name != name]
            gone = next((served for served in self._catalogue.adapters if served.name == name), None)
            if gone is None:
                raise Problem("not_found", f"There is no adapter {name!r}.", param="lora_name")
            self._catalogue.adapt(left)
            await self._followed()
            await self._supply()
        return AdapterView(lora_name=name, model=gone.model, digest=gone.digest)

    async def _supply(self) -> None:
        """Every ready engine has the adapters of its model, and no others."""
        living = set()
        for model in self._catalogue.models:
            wanted = self._wanted(model)
            for engine in self._controller.ready_engines(model):
                living.add(engine)
                has = self._has.setdefault(engine, set())
                for digest in filter(partial(self._is_due, engine), has - wanted.keys()):
                    await self._take(engine, digest)
                for digest in filter(partial(self._is_due, engine), wanted.keys() - has):
                    await self._supply_one(engine, digest, wanted[digest])
        self._has = {engine: has for engine, has in self._has.items() if engine in living}
        self._again_at = {key: at for key, at in self._again_at.items() if key[0] in living}

    def _is_due(self, engine: Engine, digest: str) -> bool:
        return self._loop.time() >= self._again_at.get((engine, digest), 0.0)

    async def _supply_one(self, engine: Engine, digest: str, served: ServedAdapter) -> None:
        try:
            await self._give(engine, LoadAdapter(path=served.path, digest=digest))
        except Problem as problem:
            if (engine, digest) not in self._again_at and problem.code not in _PASSING:
                self._tell(engine.id, f"serves without the adapter {served.name!r}: {problem.message}")
            self._again_at[engine, digest] = self._loop.time() + _AGAIN_S

    async def _give(self, engine: Engine, request: LoadAdapter) -> str:
        try:
            async with asyncio.timeout(_CALL_TIMEOUT_S):
                loaded = await self._calls.load_adapter(engine.socket, request)
        except TimeoutError:
            message = f"{engine.id} did not load the adapter within {_CALL_TIMEOUT_S:g} s."
            raise Problem("engine_lost", message) from None
        self._has.setdefault(engine, set()).add(loaded.digest)
        return loaded.digest

    async def _take(self, engine: Engine, digest: str) -> None:
        """An engine that is lost on the way has lost its adapters, too; any other is asked again later."""
        try:
            async with asyncio.timeout(_CALL_TIMEOUT_S):
                await self._calls.unload_adapter(engine.socket, UnloadAdapter(digest=digest))
        except (Problem, TimeoutError) as failure:
            if not (isinstance(failure, Problem) and failure.code == "engine_lost"):
                self._again_at[engine, digest] = self._loop.time() + _AGAIN_S
                return
        self._has[engine].discard(digest)

    def _wanted(self, model: str) -> dict[str, ServedAdapter]:
        return {served.digest: served for served in self._catalogue.adapters if served.model == model}

    async def _followed(self) -> None:
        """Every gateway routes by what there is now; one that is late is not waited for for ever."""
        deadline = self._loop.time() + _FOLLOWED_TIMEOUT_S
        while not self._controller.is_followed and self._loop.time() < deadline:
            await asyncio.sleep(_POLL_S / 4)

    def _parent(self, model: str | None) -> str:
        models = self._catalogue.models
        if model is None and len(models) == 1:
            return models[0]
        if model is None:
            raise Problem("invalid_value", f"Whose adapter it is has to be said: {', '.join(models)}.", param="model")
        if model not in models:
            raise Problem("model_not_found", f"The model {model!r} is not served here.", param="model")
        return model


def unservable(name: str, problem: Problem) -> Problem:
    """What is told of an adapter to begin with that has this problem."""
    message = f"The adapter {name!r} cannot be served: {problem.message}"
    return Problem(
        problem.code, message, param=problem.param, hint="docs/howto/lora.md lists what is refused, and why."
    )


def permitted(root: Path, asked: str) -> Path:
    """The folder that ``asked`` names below ``root``.  Raises ``invalid_value`` for one outside, or behind a link."""
    path = Path(asked)
    real = root.resolve()
    inside = next((path.relative_to(top) for top in (root, real) if path.is_relative_to(top)), path)
    if "\0" in asked or inside.is_absolute() or ".." in inside.parts or not inside.parts:
        message = f"{asked[:200]!r} is no folder in {root}, where adapters to be loaded lie (--lora-dir)."
        raise Problem("invalid_value", message, param="lora_path")
    folder = real / inside
    below = [real.joinpath(*inside.parts[: count + 1]) for count in range(len(inside.parts))]
    for step in (*below, *(folder / name for name in _WEIGHTS_FILES)):
        if step.is_symlink():
            raise Problem(
                "invalid_value", f"{step} is a link; adapters are loaded from plain folders.", param="lora_path"
            )
    return folder


def _subject(view: AdapterView) -> str:
    return f"{view.lora_name} of {view.model}, {view.digest}"[:200]
