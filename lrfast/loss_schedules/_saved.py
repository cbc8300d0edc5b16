"""Loss-driven schedules in the state dicts of optimizers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lrfast._scheduled import Scheduled
from lrfast.loss_schedules._base import LossSchedule
from lrfast.loss_schedules._greedy import Greedy
from lrfast.loss_schedules._plateau import Plateau


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
    _kind(saved)
    if optimizer.loss_schedule is not None:
        optimizer.loss_schedule.check_state_dict(saved)


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
    schedule.load_state_dict(saved)


def _kind(saved: Mapping[str, Any]) -> type[LossSchedule]:
    kinds: dict[str, type[LossSchedule]] = {each.__name__: each for each in (Plateau, Greedy)}
    if saved.get("kind") not in kinds:
        raise ValueError(
            f"state_dict must hold a loss schedule of kind {' or '.join(kinds)}, got "
            f"{saved.get('kind')!r}"
        )
    return kinds[saved["kind"]]
