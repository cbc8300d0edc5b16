"""The learning-rate range test: a sweep over rates that leaves no trace, and what it shows.

A range test is a schedule (exponential), a loss curve with a stop rule, and a snapshot that puts
everything back. Nothing in its loop waits for the device. Rules that read a rate off the curve are
in :mod:`lrfast.suggest`; drawing is in :mod:`lrfast.plot`.
"""

from __future__ import annotations

import csv
import logging
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.optim import Optimizer
from tqdm.auto import tqdm

from lrfast import schedules, suggest
from lrfast._batches import (
    ComputeLoss,
    LossFunction,
    check_loss,
    cycled,
    device_of,
    length_of,
    make_compute_loss,
    to_device,
    upload,
)
from lrfast._drive import drive
from lrfast._scheduled import set_rate
from lrfast.curve import LossCurve
from lrfast.snapshot import preserved
from lrfast.suggest import Suggestion

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FloatArray = npt.NDArray[np.float64]
Outcome = Literal["completed", "diverged", "non-finite"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RangeTest:
    """What a range test saw, and the rates that the rules read off it.

    Args:
        lrs: Rates of the sweep up to where it ended, [points]: those of the trained group with the
            highest rate.
        losses: Raw losses, [points]; ``losses[k]`` is measured just before the update at
            ``lrs[k]``.
        smoothed: Bias-corrected EMA of the losses, [points].
        derivative: Slope of the smoothed losses over the natural logarithm of the rate, [points].
        ratios: Rate of each param group relative to ``lrs``, [groups].
        suggestions: What each rule of :mod:`lrfast.suggest` says, by name.
        outcome: "completed", "diverged" (the stop rule ended the sweep) or "non-finite" (a NaN or
            infinite loss did).
        seconds: What it took, snapshot and restore included.
        notes: What a reader should know, such as that the loader was cycled.
    """

    lrs: FloatArray
    losses: FloatArray
    smoothed: FloatArray
    derivative: FloatArray
    ratios: tuple[float, ...]
    suggestions: MappingProxyType[str, Suggestion]
    outcome: Outcome
    seconds: float
    notes: tuple[str, ...] = ()

    @property
    def suggestion(self) -> Suggestion:
        """The suggestion to use when no rule is named: that of rule "auto"."""
        return self.suggestions["auto"]

    def rates(self, rule: str = "auto") -> list[float]:
        """Return the rate that a rule suggests for each param group.

        Raises:
            ValueError: If there is no such rule, or it declined; the message has its reason.
        """
        suggest.get(rule)
        suggestion = self.suggestions[rule]
        if suggestion.lr is None:
            raise ValueError(f"rule {rule!r} suggests no rate: {suggestion.reason}")
        return [suggestion.lr * ratio for ratio in self.ratios]

    def apply(self, optimizer: Optimizer, rule: str = "auto") -> list[float]:
        """Set every param group's rate to the suggested one and return the rates.

        Raises:
            ValueError: If the rule declined or the optimizer has another number of groups; nothing
                is changed then.
        """
        rates = self.rates(rule)
        groups = optimizer.param_groups
        if len(groups) != len(rates):
            raise ValueError(
                f"optimizer must have the {len(rates)} param groups of the range test, got "
                f"{len(groups)}"
            )
        for group, rate in zip(groups, rates, strict=True):
            set_rate(group, rate)
        return rates

    def to_csv(self, path: str | Path) -> None:
        """Write one row per point: lr, loss, smoothed, derivative."""
        with open(path, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["lr", "loss", "smoothed", "derivative"])
            columns = (self.lrs, self.losses, self.smoothed, self.derivative)
            writer.writerows(zip(*(column.tolist() for column in columns), strict=True))

    def plot(self, path: str | Path | None = None) -> Figure:
        """Draw losses, smoothed losses, derivative and suggestions; needs matplotlib.

        Args:
            path: Where to save the figure too; the suffix names the format.

        Returns:
            The figure.
        """
        from lrfast.plot import plot_range_test

        return plot_range_test(self, path)


def lr_find(
    model: nn.Module,
    optimizer: Optimizer,
    data: Iterable[Any],
    loss_fn: LossFunction | None = None,
    *,
    compute_loss: ComputeLoss | None = None,
    start_lr: float = 1e-7,
    end_lr: float = 10.0,
    num_iter: int = 100,
    stop: float = 4.0,
    beta: float = 0.98,
    progress: bool = True,
) -> RangeTest:
    """Run a range test: train with growing rates, record the losses, put everything back.

    Training after a range test is, bit for bit, training without it: parameters, buffers,
    gradients, optimizer state, modes, random numbers and the order of a DataLoader are as before,
    also when something raises in the middle. Data that can be iterated only once is used up.

    The rates of the param groups keep their ratios: ``start_lr`` and ``end_lr`` are those of the
    group with the highest rate among the groups that train.

    Args:
        model: Module with trainable parameters; it is put into training mode if it is not.
        optimizer: Ours, or any of torch.optim, with parameters of the model.
        data: Batches; cycled if they are fewer than ``num_iter``.
        loss_fn: ``loss_fn(model(inputs), targets)`` for batches ``(inputs, targets)``.
        compute_loss: Instead of ``loss_fn``: ``compute_loss(model, batch)`` returns the loss.
        start_lr: First rate, above 0.
        end_lr: Last rate, above ``start_lr``.
        num_iter: Points of the sweep, 2 or more.
        stop: The sweep ends when the smoothed loss exceeds ``stop`` times the best, above 1.
        beta: Decay of the EMA that smooths the losses, in [0, 1).
        progress: Whether to show a progress bar.

    Returns:
        Curve, suggestions and outcome.

    Raises:
        TypeError, ValueError: For bad arguments, data or losses; nothing has changed then.

    Example:
        >>> import torch, lrfast
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = lrfast.SGD(model.parameters(), lr=0.1)
        >>> batches = [(torch.ones(4, 2), torch.ones(4, 1))]
        >>> result = lrfast.lr_find(
        ...     model, optimizer, batches, torch.nn.functional.mse_loss, progress=False
        ... )
        >>> result.suggestion.rule, len(result.losses) == len(result.lrs)
        ('auto', True)

    Reference:
        Smith, "Cyclical Learning Rates for Training Neural Networks", arXiv:1506.01186.
    """
    began = time.perf_counter()
    _check_sweep(start_lr, end_lr, num_iter, stop)
    loss_of = make_compute_loss(loss_fn, compute_loss)
    ratios = _group_ratios(model, optimizer)
    sweep = schedules.sweep(start_lr, end_lr, num_iter)
    rates = sweep.values(range(num_iter))
    device = device_of(model)
    curve = LossCurve(num_iter, device, beta=beta, stop=stop)
    loaders = [data] if isinstance(data, torch.utils.data.DataLoader) else []
    with preserved(model, optimizer, loaders=loaders):
        if not model.training:
            model.train()
        for group, ratio in zip(optimizer.param_groups, ratios, strict=True):
            group["lr"] = ratio
        driver = drive(optimizer, sweep, num_iter, curve.stop_flag)
        try:
            device_rates = upload(rates, device)
            batches = islice(cycled(data), num_iter)
            bar = tqdm(batches, "range test", num_iter, leave=False, disable=not progress)
            for k, batch in enumerate(bar):
                optimizer.zero_grad(set_to_none=True)
                loss = check_loss(loss_of(model, to_device(batch, device)))
                loss.backward()
                curve.record(loss.to(device), lr=device_rates[k : k + 1])
                status = curve.poll()
                if progress:
                    bar.set_postfix(lr=f"{rates[k]:.1e}", loss=f"{status.smoothed:.4g}")
                if status.outcome != "running":
                    break
                driver.step()
        finally:
            driver.detach()
    return _summarise(curve, rates, ratios, num_iter, data, time.perf_counter() - began)


def _summarise(
    curve: LossCurve,
    rates: FloatArray,
    ratios: tuple[float, ...],
    num_iter: int,
    data: Iterable[Any],
    seconds: float,
) -> RangeTest:
    status = curve.status()
    if status.stopped_at is not None:
        # A GPU may run a few steps past the flag before the host hears of it.
        curve.truncate(status.stopped_at + 1)
    points = len(curve)
    losses = curve.losses.cpu().numpy()
    smoothed = curve.smoothed("ema").cpu().numpy()
    slopes = curve.derivative("log_lr").cpu().numpy() if points > 1 else losses * math.nan
    notes = []
    batches = length_of(data)
    if batches is not None and batches < points:
        notes.append(f"the loader's {batches} batches were cycled for {points} steps")
    for note in notes:
        _log.info(note)
    return RangeTest(
        lrs=rates[:points],
        losses=losses,
        smoothed=smoothed,
        derivative=slopes,
        ratios=ratios,
        suggestions=_suggest_all(rates[:points], smoothed, num_iter),
        outcome="completed" if status.outcome == "running" else status.outcome,
        seconds=seconds,
        notes=tuple(notes),
    )


def _suggest_all(
    lrs: FloatArray, smoothed: FloatArray, num_iter: int
) -> MappingProxyType[str, Suggestion]:
    """Every rule's suggestion on the curve without its first tenth and last five points."""
    skip = min(num_iter // 10, max(len(lrs) - 7, 0))
    skip_end = 5 if len(lrs) - skip >= 7 else 0
    kept = slice(skip, len(lrs) - skip_end)
    found = {}
    for name in suggest.names():
        suggestion = suggest.get(name)(lrs[kept], smoothed[kept])
        if suggestion.index is not None:
            suggestion = replace(suggestion, index=suggestion.index + skip)
        found[name] = suggestion
    return MappingProxyType(found)


def _group_ratios(model: nn.Module, optimizer: Optimizer) -> tuple[float, ...]:
    """Each group's rate relative to the highest one among the groups that train."""
    trainable = {id(p) for p in model.parameters() if p.requires_grad}
    if not trainable:
        raise ValueError(
            "model must have trainable parameters, got none with requires_grad; unfreeze some"
        )
    trained = [
        group
        for group in optimizer.param_groups
        if not group.get("frozen") and any(id(p) in trainable for p in group["params"])
    ]
    if not trained:
        raise ValueError(
            "optimizer must hold trainable parameters of the model, got none; was it built before "
            "the model was replaced or moved?"
        )
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    highest = max(float(group["lr"]) for group in trained)
    if not (math.isfinite(highest) and highest > 0):
        raise ValueError(
            "optimizer must have a trained param group with a finite rate above 0, for the sweep "
            f"scales its groups' rates; got {rates}"
        )
    return tuple(rate / highest for rate in rates)


def _check_sweep(start_lr: float, end_lr: float, num_iter: int, stop: float) -> None:
    for name, value in (("start_lr", start_lr), ("end_lr", end_lr)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be finite and above 0, got {value}")
    if end_lr <= start_lr:
        raise ValueError(f"end_lr must be above start_lr, got {end_lr} with start_lr {start_lr}")
    if isinstance(num_iter, bool) or not isinstance(num_iter, int) or num_iter < 2:
        raise ValueError(f"num_iter must be a whole number, 2 or more, got {num_iter!r}")
    if not (math.isfinite(stop) and stop > 1):
        raise ValueError(f"stop must be finite and above 1, got {stop}")
