"""Plain text of range tests: rates and aligned tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from lrfast.suggest import Suggestion

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


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of cells as lines with two spaces between the columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)
