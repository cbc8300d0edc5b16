"""Momentum of a param group, under the name that its optimizer gives it."""

from __future__ import annotations

from typing import Any


def momentum_of(group: dict[str, Any]) -> float | None:
    """Return a param group's momentum or beta1; None if its rule has none.

    A schedule-free rule reads its averaged weights off others by it, so it is none to cycle.
    """
    if "train_mode" in group:
        return None
    betas = group.get("betas")
    if isinstance(betas, tuple):
        return float(betas[0])
    momentum = group.get("momentum")
    return float(momentum) if isinstance(momentum, int | float) else None


def set_momentum(group: dict[str, Any], momentum: float) -> None:
    """Set a param group's momentum or beta1, if its rule has one."""
    betas = group.get("betas")
    if isinstance(betas, tuple):
        group["betas"] = (momentum, *betas[1:])
    elif "momentum" in group:
        group["momentum"] = momentum
