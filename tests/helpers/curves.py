"""Loss curves and their averages, recorded or computed with numpy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from lrfast.curve import LossCurve

NAN = math.nan


def recorded(losses: Any, device: Any = "cpu", lrs: Any = None, **options: Any) -> LossCurve:
    """A curve of these losses, as float64."""
    curve = LossCurve(max(len(losses), 1), device, **options)
    for i, loss in enumerate(losses):
        tensor = torch.tensor(loss, dtype=torch.float64, device=device)
        curve.record(tensor, None if lrs is None else lrs[i])
    return curve


def ema(losses: Any, beta: float) -> Any:
    """Bias-corrected, straight from the definition: a mean with weights beta ** age."""
    result = []
    for i in range(len(losses)):
        weights = beta ** np.arange(i, -1, -1.0)
        seen = np.asarray(losses[: i + 1], dtype=np.float64)
        finite = np.isfinite(seen)
        mean = (weights * np.where(finite, seen, 0.0)).sum() / max(weights[finite].sum(), 1e-300)
        result.append(mean if finite[-1] else NAN)
    return np.array(result)


def gapped_ema(losses: Any, beta: float) -> Any:
    """Losses that are not finite take no part, and age nothing."""
    out = np.full(len(losses), NAN)
    finite = np.isfinite(losses)
    out[finite] = ema(np.asarray(losses)[finite], beta)
    return out
