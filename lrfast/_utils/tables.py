"""Tables as plain text, HTML and rich."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from shutil import get_terminal_size
from textwrap import wrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table as RichTable

_LEAST_ROOM = 24  # for the last column; with less, lines that break anywhere are easier to read


@dataclass(frozen=True)
class Table:
    """Rows of cells under the names of their columns.

    Args:
        columns: Names of the columns.
        rows: Cells, one per column; the last of each row may be long.
        chosen: Index of the row that stands out, by a star in text and in bold otherwise.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    chosen: int | None = None

    def text(self, width: int | None = None) -> str:
        """Return aligned lines, with two spaces between the columns.

        Args:
            width: Columns of the terminal, to which last cells are wrapped if that leaves them 24
                or more; 0 for no limit. None: those of stdout if it is a terminal, else no limit.
        """
        rows: list[Sequence[str]] = [self.columns, *self.rows]
        if self.chosen is not None:
            marks = ["", *("*" if row == self.chosen else "" for row in range(len(self.rows)))]
            rows = [(mark, *row) for mark, row in zip(marks, rows, strict=True)]
        *widths, _ = (max(map(len, column)) for column in zip(*rows, strict=True))
        indent = sum(widths) + 2 * len(widths)
        room = (_terminal_width() if width is None else width) - indent
        lines = []
        for *cells, last in rows:
            begin = "".join(f"{cell:{space}}  " for cell, space in zip(cells, widths, strict=True))
            parts = wrap(last, room) if _LEAST_ROOM <= room < len(last) else [last]
            lines += [begin + parts[0], *(" " * indent + part for part in parts[1:])]
        return "\n".join(line.rstrip() for line in lines)

    def html(self) -> str:
        """Return a table element that needs no style sheet."""
        head = "".join(f"<th>{escape(name)}</th>" for name in self.columns)
        body = "".join(_html_row(row, place == self.chosen) for place, row in enumerate(self.rows))
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def rich(self, title: str) -> RichTable:
        """Return a table of rich, which fits whatever it is printed to."""
        from rich.table import Table
        from rich.text import Text

        made = Table(*self.columns, title=Text(title), title_justify="left")
        for place, row in enumerate(self.rows):  # as Text: a reason may contain brackets
            made.add_row(*map(Text, row), style="bold" if place == self.chosen else None)
        return made


def _html_row(row: Sequence[str], is_chosen: bool) -> str:
    start, end = ("<strong>", "</strong>") if is_chosen else ("", "")
    # Jupyter's own style aligns all cells to the right.
    cells = (f'<td style="text-align:left">{start}{escape(cell)}{end}</td>' for cell in row)
    return f"<tr>{''.join(cells)}</tr>"


def _terminal_width() -> int:
    return get_terminal_size((0, 0)).columns if sys.stdout and sys.stdout.isatty() else 0
