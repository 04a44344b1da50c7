"""Recorded traces as demands.  In: a file in Azure's CSV or Mooncake's JSON lines, plain or .gz; out: demands.

Arrivals count from the first row of the file.  A row that cannot be right is an error that names file and line.
Formats: github.com/Azure/AzurePublicDataset (AzureLLMInferenceTrace_*), github.com/kvcache-ai/Mooncake.
"""

from __future__ import annotations

import csv
import gzip
import itertools
import zlib
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from penstock.loadgen.workloads import Demand
from penstock.wire.errors import Problem

AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


class _MooncakeRow(msgspec.Struct):
    timestamp: float
    """Milliseconds."""
    input_length: int
    output_length: int
    hash_ids: list[int] = []


def read_trace(
    path: Path,
    *,
    time_scale: float = 1.0,
    limit: int | None = None,
    max_prompt_tokens: int | None = None,
    max_output_tokens: int | None = None,
) -> list[Demand]:
    """The first ``limit`` rows in order of arrival, lengths capped, times multiplied by ``time_scale``.

    The name tells the format: ``.csv`` is Azure's, ``.jsonl`` Mooncake's, each also with ``.gz``.
    Raises ``trace_invalid``.
    """
    if not 0 < time_scale < float("inf"):
        raise Problem("invalid_setting", f"The time scale is {time_scale}; give a positive number.", param="time_scale")
    suffix = Path(path.name.removesuffix(".gz")).suffix
    readers = {".csv": _azure_rows, ".jsonl": _mooncake_rows}
    if suffix not in readers:
        raise Problem("trace_invalid", f"{path}: the name ends neither in .csv nor in .jsonl (nor either with .gz).")
    try:
        with (gzip.open if path.name.endswith(".gz") else open)(path, "rt", encoding="utf-8", newline="") as lines:
            rows = list(itertools.islice(readers[suffix](path, lines), limit))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise Problem("trace_invalid", f"{path}: cannot be read: {error}") from error
    if not rows:
        raise Problem("trace_invalid", f"{path}: there are no requests in it.")
    rows.sort(key=lambda row: row.at_s)
    return [
        Demand(
            at_s=(row.at_s - rows[0].at_s) * time_scale,
            prompt_tokens=min(row.prompt_tokens, max_prompt_tokens or row.prompt_tokens),
            output_tokens=min(row.output_tokens, max_output_tokens or row.output_tokens),
            prefix_blocks=row.prefix_blocks,
        )
        for row in rows
    ]


def _azure_rows(path: Path, lines: Iterable[str]) -> Iterator[Demand]:
    rows = csv.reader(lines)
    header = [name.strip().lstrip("\ufeff") for name in next(rows, [])]
    missing = [name for name in AZURE_COLUMNS if name not in header]
    if missing:
        raise Problem(
            "trace_invalid", f"{path}, line 1: no column {', '.join(missing)}; there is: {', '.join(header)}."
        )
    at, prompt, output = (header.index(name) for name in AZURE_COLUMNS)
    try:
        for row in rows:
            if not row:
                continue
            try:
                when = _utc_seconds(row[at])
                yield _demand(path, rows.line_num, when, int(row[prompt]), int(row[output]))
            except IndexError:
                raise _bad(path, rows.line_num, f"{len(row)} fields where {len(header)} are due") from None
            except ValueError as error:
                raise _bad(path, rows.line_num, str(error)) from None
    except csv.Error as error:
        raise _bad(path, rows.line_num, str(error)) from None


def _mooncake_rows(path: Path, lines: Iterable[str]) -> Iterator[Demand]:
    decode = msgspec.json.Decoder(_MooncakeRow).decode
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = decode(line)
        except msgspec.DecodeError as error:
            raise _bad(path, number, str(error)) from None
        yield _demand(path, number, row.timestamp / 1000, row.input_length, row.output_length, tuple(row.hash_ids))


def _demand(
    path: Path, line: int, at_s: float, prompt_tokens: int, output_tokens: int, blocks: tuple[int, ...] = ()
) -> Demand:
    if prompt_tokens < 1 or output_tokens < 1:
        raise _bad(path, line, f"{prompt_tokens} prompt and {output_tokens} output tokens; both have to be 1 or more")
    return Demand(at_s, prompt_tokens, output_tokens, blocks)


def _utc_seconds(text: str) -> float:
    when = datetime.fromisoformat(text.strip())
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()


def _bad(path: Path, line: int, what: str) -> Problem:
    return Problem("trace_invalid", f"{path}, line {line}: {what}.")
