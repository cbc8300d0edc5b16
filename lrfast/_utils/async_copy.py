"""Asynchronous copies of small device tensors to the host, read without a synchronisation.

And the note that a tensor of another stream is in use on this one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


class AsyncHostCopy:
    """The newest copy of a tensor that has arrived on the host; on the CPU the tensor itself."""

    def __init__(self, source: Tensor) -> None:
        self._source = source
        self._on_host = source.device.type == "cpu"
        if not self._on_host:
            self._arriving = torch.zeros_like(source, device="cpu").pin_memory()
            self._arrived = torch.zeros_like(source, device="cpu")
            self._event: torch.cuda.Event | None = None

    def latest(self) -> Tensor:
        """Queue a copy, and return the newest one that has arrived."""
        if self._on_host:
            return self._source
        if self._event is None or self._event.query():
            if self._event is not None:
                self._arrived.copy_(self._arriving)
            self._event = _queue_copy(self._source, self._arriving)
        return self._arrived


@dataclass(frozen=True)
class HostCopy:
    """A copy of a tensor on its way to the host."""

    values: Tensor
    event: torch.cuda.Event | None = None

    @property
    def has_arrived(self) -> bool:
        """Whether the copy can be read without a synchronisation."""
        return self.event is None or self.event.query()

    def wait(self) -> Tensor:
        """Return the copy once it has arrived."""
        if self.event is not None:
            self.event.synchronize()
        return self.values


def queue_copy(source: Tensor) -> HostCopy:
    """Queue a copy of a tensor, as it is now, to memory of its own on the host."""
    if source.device.type != "cuda":
        return HostCopy(source.clone())
    host = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
    return HostCopy(host, _queue_copy(source, host))


class AsyncHostQueue:
    """Numbers copied to the host, handed out in order once they have arrived."""

    def __init__(self) -> None:
        self._coming: deque[tuple[int, HostCopy]] = deque()

    def put(self, step: int, values: list[Tensor]) -> None:
        """Queue a copy of one number of each tensor, as of now; they may be on several devices."""
        device = next((value.device for value in values if value.is_cuda), values[0].device)
        numbers = [value.detach().reshape(()) for value in values]
        packed = torch.stack(
            [n.to(device, torch.float64, non_blocking=device.type == "cuda") for n in numbers]
        )
        self._coming.append((step, queue_copy(packed)))

    def ready(self, wait: bool = False) -> Iterator[tuple[int, list[float]]]:
        """Yield step and numbers of each copy that has arrived, or synchronise and yield all."""
        while self._coming and (wait or self._coming[0][1].has_arrived):
            step, copy = self._coming.popleft()
            values = copy.wait() if wait else copy.values
            yield step, values.numpy().tolist()  # host memory: no operator is dispatched


def _queue_copy(source: Tensor, pinned: Tensor) -> torch.cuda.Event:
    """Queue a copy to pinned memory, and return the event that follows it."""
    pinned.copy_(source, non_blocking=True)
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(source.device))
    return event


def note_use(tensor: Tensor) -> None:
    """Keep a tensor's memory, once it is dropped, until the current stream has used it.

    For a tensor that another stream may have made: only that one would have to get there.
    """
    tensor = getattr(tensor, "_local_tensor", tensor)
    if not tensor.is_cuda:
        return
    stream = torch.cuda.current_stream(tensor.device)
    is_sparse = tensor.layout is torch.sparse_coo
    for part in (tensor._indices(), tensor._values()) if is_sparse else (tensor,):
        part.record_stream(stream)
