"""Curves of a run: as lines of braille characters for a terminal, and as a PNG.

In: points; out: text, or a file.  Each braille character is a grid of two by four dots.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from penstock.wire.errors import Problem

Points = Sequence[tuple[float, float]]
# Bit of the dot in column x, row y of a character (Unicode block 2800).
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
_BLANK = 0x2800


def braille(points: Points, *, width: int = 64, height: int = 12) -> list[str]:
    """A curve of ``width`` by ``height`` characters with its range at the left and below."""
    low_x, high_x = _range([x for x, _ in points])
    low_y, high_y = _range([y for _, y in points])
    cells = [[0] * width for _ in range(height)]
    columns, rows = width * 2 - 1, height * 4 - 1
    dots = [
        (round((x - low_x) / (high_x - low_x) * columns), round((high_y - y) / (high_y - low_y) * rows))
        for x, y in points
    ]
    for (x, y), (next_x, next_y) in zip(dots, [*dots[1:], dots[-1]], strict=True):
        for at in range(x, max(x, next_x - 1) + 1):
            share = (at - x) / max(1, next_x - x)
            _dot(cells, at, round(y + (next_y - y) * share))
    labels = [f"{high_y:.4g}", *[""] * (height - 2), f"{low_y:.4g}"]
    margin = max(map(len, labels))
    lines = [
        f"{label:>{margin}} |{''.join(chr(_BLANK + cell) for cell in row)}"
        for label, row in zip(labels, cells, strict=True)
    ]
    ends = f"{low_x:g}", f"{high_x:g}"
    lines.append(f"{'':>{margin}} +{ends[0]}{ends[1]:>{max(1, width - len(ends[0]))}}")
    return lines


def check_png(path: Path) -> None:
    """Ahead of long work: raises ``invalid_setting`` where matplotlib or the folder of ``path`` is missing."""
    try:
        import matplotlib.figure  # noqa: F401  # whether it is there
    except ImportError:
        message = "--png draws with matplotlib, which is not installed: pip install 'penstock[train]'."
        raise Problem("invalid_setting", message, param="--png") from None
    if not path.parent.is_dir():
        raise Problem("invalid_setting", f"{path} cannot be written: {path.parent} is no folder.", param="--png")


def write_png(path: Path, curves: Sequence[tuple[str, Points]], title: str, x_label: str) -> None:
    """One panel per (name, points), below one another.  Raises ``invalid_setting`` as :func:`check_png` does."""
    check_png(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 2.6 * len(curves)), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(len(curves), 1, squeeze=False)
    for (name, points), panel in zip(curves, panels[:, 0], strict=True):
        panel.plot([x for x, _ in points], [y for _, y in points], linewidth=1)
        panel.set_ylabel(name)
        panel.grid(alpha=0.3)
    panels[-1, 0].set_xlabel(x_label)
    try:
        figure.savefig(path, format="png", dpi=120)
    except OSError as error:
        raise Problem("invalid_setting", f"{path} cannot be written: {error.strerror}.", param="--png") from None


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _dot(cells: list[list[int]], x: int, y: int) -> None:
    cells[y // 4][x // 2] |= _DOTS[x % 2][y % 4]
