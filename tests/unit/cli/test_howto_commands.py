"""What the how-tos about keys and limits tell to type, typed in their order."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from penstock.cli.main import build

HOWTO = Path(__file__).parents[3] / "docs" / "howto"


def commands(page: str) -> list[list[str]]:
    """Its commands about the store, without those that want the id of a key."""
    lines = re.findall(r"^penstock ((?:keys|tenants|usage|audit)\b.*)$", (HOWTO / page).read_text(), re.MULTILINE)
    words = [shlex.split(line, comments=True) for line in lines]
    return [line for line in words if "KEY" not in line]


@pytest.mark.parametrize(
    "pages", [["keys.md", "limits-and-usage.md"], ["limits-and-usage.md", "keys.md"], ["limits-and-usage.md"]]
)
def test_the_commands_of_the_pages_work_one_after_the_other(
    pages: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever page is read first, and none needs what no page has made."""
    monkeypatch.setenv("PENSTOCK_HOME", str(tmp_path))
    asked = [command for page in pages for command in commands(page)]
    assert len(asked) > 5
    for command in asked:
        done = CliRunner().invoke(build(), command)
        assert done.exit_code == 0, (command, done.output, done.exception)
