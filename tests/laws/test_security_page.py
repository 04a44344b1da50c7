"""docs/security.md names tests that there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = [line.split("|")[1:-1] for line in (ROOT / "docs/security.md").read_text().splitlines() if line.startswith("| ")]


@pytest.mark.parametrize("row", ROWS[1:], ids=[row[0].strip() for row in ROWS[1:]])
def test_each_class_names_tests_that_exist(row: list[str]) -> None:
    """Every file is there, and what stands behind a file's name is the beginning of one of its tests' names."""
    named = 0
    for part in row[2].split(";"):
        files = re.findall(r"`([\w/]+\.py)`", part)
        texts = [path.read_text() for file in files for path in (ROOT / "tests").rglob(Path(file).name)]
        assert len(texts) >= len(files), files
        named += len(texts)
        words = re.sub(r"\W+", "_", part.rpartition("`: ")[2].strip().replace("'", "")) if "`: " in part else ""
        assert not words or any(f"def test_{words}" in text for text in texts), words
    assert named


def test_the_page_has_classes() -> None:
    """And is not read as an empty one."""
    assert len(ROWS) > 20
