"""What an optimizer with ``telemetry=`` has recorded: norms and rates of its last steps."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Telemetry:
    """Norms and rates of past steps, oldest first. All arrays: float64 [steps, groups], on the CPU.

    Args:
        first_step: Number of the oldest recorded step, counted from 0.
        rates: Rates that the steps used.
        grad_norms: Norms of the gradients, unscaled, before clipping.
        update_norms: Norms of what the steps added to the weights.
        weight_norms: Norms of the weights after the steps.
    """

    first_step: int
    rates: Tensor
    grad_norms: Tensor
    update_norms: Tensor
    weight_norms: Tensor

    @property
    def update_ratios(self) -> Tensor:
        """Update norms as a part of weight norms, about 1e-3 where training goes well."""
        return self.update_norms / self.weight_norms
