"""Prior knowledge of a training's learning rate, from its optimizer, weights and data."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from lrfast.suggest import rate_scale, typical_deviation, typical_rate
from lrfast.suggest._priors import DEVIATION
from lrfast.training._data import DataSize


@dataclass(frozen=True)
class RatePrior:
    """Arguments of suggestion method "auto" besides the curve."""

    typical: float | None = None
    scale: float = 1.0
    deviation: float = DEVIATION

    @property
    def usual(self) -> float | None:
        """The learning rate that is usual before any curve."""
        return None if self.typical is None else self.typical * self.scale


@dataclass(frozen=True)
class WeightStats:
    """Number of the weights that an optimizer trains, and the norm of as many of their mean size.

    The mean size is that of the tensors' root mean squares, each counted by its weights. Over all
    weights together, the few large ones of normalisation layers would outweigh the matrices: in a
    pretrained EfficientNet-Lite0 1 % of the weights make 0.20 of 0.08.
    """

    count: int
    norm: Tensor

    @property
    def rms(self) -> float | None:
        """Their mean size, None if it is not finite. Synchronises with the device."""
        rms = float(self.norm.cpu().numpy()) / math.sqrt(max(self.count, 1))
        return rms if math.isfinite(rms) else None


def weight_stats(optimizer: Optimizer) -> WeightStats:
    """Measure the weights that an optimizer trains, without a synchronisation."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    measured = {param: norm for param in params if (norm := _norm(param)) is not None}
    count = sum(param.numel() for param in measured)
    # A tensor's root mean square times its weights is its norm times their root.
    parts = [norm * math.sqrt(param.numel() / max(count, 1)) for param, norm in measured.items()]
    together = [part.to(parts[0].device, non_blocking=parts[0].is_cuda) for part in parts]
    return WeightStats(count, torch.stack(together).sum() if together else torch.zeros(()))


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
    return RatePrior(rates[known], scale, typical_deviation(known))


def _norm(parameter: Tensor) -> Tensor | None:
    """Return the norm [] of a parameter that may train, of a DTensor as a whole, or None.

    In float32 at least. Kinds that have no norm, such as sparse and packed ones, do not train.
    """
    if not parameter.requires_grad or parameter.device.type == "meta" or is_lazy(parameter):
        return None
    try:
        dtype = torch.promote_types(parameter.dtype, torch.float32)
        norm = torch.linalg.vector_norm(parameter.detach().to(dtype)).float()
    except (NotImplementedError, RuntimeError):
        return None
    whole: Tensor = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    return whole
