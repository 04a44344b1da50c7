"""What a command line was upgraded to, at rest."""

from __future__ import annotations

from pathlib import Path

import msgspec

from penstock.store.upgraded import Upgraded, read_upgraded, upgraded_path, write_upgraded

NEW = Upgraded(model="m", given="/old", source="/new", at=5.0)


def test_it_is_found_again_by_the_same_command_and_by_no_other(tmp_path: Path) -> None:
    """Another source or another served name on the command line is another service."""
    assert read_upgraded(tmp_path, "", "/old") is None
    write_upgraded(tmp_path, "", NEW)
    assert read_upgraded(tmp_path, "", "/old") == NEW
    assert read_upgraded(tmp_path, "m", "/old") is None and read_upgraded(tmp_path, "", "/new") is None


def test_going_back_leaves_nothing(tmp_path: Path) -> None:
    """An upgrade to what was given is the end of it."""
    write_upgraded(tmp_path, "", NEW)
    write_upgraded(tmp_path, "", msgspec.structs.replace(NEW, source="/old"))
    assert read_upgraded(tmp_path, "", "/old") is None and list((tmp_path / "upgraded").iterdir()) == []
    write_upgraded(tmp_path, "", msgspec.structs.replace(NEW, source="/old"))


def test_a_torn_file_counts_for_nothing(tmp_path: Path) -> None:
    """What cannot be read is not believed."""
    write_upgraded(tmp_path, "", NEW)
    path = upgraded_path(tmp_path, "", "/old")
    path.write_bytes(path.read_bytes()[:-9])
    assert read_upgraded(tmp_path, "", "/old") is None
