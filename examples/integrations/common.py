"""What the examples share: options, a task, a count of waits, a comparison of two models."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

ROWS, BATCH, INPUTS, CLASSES = 512, 16, 16, 3


def make_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(INPUTS, 64), nn.Sequential(nn.Tanh(), nn.Linear(64, 64)), nn.Tanh(),
        nn.Linear(64, CLASSES),
    )  # fmt: skip


def make_data() -> TensorDataset:
    """Rows whose class is the largest of the first three inputs."""
    inputs = torch.randn(ROWS, INPUTS, generator=torch.Generator().manual_seed(0))
    return TensorDataset(inputs, inputs[:, :CLASSES].argmax(1))


def make_loader() -> DataLoader[Any]:
    torch.manual_seed(0)  # the order of the data
    return DataLoader(make_data(), BATCH, shuffle=True)


def batches(loader: DataLoader[Any], steps: int) -> Iterator[Any]:
    """Yield as many batches, epoch after epoch."""
    while steps > 0:
        for _, batch in zip(range(steps), loader, strict=False):
            yield batch
            steps -= 1


class _Reads(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket.__name__ == "_local_scalar_dense"
        return func(*args, **(kwargs or {}))


class Waits:
    """Counts how often the host waits: by CUDA's own word, or reads of single values on a CPU.

    On a CPU torch's AdamW reads its step counts too, which on a GPU lie on the host.
    """

    def __init__(self, device: str) -> None:
        self.count = 0
        self._on_gpu = device == "cuda"
        self._reads = _Reads()
        self._caught = warnings.catch_warnings(record=True)

    def __enter__(self) -> Waits:
        if self._on_gpu:
            self._warned = self._caught.__enter__()
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
        else:
            self._reads.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._on_gpu:
            torch.cuda.set_sync_debug_mode("default")
            assert self._warned is not None
            self.count = sum("synchronizing" in str(each.message) for each in self._warned)
            self._caught.__exit__(kind, error, trace)
        else:
            self._reads.__exit__(kind, error, trace)
            self.count = self._reads.count


def largest_difference(one: nn.Module, other: nn.Module) -> float:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


def options(arguments: Sequence[str] | None, *, has_half: bool = False) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    if has_half:
        parser.add_argument("--half", action="store_true", dest="is_half")
    return parser.parse_args(arguments)


def report(
    steps: int, models: tuple[nn.Module, nn.Module], waits: tuple[int, int], found: object
) -> None:
    """Say how training with lrfast compares to training with the library's own.

    Args:
        steps: Updates of each training.
        models: The one trained with the library's own, and the one trained with lrfast.
        waits: Of each training.
        found: What a range test suggests.
    """
    sys.stdout.write(
        f"{steps} steps; largest difference of a weight: {largest_difference(*models):.1e}\n"
        f"waits for the device: {waits[0]} with the library's own, {waits[1]} with lrfast\n"
        f"a range test says: {found}\n"
    )
