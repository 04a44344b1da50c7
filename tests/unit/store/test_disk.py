"""What a place that cannot be written is called."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from penstock.store.disk import writing
from penstock.wire.errors import Problem


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOSPC, "insufficient_disk"),
        (errno.EROFS, "invalid_setting"),
        (errno.ENOENT, "invalid_setting"),
        (errno.ELOOP, "invalid_setting"),
        (errno.ENAMETOOLONG, "invalid_setting"),
    ],
)
def test_a_place_that_cannot_be_written_is_a_problem(number: int, code: str) -> None:
    """A full disk and a directory that cannot be are told apart, and both name the path."""
    with pytest.raises(Problem) as caught, writing(Path("/somewhere")):
        raise OSError(number, "no")
    assert caught.value.code == code and "/somewhere" in caught.value.message
