"""What options of an update make of a rule's reference, in float64.

Liang et al., "Cautious Optimizers: Improving Training with One Line of Code", arXiv:2411.16085.
Chen et al., "Cautious Weight Decay", arXiv:2510.12402.
Wortsman et al., "Stable and low-precision training for large-scale vision-language models",
arXiv:2304.13013 (StableAdamW).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np
from reference.optimizers import Array, State

Rule = Callable[..., tuple[Array, State]]


def with_options(
    rule: Rule,
    decoupled: bool,
    *,
    cautious: bool = False,
    cautious_weight_decay: bool = False,
    clipping_threshold: float | None = None,
    **_: Any,
) -> Rule:
    """Return a rule of reference/optimizers.py with these options; the learning rate of a decay
    that follows no schedule is ``decay_lr``.

    A rule's step is what it makes of weights of 0, from gradients that hold the penalty already.
    """

    @wraps(rule)
    def changed(
        param: Array,
        grad: Array,
        state: State,
        *,
        lr: float,
        weight_decay: float = 0.0,
        maximize: bool = False,
        decay_lr: float | None = None,
        **hypers: Any,
    ) -> tuple[Array, State]:
        gradient = -grad if maximize else grad
        if not decoupled:
            gradient = gradient + weight_decay * param
        zeros = np.zeros_like(param)
        moved, after = rule(zeros, gradient, state, lr=lr, weight_decay=0.0, **hypers)
        step, shrinking = -moved, weight_decay * (lr if decay_lr is None else decay_lr)
        if clipping_threshold is not None and param.size:
            if "betas" in hypers:
                square = after["exp_avg_sq"] / (1 - hypers["betas"][1] ** after["step"])
            else:
                square = after["square_avg"]
            ratios = gradient**2 / np.maximum(square, hypers["eps"] ** 2)
            excess = max(1.0, float(np.sqrt(ratios.mean())) / clipping_threshold)
            step, shrinking = step / excess, shrinking / excess
        if cautious and param.size:
            mask = (step * gradient > 0).astype(float)
            step = step * mask / max(mask.mean(), 1e-3)
        if not decoupled:
            return param - step, after
        decays = step * param >= 0 if cautious_weight_decay else np.ones_like(param, dtype=bool)
        return np.where(decays, param * (1 - shrinking), param) - step, after

    return changed
