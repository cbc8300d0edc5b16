"""Norms and learning rates of the last steps, recorded by an optimizer with ``telemetry=``."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lrfast._utils.public import public_in


@public_in("lrfast.telemetry")
@dataclass(frozen=True)
class Telemetry:
    """Norms and learning rates of past steps, oldest first: float64 [steps, groups] on the CPU.

    Args:
        first_step: Number of the oldest recorded step, counted from 0.
        rates: Learning rates that the steps used.
        grad_norms: Norms of the gradients, unscaled, before clipping.
        update_norms: Norms of the changes of the weights.
        weight_norms: Norms of the weights after the steps.
    """

    first_step: int
    rates: Tensor
    grad_norms: Tensor
    update_norms: Tensor
    weight_norms: Tensor

    @property
    def update_ratios(self) -> Tensor:
        """Update norms over weight norms, about 1e-3 if training goes well."""
        return self.update_norms / self.weight_norms
