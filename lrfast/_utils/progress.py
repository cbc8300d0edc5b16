"""A bar in terminals and notebooks: how far, for how long, at which rate and with which loss."""

from __future__ import annotations

import sys
from collections.abc import Callable
from time import perf_counter
from types import TracebackType

from tqdm.auto import tqdm

_INTERVAL_S = 0.25  # between two drawings: faster than one reads

Numbers = Callable[[], dict[str, str]]


class Progress:
    """Shows how far a loop is, and its newest numbers, a few times per second.

    Nothing is shown, or worked out, in between, nor where nobody watches: in a log file or a pipe.

    Args:
        title: What goes on.
        total: Steps in all.
        done: Steps made before.
        shown: Whether to show anything at all.
    """

    def __init__(self, title: str, total: int, *, done: int = 0, shown: bool = True) -> None:
        self._is_shown = shown and _somebody_watches()
        self._done = done
        self._numbers: Numbers = dict
        self._next_at = 0.0
        self._bar = tqdm(
            desc=title,
            total=total,
            initial=done,
            leave=False,
            unit=" steps",
            mininterval=0.0,  # show() sees to it
            miniters=1,
            dynamic_ncols=True,
            disable=not self._is_shown,
        )

    def show(self, done: int, numbers: Numbers) -> None:
        """Say how many steps are made; ``numbers`` returns what to show, and must not wait."""
        if not self._is_shown:
            return
        self._done, self._numbers = done, numbers
        now = perf_counter()
        if now >= self._next_at:
            self._next_at = now + _INTERVAL_S
            self._draw()

    def close(self) -> None:
        """Show the last numbers, and take the bar away."""
        if self._is_shown:
            self._draw()
        self._bar.close()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _draw(self) -> None:
        self._bar.set_postfix(self._numbers(), refresh=False)
        self._bar.n = self._done
        self._bar.refresh()


def _somebody_watches() -> bool:
    """Whether errors go to a terminal, or to a notebook: its kernel has a stream of its own."""
    stream = sys.stderr
    if stream is None:  # as in a program without a console
        return False
    return stream.isatty() or type(stream).__module__.startswith("ipykernel")
