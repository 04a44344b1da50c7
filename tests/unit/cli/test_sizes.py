"""Sizes as people write them."""

from __future__ import annotations

import pytest
import typer

from penstock.cli.sizes import parse_size, show_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512MiB", 512 << 20),
        ("2G", 2 << 30),
        ("2GB", 2000000000),
        ("1.5k", 1536),
        ("1500000", 1500000),
        (" 1 gib ", 1 << 30),
        ("7B", 7),
        ("1Ti", 1 << 40),
    ],
)
def test_sizes_in_the_usual_spellings(text: str, size: int) -> None:
    """Bare letters and iB are powers of 1024, B alone of 1000."""
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "big", "-1G", "0", "1X", "1 2", "5iB", "nan", "1e9"])
def test_what_is_no_size_is_told_what_is(text: str) -> None:
    """The message repeats the value and gives examples."""
    with pytest.raises(typer.BadParameter, match=r"512MiB|less than one"):
        parse_size(text)


@pytest.mark.parametrize(("size", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (1 << 50, "1024.0 TiB")])
def test_sizes_are_shown_in_the_largest_unit_that_fits(size: int, text: str) -> None:
    """One digit after the point, and TiB is the last unit."""
    assert show_size(size) == text
