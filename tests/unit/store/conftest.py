"""A store of tenants and keys with a clock that tests set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from offices import Office

from penstock.store.places import default_url, open_access


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    opened = open_access(tmp_path, default_url(tmp_path))
    opened.store.prepare()
    yield Office(tmp_path, opened)
    opened.store.close()
