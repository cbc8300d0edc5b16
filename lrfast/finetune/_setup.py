"""How a fine-tuner gets its optimizer and scaler from its arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lrfast.groups import Rates, spread
from lrfast.optim._optimizer import FusedOptimizer
from lrfast.schedules import Schedule
from lrfast.training._data import ComputeLoss, device_of, length_of

MakeOptimizer = Callable[[list[dict[str, Any]]], Optimizer]


def make_optimizer(
    make: MakeOptimizer,
    param_groups: list[dict[str, Any]],
    max_grad_norm: float | None,
    ema_decay: float | None,
) -> Optimizer:
    """Return the optimizer of the param groups, with what its step shall do besides.

    Raises:
        ValueError: If an average is asked of an optimizer that keeps none.
    """
    # The rates are the optimizer's own until a stage says otherwise.
    optimizer = make([{k: v for k, v in each.items() if k != "lr"} for each in param_groups])
    asked = {"max_grad_norm": max_grad_norm, "ema_decay": ema_decay}
    given = {name: value for name, value in asked.items() if value is not None}
    if isinstance(optimizer, FusedOptimizer):
        if given:
            optimizer._set_options(replace(optimizer._options, **given))  # type: ignore[arg-type]
    elif ema_decay is not None:
        raise ValueError(
            f"ema_decay must be None with {type(optimizer).__name__} of torch.optim, which keeps "
            f"no average, got {ema_decay}; use an optimizer of lrfast"
        )
    elif max_grad_norm is not None and not 0 < max_grad_norm < float("inf"):
        raise ValueError(f"max_grad_norm must be finite and above 0, or None, got {max_grad_norm}")
    return optimizer


def make_scaler(model: nn.Module, amp: torch.dtype | None) -> torch.amp.GradScaler | None:
    """Return what keeps float16 gradients from vanishing; None for other types.

    Raises:
        ValueError: If ``amp`` is no type that autocast takes.
    """
    if amp not in (None, torch.bfloat16, torch.float16):
        raise ValueError(f"amp must be torch.bfloat16, torch.float16 or None, got {amp!r}")
    return torch.amp.GradScaler(device_of(model).type) if amp is torch.float16 else None


def autocast(model: nn.Module, amp: torch.dtype | None) -> AbstractContextManager[None]:
    """Return the context in which a forward pass runs."""
    if amp is None:
        return nullcontext()
    context: AbstractContextManager[None] = torch.autocast(device_of(model).type, dtype=amp)
    return context


def cast_loss(loss_of: ComputeLoss, amp: torch.dtype | None) -> ComputeLoss:
    """Return the loss function with its forward pass in the type ``amp``."""
    if amp is None:
        return loss_of

    def in_context(model: nn.Module, batch: Any) -> Tensor:
        with autocast(model, amp):
            return loss_of(model, batch)

    return in_context


def group_rates(optimizer: Optimizer, lr: Rates, layers: int) -> list[float]:
    """Return one rate per param group from the layer groups' rates."""
    rates = spread(lr, layers)
    return [rates[group.get("layer", i)] for i, group in enumerate(optimizer.param_groups)]


def group_schedules(
    optimizer: Optimizer, schedule: Schedule | Sequence[Schedule], layers: int
) -> tuple[Schedule, ...]:
    """Return one schedule for all param groups, or one for each of them.

    Raises:
        TypeError: If an entry is no schedule.
        ValueError: If there is not one per layer group.
    """
    given = [schedule] if isinstance(schedule, Schedule) else schedule
    for each in given if isinstance(given, Sequence) else [given]:
        if not isinstance(each, Schedule):
            raise TypeError(f"schedule must be made by lrfast.schedules, got {type(each).__name__}")
    if isinstance(schedule, Schedule):
        return (schedule,)
    if len(given) != layers:
        raise ValueError(
            f"schedule must be one schedule or one per layer group: there are {layers} groups, got "
            f"{len(given)} schedules"
        )
    return tuple(given[group.get("layer", i)] for i, group in enumerate(optimizer.param_groups))


def check_whole(name: str, value: int) -> int:
    """Return a count.

    Raises:
        ValueError: If it is not a whole number, 1 or more.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number, 1 or more, got {value!r}")
    return value


def check_trains(optimizer: Optimizer) -> None:
    """Check that something trains.

    Raises:
        ValueError: If nothing does.
    """
    groups = [group for group in optimizer.param_groups if not group.get("frozen")]
    if not any(p.requires_grad for group in groups for p in group["params"]):
        raise ValueError(
            "fit needs a layer group that trains, got a model that is frozen throughout; call "
            "unfreeze(), or freeze_to(-1) for the head alone"
        )


def epoch_batches(train: Iterable[Any]) -> int:
    """Return the batches of a pass.

    Raises:
        TypeError, ValueError: If the data do not say, or hold none.
    """
    batches = length_of(train)
    if batches is None:
        raise TypeError(
            f"train must have a length, got {type(train).__name__} without one; the "
            "schedule needs to know its steps: pass a DataLoader or a list of batches"
        )
    if batches < 1:
        raise ValueError("train must hold at least one batch, got none")
    return batches
