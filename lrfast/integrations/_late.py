"""Small results of the device, read when they have arrived and never waited for."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import torch
from torch import Tensor


class LateReader:
    """Copies values to the host and hands them out, in order, once they are there."""

    def __init__(self) -> None:
        self._coming: deque[tuple[int, Tensor, torch.cuda.Event | None]] = deque()

    def ask(self, step: int, values: list[Tensor]) -> None:
        """Ask for one number of each tensor, as of now."""
        packed = torch.stack([value.detach().reshape(()).double() for value in values])
        if packed.device.type != "cuda":
            self._coming.append((step, packed, None))
            return
        host = torch.empty(packed.shape, dtype=packed.dtype, pin_memory=True)
        host.copy_(packed, non_blocking=True)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(packed.device))
        self._coming.append((step, host, event))

    def arrived(self, wait: bool = False) -> Iterator[tuple[int, list[float]]]:
        """Yield what has arrived since the last call: the step, and its numbers.

        Args:
            wait: Whether to wait for what has not.
        """
        while self._coming:
            step, values, event = self._coming[0]
            if event is not None and not event.query():
                if not wait:
                    return
                event.synchronize()
            self._coming.popleft()
            yield step, values.numpy().tolist()  # host memory: no operator is dispatched
