"""What is known of a training before its range test."""

from __future__ import annotations

from dataclasses import dataclass

from torch.optim import Optimizer

from lrfast.suggest import typical_rate


@dataclass(frozen=True)
class Context:
    """What rule "auto" takes besides the curve.

    Args:
        typical: Rate at which such an optimizer usually trains so many parameters; None for one
            that is not known.
        momentum: Whether it has momentum.
    """

    typical: float | None = None
    momentum: bool = True


def context_of(optimizer: Optimizer, reference: int) -> Context:
    """Read the optimizer and the number of its trainable parameters.

    Args:
        optimizer: Any; it is known by the name of its class, or of one that that comes from.
        reference: The param group whose rate is looked for.
    """
    group = optimizer.param_groups[reference]
    momentum = float(group.get("momentum", 0.0))
    parameters = sum(
        parameter.numel()
        for each in optimizer.param_groups
        for parameter in each["params"]
        if parameter.requires_grad
    )
    rates = (typical_rate(base.__name__, parameters, momentum) for base in type(optimizer).__mro__)
    typical = next((rate for rate in rates if rate is not None), None)
    return Context(typical, momentum > 0 or "betas" in group)
