"""Fine-tuning: layer groups with their own rates, freezing, range tests and one-cycle training.

A :class:`FineTuner` puts the parts together: groups (:mod:`lrfast.groups`), a fused optimizer
(:mod:`lrfast.optim`), schedules (:mod:`lrfast.schedules`), the range test and the loss curve. Its
training loop waits for the device once per epoch, when validation is read (with an optimizer of
torch.optim on a GPU at every step, to keep a loss that is not finite from the weights).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm.auto import tqdm

from lrfast import schedules
from lrfast._batches import (
    LossFunction,
    check_loss,
    device_of,
    evaluating,
    length_of,
    split_pair,
    to_device,
    upload,
)
from lrfast._drive import Driver, drive
from lrfast._fused import FusedOptimizer
from lrfast._scheduled import set_rate
from lrfast.curve import LossCurve
from lrfast.groups import GroupSpec, Rates, freeze, freeze_to, layer_groups, spread, unfreeze
from lrfast.history import History, Stage
from lrfast.optim import AdamW
from lrfast.range_test import RangeTest, lr_find
from lrfast.schedules import Schedule

Metric = Callable[[Tensor, Tensor], Tensor]


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the share of rows whose largest output is the target class.

    Args:
        outputs: Scores, [batch, classes].
        targets: Class indices, [batch].

    Returns:
        A scalar tensor on the device.

    Example:
        >>> import torch
        >>> accuracy(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1])).item()
        0.5
    """
    return (outputs.argmax(-1) == targets).double().mean()


class FineTuner:
    """Fine-tunes a pretrained model, layer group by layer group.

    Args:
        model: The model, on the device that trains.
        train: Sized loader of batches ``(inputs, targets)``.
        valid: Loader of validation batches, or None.
        loss_fn: ``loss_fn(outputs, targets)``, a mean over the batch.
        optimizer: Called with param groups; an optimizer class of ours or of torch.optim, or a
            function such as ``functools.partial(lrfast.SGD, momentum=0.9)``.
        metrics: Functions ``(outputs, targets) -> scalar tensor``, means over the batch, by name.
        groups: Explicit layer groups as :func:`lrfast.layer_groups` takes them.
        progress: Whether to show progress bars.

    Raises:
        ValueError: If the model has no parameters or ``train`` has no batch.
        TypeError: If ``train`` has no length.

    Example:
        >>> import torch, lrfast
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.ReLU(),
        ...                             torch.nn.Linear(4, 2))
        >>> batch = (torch.randn(8, 2), torch.randint(2, (8,)))
        >>> tuner = lrfast.FineTuner(model, [batch] * 10, [batch], progress=False,
        ...                          loss_fn=torch.nn.functional.cross_entropy)
        >>> tuner.freeze()
        >>> stage = tuner.fit_one_cycle(1, max_lr=1e-2)
        >>> tuner.unfreeze()
        >>> stage = tuner.fit_one_cycle(2, max_lr=slice(1e-4, 1e-2))
        >>> [stage.name for stage in tuner.history.stages]
        ['one-cycle', 'one-cycle']
    """

    def __init__(
        self,
        model: nn.Module,
        train: Iterable[Any],
        valid: Iterable[Any] | None = None,
        *,
        loss_fn: LossFunction,
        optimizer: Callable[[list[dict[str, Any]]], Optimizer] = AdamW,
        metrics: Mapping[str, Metric] | None = None,
        groups: Iterable[GroupSpec] | None = None,
        progress: bool = True,
    ) -> None:
        self.model = model
        self.train = train
        self.valid = valid
        self.loss_fn = loss_fn
        self.metrics = dict(metrics or {})
        self.progress = progress
        self.groups = layer_groups(model, groups)
        self.optimizer = optimizer(
            [{"params": list(group.parameters), "name": group.name} for group in self.groups]
        )
        self.history = History()
        self._steps_per_epoch()

    def freeze(self) -> None:
        """Freeze all layer groups but the last, the head."""
        freeze(self.optimizer)

    def unfreeze(self) -> None:
        """Train all layer groups."""
        unfreeze(self.optimizer)

    def freeze_to(self, n: int) -> None:
        """Freeze the layer groups before group ``n``; negative counts from the head."""
        freeze_to(self.optimizer, n)

    def lr_find(self, **options: Any) -> RangeTest:
        """Run a range test on the training data with what is frozen now; leaves no trace.

        Args:
            **options: Those of :func:`lrfast.lr_find`, such as ``num_iter``.
        """
        options.setdefault("progress", self.progress)
        return lr_find(self.model, self.optimizer, self.train, self.loss_fn, **options)

    def fit_one_cycle(
        self,
        epochs: int,
        max_lr: Rates,
        *,
        pct_start: float = 0.3,
        div: float = 25.0,
        final_div: float = 1e4,
        momentum: tuple[float, float] | None = (0.95, 0.85),
    ) -> Stage:
        """Train with the one-cycle policy, each layer group up to its own peak rate.

        Args:
            epochs: Passes over the training data, 1 or more.
            max_lr: Peak rate: a float for all groups, ``slice(first, last)`` for a geometric
                spread, ``slice(last)`` for a tenth of it in all but the last group, or a list.
            pct_start: Fraction of the steps spent going up, as all that follows an argument of
                :func:`lrfast.schedules.one_cycle`.
            div: Peak over first rate.
            final_div: First over last rate.
            momentum: (highest, lowest) momentum or beta1; None leaves it alone.

        Returns:
            What happened; it is in :attr:`history` too.

        Raises:
            ValueError: If an argument is out of range.

        Reference:
            Smith & Topin, arXiv:1708.07120; Howard & Ruder, arXiv:1801.06146.
        """
        _check_epochs(epochs)
        schedule = schedules.one_cycle(
            epochs * self._steps_per_epoch(), pct_start, div, final_div, momentum
        )
        return self.fit(epochs, schedule, max_lr)

    def fit(self, epochs: int, schedule: Schedule, lr: Rates | None = None) -> Stage:
        """Train with any schedule.

        A loss that is not finite ends training at that step.

        Args:
            epochs: Passes over the training data, 1 or more.
            schedule: Multiplies the groups' rates; its step 0 is the first step of this call.
            lr: Rates of the layer groups, as for :meth:`fit_one_cycle`; None keeps them.

        Returns:
            What happened; it is in :attr:`history` too.

        Raises:
            ValueError: If an argument is out of range.
        """
        _check_epochs(epochs)
        if not isinstance(schedule, Schedule):
            raise TypeError(
                f"schedule must be made by lrfast.schedules, got {type(schedule).__name__}"
            )
        if lr is not None:
            for group, rate in zip(
                self.optimizer.param_groups, spread(lr, len(self.groups)), strict=True
            ):
                set_rate(group, rate)
        total = epochs * self._steps_per_epoch()
        own_rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        rates = schedule.values(np.arange(total))[:, None] * np.asarray(own_rates)[None, :]
        curve = LossCurve(total, device_of(self.model), width=len(self.groups))
        driver = drive(self.optimizer, schedule, total, curve.stop_flag)
        rows: list[dict[str, float]] = []
        began = time.perf_counter()
        is_interrupted = True
        try:
            self._run(epochs, curve, driver, rates, rows)
            is_interrupted = False
        finally:
            driver.detach()
            stage = self._stage(schedule, curve, rows, time.perf_counter() - began)
            if is_interrupted:
                stage = replace(stage, outcome="interrupted")
            self.history.stages.append(stage)
        return stage

    def validate(self) -> dict[str, float]:
        """Return loss and metrics over the validation data; waits for the device once.

        Raises:
            ValueError: If there are no validation data.
        """
        if self.valid is None:
            raise ValueError("valid must be given to the FineTuner to validate, got None")
        device = device_of(self.model)
        sums = torch.zeros(1 + len(self.metrics), dtype=torch.float64, device=device)
        examples = 0
        with evaluating(self.model), torch.no_grad():
            for batch in self.valid:
                inputs, targets = split_pair(to_device(batch, device))
                outputs = self.model(inputs)
                values = [self.loss_fn(outputs, targets)]
                values += [metric(outputs, targets) for metric in self.metrics.values()]
                sums += len(targets) * torch.stack([value.double() for value in values])
                examples += len(targets)
        if examples == 0:
            raise ValueError("valid must yield at least one batch, got none")
        means = (sums / examples).cpu().numpy()
        return dict(zip(["valid_loss", *self.metrics], means.tolist(), strict=True))

    def _run(
        self,
        epochs: int,
        curve: LossCurve,
        driver: Driver,
        rates: npt.NDArray[np.float64],  # [steps, groups], what the schedule will use
        rows: list[dict[str, float]],
    ) -> None:
        device = device_of(self.model)
        device_rates = upload(rates, device)
        # Our kernels obey the curve's flag; for another optimizer the host has to, in time.
        must_wait = not isinstance(self.optimizer, FusedOptimizer)
        steps = 0
        with tqdm(
            desc="training", total=curve.capacity, leave=False, disable=not self.progress
        ) as bar:
            for epoch in range(epochs):
                self.model.train()
                for batch in self.train:
                    inputs, targets = split_pair(to_device(batch, device))
                    self.optimizer.zero_grad(set_to_none=True)
                    loss = check_loss(self.loss_fn(self.model(inputs), targets))
                    loss.backward()
                    # Before the update, which a loss that is not finite must not reach.
                    curve.record(loss.to(device), lr=device_rates[steps])
                    status = curve.status() if must_wait else curve.poll()
                    if self.progress:
                        head_rate, loss_now = f"{rates[steps, -1]:.1e}", f"{status.smoothed:.4g}"
                        bar.set_postfix(epoch=epoch + 1, lr=head_rate, loss=loss_now)
                        bar.update()
                    steps += 1
                    if status.outcome != "running":
                        break
                    driver.step()
                stopped_at = curve.status().stopped_at  # waits, as validation does
                row = {"step": float(steps if stopped_at is None else stopped_at + 1)}
                rows.append(row | (self.validate() if self.valid is not None else {}))
                if stopped_at is not None:
                    return

    def _stage(
        self, schedule: Schedule, curve: LossCurve, rows: list[dict[str, float]], seconds: float
    ) -> Stage:
        status = curve.status()
        if status.stopped_at is not None:
            curve.truncate(status.stopped_at + 1)
        steps = np.arange(len(curve))
        rates = curve.lrs.cpu().numpy().reshape(len(curve), len(self.groups))
        frozen = [bool(group.get("frozen")) for group in self.optimizer.param_groups]
        rates[:, frozen] = math.nan
        return Stage(
            name=schedule.name,
            losses=curve.losses.cpu().numpy(),
            rates=rates,
            momentum=schedule.momentum(steps),
            epochs=tuple(rows),
            outcome="completed" if status.outcome == "running" else status.outcome,
            seconds=seconds,
        )

    def _steps_per_epoch(self) -> int:
        steps = length_of(self.train)
        if steps is None:
            raise TypeError(
                f"train must have a length, got {type(self.train).__name__} without one; the "
                "schedule needs to know its steps: pass a DataLoader or a list of batches"
            )
        if steps < 1:
            raise ValueError("train must hold at least one batch, got none")
        return steps


def _check_epochs(epochs: int) -> None:
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
        raise ValueError(f"epochs must be a whole number, 1 or more, got {epochs!r}")
