"""lrfast inside fastai's Learner; needs ``fastai``."""

from __future__ import annotations

from functools import partial
from typing import Any

from fastai.learner import Learner
from fastai.optimizer import OptimWrapper
from torch import Tensor, nn

from lrfast import range_test
from lrfast._utils.arguments import checked
from lrfast.optim import AdamW, FusedOptimizer
from lrfast.range_test import RangeTest

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

    Nothing has changed afterwards, and unlike ``learner.lr_find()`` it writes nothing to disk.
    ``learner.fit_one_cycle(n, result.suggestion.lr)`` uses the suggestion. In
    ``learner.distrib_ctx()`` every process calls it, with its own part of the data.

    Args:
        learner: The Learner; its callbacks do not run.
        **options: Other arguments of :func:`lrfast.lr_find`.

    Returns:
        Curve, suggestions and outcome.
    """
    if learner.opt is None:
        learner.create_opt()
    inputs = getattr(learner.dls, "n_inp", 1)

    def compute_loss(model: nn.Module, batch: Any) -> Tensor:
        loss: Tensor = learner.loss_func(model(*batch[:inputs]), *batch[inputs:])
        return loss

    model, data = _in_parallel(learner)
    options = {"compute_loss": compute_loss} | options
    return range_test.lr_find(model, learner.opt.opt, data, **options)


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
