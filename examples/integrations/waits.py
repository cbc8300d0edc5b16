"""What both examples use: options, a count of waits, and a comparison of two models."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode


class _Reads(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket.__name__ == "_local_scalar_dense"
        return func(*args, **(kwargs or {}))


class Waits:
    """Counts how often the host waits: by CUDA's own word, or reads of single values on a CPU."""

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


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--half", action="store_true", dest="is_half")
    return parser.parse_args(arguments)
