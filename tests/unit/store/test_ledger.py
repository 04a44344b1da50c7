"""Usage from the gateway's events to sums in the database."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import usage as support
from usage import ROW, row

from penstock.cli.usage import table
from penstock.cost.money import Rate
from penstock.events.list import RequestEnded
from penstock.store.ledger import Ledger, UsageRow, row_of
from penstock.store.places import open_access
from penstock.store.running import Running
from penstock.store.spill import Spill
from penstock.store.sql.database import Database
from penstock.store.sql.migrations import migrate
from penstock.wire.errors import Problem


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'penstock.sqlite'}"


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    database = Database(url)
    database.create()
    migrate(database)
    yield Ledger(database)
    database.close()


def requests(ledger: Ledger) -> int:
    return sum(total.requests for total in ledger.totals())


def test_a_row_counts_once(ledger: Ledger) -> None:
    """Written again, alone or among others, a row changes nothing."""
    ledger.write([ROW])
    ledger.write([ROW, row("r2", cost_nusd=1)])
    ledger.write([])
    [total] = ledger.totals()
    assert (total.requests, total.prompt_tokens, total.cached_tokens) == (2, 20, 8)
    assert (total.output_tokens, total.reasoning_tokens, total.cost_nusd) == (10, 4, 701)
    assert total.cost_usd == pytest.approx(7.01e-7)


def test_many_rows_at_once(ledger: Ledger) -> None:
    """More rows than fit into a statement are one transaction all the same."""
    ledger.write([row(f"r{number}") for number in range(5_000)])
    assert requests(ledger) == 5_000


def test_sums_are_exact(ledger: Ledger) -> None:
    """Nano-dollars add up as integers, also where floats would not."""
    ledger.write([row(f"r{number}", cost_nusd=2**53 + 1) for number in range(3)])
    assert ledger.totals()[0].cost_nusd == 3 * 2**53 + 3


def test_totals_by_what_is_asked(ledger: Ledger) -> None:
    """By tenant, key, model and time, alone and together."""
    ledger.write([row("a"), row("b", tenant="u"), row("c", key_id="l"), row("d", model="n"), row("e", at=2000.0)])
    assert [(total.tenant, total.key_id, total.model) for total in ledger.totals()] == [
        ("t", "k", "m"),
        ("t", "k", "n"),
        ("t", "l", "m"),
        ("u", "k", "m"),
    ]
    assert sum(total.requests for total in ledger.totals(tenant="t")) == 4
    assert sum(total.requests for total in ledger.totals(key_id="l")) == 1
    assert sum(total.requests for total in ledger.totals(model="m", tenant="t")) == 3
    assert sum(total.requests for total in ledger.totals(since=1500.0)) == 1
    assert ledger.totals(tenant="x' OR '1'='1") == []


def test_what_every_holder_of_limits_has_used(ledger: Ledger) -> None:
    """A request counts for its key, its tenant and the tenants above; the asking gateway's own are left out."""
    ledger.write([row("a"), row("b", model="n"), row("c", scopes="tenant:top"), row("d", gateway="me")])
    ledger.write([row("old", at=10.0)])
    spent = {(found.scope, found.model): found for found in ledger.spent(500.0, without="me")}
    assert spent["tenant:top", "m"].requests == 2 and spent["tenant:top", "m"].tokens == 30
    assert spent["key:k", "n"].tokens == 15 and spent["key:k", "m"].nusd == 700


def test_an_event_becomes_a_row() -> None:
    """Everything but what was rejected, for which no engine worked."""
    ended = RequestEnded(
        id="x", route="r", model="m", outcome="cancelled", status=200, duration_s=1.0, output_tokens=3, cost_nusd=5
    )
    made = row_of(ended, "g", 7.0)
    assert made is not None and (made.at, made.outcome, made.output_tokens, made.cost_nusd) == (7.0, "cancelled", 3, 5)
    rejected = RequestEnded(id="x", route="r", model="m", outcome="rejected", status=429, duration_s=1.0)
    assert row_of(rejected, "g", 7.0) is None


def test_the_folders_of_usage_are_private_whatever_the_umask(ledger: Ledger, tmp_path: Path) -> None:
    """Those above the files, too; opening the store the next time finds nothing to mend."""
    before = os.umask(0o022)
    try:
        Spill(tmp_path / "home" / "usage" / "store", "g", ledger).add(row("r"))
        running = Running(tmp_path / "other" / "usage" / "store", "g")
        running.begin(row("s"), Rate(1, 1, 1))
    finally:
        os.umask(before)
    running.close()
    made = [path for home in ("home", "other") for path in (tmp_path / home, *(tmp_path / home).rglob("*"))]
    assert len(made) >= 6 and {path.stat().st_mode & 0o077 for path in made} == {0}


def test_a_killed_process_loses_no_row(ledger: Ledger, url: str, tmp_path: Path) -> None:
    """What was added before SIGKILL is moved by whoever comes next, each row once."""
    command = [sys.executable, support.__file__, str(tmp_path / "usage"), url, "300"]
    source = Path(__file__).parents[3] / "src"
    died = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(source)}, check=False)
    assert died.returncode == -9 and requests(ledger) == 0
    spill = Spill(tmp_path / "usage", "next", ledger)
    assert spill.move() == 300 and requests(ledger) == 300
    assert spill.move() == 0 and list((tmp_path / "usage").iterdir()) == []


def test_a_lost_database_costs_no_row(ledger: Ledger, url: str, tmp_path: Path) -> None:
    """Rows stay in files while the database is away, and are all in it when it is back."""
    path = tmp_path / "penstock.sqlite"
    spill = Spill(tmp_path / "usage", "g", ledger)
    path.rename(tmp_path / "away")
    for number in range(20):
        spill.add(row(f"r{number}"))
        if number % 7 == 0:
            with pytest.raises(Problem):
                spill.move()
    spill.close()
    (tmp_path / "away").rename(path)
    assert spill.move() == 20 and requests(ledger) == 20


def test_a_segment_that_is_written_to_is_left_alone(ledger: Ledger, tmp_path: Path) -> None:
    """Two gateways share the directory; neither takes what the other is adding to."""
    one, other = (Spill(tmp_path / "usage", name, ledger) for name in ("one", "other"))
    one.add(row("a"))
    other.add(row("b"))
    assert other.move() == 1 and requests(ledger) == 1
    one.add(row("c"))
    assert one.move() == 2 and requests(ledger) == 3


def test_gateways_beside_one_another_lose_nothing(ledger: Ledger, tmp_path: Path) -> None:
    """While several add and move at once, every row arrives once."""

    def work(name: str) -> None:
        spill = Spill(tmp_path / "usage", name, ledger)
        for number in range(60):
            spill.add(row(f"{name}-{number}"))
            if number % 5 == 0:
                spill.move()
        spill.close()

    threads = [threading.Thread(target=work, args=(name,)) for name in ("a", "b", "c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    Spill(tmp_path / "usage", "last", ledger).close()
    assert requests(ledger) == 180


def test_waiting_finds_what_another_is_just_moving(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has to know all rows waits for the one that has a segment in hand, and then finds them in the ledger."""
    one, other = (Spill(tmp_path / "usage", name, ledger) for name in ("one", "other"))
    one.add(row("a"))
    in_hand, go_on = threading.Event(), threading.Event()
    write = ledger.write

    def slowly(rows: list[UsageRow]) -> None:
        monkeypatch.setattr(ledger, "write", write)
        in_hand.set()
        assert go_on.wait(10)
        write(rows)

    monkeypatch.setattr(ledger, "write", slowly)
    moving = threading.Thread(target=one.move)
    moving.start()
    assert in_hand.wait(10)
    assert other.move() == 0 and requests(ledger) == 0
    threading.Timer(0.05, go_on.set).start()
    other.move(wait=True)
    assert requests(ledger) == 1
    moving.join()


def test_half_a_line_spoils_no_other(ledger: Ledger, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A line that is no row is told of in the log, and the rest of its file counts."""
    spill = Spill(tmp_path / "usage", "g", ledger)
    spill.add(row("a"))
    [segment] = (tmp_path / "usage").iterdir()
    with segment.open("ab") as file:
        file.write(b'{"id":"hal')
    assert spill.move() == 1 and requests(ledger) == 1
    assert "no row of usage" in caplog.text


def test_what_is_damaged_or_no_file_keeps_no_other_row(
    ledger: Ledger, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Bytes that are no text and counts that no column takes are told and passed over; so is what cannot be opened,
    once.
    """
    directory = tmp_path / "usage"
    (directory / "0.usage").mkdir(parents=True)
    (directory / "1.usage").symlink_to("1.usage")
    line = msgspec.json.encode(row("a")) + b"\n"
    large = line.replace(b'"output_tokens":', b'"output_tokens":9223372036854775807')
    (directory / "2.usage").write_bytes(b"\xff\n" + line.replace(b'"id":"a', b'"id":"\xff') + large + line)
    spill = Spill(directory, "g", ledger)
    assert spill.move() == 1 and spill.move() == 0 and requests(ledger) == 1
    assert caplog.text.count("no row of usage") == 3 and caplog.text.count("is not moved") == 2


def test_a_full_disk_keeps_rows_in_memory(ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be written waits, and goes with the next that can; no caller hears of it."""
    spill = Spill(tmp_path / "usage", "g", ledger)
    spill.add(row("a"))
    write = os.write

    def full(file: int, data: bytes) -> int:
        if len(data) > 50:
            write(file, data[:20])
            return 20
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    spill.add(row("b"))
    monkeypatch.setattr(os, "write", write)
    spill.add(row("c"))
    assert spill.move() == 3 and requests(ledger) == 3


def test_the_table_names_its_columns(ledger: Ledger) -> None:
    """Who, what, how much, and what it cost."""
    ledger.write([row("a", key_id="", cost_nusd=1_500_000)])
    head, line = table(ledger.totals()).splitlines()
    assert head.split() == ["TENANT", "KEY", "MODEL", "REQUESTS", "PROMPT", "CACHED", "OUTPUT", "REASONING", "USD"]
    assert line.split() == ["t", "-", "m", "1", "10", "4", "5", "2", "0.001500"]


def test_the_spill_is_the_databases_own(tmp_path: Path) -> None:
    """Services with other databases share PENSTOCK_HOME: none moves another's rows; a password makes no difference."""
    pytest.importorskip("psycopg")
    urls = ["sqlite:///a.sqlite", "sqlite:///b.sqlite", "postgresql://u:one@h/d", "postgresql://u:two@h/d"]
    first, second, third, fourth = (open_access(tmp_path, url).spill for url in urls)
    assert len({first, second, third}) == 3 and third == fourth
