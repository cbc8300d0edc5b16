"""Plain text of range tests: rates and aligned tables."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from shutil import get_terminal_size
from textwrap import wrap
from typing import Final

from lrfast.suggest import Suggestion

_LEAST_ROOM = 24  # for the last column; with less, lines that break anywhere are easier to read

COLUMNS: Final = ("rule", "rate", "confidence", "reason")


def cells(rule: str, suggestion: Suggestion) -> tuple[str, str, str, str]:
    """Return what stands under :data:`COLUMNS` for a rule."""
    return rule, rate_text(suggestion), f"{suggestion.confidence:.2f}", suggestion.reason


def rate_text(suggestion: Suggestion) -> str:
    """Return the suggested rate, or pair of rates, or "none"."""
    if suggestion.lr is None:
        return "none"
    if suggestion.base_lr is None:
        return f"{suggestion.lr:.1e}"
    return f"{suggestion.base_lr:.1e} to {suggestion.lr:.1e}"


def aligned(rows: Sequence[Sequence[str]], width: int | None = None) -> str:
    """Return rows of cells as lines with two spaces between the columns.

    Args:
        rows: The last cell of each is the one that may be long.
        width: Columns of the terminal, to which that one is wrapped where there is room; None:
            those of the one that stdout is, and no limit where it is none.
    """
    *widths, _ = (max(map(len, column)) for column in zip(*rows, strict=True))
    indent = sum(widths) + 2 * len(widths)
    room = (_terminal_width() if width is None else width) - indent
    lines = []
    for *cells, last in rows:
        begin = "".join(cell.ljust(width) + "  " for cell, width in zip(cells, widths, strict=True))
        parts = wrap(last, room) if _LEAST_ROOM <= room < len(last) else [last]
        lines += [begin + parts[0], *(" " * indent + part for part in parts[1:])]
    return "\n".join(line.rstrip() for line in lines)


def _terminal_width() -> int:
    return get_terminal_size((0, 0)).columns if sys.stdout and sys.stdout.isatty() else 0
