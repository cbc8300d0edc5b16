"""Ctrl-C between two steps, where training can go on from exactly."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType


class Interrupts:
    """Holds a Ctrl-C back until :meth:`check`; a second one comes through at once.

    Works in the main thread, and where nobody else handles the signal; elsewhere it does nothing.
    """

    def __init__(self) -> None:
        self._is_pending = False
        self._is_ours = False

    def __enter__(self) -> Interrupts:
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._note)
            self._is_ours = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._is_ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if self._is_pending and kind is not KeyboardInterrupt:
            # It came after the last step, or what failed is its doing: workers of a DataLoader get
            # the signal too, and end.
            raise KeyboardInterrupt from error

    def check(self) -> None:
        """Raise KeyboardInterrupt if there was one."""
        if self._is_pending:
            self._is_pending = False
            raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._is_pending:
            raise KeyboardInterrupt
        self._is_pending = True
