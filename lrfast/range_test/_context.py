"""What is known of a training before its range test."""

from __future__ import annotations

from dataclasses import dataclass

from torch.optim import Optimizer

from lrfast.suggest import rate_scale, typical_rate


@dataclass(frozen=True)
class Amounts:
    """How much data a training learns from.

    Args:
        batch_size: Rows per update; None where batches do not say.
        targets: Numbers or classes to predict in one pass; None where the data do not say.
    """

    batch_size: int | None = None
    targets: int | None = None


@dataclass(frozen=True)
class Context:
    """What rule "auto" takes besides the curve.

    Args:
        typical: Rate at which such an optimizer usually trains so many parameters; None for one
            that is not known.
        momentum: Whether it has momentum.
        scale: Factor for its batches and data.
    """

    typical: float | None = None
    momentum: bool = True
    scale: float = 1.0


def context_of(optimizer: Optimizer, reference: int, amounts: Amounts) -> Context:
    """Read the optimizer and the number of its trainable parameters.

    Args:
        optimizer: Any; it is known by the name of its class, or of one that that comes from.
        reference: The param group whose rate is looked for.
        amounts: What it learns from.
    """
    group = optimizer.param_groups[reference]
    momentum = float(group.get("momentum", 0.0))
    parameters = sum(
        parameter.numel()
        for each in optimizer.param_groups
        for parameter in each["params"]
        if parameter.requires_grad
    )
    names = [base.__name__ for base in type(optimizer).__mro__]
    rates = {name: typical_rate(name, parameters, momentum) for name in names}
    known = next((name for name in names if rates[name] is not None), names[0])
    scale = rate_scale(
        known, batch_size=amounts.batch_size, parameters=parameters, targets=amounts.targets
    )
    return Context(rates[known], momentum > 0 or "betas" in group, scale)
