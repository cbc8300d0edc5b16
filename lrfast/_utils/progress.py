"""Progress bars for terminals and notebooks."""

from __future__ import annotations

import sys
from collections.abc import Callable

from tqdm.auto import tqdm

_INTERVAL_S = 0.25  # between two drawings: faster than one reads
# Without the time passed and the pace, so that the numbers fit 80 columns.
_FORMAT = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{remaining}{postfix}]"

Numbers = Callable[[], dict[str, str]]


class Progress:
    """A bar with the newest numbers of a loop, drawn a few times per second.

    Numbers are computed only when the bar is drawn, and nothing is drawn in a log file or a pipe.
    """

    def __init__(self, title: str, total: int, *, done: int = 0, shown: bool = True) -> None:
        self._numbers: Numbers = dict
        self._bar = tqdm(
            desc=title,
            total=total,
            initial=done,
            leave=False,
            bar_format=_FORMAT,
            mininterval=_INTERVAL_S,
            miniters=1,
            dynamic_ncols=True,
            disable=not (shown and _is_interactive()),
        )
        if not self._bar.disable:
            self._bar.last_print_t -= _INTERVAL_S  # the first step is drawn at once

    def show(self, done: int, numbers: Numbers) -> None:
        """Set the steps made; ``numbers`` returns the text to show and must not synchronise."""
        self._numbers = numbers
        if self._bar.update(done - self._bar.n):
            self._bar.set_postfix(numbers())

    @property
    def is_shown(self) -> bool:
        return not self._bar.disable

    def write(self, line: str) -> None:
        """Write a line above the bar, to where the bar is drawn."""
        self._bar.write(line, file=sys.stderr)

    def close(self) -> None:
        """Draw the last numbers and remove the bar."""
        if not self._bar.disable:
            self._bar.set_postfix(self._numbers())
        self._bar.close()


def _is_interactive() -> bool:
    """Return whether stderr is a terminal, or a notebook's stream, which is none for tqdm."""
    stream = sys.stderr  # None in a program without a console
    is_notebook = type(stream).__module__.startswith("ipykernel")
    return stream is not None and (is_notebook or stream.isatty())
