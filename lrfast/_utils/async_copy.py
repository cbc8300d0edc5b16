"""A host copy of a small device tensor that is refreshed without waiting."""

from __future__ import annotations

import torch
from torch import Tensor


class Mirror:
    """Holds the newest copy of a tensor that has arrived on the host; on the CPU the tensor itself.

    Args:
        source: The tensor.
    """

    def __init__(self, source: Tensor) -> None:
        self._source = source
        self._on_host = source.device.type == "cpu"
        if not self._on_host:
            self._arriving = torch.zeros_like(source, device="cpu").pin_memory()
            self._arrived = torch.zeros_like(source, device="cpu")
            self._event: torch.cuda.Event | None = None

    def newest(self) -> Tensor:
        """Ask for a copy, and return the newest one that has arrived."""
        if self._on_host:
            return self._source
        if self._event is None or self._event.query():
            if self._event is not None:
                self._arrived.copy_(self._arriving)
            self._arriving.copy_(self._source, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(self._source.device))
        return self._arrived
