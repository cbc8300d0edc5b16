"""torch-lr-finder's interface over `lrfast.lr_find`: what switching takes, and what differs.

The one module of this folder that imports lrfast. Tests compare it with numbers that
torch-lr-finder publishes. It differs where `lr_find` does: everything is put back at once, so that
`reset` has nothing to do; the stop rule sees bias-corrected averages; a NaN ends the sweep.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lrfast import RangeTest, lr_find


class DataLoaderIter:
    """Iterates a loader and takes inputs and labels from its batches."""

    def __init__(self, data_loader: Any) -> None:
        self.data_loader = data_loader
        self._iterator = iter(data_loader)

    @property
    def dataset(self) -> Any:
        return self.data_loader.dataset

    def inputs_labels_from_batch(self, batch_data: Any) -> tuple[Any, Any]:
        if not isinstance(batch_data, list | tuple):
            raise ValueError(f"Your batch type is not supported: {type(batch_data)}")
        return batch_data[0], batch_data[1]

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return self.inputs_labels_from_batch(next(self._iterator))


class TrainDataLoaderIter(DataLoaderIter):
    """Begins again where the loader ends."""

    def __init__(self, data_loader: Any, auto_reset: bool = True) -> None:
        super().__init__(data_loader)
        self.auto_reset = auto_reset

    def __next__(self) -> Any:
        try:
            return super().__next__()
        except StopIteration:
            if not self.auto_reset:
                raise
            self._iterator = iter(self.data_loader)
            return super().__next__()


class ValDataLoaderIter(DataLoaderIter):
    """Begins again where `iter` is called after the loader has ended."""

    def __init__(self, data_loader: Any) -> None:
        super().__init__(data_loader)
        self._count = 0

    def __iter__(self) -> Iterator[Any]:
        if self._count >= len(self.data_loader):
            self._iterator = iter(self.data_loader)
            self._count = 0
        return self

    def __next__(self) -> Any:
        self._count += 1
        return super().__next__()


class LRFinder:
    """torch-lr-finder's class; `memory_cache` and `cache_dir` are read by nobody."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        criterion: Any,
        device: torch.device | str | None = None,
        memory_cache: bool = True,
        cache_dir: str | None = None,
        amp_backend: str | None = None,
        amp_config: dict[str, Any] | None = None,
        grad_scaler: Any = None,
    ) -> None:
        self.model, self.optimizer, self.criterion = model, optimizer, criterion
        self.device = device
        self.amp_backend, self.amp_config, self.grad_scaler = amp_backend, amp_config, grad_scaler
        self.history: dict[str, Any] = {"lr": [], "loss": []}
        self.best_loss: float | None = None
        self.result: RangeTest | None = None

    def range_test(
        self,
        train_loader: Any,
        val_loader: Any = None,
        start_lr: float | Sequence[float] | None = None,
        end_lr: float = 10,
        num_iter: int = 100,
        step_mode: str = "exp",
        smooth_f: float = 0.05,
        diverge_th: float = 5,
        accumulation_steps: int = 1,
        non_blocking_transfer: bool = True,
    ) -> None:
        """Each group goes from its own rate to the same last one; the history has group 0."""
        _check_loader("train_loader", train_loader, TrainDataLoaderIter)
        if val_loader is not None:
            _check_loader("val_loader", val_loader, ValDataLoaderIter)
        if self.device is not None:
            self.model.to(self.device)
        groups = self.optimizer.param_groups
        if start_lr is None:
            start_lr = [float(group["lr"]) for group in groups]
        starts = [start_lr] * len(groups) if isinstance(start_lr, int | float) else list(start_lr)
        self.result = lr_find(
            self.model,
            self.optimizer,
            train_loader,
            compute_loss=self._loss,
            start_lr=starts,
            end_lr=[end_lr] * len(groups),
            num_iter=num_iter,
            mode=step_mode.lower(),  # type: ignore[arg-type]
            diverge_threshold=diverge_th,
            beta=1 - smooth_f if smooth_f > 0 else 0.0,
            gradient_accumulation_steps=accumulation_steps,
            val_loader=val_loader,
            scaler=self.grad_scaler,
            progress=False,
        )
        rates = self.result.sweep.table()[: len(self.result.lrs), 0]
        losses = seeded_average(self.result.losses.tolist(), smooth_f)
        self.history = {"lr": rates.tolist(), "loss": losses}
        self.best_loss = min(losses, default=None)

    def _loss(self, model: nn.Module, batch: Any) -> Tensor:
        inputs, labels = batch[0], batch[1]
        is_mixed = self.amp_backend == "torch" and self.amp_config is not None
        with torch.autocast(**self.amp_config) if is_mixed else nullcontext():  # type: ignore[arg-type]
            loss: Tensor = self.criterion(model(inputs), labels)
            return loss

    def reset(self) -> None:
        """Everything is already as before the range test."""

    def plot(
        self,
        skip_start: int = 10,
        skip_end: int = 5,
        log_lr: bool = True,
        show_lr: float | None = None,
        ax: Any = None,
        suggest_lr: bool = True,
    ) -> Any:
        """Draws the history; with `suggest_lr` it returns (axes, rate), else the axes."""
        count = len(self.history["lr"])
        if suggest_lr and count < (needed := skip_start + skip_end + 2):
            raise RuntimeError(f"Need at least {needed} iterations to suggest a rate. Got {count}")
        if ax is None:
            from matplotlib.figure import Figure

            ax = Figure().subplots()
        kept = slice(skip_start, -skip_end if skip_end else None)
        rates, losses = self.history["lr"][kept], self.history["loss"][kept]
        ax.plot(rates, losses)
        if log_lr:
            ax.set_xscale("log")
        if show_lr is not None:
            ax.axvline(show_lr, color="red")
        if not suggest_lr:
            return ax
        index = int(np.gradient(np.array(losses)).argmin())
        ax.scatter(rates[index], losses[index], color="red")
        return ax, rates[index]


def seeded_average(losses: Sequence[float], smooth_f: float) -> list[float]:
    """An EMA that begins at the first loss, without bias correction; 0 turns it off."""
    averages: list[float] = []
    for loss in losses:
        first = not averages or smooth_f == 0
        averages.append(loss if first else smooth_f * loss + (1 - smooth_f) * averages[-1])
    return averages


def _check_loader(name: str, loader: Any, kind: type) -> None:
    if not isinstance(loader, DataLoader | kind):
        raise ValueError(f"`{name}` has unsupported type: {type(loader)}")
