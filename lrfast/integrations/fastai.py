"""lrfast inside fastai's Learner; needs ``fastai``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from lrfast import range_test
from lrfast._utils.arguments import checked
from lrfast._utils.optional import importing
from lrfast.integrations._shared import KeptObjects, check_own_updates, mean_loss
from lrfast.optim import AdamW, FusedOptimizer
from lrfast.range_test import RangeTest
from lrfast.training._data import PlacedBatch, PlacedBatches, num_batches
from lrfast.training._step import TrainerUpdate

with importing("lrfast.integrations.fastai needs fastai", "fastai", extra="fastai"):
    from fastai.callback.core import CancelEpochException, CancelFitException, CancelTrainException
    from fastai.learner import Learner, Recorder
    from fastai.optimizer import OptimWrapper
    from fastai.torch_core import default_device

__all__ = ["lr_find", "opt_func"]


@checked
def opt_func(optimizer: type[FusedOptimizer] = AdamW, **options: Any) -> Any:
    """Return an argument for ``Learner(opt_func=...)``.

    fastai's callbacks still set learning rates and momentum, freeze, and split into groups. A
    ``schedule`` multiplies the learning rates that they set, so use one of the two.

    Args:
        optimizer: Class of the optimizer; default AdamW.
        **options: Other arguments of it, such as ``max_grad_norm`` instead of ``GradientClip``.

    Example:
        >>> import torch
        >>> wrapped = opt_func(max_grad_norm=1.0)([torch.nn.Parameter(torch.ones(2))], lr=0.1)
        >>> wrapped.hypers[0]["lr"], wrapped.opt.max_grad_norm
        (0.1, 1.0)
    """
    return partial(OptimWrapper, opt=optimizer, **options)


@checked
def lr_find(learner: Learner, **options: Any) -> RangeTest:
    """Run a range test of a Learner's model, training data, loss and optimizer.

    The Learner makes the updates itself, with its callbacks: mixed precision, clipping,
    accumulation, those that change batches, losses or gradients. fastai's callbacks that only
    schedule, watch, save or stop do not run. Nothing has changed afterwards, and unlike
    ``learner.lr_find()`` it writes nothing to disk. ``learner.fit_one_cycle(n,
    result.suggestion.lr)`` uses the suggestion. In ``learner.distrib_ctx()`` every process calls
    it, with its own part of the data.

    Args:
        learner: The Learner.
        **options: Other arguments of :func:`lrfast.lr_find`. ``gradient_accumulation_steps`` is by
            default what a ``GradientAccumulation`` needs for a full batch.

    Returns:
        Curve, suggestions and outcome.

    Raises:
        TypeError: If the Learner's optimizer is not one of lrfast or torch.
        ValueError: With ``NonNativeMixedPrecision``, which makes other parameters.
    """
    check_own_updates(options)
    optimizer = _optimizer_of(learner)
    for each in learner.cbs:
        if type(each).__name__ in ("ModelToHalf", "NonNativeMixedPrecision"):
            raise ValueError(
                "cbs must not hold NonNativeMixedPrecision for a range test, which makes other "
                "parameters; learner.to_fp16() has MixedPrecision"
            )
    learner.model.to(getattr(learner.dls, "device", default_device()))
    model, loader = _in_parallel(learner)
    data = PlacedBatches(loader, [loader])
    with _running_callbacks(learner, model) as running:
        kept = KeptObjects([learner, loader, *running], apart=("dataset", "dls"))
        step = _LearnerStep(learner, loader, data, options.get("num_iter", 100))
        own: dict[str, Any] = {
            "compute_loss": step.loss,
            "step_fn": TrainerUpdate(step.begin, step.update),
            "gradient_accumulation_steps": _accumulated(running, loader),
        }
        options = own | options | {"others": [*options.get("others", ()), kept]}
        return range_test.lr_find(model, optimizer, data, **options)


def _optimizer_of(learner: Learner) -> Optimizer:
    had_none = learner.opt is None
    if had_none:
        learner.create_opt()
    optimizer = getattr(learner.opt, "opt", learner.opt)
    if isinstance(optimizer, Optimizer):
        return optimizer
    if had_none:
        learner.opt = None
    got = f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"
    raise TypeError(
        f"opt_func must make an optimizer of lrfast or torch for a range test, got {got}; use "
        "Learner(opt_func=lrfast.integrations.fastai.opt_func()) or OptimWrapper(opt=...)"
    )


class _LearnerStep:
    """The Learner's own steps, batch by batch, of which only the loss is read."""

    def __init__(self, learner: Learner, loader: Any, data: PlacedBatches, points: int) -> None:
        self._learner, self._loader, self._data = learner, loader, data
        self._points = points

    def begin(self) -> None:
        """Start a training, as ``Learner.fit`` does."""
        learner = self._learner
        if learner.wd is not None:
            learner.opt.set_hypers(wd=learner.wd)
        batches = num_batches(self._data) or self._points
        learner.n_epoch, learner.epoch = math.ceil(self._points / batches), 0
        learner("before_fit")
        self._begin_pass(0)

    def update(self, micro_batches: Sequence[PlacedBatch]) -> Tensor:
        """Have the Learner step through batches, and return the mean of their losses."""
        return mean_loss(map(self._loss_of, micro_batches))

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the loss of a batch without callbacks."""
        learner = self._learner
        given = learner._set_device(batch.batch if isinstance(batch, PlacedBatch) else batch)
        inputs = getattr(learner.dls, "n_inp", 1 if len(given) == 1 else len(given) - 1)
        loss: Tensor = learner.loss_func(model(*given[:inputs]), *given[inputs:])
        return loss

    def _begin_pass(self, epoch: int) -> None:
        learner = self._learner
        learner.epoch = epoch
        learner("before_epoch")
        learner.dl = self._loader
        learner("before_train")
        learner.n_iter = num_batches(self._data) or 0
        self._is_new = True

    def _loss_of(self, placed: PlacedBatch) -> Any:
        """Step through one batch; None if there is no loss, because the batch is left out."""
        learner = self._learner
        if self._data.is_ended:
            return None
        if placed.place == 0 and not self._is_new:
            learner("after_train")
            self._begin_pass(learner.epoch + 1)
        self._is_new = False
        learner.loss = None
        try:
            learner.one_batch(placed.place, placed.batch)
        except (CancelTrainException, CancelEpochException, CancelFitException):
            self._data.is_ended = True
        return learner.loss


# Modules of fastai's callbacks that schedule, watch, save or stop a training.
_WATCHING = frozenset(
    f"fastai.callback.{name}"
    for name in (
        *("azureml", "captum", "comet", "hook", "neptune", "progress", "schedule"),
        *("tensorboard", "tracker", "wandb"),
    )
)


@contextmanager
def _running_callbacks(learner: Learner, model: nn.Module) -> Iterator[list[Any]]:
    """Leave out, for a while, callbacks that only watch, and train the model in its wrapper."""
    callbacks, own = learner.cbs, learner.model
    running = [
        each
        for each in callbacks
        if not isinstance(each, Recorder)
        and not hasattr(each, "accelerator")
        and _WATCHING.isdisjoint(kind.__module__ for kind in type(each).__mro__)
    ]
    learner.cbs, learner.model = type(callbacks)(running), model
    try:
        yield running
    finally:
        learner.cbs, learner.model = callbacks, own


def _accumulated(callbacks: Sequence[Any], loader: Any) -> int:
    """Return the batches per update of a GradientAccumulation, which counts rows."""
    rows = next((each.n_acc for each in callbacks if hasattr(each, "n_acc")), 1)
    size = getattr(loader, "bs", None) or getattr(loader, "batch_size", None) or 1
    return math.ceil(rows / size)


def _in_parallel(learner: Learner) -> tuple[nn.Module, Any]:
    """Return model and data as fastai's ``DistributedTrainer`` wraps them while it trains."""
    model, data = learner.model, learner.dls.train
    accelerators = [each.accelerator for each in learner.cbs if hasattr(each, "accelerator")]
    if not accelerators:
        return model, data
    from fastai.distributed import DistributedDL

    from lrfast.integrations.accelerate import in_parallel

    if not isinstance(data, DistributedDL):
        data = DistributedDL(data, device=accelerators[0].device)
    return in_parallel(accelerators[0], model), data
