"""lrfast for timm's models and its train script; needs ``timm``.

:func:`create_optimizer_v2` and :func:`create_schedule` take timm's arguments, such as
``optimizer_kwargs(cfg=args)`` and ``scheduler_kwargs(args)``. :func:`register` makes
``--opt lrfastadamw`` known to a train script that calls timm's own factories.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from lrfast import schedules
from lrfast._utils.arguments import checked
from lrfast._utils.optional import importing
from lrfast.integrations._shared import fused_optimizer
from lrfast.optim import FusedOptimizer, Lion
from lrfast.optim._wrap import TWINS
from lrfast.schedules import Schedule

with importing("lrfast.integrations.timm needs timm", "timm", extra="timm"):
    from timm.optim import Lion as timm_lion
    from timm.optim import create_optimizer_v2 as timm_create_optimizer_v2
    from timm.optim._optim_factory import default_registry
    from timm.scheduler import create_scheduler_v2

__all__ = ["create_optimizer_v2", "create_schedule", "register"]

_PREFIX = "lrfast"


def register() -> list[str]:
    """Make lrfast's optimizers known to timm, and return their names there.

    They are timm's names with "lrfast" in front, with timm's defaults, for each class of torch that
    lrfast has, too, and for Lion. timm's cautious variants are not among them.

    Example:
        >>> "lrfastadamw" in register()
        True
    """
    known = default_registry.list_optimizers()
    for name in known:
        info = default_registry.get_optimizer_info(name)
        fused = Lion if info.opt_class is timm_lion else TWINS.get(info.opt_class)
        is_cautious = "caution" in (info.defaults or {})
        if fused is not None and not is_cautious and _PREFIX + name not in known:
            default_registry.register(replace(info, name=_PREFIX + name, opt_class=fused))
    return [name for name in default_registry.list_optimizers() if name.startswith(_PREFIX)]


@checked
def create_optimizer_v2(
    model_or_params: nn.Module | Iterable[Any],
    opt: str = "adamw",
    lr: float | None = None,
    *,
    schedule: Schedule | None = None,
    **kwargs: Any,
) -> FusedOptimizer:
    """Return an lrfast optimizer, from the arguments of timm's factory of this name.

    With ``layer_decay``, each group's "lr" is multiplied by timm's "lr_scale", which becomes
    "layer_scale": schedules of lrfast, torch and timm then all keep the ratios.

    Args:
        model_or_params: Model, parameters or param groups.
        opt: timm's name, such as "sgd" or "lrfastadamw"; default "adamw".
        lr: Learning rate, 0 or more; None, the default: the optimizer's default.
        schedule: Multiplies the learning rates; default None.
        **kwargs: timm's other arguments, such as ``weight_decay`` and ``layer_decay``, and
            lrfast's, such as ``max_grad_norm``.

    Raises:
        ValueError: If lrfast has no such optimizer.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> optimizer = create_optimizer_v2(layer, "adamw", lr=1e-3, weight_decay=0.05)
        >>> [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
        [(0.001, 0.0), (0.001, 0.05)]
    """
    names = register()
    name = opt.lower().removeprefix(_PREFIX)
    if _PREFIX + name not in names:
        known = ", ".join(each.removeprefix(_PREFIX) for each in names)
        raise ValueError(f"opt must be one of {known}, got {opt!r}")
    optimizer = fused_optimizer(
        timm_create_optimizer_v2(model_or_params, _PREFIX + name, lr, **kwargs)
    )
    for group in optimizer.param_groups:
        group["layer_scale"] = group.pop("lr_scale", 1.0)
        group["lr"] *= group["layer_scale"]
    if schedule is not None:
        optimizer.set_schedule(schedule)
    return optimizer


@checked
def create_schedule(
    optimizer: Optimizer, updates_per_epoch: int, **kwargs: Any
) -> tuple[Schedule | list[Schedule], int]:
    """Return a timm scheduler's values, update by update, as a schedule.

    Lowest and warm-up learning rates are those of groups whose "layer_scale" is 1, as in timm.

    Args:
        optimizer: Its groups' learning rates are those that the schedule will multiply.
        updates_per_epoch: Updates per epoch, 1 or more.
        **kwargs: Other arguments of timm's ``create_scheduler_v2``, as from
            ``scheduler_kwargs(args)``.

    Returns:
        One schedule, or one per group if they differ; and the number of epochs to train.

    Raises:
        ValueError: If ``sched`` is "plateau", which follows a metric.

    Example:
        >>> optimizer = create_optimizer_v2(nn.Linear(2, 1), "sgd", lr=0.1)
        >>> schedule, epochs = create_schedule(optimizer, 10, sched="cosine", num_epochs=4)
        >>> epochs, round(schedule.at(20), 6)
        (4, 0.5)
    """
    if kwargs.get("sched") == "plateau":
        raise ValueError("sched must follow the step alone, got 'plateau'; see lrfast.Plateau")
    bases = [float(g["lr"]) / g.get("layer_scale", 1.0) for g in optimizer.param_groups]
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": base} for base in bases]
    dummy = torch.optim.SGD(groups, lr=0.0)
    scheduler, epochs = create_scheduler_v2(dummy, updates_per_epoch=updates_per_epoch, **kwargs)
    if scheduler is None:  # sched="none"
        return schedules.constant(), epochs
    rows = []
    for update in range(epochs * updates_per_epoch + 1):
        scheduler.step(update // updates_per_epoch)
        scheduler.step_update(update)
        rows.append([float(group["lr"]) for group in dummy.param_groups])

    def recorded(group: int) -> Schedule:
        return schedules.from_function(lambda t: rows[t][group] / bases[group], len(rows))

    made = [recorded(group) for group in range(len(bases))]
    return (made[0] if len(set(made)) == 1 else made), epochs
