"""``penstock store``: what it says, in words and as JSON, and how it ends."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from penstock.cli.main import build
from penstock.wire.errors import Problem


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PENSTOCK_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def run(*words: str) -> Any:
    return CliRunner().invoke(build(), list(words))


def asked(*words: str) -> Any:
    done = run(*words, "--json")
    assert done.exit_code == 0, done.output
    return msgspec.json.decode(done.stdout)


def test_a_backup_and_back(home: Path, tmp_path: Path) -> None:
    """A key that was made before is there after its store was deleted and restored; both acts are in the log."""
    issued = asked("keys", "create", "--name", "me")
    file = str(tmp_path / "b")
    assert asked("store", "backup", file)["schema"] == asked("store", "status")["newest_schema"]
    assert asked("store", "verify", file)["tables"]
    for path in (*home.glob("penstock.sqlite*"), home / "access.snapshot", home / "audit.head"):
        path.unlink()
    assert asked("store", "restore", file)["held"] == {"tenants": 0, "keys": 1, "usage": 0, "audit": 2}
    assert [key["id"] for key in asked("keys", "list")] == [issued["id"]]
    assert [finding["problem"] for finding in asked("store", "check")] == [""] * 6
    assert [entry["action"] for entry in asked("audit", "list")] == ["keys.create", "store.restore"]


def test_words_say_what_was_done_and_what_is_to_be_kept(home: Path, tmp_path: Path) -> None:
    """The secret is not in a backup, and whoever makes one is told."""
    run("keys", "create")
    done = run("store", "backup", str(tmp_path / "b"))
    assert "rows of schema" in done.stdout and "`secret`" in done.stderr
    assert "is whole" in run("store", "verify", str(tmp_path / "b")).stdout
    assert "1 keys" in run("store", "status").stdout
    assert run("store", "restore", str(tmp_path / "b"), "--replace").stdout.startswith("restored")
    assert run("store", "migrate").stdout.startswith("nothing was due")


def test_who_restores_a_backup_of_before_the_first_key_is_told_that_the_service_stays_closed(
    home: Path, tmp_path: Path
) -> None:
    """And what makes a key; where one of the backup works, nothing is to be told."""
    run("store", "migrate")
    run("store", "backup", str(tmp_path / "open"))
    run("keys", "create")
    run("store", "backup", str(tmp_path / "closed"))
    assert "penstock keys create" in run("store", "restore", str(tmp_path / "open"), "--replace").stderr
    assert run("store", "restore", str(tmp_path / "closed"), "--replace").stderr == ""


def test_check_ends_with_one_and_names_what_is_wrong(home: Path) -> None:
    """One finding per thing; what is whole is said to be whole."""
    run("keys", "create")
    with sqlite3.connect(home / "penstock.sqlite") as db:
        db.execute("UPDATE audit SET actor = 'x'")
    done = run("store", "check")
    assert done.exit_code == 1
    assert "audit log: Row 1 was changed." in done.stdout and "snapshot: whole" in done.stdout


def test_migrate_brings_an_old_store_to_this_release_and_says_so(home: Path) -> None:
    """From which schema to which, and a row of the log."""
    run("keys", "create")
    with sqlite3.connect(home / "penstock.sqlite") as db:
        db.executescript("DROP TABLE usage; UPDATE facts SET value = '1' WHERE name = 'schema'")
    assert run("store", "status").stdout.count("schema 1 of") == 1
    done = asked("store", "migrate")
    assert done["before"] == 1 and done["after"] == asked("store", "status")["newest_schema"]
    assert asked("audit", "list")[-1]["action"] == "store.migrate"


@pytest.mark.parametrize("act", [["status"], ["backup", "b"]])
def test_a_store_that_is_not_there_is_not_made_by_looking(home: Path, act: list[str]) -> None:
    """Neither the file nor its tables."""
    done = run("store", *act)
    assert isinstance(done.exception, Problem) and done.exception.code == "store_unavailable"
    assert not (home / "penstock.sqlite").exists()


@pytest.mark.parametrize("act", ["restore", "verify"])
def test_a_backup_without_its_secret_makes_none_and_names_what_is_missing(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    """A new one would be another; the file to copy is named, also where another one is there already."""
    run("keys", "create")
    run("store", "backup", str(tmp_path / "b"))
    monkeypatch.setenv("PENSTOCK_HOME", str(tmp_path / "next"))
    done = run("store", act, str(tmp_path / "b"))
    assert isinstance(done.exception, Problem) and "Copy `secret`" in done.exception.hint
    assert not (tmp_path / "next").exists()
    run("keys", "list")
    done = run("store", act, str(tmp_path / "b"), *(["--replace"] if act == "restore" else []))
    assert isinstance(done.exception, Problem) and "Copy `secret`" in done.exception.hint
