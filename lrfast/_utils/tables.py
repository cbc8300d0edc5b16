"""Tables as rich draws them, for ``rich.print(result)``: rich is there when this is called."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


def table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    chosen: int | None = None,
) -> Table:
    """Return a table that fits whatever it is printed to.

    Args:
        title: Stands above it.
        columns: Their names.
        rows: Cells, as many as there are columns.
        chosen: Place of the row that stands out.
    """
    from rich.table import Table
    from rich.text import Text

    made = Table(*columns, title=Text(title), title_justify="left")
    for place, row in enumerate(rows):  # as Text, for a reason may have brackets
        made.add_row(*map(Text, row), style="bold" if place == chosen else None)
    return made
