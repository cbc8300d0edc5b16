"""Loss-driven schedules in the state dicts of optimizers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from lrfast._utils.validation import check_dict, check_tensor, short_repr
from lrfast.optim._loss_schedules._base import LossSchedule, check_arguments
from lrfast.optim._loss_schedules._greedy import Greedy
from lrfast.optim._loss_schedules._plateau import Plateau
from lrfast.optim._scheduling import Scheduled


def check_saved(optimizer: Scheduled, saved: Mapping[str, Any] | None) -> None:
    """Check that an optimizer can take what a state dict says of its loss-driven schedule.

    Args:
        optimizer: Who loads.
        saved: What :meth:`LossSchedule.state_dict` returned, or None where there was none.

    Raises:
        ValueError: If it cannot.
    """
    if saved is None:
        return
    kind = _kind(check_dict("loss_schedule", saved))
    if optimizer.loss_schedule is not None:
        optimizer.loss_schedule.check_state_dict(saved)
        return
    arguments = check_arguments(saved.get("arguments"))
    if not arguments.keys() <= set(kind._ARGUMENTS):
        raise ValueError(
            f"arguments must be among {', '.join(kind._ARGUMENTS)}, "
            f"got {short_repr(list(arguments))}"
        )
    # What it keeps of a window is in the file, too: so a window cannot ask for more memory.
    window = arguments.get("window", 1)
    if window != 1 and len(check_tensor("values", saved.get("values"), dims=1)) != window:
        raise ValueError(f"values must be as many as the window, {short_repr(window)}")
    try:  # one of its kind, on an optimizer of no use, has all the checks
        trial = kind(_Nobody([torch.zeros(())], {}), **arguments)
    except TypeError as error:
        raise ValueError(f"arguments must be those of a {kind.__name__}: {error}") from error
    trial.check_state_dict(saved)


class _Nobody(Scheduled):
    """An optimizer that does nothing, for a schedule to be tried on."""

    _engine = None


def load_saved(optimizer: Scheduled, saved: Mapping[str, Any] | None) -> None:
    """Give an optimizer what a state dict says of its loss-driven schedule.

    Where there was none, the optimizer's own stays as it is.

    Args:
        optimizer: Who loads.
        saved: What :func:`check_saved` has checked.
    """
    if saved is None:
        return
    schedule = optimizer.loss_schedule
    if schedule is None:
        schedule = _kind(saved)(optimizer, **saved["arguments"])
        schedule._is_loaded = True
    schedule._put_back(saved)


def _kind(saved: Mapping[str, Any]) -> type[LossSchedule]:
    kinds: dict[str, type[LossSchedule]] = {each.__name__: each for each in (Plateau, Greedy)}
    kind = saved.get("kind")
    if not isinstance(kind, str) or kind not in kinds:
        raise ValueError(
            f"state_dict must hold a loss schedule of kind {' or '.join(kinds)}, "
            f"got {short_repr(kind)}"
        )
    return kinds[kind]
