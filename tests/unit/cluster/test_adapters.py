"""An adapter is at every engine of its model or at none, and comes back to engines that start again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from controlled import Fleet

from penstock.cluster import adapters
from penstock.cluster.adapters import Adapters, AdapterView, NewAdapter, OldAdapter, permitted
from penstock.cluster.rollout import Member
from penstock.config.names import Name
from penstock.config.tenants import TOP, Principal
from penstock.policy.rollout import RolloutRules
from penstock.store.audit import Act
from penstock.wire.engine import LoadAdapter, LoadedAdapter, UnloadAdapter
from penstock.wire.errors import Problem


class Engines:
    """What each engine has, by its socket; a digest is the content of the folder, as ``content`` says."""

    def __init__(self) -> None:
        self.has: dict[str, set[str]] = {}
        self.content: dict[str, str] = {}
        self.refusing: dict[str, Problem] = {}
        self.keeping: dict[str, Problem] = {}
        self.asked = 0

    async def load_adapter(self, socket: str, request: LoadAdapter) -> LoadedAdapter:
        self.asked += 1
        if socket in self.refusing:
            raise self.refusing[socket]
        digest = self.content.get(Path(request.path).name, f"d-{Path(request.path).name}")
        if request.digest and digest != request.digest:
            raise Problem("conflict", "Another adapter lies there now.")
        self.has.setdefault(socket, set()).add(digest)
        return LoadedAdapter(digest=digest)

    async def unload_adapter(self, socket: str, request: UnloadAdapter) -> None:
        if socket in self.keeping:
            raise self.keeping[socket]
        self.has[socket].discard(request.digest)


class Desk:
    """The acts over a simulated fleet: two engines of ``m`` and one of ``other``."""

    def __init__(self, root: Path, first: dict[str, tuple[str, str]]) -> None:
        self.fleet = Fleet(2, [Member(id="o0", kind="engine", socket="/o0", model="other")])
        self.engines = Engines()
        self.acts: list[Act] = []
        self.told: list[tuple[str, str]] = []
        self.adapters = Adapters(
            self.fleet.machine,
            self.engines,
            root,
            self.acts.append,
            lambda id, words: self.told.append((id, words)),
            first,
            lambda: 5.0,
        )

    async def load(self, name: str, path: str = "a", model: str = "m") -> AdapterView:
        asked = NewAdapter(lora_name=name, lora_path=path, model=model)
        return await asyncio.to_thread(self.adapters.load, None, asked)

    async def unload(self, name: str) -> AdapterView:
        return await asyncio.to_thread(self.adapters.unload, None, OldAdapter(lora_name=name))

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not holds():
                await asyncio.sleep(0.01)

    @property
    def listed(self) -> dict[str, tuple[str, str]]:
        """Adapters as gateways are told of them."""
        models = self.fleet.states[-1].models
        return {model.name: (model.parent, model.adapter) for model in models if model.parent}

    async def live(self) -> None:
        """Time passes, and engines answer."""
        while self.fleet.finished is None:
            for id, seen in self.fleet.seen.items():
                if seen.exit_code is None and seen.load is None:
                    self.fleet.answer(id, "ready")
            self.fleet.run(0.2)
            await asyncio.sleep(0.01)


@asynccontextmanager
async def running(root: Path, **first: tuple[str, str]) -> AsyncIterator[Desk]:
    desk = Desk(root, first)
    tasks = [asyncio.create_task(desk.live()), asyncio.create_task(desk.adapters.run())]
    await desk.until(lambda: desk.fleet.machine.state().ready or desk.fleet.finished is not None)
    yield desk
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def test_every_engine_of_its_model_gets_it_and_gateways_are_told(tmp_path: Path) -> None:
    """Once it is answered, the desired state lists it at its parent's replicas; others' engines never hear of it."""

    async def act() -> None:
        async with running(tmp_path) as desk:
            assert await desk.load("tuned") == AdapterView(lora_name="tuned", model="m", digest="d-a")
            assert desk.engines.has == {"/e0": {"d-a"}, "/e1": {"d-a"}}
            assert desk.listed == {"tuned": ("m", "d-a")}
            state = desk.fleet.states[-1]
            assert state.models[-1].replicas == state.models[0].replicas
            assert all(said.version == state.version for said in desk.fleet.acknowledged.values())
            await desk.unload("tuned")
            assert desk.listed == {} and desk.engines.has == {"/e0": set(), "/e1": set()}
            assert [(act.action, act.verdict) for act in desk.acts] == [
                ("adapter.load", "allowed"),
                ("adapter.unload", "allowed"),
            ]

    asyncio.run(act())


def test_where_one_engine_refuses_none_keeps_it(tmp_path: Path) -> None:
    """The engine's own words are answered, nothing is listed, and what had taken it has given it back."""

    async def act() -> None:
        async with running(tmp_path) as desk:
            desk.engines.refusing["/e1"] = Problem("checkpoint_invalid", "It is cut.")
            with pytest.raises(Problem, match="It is cut"):
                await desk.load("tuned")
            assert desk.engines.has["/e0"] == set() and desk.listed == {} and desk.acts == []
            del desk.engines.refusing["/e1"]
            await desk.load("tuned")

    asyncio.run(act())


def test_a_failed_load_takes_nothing_from_another_name_of_the_same_content(tmp_path: Path) -> None:
    """Two names of one content share it at the engines, until the last of them goes."""

    async def act() -> None:
        async with running(tmp_path) as desk:
            await desk.load("one")
            desk.engines.refusing["/e1"] = Problem("insufficient_memory", "No room.")
            with pytest.raises(Problem):
                await desk.load("two")
            assert desk.engines.has["/e0"] == {"d-a"}
            desk.engines.refusing.clear()
            await desk.load("two")
            await desk.unload("one")
            assert desk.engines.has == {"/e0": {"d-a"}, "/e1": {"d-a"}}
            await desk.unload("two")
            assert desk.engines.has == {"/e0": set(), "/e1": set()}

    asyncio.run(act())


def test_an_engine_that_starts_again_is_given_what_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its second life gets the same content by itself; one that changed meanwhile is kept out, and told once."""

    monkeypatch.setattr(adapters, "_AGAIN_S", 0.01)

    async def act() -> None:
        async with running(tmp_path) as desk:
            await desk.load("tuned")
            desk.engines.has["/e0"] = set()
            desk.fleet.end("e0", -9)
            await desk.until(lambda: desk.engines.has["/e0"] == {"d-a"})
            desk.engines.content["a"] = "d-changed"
            desk.engines.has["/e1"] = set()
            desk.fleet.end("e1", -9)
            await desk.until(lambda: bool(desk.told))
            asked = desk.engines.asked
            await desk.until(lambda: desk.engines.asked > asked + 1)
            assert desk.told == [("e1", "serves without the adapter 'tuned': Another adapter lies there now.")]
            assert desk.engines.has["/e1"] == set() and desk.fleet.machine.state().ready

    asyncio.run(act())


def test_an_engine_that_does_not_give_an_adapter_up_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers late, say, and would keep the memory for ever."""
    monkeypatch.setattr(adapters, "_AGAIN_S", 0.01)

    async def act() -> None:
        async with running(tmp_path) as desk:
            await desk.load("tuned")
            desk.engines.keeping["/e1"] = Problem("internal_error", "A fault of ours.")
            await desk.unload("tuned")
            assert desk.engines.has == {"/e0": set(), "/e1": {"d-a"}}
            desk.engines.keeping.clear()
            await desk.until(lambda: desk.engines.has["/e1"] == set())

    asyncio.run(act())


def test_a_fault_of_an_engine_is_told_while_the_service_begins(tmp_path: Path) -> None:
    """Once; the service is not ready, and somebody has to hear why."""

    async def act() -> None:
        desk = Desk(tmp_path, {"tuned": ("m", "/x/a")})
        desk.engines.refusing["/e0"] = Problem("internal_error", "A fault of ours.")
        tasks = [asyncio.create_task(desk.live()), asyncio.create_task(desk.adapters.run())]
        await desk.until(lambda: desk.engines.asked > 2)
        assert desk.told == [("m", "The adapter 'tuned' cannot be served: A fault of ours.")]
        desk.engines.refusing.clear()
        await desk.until(lambda: desk.listed == {"tuned": ("m", "d-a")})
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(act())


def test_an_upgrade_takes_adapters_along(tmp_path: Path) -> None:
    """The new engines have them before the old ones go; what does not fit the new weights is told."""

    async def act() -> None:
        async with running(tmp_path) as desk:
            await desk.load("tuned")
            desk.engines.refusing["/n1"] = Problem("checkpoint_invalid", "Of another shape.")
            new = [Member(id=f"n{number}", kind="engine", socket=f"/n{number}") for number in range(2)]
            desk.fleet.machine.upgrade("m", new, RolloutRules(drain_timeout_s=0.0), desk.fleet.now)
            await desk.until(lambda: desk.engines.has.get("/n0") == {"d-a"} and bool(desk.told))
            assert desk.told == [("n1", "serves without the adapter 'tuned': Of another shape.")]
            assert desk.listed == {"tuned": ("m", "d-a")}

    asyncio.run(act())


def test_the_service_is_ready_with_the_adapters_that_it_begins_with(tmp_path: Path) -> None:
    """Ready means that these are there, too."""

    async def act() -> None:
        async with running(tmp_path, tuned=("m", "/x/a"), more=("other", "/x/b")) as desk:
            assert desk.listed == {"tuned": ("m", "d-a"), "more": ("other", "d-b")}
            assert desk.engines.has == {"/e0": {"d-a"}, "/e1": {"d-a"}, "/o0": {"d-b"}}

    asyncio.run(act())


def test_one_to_begin_with_that_cannot_be_served_ends_the_service(tmp_path: Path) -> None:
    """With its name and the reason, as a checkpoint does."""

    async def act() -> None:
        desk = Desk(tmp_path, {"tuned": ("m", "/x/a")})
        desk.engines.refusing["/e0"] = Problem("checkpoint_invalid", "It is cut.")
        tasks = [asyncio.create_task(desk.live()), asyncio.create_task(desk.adapters.run())]
        await desk.until(lambda: desk.fleet.machine.state().stage == "stopping")
        for id in list(desk.fleet.seen):
            desk.fleet.end(id, 0)
        await desk.until(lambda: desk.fleet.finished is not None)
        assert desk.fleet.finished is not None and desk.fleet.finished.problem is not None
        assert desk.fleet.finished.problem.message == "The adapter 'tuned' cannot be served: It is cut."
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(act())


@pytest.mark.parametrize(
    ("name", "code"),
    [("m", "conflict"), ("alias", "conflict"), ("tuned", "conflict"), ("no name", "invalid_value")],
)
def test_names_are_nobody_elses(name: str, code: str, tmp_path: Path) -> None:
    """A model's, an alias's, another adapter's, or none at all: refused before an engine is asked."""

    async def act() -> None:
        async with running(tmp_path) as desk:
            desk.fleet.machine.catalogue.rename({"alias": Name(to="m")})
            await desk.load("tuned")
            with pytest.raises(Problem) as refused:
                await desk.load(name, "b")
            assert refused.value.code == code
            assert ("unload it first" in refused.value.message) == (name == "tuned")
            assert all("d-b" not in has for has in desk.engines.has.values())

    asyncio.run(act())


def test_what_a_name_leads_to_stays(tmp_path: Path) -> None:
    """An alias of an adapter holds it; once it is turned, the adapter may go."""

    async def act() -> None:
        async with running(tmp_path) as desk:
            await desk.load("tuned")
            desk.fleet.machine.catalogue.rename({"alias": Name(to="tuned")})
            with pytest.raises(Problem, match="alias"):
                await desk.unload("tuned")
            assert desk.engines.has["/e0"] == {"d-a"}
            desk.fleet.machine.catalogue.rename({"alias": Name(to="m")})
            await desk.unload("tuned")
            with pytest.raises(Problem, match="no adapter"):
                await desk.unload("tuned")

    asyncio.run(act())


def test_of_several_models_one_has_to_be_named(tmp_path: Path) -> None:
    """Left out it is unclear, and an unknown one is not found."""

    async def act() -> None:
        async with running(tmp_path) as desk:
            with pytest.raises(Problem, match="m, other"):
                await asyncio.to_thread(desk.adapters.load, None, NewAdapter(lora_name="x", lora_path="a"))
            with pytest.raises(Problem, match="not served here"):
                await desk.load("x", model="nowhere")

    asyncio.run(act())


@pytest.mark.parametrize(
    "actor",
    [
        Principal(tenant=TOP, key_id="k", role="user"),
        Principal(tenant="lab", key_id="k", role="admin"),
        Principal(tenant=TOP, key_id="k", role="admin", models=frozenset({"m"})),
    ],
)
def test_only_who_administers_everything_may(actor: Principal, tmp_path: Path) -> None:
    """Anybody else is refused, and that is written down."""

    async def act() -> None:
        async with running(tmp_path) as desk:
            for act in (
                lambda: desk.adapters.load(actor, NewAdapter(lora_name="x", lora_path="a")),
                lambda: desk.adapters.unload(actor, OldAdapter(lora_name="x")),
            ):
                with pytest.raises(Problem) as refused:
                    act()
                assert refused.value.code == "permission_denied"
            assert [(row.action, row.verdict) for row in desk.acts] == [
                ("adapter.load", "denied"),
                ("adapter.unload", "denied"),
            ]

    asyncio.run(act())


def test_only_plain_folders_below_the_directory_may_be_read(tmp_path: Path) -> None:
    """Above it, beside it, through a link to it or in it: refused; by a relative path or an absolute one: taken."""
    root = tmp_path / "lora"
    (root / "team" / "a").mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    (root / "link").symlink_to(tmp_path / "secret")
    (root / "half").mkdir()
    (root / "half" / "adapter_model.safetensors").symlink_to(tmp_path / "secret" / "key")
    for asked in ("..", "../secret", "a/../../secret", "/etc", str(tmp_path / "secret"), "link", "link/x", "half", "."):
        with pytest.raises(Problem) as refused:
            permitted(root, asked)
        assert (refused.value.code, refused.value.param) == ("invalid_value", "lora_path"), asked
    assert permitted(root, "team/a") == permitted(root, str(root / "team" / "a")) == (root / "team" / "a").resolve()
    (tmp_path / "door").symlink_to(root)  # the directory itself is where the operator says it is
    assert permitted(tmp_path / "door", str(tmp_path / "door" / "team")) == (root / "team").resolve()
