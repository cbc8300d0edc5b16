"""The update rules from their formulas, one tensor and one step at a time, in float64.

The oracle of the optimizer tests; imports nothing of lrfast. Every function takes a parameter, its
gradient and its state before the step, and returns the parameter and the state after it. An empty
state is that of a parameter that has never been updated.

Sutskever et al., "On the importance of initialization and momentum in deep learning", 2013.
Kingma & Ba, "Adam: A Method for Stochastic Optimization", arXiv:1412.6980.
Loshchilov & Hutter, "Decoupled Weight Decay Regularization", arXiv:1711.05101.
Reddi, Kale & Kumar, "On the Convergence of Adam and Beyond", arXiv:1904.09237 (amsgrad).
Dozat, "Incorporating Nesterov Momentum into Adam", 2016.
Liu et al., "On the Variance of the Adaptive Learning Rate and Beyond", arXiv:1908.03265.
Hinton, "Neural Networks for Machine Learning", lecture 6e, 2012; centered: Graves, "Generating
Sequences With Recurrent Neural Networks", arXiv:1308.0850.
Duchi, Hazan & Singer, "Adaptive Subgradient Methods for Online Learning and Stochastic
Optimization", 2011.
Zeiler, "ADADELTA: An Adaptive Learning Rate Method", arXiv:1212.5701.
Chen et al., "Symbolic Discovery of Optimization Algorithms", arXiv:2302.06675.
Defazio et al., "The Road Less Scheduled", arXiv:2405.15682.
Mishchenko & Defazio, "Prodigy: An Expeditiously Adaptive Parameter-Free Learner", arXiv:2306.06101.
Defazio & Mishchenko, "Learning-Rate-Free Learning by D-Adaptation", arXiv:2301.07733.
Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
State = dict[str, Any]


def _beta1_power(state: State, after: State, beta1: float) -> float:
    """``beta1 ** t``, or the product of the betas used if state holds one."""
    if "beta1_product" not in state:
        return float(beta1 ** after["step"])
    after["beta1_product"] = state["beta1_product"] * beta1
    return float(after["beta1_product"])


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


def adam(
    param: Array,
    grad: Array,
    state: State,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    amsgrad: bool = False,
    maximize: bool = False,
    decoupled_weight_decay: bool = False,
) -> tuple[Array, State]:
    """Bias correction by ``beta1 ** t``, or by the product of the betas used if state holds one."""
    beta1, beta2 = betas
    gradient = -grad if maximize else grad
    decoupled = weight_decay if decoupled_weight_decay else 0.0
    if not decoupled_weight_decay:
        gradient = gradient + weight_decay * param
    zeros = np.zeros_like(param)
    step = state.get("step", 0) + 1
    mean = beta1 * state.get("exp_avg", zeros) + (1 - beta1) * gradient
    square = beta2 * state.get("exp_avg_sq", zeros) + (1 - beta2) * gradient**2
    after: State = {"step": step, "exp_avg": mean, "exp_avg_sq": square}
    largest = square
    if amsgrad:
        largest = np.maximum(state.get("max_exp_avg_sq", zeros), square)
        after["max_exp_avg_sq"] = largest
    unbiased_mean = mean / (1 - _beta1_power(state, after, beta1))
    unbiased_root = np.sqrt(largest) / np.sqrt(1 - beta2**step)
    update = unbiased_mean / (unbiased_root + eps) + decoupled * param
    return param - lr * update, after


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
    """Adam with the decay outside of the moments, which is what the paper's title says."""
    options: dict[str, Any] = {"betas": betas, "eps": eps, "amsgrad": amsgrad}
    options |= {"maximize": maximize, "weight_decay": weight_decay}
    return adam(param, grad, state, lr=lr, decoupled_weight_decay=True, **options)


def adamax(
    param: Array,
    grad: Array,
    state: State,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    maximize: bool = False,
) -> tuple[Array, State]:
    """Bias correction as Adam's."""
    beta1, beta2 = betas
    gradient = (-grad if maximize else grad) + weight_decay * param
    zeros = np.zeros_like(param)
    mean = beta1 * state.get("exp_avg", zeros) + (1 - beta1) * gradient
    largest = np.maximum(beta2 * state.get("exp_inf", zeros), np.abs(gradient) + eps)
    after: State = {"step": state.get("step", 0) + 1, "exp_avg": mean, "exp_inf": largest}
    unbiased_mean = mean / (1 - _beta1_power(state, after, beta1))
    return param - lr * unbiased_mean / largest, after


def nadam(
    param: Array,
    grad: Array,
    state: State,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum_decay: float = 4e-3,
    decoupled_weight_decay: bool = False,
    maximize: bool = False,
) -> tuple[Array, State]:
    beta1, beta2 = betas
    gradient = -grad if maximize else grad
    shrunk = param
    if decoupled_weight_decay:
        shrunk = param - lr * weight_decay * param
    else:
        gradient = gradient + weight_decay * param
    zeros = np.zeros_like(param)
    step = state.get("step", 0) + 1
    now = beta1 * (1 - 0.5 * 0.96 ** (step * momentum_decay))
    following = beta1 * (1 - 0.5 * 0.96 ** ((step + 1) * momentum_decay))
    product = state.get("mu_product", 1.0) * now
    mean = beta1 * state.get("exp_avg", zeros) + (1 - beta1) * gradient
    square = beta2 * state.get("exp_avg_sq", zeros) + (1 - beta2) * gradient**2
    ahead = following * mean / (1 - product * following) + (1 - now) * gradient / (1 - product)
    update = ahead / (np.sqrt(square / (1 - beta2**step)) + eps)
    after = {"step": step, "mu_product": product, "exp_avg": mean, "exp_avg_sq": square}
    return shrunk - lr * update, after


def radam(
    param: Array,
    grad: Array,
    state: State,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled_weight_decay: bool = False,
    maximize: bool = False,
) -> tuple[Array, State]:
    """Bias correction as Adam's; the paper's algorithm 2, with torch's eps and threshold of 5."""
    beta1, beta2 = betas
    gradient = -grad if maximize else grad
    shrunk = param
    if decoupled_weight_decay:
        shrunk = param - lr * weight_decay * param
    else:
        gradient = gradient + weight_decay * param
    zeros = np.zeros_like(param)
    step = state.get("step", 0) + 1
    mean = beta1 * state.get("exp_avg", zeros) + (1 - beta1) * gradient
    square = beta2 * state.get("exp_avg_sq", zeros) + (1 - beta2) * gradient**2
    after: State = {"step": step, "exp_avg": mean, "exp_avg_sq": square}
    update = mean / (1 - _beta1_power(state, after, beta1))
    longest = 2 / (1 - beta2) - 1
    length = longest - 2 * step * beta2**step / (1 - beta2**step)
    if length > 5:
        variance = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
        update = update * np.sqrt(variance * (1 - beta2**step)) / (np.sqrt(square) + eps)
    return shrunk - lr * update, after


def rmsprop(
    param: Array,
    grad: Array,
    state: State,
    *,
    lr: float,
    alpha: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    centered: bool = False,
    maximize: bool = False,
) -> tuple[Array, State]:
    """A variance that rounding has made negative counts as 0."""
    gradient = (-grad if maximize else grad) + weight_decay * param
    zeros = np.zeros_like(param)
    square = alpha * state.get("square_avg", zeros) + (1 - alpha) * gradient**2
    after: State = {"step": state.get("step", 0) + 1, "square_avg": square}
    variance = square
    if centered:
        mean = alpha * state.get("grad_avg", zeros) + (1 - alpha) * gradient
        after["grad_avg"] = mean
        variance = np.maximum(square - mean**2, 0.0)
    direction = gradient / (np.sqrt(variance) + eps)
    if momentum > 0.0:
        direction = momentum * state.get("momentum_buffer", zeros) + direction
        after["momentum_buffer"] = direction
    return param - lr * direction, after


def adagrad(
    param: Array,
    grad: Array,
    state: State,
    *,
    lr: float,
    lr_decay: float = 0.0,
    weight_decay: float = 0.0,
    initial_accumulator_value: float = 0.0,
    eps: float = 1e-10,
    maximize: bool = False,
) -> tuple[Array, State]:
    gradient = (-grad if maximize else grad) + weight_decay * param
    before = state.get("sum", np.full_like(param, initial_accumulator_value))
    total = before + gradient**2
    step = state.get("step", 0) + 1
    rate = lr / (1 + (step - 1) * lr_decay)
    return param - rate * gradient / (np.sqrt(total) + eps), {"step": step, "sum": total}


def adadelta(
    param: Array,
    grad: Array,
    state: State,
    *,
    lr: float,
    rho: float = 0.9,
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    maximize: bool = False,
) -> tuple[Array, State]:
    gradient = (-grad if maximize else grad) + weight_decay * param
    zeros = np.zeros_like(param)
    square = rho * state.get("square_avg", zeros) + (1 - rho) * gradient**2
    before = state.get("acc_delta", zeros)
    delta = np.sqrt((before + eps) / (square + eps)) * gradient
    after = {"square_avg": square, "acc_delta": rho * before + (1 - rho) * delta**2}
    return param - lr * delta, {"step": state.get("step", 0) + 1, **after}


def lion(
    param: Array,
    grad: Array,
    state: State,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.99),
    weight_decay: float = 0.0,
    maximize: bool = False,
) -> tuple[Array, State]:
    """The paper's algorithm 2: the step by beta1, the momentum by beta2, both from the old one."""
    beta1, beta2 = betas
    gradient = -grad if maximize else grad
    before = state.get("exp_avg", np.zeros_like(param))
    update = np.sign(beta1 * before + (1 - beta1) * gradient)
    after = {"exp_avg": beta2 * before + (1 - beta2) * gradient}
    return param - lr * (update + weight_decay * param), after


def _averaged(
    param: Array,
    direction: Array,
    state: State,
    beta: float,
    lr: float,
    weight_decay: float,
    warmup_steps: int,
    r: float,
    weight_lr_power: float,
) -> tuple[Array, State]:
    """The paper's iterates, by x itself: what the parameters hold is y = (1 - beta) z + beta x."""
    step = state.get("step", 0) + 1
    rate = lr * min(1.0, step / warmup_steps) if warmup_steps else lr
    largest = max(state.get("lr_max", 0.0), rate)
    weight = step**r * largest**weight_lr_power
    total = state.get("weight_sum", 0.0) + weight
    share = weight / total if total else 0.0
    z = state.get("z", param)
    x = (param - (1 - beta) * z) / beta
    z = z - rate * (direction + weight_decay * param)
    x = (1 - share) * x + share * z
    after = {"step": step, "lr_max": largest, "weight_sum": total, "z": z}
    return (1 - beta) * z + beta * x, after


def adamw_schedule_free(
    param: Array,
    grad: Array,
    state: State,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    warmup_steps: int = 0,
    r: float = 0.0,
    weight_lr_power: float = 2.0,
) -> tuple[Array, State]:
    beta1, beta2 = betas
    step = state.get("step", 0) + 1
    square = beta2 * state.get("exp_avg_sq", np.zeros_like(param)) + (1 - beta2) * grad**2
    direction = grad / (np.sqrt(square / (1 - beta2**step)) + eps)
    new, after = _averaged(
        param, direction, state, beta1, lr, weight_decay, warmup_steps, r, weight_lr_power
    )
    return new, after | {"exp_avg_sq": square}


def sgd_schedule_free(
    param: Array,
    grad: Array,
    state: State,
    *,
    lr: float,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    warmup_steps: int = 0,
    r: float = 0.0,
    weight_lr_power: float = 2.0,
) -> tuple[Array, State]:
    return _averaged(
        param, grad, state, momentum, lr, weight_decay, warmup_steps, r, weight_lr_power
    )


def prodigy(
    params: list[Array],
    grads: list[Array],
    state: State,
    *,
    lr: float = 1.0,
    betas: tuple[float, float] = (0.9, 0.999),
    beta3: float | None = None,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decouple: bool = True,
    use_bias_correction: bool = False,
    safeguard_warmup: bool = False,
    d0: float = 1e-6,
    d_coef: float = 1.0,
    growth_rate: float = float("inf"),
) -> tuple[list[Array], State]:
    """All parameters at once, because their estimate of the distance is one."""
    beta1, beta2 = betas
    root = beta2**0.5 if beta3 is None else beta3
    zeros = [np.zeros_like(param) for param in params]
    d, step = state.get("d", d0), state.get("step", 0) + 1
    rate = d * lr
    if use_bias_correction:
        rate *= (1 - beta2**step) ** 0.5 / (1 - beta1**step)
    if not decouple:
        grads = [g + weight_decay * p for g, p in zip(grads, params, strict=True)]
    first = state.get("first", params)
    weight = d / d0 * (d if safeguard_warmup else rate)
    sums = [root * s + weight * g for s, g in zip(state.get("s", zeros), grads, strict=True)]
    pulled = sum(float(np.sum(g * (a - p))) for g, a, p in zip(grads, first, params, strict=True))
    numerator = root * state.get("numerator", 0.0) + d / d0 * rate * pulled
    measured = d_coef * numerator / sum(float(np.sum(np.abs(s))) for s in sums)
    largest = max(state.get("largest", d0), measured)
    new = min(largest, (max(d, measured) if d == d0 else d) * growth_rate)
    after: State = {"d": new, "step": step, "first": first, "s": sums, "numerator": numerator}
    means = zip(state.get("exp_avg", zeros), grads, strict=True)
    squares = zip(state.get("exp_avg_sq", zeros), grads, strict=True)
    after["exp_avg"] = [beta1 * m + (1 - beta1) * d * g for m, g in means]
    after["exp_avg_sq"] = [beta2 * v + (1 - beta2) * (d * g) ** 2 for v, g in squares]
    after["largest"] = largest
    moved = []
    for i, param in enumerate(params):
        direction = after["exp_avg"][i] if beta1 > 0 else new * grads[i]
        update = direction / (np.sqrt(after["exp_avg_sq"][i]) + new * eps)
        decay = weight_decay * param if decouple else 0.0
        moved.append(param - rate * (update + decay))
    return moved, after


def dadapt_adam(
    params: list[Array],
    grads: list[Array],
    state: State,
    *,
    lr: float = 1.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decouple: bool = False,
    use_bias_correction: bool = False,
    d0: float = 1e-6,
    growth_rate: float = float("inf"),
) -> tuple[list[Array], State]:
    """All parameters at once, as :func:`prodigy`."""
    beta1, beta2 = betas
    root = beta2**0.5
    zeros = [np.zeros_like(param) for param in params]
    d, step = state.get("d", d0), state.get("step", 0) + 1
    rate = d * lr
    if use_bias_correction:
        rate *= (1 - beta2**step) ** 0.5 / (1 - beta1**step)
    if not decouple:
        grads = [g + weight_decay * p for g, p in zip(grads, params, strict=True)]
    sums, means, squares = (state.get(name, zeros) for name in ("s", "exp_avg", "exp_avg_sq"))
    scaled = [s / (np.sqrt(v) + eps) for s, v in zip(sums, squares, strict=True)]
    dot = sum(float(np.sum(g * s)) for g, s in zip(grads, scaled, strict=True))
    after: State = {"step": step}
    after["s"] = [root * s + (1 - root) * rate * g for s, g in zip(sums, grads, strict=True)]
    after["exp_avg"] = [
        beta1 * m + (1 - beta1) * rate * g for m, g in zip(means, grads, strict=True)
    ]
    after["exp_avg_sq"] = [
        beta2 * v + (1 - beta2) * g**2 for v, g in zip(squares, grads, strict=True)
    ]
    after["numerator"] = root * state.get("numerator", 0.0) + (1 - root) * rate * dot
    norm = sum(float(np.sum(np.abs(s))) for s in after["s"])
    after["d"] = max(d, min(after["numerator"] / ((1 - root) * norm), d * growth_rate))
    moved = []
    for param, mean, square in zip(params, after["exp_avg"], after["exp_avg_sq"], strict=True):
        decay = rate * weight_decay * param if decouple else 0.0
        moved.append(param - decay - mean / (np.sqrt(square) + eps))
    return moved, after


def muon(
    param: Array,
    grad: Array,
    state: State,
    *,
    lr: float,
    weight_decay: float = 0.1,
    momentum: float = 0.95,
    nesterov: bool = True,
    ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
    eps: float = 1e-7,
    ns_steps: int = 5,
    adjust_lr_fn: str | None = None,
    beta2: float | None = None,
) -> tuple[Array, State]:
    """By singular values: the iteration maps each by an odd polynomial, and the bases stay.

    With ``beta2`` NorMuon: what it makes of an output is divided by a root mean square over steps.
    """
    buffer = momentum * state.get("momentum_buffer", np.zeros_like(grad)) + (1 - momentum) * grad
    direction = momentum * buffer + (1 - momentum) * grad if nesterov else buffer
    outputs = len(grad)
    left, values, right = np.linalg.svd(direction.reshape(outputs, -1), full_matrices=False)
    values = values / max(eps, np.linalg.norm(values))
    a, b, c = ns_coefficients
    for _ in range(ns_steps):
        values = a * values + b * values**3 + c * values**5
    inputs = grad.size // outputs
    factor = np.sqrt(max(1.0, outputs / inputs))
    if adjust_lr_fn == "match_rms_adamw":
        factor = 0.2 * np.sqrt(max(outputs, inputs))
    update = (left * values) @ right
    new_state = {"momentum_buffer": buffer}
    if beta2 is not None:
        size = np.linalg.norm(update)
        rows = beta2 * state.get("second_momentum_buffer", np.zeros((outputs, 1)))
        rows = rows + (1 - beta2) * np.mean(update**2, axis=1, keepdims=True)
        update = update / (np.sqrt(rows) + 1e-10)
        update = update * size / (np.linalg.norm(update) + 1e-10)
        new_state["second_momentum_buffer"] = rows
    new = param * (1 - lr * weight_decay) - lr * factor * update.reshape(grad.shape)
    return new, new_state


def decay_at(step: int, ema_decay: float, ema_start: int = 0, ema_warmup: bool = False) -> float:
    """The EMA's decay at a step, counted from 0, as the options' text has it."""
    if step < ema_start:
        return 0.0
    averaged = step - ema_start
    return min(ema_decay, (1 + averaged) / (10 + averaged)) if ema_warmup else ema_decay
