"""lrfast inside fastai's Learner; needs ``fastai``."""

from __future__ import annotations

from functools import partial
from typing import Any

from fastai.learner import Learner
from fastai.optimizer import OptimWrapper
from torch import Tensor, nn

from lrfast import range_test
from lrfast.optim import AdamW
from lrfast.optim._optimizer import FusedOptimizer
from lrfast.range_test import RangeTest


def opt_func(optimizer: type[FusedOptimizer] = AdamW, **options: Any) -> Any:
    """Return what ``Learner(opt_func=...)`` takes.

    fastai's callbacks go on setting rates and momentum, freezing, and splitting into groups; all of
    it is data to the one launch of the step. A ``schedule`` multiplies what they set, so leave one
    of the two out.

    Args:
        optimizer: Class of the optimizer.
        **options: More of its arguments, such as ``max_grad_norm`` instead of ``GradientClip``.

    Example:
        >>> import torch
        >>> wrapped = opt_func(max_grad_norm=1.0)([torch.nn.Parameter(torch.ones(2))], lr=0.1)
        >>> wrapped.hypers[0]["lr"], wrapped.opt.max_grad_norm
        (0.1, 1.0)
    """
    return partial(OptimWrapper, opt=optimizer, **options)


def lr_find(learner: Learner, **options: Any) -> RangeTest:
    """Run a range test of a Learner's model, training data, loss and optimizer.

    Nothing has changed afterwards, and nothing was written to disk, which ``learner.lr_find()``
    does. ``learner.fit_one_cycle(n, result.suggestion.lr)`` uses what it found.

    In ``learner.distrib_ctx()`` every process calls it, with its own part of the data.

    Args:
        learner: Its callbacks do not run.
        **options: Those of :func:`lrfast.lr_find` but for the loss.

    Returns:
        Curve, suggestions and outcome.
    """
    if learner.opt is None:
        learner.create_opt()
    inputs = getattr(learner.dls, "n_inp", 1)

    def compute_loss(model: nn.Module, batch: Any) -> Tensor:
        loss: Tensor = learner.loss_func(model(*batch[:inputs]), *batch[inputs:])
        return loss

    settings = {"compute_loss": compute_loss}
    model, data = _in_parallel(learner)
    return range_test.lr_find(model, learner.opt.opt, data, **(settings | options))


def _in_parallel(learner: Learner) -> tuple[nn.Module, Any]:
    """Model and data as fastai's ``DistributedTrainer`` wraps them for as long as it trains."""
    model, data = learner.model, learner.dls.train
    accelerators = [each.accelerator for each in learner.cbs if hasattr(each, "accelerator")]
    if not accelerators:
        return model, data
    from fastai.distributed import DistributedDL

    from lrfast.integrations.accelerate import in_parallel

    if not isinstance(data, DistributedDL):
        data = DistributedDL(data, device=accelerators[0].device)
    return in_parallel(accelerators[0], model), data
