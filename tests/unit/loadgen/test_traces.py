"""Recorded traces, and what is wrong with broken ones."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from penstock.loadgen.traces import read_trace
from penstock.loadgen.workloads import Demand
from penstock.wire.errors import Problem

AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
    "2023-11-16 18:15:46.6805900,374,44\r\n"
    "2023-11-16 18:15:50.9951690,396,109\r\n"
    "2023-11-16 18:15:51.2224670,879,55\r\n"
)
MOONCAKE = (
    '{"timestamp": 0, "input_length": 600, "output_length": 52, "hash_ids": [46, 47]}\n'
    '{"timestamp": 3000, "input_length": 1100, "output_length": 26, "hash_ids": [46, 48, 49]}\n'
)
SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "traces"


def _write(directory: Path, name: str, text: str) -> Path:
    path = directory / name
    data = text.encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


@pytest.mark.parametrize("name", ["azure.csv", "azure.csv.gz"])
def test_azure_rows_become_demands(tmp_path: Path, name: str) -> None:
    """Lengths are the file's, times count from its first row, to the microsecond."""
    demands = read_trace(_write(tmp_path, name, AZURE))
    assert [(d.prompt_tokens, d.output_tokens) for d in demands] == [(374, 44), (396, 109), (879, 55)]
    assert [d.at_s for d in demands] == pytest.approx([0.0, 4.314579, 4.541877], abs=2e-6)


@pytest.mark.parametrize("name", ["mooncake.jsonl", "mooncake.jsonl.gz"])
def test_mooncake_rows_become_demands(tmp_path: Path, name: str) -> None:
    """Milliseconds become seconds, and prefix ids are kept."""
    assert read_trace(_write(tmp_path, name, MOONCAKE)) == [
        Demand(0.0, 600, 52, (46, 47)),
        Demand(3.0, 1100, 26, (46, 48, 49)),
    ]


def test_scale_limit_and_caps(tmp_path: Path) -> None:
    """Times are multiplied, rows counted from the top, lengths cut to the caps."""
    path = _write(tmp_path, "azure.csv", AZURE)
    demands = read_trace(path, time_scale=0.5, limit=2, max_prompt_tokens=380, max_output_tokens=50)
    assert [(d.prompt_tokens, d.output_tokens) for d in demands] == [(374, 44), (380, 50)]
    assert demands[1].at_s == pytest.approx(2.1572895, abs=2e-6)


def test_columns_may_be_in_any_order(tmp_path: Path) -> None:
    """Columns are found by name; others are passed over."""
    text = "\ufeffGeneratedTokens,x,ContextTokens,TIMESTAMP\n5,?,6,2024-05-10 00:00:00+00:00\n\n"
    assert read_trace(_write(tmp_path, "a.csv", text)) == [Demand(0.0, 6, 5)]


def test_rows_out_of_order_are_sorted(tmp_path: Path) -> None:
    """Demands come in order of arrival, whatever the file's order."""
    lines = MOONCAKE.splitlines(keepends=True)
    assert [d.at_s for d in read_trace(_write(tmp_path, "m.jsonl", lines[1] + lines[0]))] == [0.0, 3.0]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.csv", "", "line 1"),
        ("a.csv", "TIMESTAMP,ContextTokens\n", "line 1: no column GeneratedTokens"),
        ("a.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n", "no requests"),
        ("a.csv", AZURE + "2023-11-16 18:15:52,-1,5\n", "line 5: -1 prompt"),
        ("a.csv", AZURE + "2023-11-16 18:15:52,7,0\n", "line 5: 7 prompt and 0 output"),
        ("a.csv", AZURE + "2023-11-16 18:15:52,many,5\n", "line 5: "),
        ("a.csv", AZURE + "yesterday,4,5\n", "line 5: "),
        ("a.csv", AZURE + "2023-11-16 18:15:52,4\n", "line 5: 2 fields"),
        ("a.csv", AZURE + "2023-11-16 18:15:52,4,\x005\n", "line 5: "),
        ("a.jsonl", "", "no requests"),
        ("a.jsonl", MOONCAKE + "{", "line 3: "),
        ("a.jsonl", MOONCAKE + '{"timestamp": 1, "input_length": 3}', "line 3: "),
        ("a.jsonl", MOONCAKE + '{"timestamp": NaN, "input_length": 3, "output_length": 1}', "line 3: "),
        ("a.parquet", AZURE, "neither in .csv nor in .jsonl"),
    ],
)
def test_a_broken_trace_is_named(tmp_path: Path, name: str, text: str, says: str) -> None:
    """The error names the file, and the line where there is one."""
    path = _write(tmp_path, name, text)
    with pytest.raises(Problem) as caught:
        read_trace(path)
    assert caught.value.code == "trace_invalid"
    assert str(path) in caught.value.message and says in caught.value.message


@pytest.mark.parametrize(
    "data", [None, b"\x1f\x8b\x08 this is no gzip", gzip.compress(AZURE.encode())[:-9], b"\xff\xfe"]
)
def test_an_unreadable_trace_is_named(tmp_path: Path, data: bytes | None) -> None:
    """A missing, damaged, cut or binary file is an error that names it."""
    path = tmp_path / "trace.csv.gz"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(Problem) as caught:
        read_trace(path)
    assert caught.value.code == "trace_invalid" and str(path) in caught.value.message


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    """A file that is not UTF-8 is an error that names it."""
    path = tmp_path / "trace.csv"
    path.write_bytes(AZURE.encode() + b"\xff\xff,1,1\n")
    with pytest.raises(Problem) as caught:
        read_trace(path)
    assert caught.value.code == "trace_invalid" and str(path) in caught.value.message


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_time_scale_has_to_be_positive(tmp_path: Path, scale: float) -> None:
    """A scale that would fold or stop time is refused by name."""
    with pytest.raises(Problem) as caught:
        read_trace(_write(tmp_path, "azure.csv", AZURE), time_scale=scale)
    assert caught.value.param == "time_scale"


@pytest.mark.skipif(not SHARED.is_dir(), reason="the recorded traces are not beside this checkout")
def test_the_published_traces_are_read_whole() -> None:
    """The Azure conversation trace and the Mooncake trace have their documented sizes and lengths."""
    azure = read_trace(SHARED / "azure-llm-2023" / "AzureLLMInferenceTrace_conv.csv")
    assert len(azure) == 19366
    assert sum(d.prompt_tokens for d in azure) / len(azure) == pytest.approx(1155, abs=1)
    mooncake = read_trace(SHARED / "mooncake-fast25" / "conversation_trace.jsonl.gz")
    assert len(mooncake) == 12031
    assert sum(d.output_tokens for d in mooncake) / len(mooncake) == pytest.approx(343, abs=1)
