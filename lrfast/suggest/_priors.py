"""Prior knowledge of learning rates: by optimizer and model, by batches and data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from lrfast._utils.arguments import checked
from lrfast._utils.validation import check_count, is_int

# Adam's learning rates for eight language models fall from 6e-4 at 1.25e8 parameters to 6e-5 at
# 1.75e11, which is a power of 0.32. With 1/3, and 0.42 for AdamW, they also fit the models of
# benchmarks/research/suggestions, 1e2 to 1e6 parameters, where AdamW's are 2.5 times Adam's.
_ADAM: Final = 6e-4
_ADAM_PARAMETERS: Final = 1.25e8
_ADAM_EXPONENT: Final = 1 / 3
_ADAMW_EXPONENT: Final = 0.42

# Factors on Adam's learning rate. Lion's authors advise 3 to 10 times less. Adagrad's steps shrink
# with the root of their number: ten times the learning rate makes the hundredth one as large.
_ADAPTIVE: Final[Mapping[str, float]] = MappingProxyType(
    {
        **dict.fromkeys(("Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop"), 1.0),
        "Lion": 0.2,
        "Adagrad": 10.0,
    }
)
# GPT-3's weights begin with a root mean square of 0.02. Those of small models are larger, because
# layers begin with the inverse root of their inputs: about 0.13 at ten thousand parameters.
_RMS: Final = 0.02
_RMS_EXPONENT: Final = 0.2
# Powers from 0.4 to 0.6 do equally well on the tasks of benchmarks/research/suggestions; 1 would
# make the update a fraction of the weights, as LARS does.
_WEIGHTS_EXPONENT: Final = 0.5
_FARTHEST_RMS: Final = 10.0  # factor from the usual root mean square that counts at most
# Residual networks' 0.1 with a momentum of 0.9, under which a gradient counts ten times.
_SGD: Final = 1.0

# Standard deviations in decades of the best learning rate from the usual one: 0.43 over 51 tasks of
# benchmarks/research/suggestions and 0.58 over 28 of SGD's, because its updates depend on the loss.
DEVIATION: Final = 0.4
_SGD_DEVIATION: Final = 0.6

_USUAL_BATCH: Final = 32

# Batch size whose noise halves the best learning rate. It differs between trainings; on the tasks
# of benchmarks/research/suggestions 100 to 400 do equally well, as do powers from 0.2 to 0.4 below.
_CRITICAL_BATCH: Final = 200.0

# Power of parameters per class to predict. With more parameters than classes a model memorises its
# data, sooner at a higher learning rate, and its confidence grows. Squared errors of numbers do not
# grow so: on the tasks of benchmarks/research/suggestions the factor does harm there. Those of
# benchmarks/research/pretrained have up to 150,000 parameters per label. At 44,000 the factor makes
# GPT-3's learning rate 2.6e-5, and BERT is tuned on few thousand rows with 2e-5 to 5e-5.
_DATA_EXPONENT: Final = 0.3
_MOST_PER_TARGET: Final = 1e5


@checked
def typical_rate(
    optimizer: str, parameters: int, momentum: float = 0.0, weight_rms: float | None = None
) -> float | None:
    """Return the learning rate at which an optimizer usually trains a model of some size.

    For update rules that divide by the size of gradients it is that of GPT-3's models,
    `6e-4 * (1.25e8 / parameters) ** (1 / 3)`, which also fits small models: 0.014 at ten thousand
    parameters. AdamW's grows with the power 0.42 below 1.25e8 parameters: small models bear larger
    steps if their weights decay. For SGD, whose learning rates depend on the loss instead, it is
    `1 - momentum`.

    Large weights take larger updates: the learning rate grows with the root of ``weight_rms``
    over the usual one, `0.02 * (1.25e8 / parameters) ** 0.2`, a ratio that is clipped to 0.1 to 10.
    Embeddings, normalisation layers and pretrained weights differ from the usual.

    Args:
        optimizer: Name of its class, as in torch.optim.
        parameters: Number of trainable parameters, 1 or more.
        momentum: Factor on the last update, of SGD or RMSprop, in [0, 1); default 0, which is right
            for all others, whose momentum is an average.
        weight_rms: Size of the trainable parameters before training: the root mean square of each
            tensor, averaged over them by their numbers of weights. Finite and 0 or more; None, the
            default, or 0 if it is not known.

    Returns:
        The learning rate, or None for an unknown optimizer.

    Raises:
        ValueError: If an argument is not as described.

    Example:
        >>> round(typical_rate("AdamW", 10_000), 3), round(typical_rate("SGD", 10_000, 0.9), 3)
        (0.032, 0.1)
        >>> round(typical_rate("AdamW", 10_000, weight_rms=1.0), 3)
        0.087

    Reference:
        GPT-3: arXiv:2005.14165, table 2.1; ResNet: arXiv:1512.03385; Lion: arXiv:2302.06675,
        section 5; LARS, for the weights: arXiv:1708.03888.
    """
    check_count("parameters", parameters)
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must be at least 0 and below 1, got {momentum!r}")
    if weight_rms is not None and not (math.isfinite(weight_rms) and weight_rms >= 0):
        raise ValueError(f"weight_rms must be None, or finite and 0 or more, got {weight_rms!r}")
    larger = 1.0
    if weight_rms:
        usual = _RMS * (_ADAM_PARAMETERS / parameters) ** _RMS_EXPONENT
        ratio = min(max(weight_rms / usual, 1 / _FARTHEST_RMS), _FARTHEST_RMS)
        larger = ratio**_WEIGHTS_EXPONENT
    if optimizer == "SGD":
        return larger * _SGD * (1 - momentum)
    if optimizer not in _ADAPTIVE:
        return None
    is_small = parameters < _ADAM_PARAMETERS
    exponent = _ADAMW_EXPONENT if optimizer == "AdamW" and is_small else _ADAM_EXPONENT
    rate: float = _ADAM * (_ADAM_PARAMETERS / parameters) ** exponent
    return larger * rate * _ADAPTIVE[optimizer] * (1 - momentum)


@checked
def typical_deviation(optimizer: str) -> float:
    """Return how far the best learning rate usually is from `typical_rate`'s.

    Args:
        optimizer: Name of its class, as in torch.optim.

    Returns:
        One standard deviation in decades: 0.6, a factor of 4, for SGD, whose updates depend on the
        loss, and 0.4, a factor of 2.5, for all others.

    Example:
        >>> typical_deviation("SGD"), typical_deviation("AdamW")
        (0.6, 0.4)

    Reference:
        benchmarks/research/suggestions, 79 tasks.
    """
    return _SGD_DEVIATION if optimizer == "SGD" else DEVIATION


@checked
def rate_scale(
    optimizer: str,
    *,
    batch_size: int | None = None,
    parameters: int | None = None,
    targets: int | None = None,
) -> float:
    """Return the factor by which a training's learning rate differs from the usual one.

    A usual training has batches of 32 rows and at least as many targets as parameters. SGD's
    learning rate grows with ``1 / (1 + 200 / batch_size)``: in proportion to small batches, whose
    noise limits it, and hardly with large ones. For update rules that divide by the size of
    gradients it grows with the root of that. With fewer targets than parameters it falls with the
    power 0.3 of their ratio, which is clipped to 1/100,000: a large network that is tuned on few
    labels bears far less than one that is trained on many.

    Args:
        optimizer: Name of its class, as in torch.optim; for unknown ones batches do not matter.
        batch_size: Rows per update, 1 or more; None, the default, if not known.
        parameters: Number of trainable parameters, 1 or more; None, the default, if not known.
        targets: Number of classes to predict, counted over all rows of the data, 1 or more; None,
            the default, if it is not known or the model predicts numbers.

    Returns:
        The factor, 1 for a usual training and if nothing is known.

    Raises:
        ValueError: If a count is not as described.

    Example:
        >>> round(rate_scale("SGD", batch_size=64), 2), round(rate_scale("Adam", batch_size=64), 2)
        (1.76, 1.33)
        >>> round(rate_scale("Adam", parameters=10_000, targets=1_000), 2)
        0.5

    Reference:
        McCandlish et al., arXiv:1812.06162, equation 2.7; the root: Malladi et al.,
        arXiv:2205.10287; fine-tuning: BERT, arXiv:1810.04805, appendix A.3.
    """
    counts = {"batch_size": batch_size, "parameters": parameters, "targets": targets}
    for name, count in counts.items():
        if count is not None and not (is_int(count) and count >= 1):
            raise ValueError(f"{name} must be None, or a whole number, 1 or more, got {count!r}")
    scale = 1.0
    if batch_size is not None:
        noise = (1 + _CRITICAL_BATCH / _USUAL_BATCH) / (1 + _CRITICAL_BATCH / batch_size)
        scale *= noise ** (1.0 if optimizer == "SGD" else 0.5 if optimizer in _ADAPTIVE else 0.0)
    if parameters is not None and targets is not None:
        scale /= min(max(parameters / targets, 1.0), _MOST_PER_TARGET) ** _DATA_EXPONENT
    return scale
