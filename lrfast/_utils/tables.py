"""Tables as plain text, HTML and rich."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from html import escape
from shutil import get_terminal_size
from textwrap import wrap
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.table import Table as RichTable

_Row = TypeVar("_Row")

_LEAST_ROOM = 24  # for the last column; with less, lines that break anywhere are easier to read


@dataclass(frozen=True)
class Table:
    """Rows of cells under the names of their columns."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]  # the last cell of each may be long
    chosen: int | None = None  # the row that stands out: by a star in text, in bold otherwise
    right: Collection[int] = ()  # the columns that are aligned to the right

    def shortened(self, most: int = 12) -> Table:
        """Return the table without its middle, if it has more rows than that."""
        gap = [f"... {len(self.rows)} in all", *[""] * (len(self.columns) - 1)]
        return replace(self, rows=without_middle(self.rows, most, gap))

    def text(self, width: int | None = None) -> str:
        """Return aligned lines; last cells are wrapped to a width, 0 for no limit.

        None stands for the columns of stdout if that is a terminal, else for no limit.
        """
        columns = []
        for place, column in enumerate(zip(self.columns, *self.rows, strict=True)):
            space = max(map(len, column))
            align = str.rjust if place in self.right else str.ljust
            columns.append([align(cell, space) for cell in column])
        if self.chosen is not None:
            columns.insert(0, [" ", *(" *"[row == self.chosen] for row in range(len(self.rows)))])
        indent = sum(len(column[0]) + 2 for column in columns[:-1])
        room = (_terminal_width() if width is None else width) - indent
        lines = []
        for *cells, last in zip(*columns, strict=True):
            begin = "".join(f"{cell}  " for cell in cells)
            last = last.rstrip()
            parts = wrap(last, room) if _LEAST_ROOM <= room < len(last) else [last]
            lines += [begin + parts[0], *(" " * indent + part for part in parts[1:])]
        return "\n".join(line.rstrip() for line in lines)

    def html(self) -> str:
        """Return a table element that needs no style sheet."""
        head = "".join(f"<th>{escape(name)}</th>" for name in self.columns)
        body = "".join(self._html_row(place, row) for place, row in enumerate(self.rows))
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def _html_row(self, place: int, row: Sequence[str]) -> str:
        start, end = ("<strong>", "</strong>") if place == self.chosen else ("", "")
        # Jupyter's own style aligns all cells to the right.
        sides = ("right" if column in self.right else "left" for column in range(len(row)))
        cells = (
            f'<td style="text-align:{side}">{start}{escape(cell)}{end}</td>'
            for cell, side in zip(row, sides, strict=True)
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


def without_middle(rows: Sequence[_Row], most: int, gap: _Row) -> Sequence[_Row]:
    """Return the first and the last rows, a gap between them; all of them if at most ``most``."""
    if len(rows) <= most:
        return rows
    return [*rows[: most // 2], gap, *rows[-(most // 2) :]]


def _terminal_width() -> int:
    return get_terminal_size((0, 0)).columns if sys.stdout and sys.stdout.isatty() else 0
