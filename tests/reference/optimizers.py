"""SGD and AdamW from their formulas, one tensor and one step at a time, in float64.

The oracle of the optimizer tests; imports nothing of lrfast. Every function takes a parameter, its
gradient and its state before the step, and returns the parameter and the state after it. An empty
state is that of a parameter that has never been updated.

Sutskever et al., "On the importance of initialization and momentum in deep learning", 2013.
Loshchilov & Hutter, "Decoupled Weight Decay Regularization", arXiv:1711.05101.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
State = dict[str, Any]


def sgd(
    param: Array,
    grad: Array,
    state: State,
    *,
    lr: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
) -> tuple[Array, State]:
    gradient = (-grad if maximize else grad) + weight_decay * param
    if momentum == 0.0:
        return param - lr * gradient, state
    if "momentum_buffer" in state:
        buffer = momentum * state["momentum_buffer"] + (1 - dampening) * gradient
    else:
        buffer = gradient
    direction = gradient + momentum * buffer if nesterov else buffer
    return param - lr * direction, {"momentum_buffer": buffer}


def adamw(
    param: Array,
    grad: Array,
    state: State,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    amsgrad: bool = False,
    maximize: bool = False,
) -> tuple[Array, State]:
    """Bias correction by ``beta1 ** t``, or by the product of the betas used if state holds one."""
    beta1, beta2 = betas
    gradient = -grad if maximize else grad
    zeros = np.zeros_like(param)
    step = state.get("step", 0) + 1
    mean = beta1 * state.get("exp_avg", zeros) + (1 - beta1) * gradient
    square = beta2 * state.get("exp_avg_sq", zeros) + (1 - beta2) * gradient**2
    after: State = {"step": step, "exp_avg": mean, "exp_avg_sq": square}
    largest = square
    if amsgrad:
        largest = np.maximum(state.get("max_exp_avg_sq", zeros), square)
        after["max_exp_avg_sq"] = largest
    beta1_power = beta1**step
    if "beta1_product" in state:
        beta1_power = after["beta1_product"] = state["beta1_product"] * beta1
    unbiased_mean = mean / (1 - beta1_power)
    unbiased_root = np.sqrt(largest) / np.sqrt(1 - beta2**step)
    update = unbiased_mean / (unbiased_root + eps) + weight_decay * param
    return param - lr * update, after


RULES = {"sgd": sgd, "adamw": adamw}
