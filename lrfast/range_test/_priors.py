"""Prior knowledge of a training's learning rate, from its optimizer, weights and data."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from lrfast.suggest import rate_scale, typical_rate
from lrfast.training._data import DataSize


@dataclass(frozen=True)
class RatePrior:
    """Arguments of suggestion method "auto" besides the curve."""

    typical: float | None = None
    scale: float = 1.0


@dataclass(frozen=True)
class WeightStats:
    """Number and norm of the weights that an optimizer trains."""

    count: int
    norm: Tensor

    @property
    def rms(self) -> float | None:
        """Their root mean square, None if it is not finite. Synchronises with the device."""
        rms = float(self.norm.cpu().numpy()) / math.sqrt(max(self.count, 1))
        return rms if math.isfinite(rms) else None


def weight_stats(optimizer: Optimizer) -> WeightStats:
    """Measure the weights that an optimizer trains, without a synchronisation."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    trained = [param.detach() for param in params if param.requires_grad]
    norms = [_norm(parameter) for parameter in trained]
    together = [norm.to(norms[0].device, non_blocking=norms[0].is_cuda) for norm in norms]
    norm = torch.linalg.vector_norm(torch.stack(together)) if together else torch.zeros(())
    return WeightStats(sum(parameter.numel() for parameter in trained), norm)


def rate_prior(
    optimizer: Optimizer, reference: int, data_size: DataSize, weights: WeightStats | None = None
) -> RatePrior:
    """Return the prior of an optimizer and its weights, for one of its groups."""
    group = optimizer.param_groups[reference]
    momentum = float(group.get("momentum", 0.0))
    weights = weights or weight_stats(optimizer)
    count, rms = max(weights.count, 1), weights.rms
    names = [base.__name__ for base in type(optimizer).__mro__]
    rates = {name: typical_rate(name, count, momentum, rms) for name in names}
    known = next((name for name in names if rates[name] is not None), names[0])
    scale = rate_scale(
        known, batch_size=data_size.batch_size, parameters=count, targets=data_size.targets
    )
    return RatePrior(rates[known], scale)


def _norm(parameter: Tensor) -> Tensor:
    """Return the norm [] of a parameter, of a DTensor as a whole, in float32 at least."""
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    norm = torch.linalg.vector_norm(parameter.to(dtype)).float()
    whole: Tensor = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    return whole
