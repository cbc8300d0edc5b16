"""Tables as plain text, HTML and rich."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import count, zip_longest
from shutil import get_terminal_size
from textwrap import wrap
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.table import Table as RichTable

_Row = TypeVar("_Row")


@dataclass(frozen=True)
class Table:
    """Rows of cells under the names of their columns."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    chosen: int | None = None  # the row that stands out: by a star in text, in bold otherwise
    right: Collection[int] = ()  # the columns that are aligned to the right

    def shortened(self, most: int = 12) -> Table:
        """Return the table without its middle, if it has more rows than that."""
        gap = [f"... {len(self.rows)} in all", *[""] * (len(self.columns) - 1)]
        return replace(self, rows=without_middle(self.rows, most, gap))

    def turned(self) -> Table:
        """Return the table with its columns as rows: for few rows of many long cells."""
        first, *others = zip(self.columns, *self.rows, strict=True)
        return Table(first, others)

    def text(self, width: int | None = None) -> str:
        """Return aligned lines; cells are wrapped between words to a width, 0 for no limit.

        None stands for the columns of stdout if that is a terminal, else for no limit.
        """
        room = _terminal_width() if width is None else width
        if self.chosen is not None:
            room = max(room - 3, 0)
        spaces = self._spaces(room)
        lines = []
        for place, row in enumerate((self.columns, *self.rows)):
            cells = [wrap(*each) or [""] for each in zip(row, spaces, strict=True)]
            for parts in zip_longest(*cells, fillvalue=""):
                begin = "" if self.chosen is None else "*  " if place == self.chosen + 1 else "   "
                lines.append(begin + "  ".join(map(self._aligned, parts, spaces, count())))
                place = -1  # the star stands in the row's first line
        return "\n".join(line.rstrip() for line in lines)

    def _aligned(self, cell: str, space: int, column: int) -> str:
        return cell.rjust(space) if column in self.right else cell.ljust(space)

    def _spaces(self, room: int) -> list[int]:
        """Return the columns' widths, of which the widest give way until a line fits."""
        cells = list(zip(self.columns, *self.rows, strict=True))
        spaces = [max(map(len, column), default=1) or 1 for column in cells]
        words = [
            max((len(word) for cell in column for word in cell.split()), default=1)
            for column in cells
        ]
        excess = sum(spaces) + 2 * (len(spaces) - 1) - room
        if room == 0 or excess > sum(spaces) - sum(words):
            return spaces  # lines that break anywhere are easier to read than words that do
        for _ in range(excess):
            widest = max(
                range(len(spaces)), key=lambda place: (spaces[place] > words[place], spaces[place])
            )
            spaces[widest] -= 1
        return spaces

    def html(self) -> str:
        """Return a table element that needs no style sheet."""
        head = "".join(f"<th>{escape(name)}</th>" for name in self.columns)
        body = "".join(self._html_row(place, row) for place, row in enumerate(self.rows))
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def _html_row(self, place: int, row: Sequence[str]) -> str:
        start, end = ("<strong>", "</strong>") if place == self.chosen else ("", "")
        # Jupyter's own style aligns all cells to the right.
        sides = ("right" if column in self.right else "left" for column in range(len(row)))
        wraps = ("" if " " in cell else ";white-space:nowrap" for cell in row)  # 1e- and 3
        cells = (
            f'<td style="text-align:{side}{wrap}">{start}{escape(cell)}{end}</td>'
            for cell, side, wrap in zip(row, sides, wraps, strict=True)
        )
        return f"<tr>{''.join(cells)}</tr>"

    def rich(self, title: str = "") -> RichTable:
        """Return a table of rich, which fits whatever it is printed to."""
        from rich.table import Table
        from rich.text import Text

        made = Table(*self.columns, title=Text(title) if title else None, title_justify="left")
        for column in self.right:
            made.columns[column].justify = "right"
        for place, row in enumerate(self.rows):  # as Text: a reason may contain brackets
            made.add_row(*map(Text, row), style="bold" if place == self.chosen else None)
        return made


def short_time(seconds: float) -> str:
    """Return a time to two digits, without an exponent: "0.43 s", "92 s", "1200 s"."""
    return f"{float(f'{seconds:.2g}'):.10g} s"


def without_middle(rows: Sequence[_Row], most: int, gap: _Row) -> Sequence[_Row]:
    """Return the first and the last rows, a gap between them; all of them if at most ``most``."""
    if len(rows) <= most:
        return rows
    return [*rows[: most // 2], gap, *rows[-(most // 2) :]]


def _terminal_width() -> int:
    return get_terminal_size((0, 0)).columns if sys.stdout and sys.stdout.isatty() else 0
