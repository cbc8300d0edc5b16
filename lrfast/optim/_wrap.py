"""Conversion of another package's optimizer, before or during training."""

from __future__ import annotations

import torch
from typing_extensions import Unpack

from lrfast._utils.arguments import checked
from lrfast.optim._optimizer import FusedOptimizer
from lrfast.optim._options import Schedules, StepOptions
from lrfast.optim.adadelta import Adadelta
from lrfast.optim.adagrad import Adagrad
from lrfast.optim.adam import Adam, AdamW
from lrfast.optim.adamax import Adamax
from lrfast.optim.muon import Muon
from lrfast.optim.nadam import NAdam
from lrfast.optim.prodigy import DAdaptAdam, Prodigy
from lrfast.optim.radam import RAdam
from lrfast.optim.rmsprop import RMSprop
from lrfast.optim.schedule_free import AdamWScheduleFree, SGDScheduleFree
from lrfast.optim.sgd import SGD

TWINS: dict[type[torch.optim.Optimizer], type[FusedOptimizer]] = {
    torch.optim.SGD: SGD,
    torch.optim.Adam: Adam,
    torch.optim.AdamW: AdamW,
    torch.optim.Adamax: Adamax,
    torch.optim.NAdam: NAdam,
    torch.optim.RAdam: RAdam,
    torch.optim.RMSprop: RMSprop,
    torch.optim.Adagrad: Adagrad,
    torch.optim.Adadelta: Adadelta,
}
# lrfast's Muon has groups that torch's does not have.
OF_TORCH = TWINS | {torch.optim.Muon: Muon}
# Twins of classes of other packages, which need not be installed: by package and name.
_OF_PACKAGES: dict[tuple[str, str], type[FusedOptimizer]] = {
    ("schedulefree", "AdamWScheduleFree"): AdamWScheduleFree,
    ("schedulefree", "SGDScheduleFree"): SGDScheduleFree,
    ("prodigyopt", "Prodigy"): Prodigy,
    ("dadaptation", "DAdaptAdam"): DAdaptAdam,
}
# Attributes by which torch's schedulers watch an optimizer's own step.
_NOT_TAKEN = ("step", "_opt_called")


@checked
def wrap(
    optimizer: torch.optim.Optimizer,
    schedule: Schedules = None,
    **options: Unpack[StepOptions],
) -> FusedOptimizer:
    """Take over the groups, states and hooks of an optimizer of torch.optim or another package.

    Both optimizers then share them, so that learning rate schedulers made for the old one go on
    working; step with the new one only.

    Args:
        optimizer: One of torch.optim, schedulefree, prodigyopt or dadaptation, of a class that
            lrfast has by the same name.
        schedule: Multiplies the learning rates, see :meth:`FusedOptimizer.set_schedule`; default
            None.
        **options: Options of the step, see :class:`lrfast.optim.Options`.

    Returns:
        The lrfast optimizer of the same name.

    Raises:
        TypeError: If the optimizer is of another class; a subclass may have changed its rule.
        ValueError: If the optimizer is differentiable, or an option is out of range.

    Example:
        >>> import torch, lrfast
        >>> layer = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-3)
        >>> lrfast.wrap(optimizer).param_groups is optimizer.param_groups
        True
    """
    if isinstance(optimizer, FusedOptimizer):
        raise TypeError(f"optimizer must be one of torch.optim, got lrfast's {_name(optimizer)}")
    package = type(optimizer).__module__.partition(".")[0]
    cls = OF_TORCH.get(type(optimizer)) or _OF_PACKAGES.get((package, type(optimizer).__name__))
    if cls is None:
        known = ", ".join(known.__name__ for known in OF_TORCH)
        others = ", ".join(".".join(name) for name in _OF_PACKAGES)
        raise TypeError(
            f"optimizer must be a torch.optim {known}, {others}, got {_name(optimizer)}"
        )
    wrapped = cls.__new__(cls)
    taken = {name: value for name, value in vars(optimizer).items() if name not in _NOT_TAKEN}
    wrapped.__dict__.update(taken)
    wrapped._patch_step_function()
    wrapped._set_up(schedule, options)
    wrapped._adopt()
    # A scheduler of the old one warns if it sees no step; the new one makes the steps.
    optimizer._opt_called = True  # type: ignore[attr-defined]
    return wrapped


def _name(optimizer: torch.optim.Optimizer) -> str:
    return f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"
