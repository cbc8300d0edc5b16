"""Progress bars for terminals and notebooks."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import TextIO

with warnings.catch_warnings():  # a notebook without ipywidgets shows bars of text
    warnings.filterwarnings("ignore", "IProgress not found")
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
        self._stream = _stream()
        self._bar = tqdm(
            file=self._stream,
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
        self._bar.write(line, file=self._stream)

    def close(self) -> None:
        """Draw the last numbers and remove the bar."""
        if not self._bar.disable:
            self._bar.set_postfix(self._numbers())
        self._bar.close()


def _stream() -> TextIO | None:
    """Return stderr, or a notebook's stdout, as notebooks show stderr as errors are shown."""
    return sys.stdout if _is_notebook(sys.stdout) else sys.stderr


def _is_interactive() -> bool:
    """Return whether bars go to a terminal, or to a notebook's stream, which is none for tqdm."""
    stream = _stream()  # None in a program without a console
    return stream is not None and (_is_notebook(stream) or stream.isatty())


def _is_notebook(stream: object) -> bool:
    return type(stream).__module__.startswith("ipykernel")
