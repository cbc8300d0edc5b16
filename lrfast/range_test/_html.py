"""What a notebook shows of a range test."""

from __future__ import annotations

import base64
from html import escape
from io import BytesIO
from typing import TYPE_CHECKING

from lrfast.range_test._text import COLUMNS, cells

if TYPE_CHECKING:
    from lrfast.range_test._result import RangeTest


def html(result: RangeTest) -> str:
    """Return a summary, the table of suggestions and the plot, as one element.

    Args:
        result: What :func:`lrfast.lr_find` returned.

    Returns:
        HTML that needs no style sheet and loads nothing; the plot is a text where matplotlib is
        not installed.
    """
    head = "".join(f"<th>{escape(name)}</th>" for name in COLUMNS)
    rows = "".join(
        _row(cells(rule, suggestion), chosen=rule == result.rule)
        for rule, suggestion in result.suggestions.items()
    )
    summary = "<br>".join(escape(line) for line in str(result).splitlines())
    return (
        f"<div><p>{summary}</p>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        f"{_plot(result)}</div>"
    )


def _row(texts: tuple[str, ...], chosen: bool) -> str:
    start, end = ("<strong>", "</strong>") if chosen else ("", "")
    # Jupyter's own style aligns all cells to the right.
    cells = (f'<td style="text-align:left">{start}{escape(text)}{end}</td>' for text in texts)
    return f"<tr>{''.join(cells)}</tr>"


def _plot(result: RangeTest) -> str:
    try:
        figure = result.plot()
    except ImportError:
        return f"<pre>{escape(result.terminal_plot())}</pre>"
    # A PNG, for notebooks strip inline SVG from output that they do not trust.
    image = BytesIO()
    figure.savefig(image, format="png", dpi=100)
    data = base64.b64encode(image.getvalue()).decode("ascii")
    return f'<img alt="loss over learning rate" src="data:image/png;base64,{data}">'
