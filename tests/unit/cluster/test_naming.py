"""Names are changed as a whole, by those who may, and every attempt is recorded."""

from __future__ import annotations

import pytest

from penstock.cluster.actions import Publish
from penstock.cluster.controller import Controller, EndRules
from penstock.cluster.naming import NamesChange, Naming
from penstock.cluster.reconcile import Observed, Rules
from penstock.cluster.rollout import Member
from penstock.config.desired import Model
from penstock.config.names import Name
from penstock.config.tenants import TOP, Principal
from penstock.store.audit import Act
from penstock.wire.errors import Problem

MEMBERS = [
    Member(id="g", kind="gateway", socket="/g"),
    Member(id="e0", kind="engine", socket="/e0"),
    Member(id="e1", kind="engine", socket="/e1", model="small"),
]


def controller(**names: Name) -> Controller:
    also = [Model(name="small", replicas=[], max_concurrent=3)]
    return Controller(
        "large", 1, MEMBERS, rules=Rules(), end=EndRules(), emit=lambda event: None, also=also, names=names
    )


def published(machine: Controller) -> Publish:
    seen = {member.id: Observed(pid=1, started_at=0.0) for member in MEMBERS}
    return next(action for action in machine.step(seen, [], 1.0) if isinstance(action, Publish))


def test_each_model_has_its_own_replicas_and_names_go_with_them() -> None:
    """What is published has every model with its engines and bounds, and the names."""
    said = published(controller(assistant=Name(to="small")))
    assert [(model.name, [r.id for r in model.replicas], model.max_concurrent) for model in said.models] == [
        ("large", ["e0"], 0),
        ("small", ["e1"], 3),
    ]
    assert said.names == {"assistant": Name(to="small")}


def test_a_change_is_published_and_recorded() -> None:
    """Added, replaced and removed in one change; what is left out stays; ``only`` leaves nothing else."""
    machine, acts = controller(old=Name(to="large"), kept=Name(to="small")), list[Act]()
    naming = Naming(machine.catalogue, acts.append)
    view = naming.change(None, NamesChange(names={"old": None, "new": Name(to={"large": 1, "small": 2})}))
    assert set(view.names) == {"kept", "new"} and view.models == ["large", "small"]
    assert set(published(machine).names) == {"kept", "new"}
    assert [(act.actor, act.action, act.subject) for act in acts] == [("operator", "names.set", "old, new")]
    only = NamesChange(names={"last": Name(to="first"), "first": Name(to="small")}, only=True)
    assert set(naming.change(None, only).names) == {"last", "first"}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"a": Name(to="nowhere")}, "invalid_value"),
        ({"kept": None}, "invalid_value"),
        ({"missing": None}, "not_found"),
        ({"small": Name(to="large")}, "invalid_value"),
    ],
)
def test_what_would_not_hold_together_changes_nothing(change: dict[str, Name | None], code: str) -> None:
    """Unknown targets, a name that another one needs, names of models: refused, and all is as it was."""
    machine = controller(kept=Name(to="small"), alias=Name(to="kept"))
    with pytest.raises(Problem) as refused:
        Naming(machine.catalogue, lambda act: None).change(None, NamesChange(names=change | {"good": Name(to="large")}))
    assert refused.value.code == code and set(machine.catalogue.names) == {"kept", "alias"}


@pytest.mark.parametrize(
    "actor",
    [
        Principal(tenant=TOP, key_id="k", role="user"),
        Principal(tenant="lab", key_id="k", role="admin"),
        Principal(tenant=TOP, key_id="k", role="admin", models=frozenset({"small"})),
    ],
)
def test_names_are_for_those_who_administer_everything(actor: Principal) -> None:
    """A user, a part's administrator and one who may not use every model are refused, and that is recorded."""
    machine, acts = controller(), list[Act]()
    naming = Naming(machine.catalogue, acts.append)
    for act in (lambda: naming.show(actor), lambda: naming.change(actor, NamesChange(names={"a": Name(to="small")}))):
        with pytest.raises(Problem, match="administrators"):
            act()
    assert not machine.catalogue.names and [act.verdict for act in acts] == ["denied", "denied"]
    whole = Principal(tenant=TOP, key_id="k", role="admin")
    assert naming.change(whole, NamesChange(names={"a": Name(to="small")})).names and acts[-1].actor == "k"


def test_a_service_with_wrong_names_does_not_begin() -> None:
    """The controller refuses what its file would have it publish."""
    with pytest.raises(Problem, match="neither a model nor a name"):
        controller(a=Name(to="nowhere"))
