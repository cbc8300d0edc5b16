"""The rate at which an optimizer usually trains, before anything is measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from lrfast.suggest._curve import is_whole

# Adam's rates for eight language models fall from 6e-4 at 1.25e8 parameters to 6e-5 at 1.75e11.
_ADAM: Final = 6e-4
_ADAM_PARAMETERS: Final = 1.25e8
_ADAM_EXPONENT: Final = 1 / math.log10(1.75e11 / 1.25e8)

# Of Adam's rate. Lion's authors advise 3 to 10 times less. Adagrad's steps shrink with the square
# root of their number, which takes it ten times the rate to make the same ones by the hundredth.
ADAPTIVE: Final[Mapping[str, float]] = MappingProxyType(
    {
        **dict.fromkeys(("Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop"), 1.0),
        "Lion": 0.2,
        "Adagrad": 10.0,
    }
)
# GPT-3's weights begin with a root mean square of 0.02. Those of small models are larger, as layers
# begin with the inverse root of their inputs: about 0.13 at ten thousand parameters.
_RMS: Final = 0.02
_RMS_EXPONENT: Final = 0.2
# An update counts by its size relative to the weights. Powers from 0.2 to 0.5 do equally well on
# the tasks of benchmarks/research/suggestions; 1 would make the learning rate a share of the
# weights, as LARS does.
_WEIGHTS_EXPONENT: Final = 0.4
_FARTHEST_RMS: Final = 10.0  # factor from the usual root mean square that counts at most
# Residual networks' 0.1 with a momentum of 0.9, under which a gradient counts ten times.
_SGD: Final = 1.0


def typical_rate(
    optimizer: str, parameters: int, momentum: float = 0.0, weight_rms: float | None = None
) -> float | None:
    """Return the rate at which an optimizer usually trains a model of some size.

    For the rules that divide by gradients' size it is what GPT-3's models were trained with,
    `6e-4 * (1.25e8 / parameters) ** 0.318`, to which small models come close as well: 0.012 at ten
    thousand parameters. For SGD, whose rates depend on the loss instead, it is `1 - momentum`.

    Large weights take larger updates: the rate goes with the power 0.4 of ``weight_rms`` over the
    usual one, `0.02 * (1.25e8 / parameters) ** 0.2`; more than ten times or less than a tenth of
    that count as these. Embeddings, normalisation layers and pretrained weights are what differs.

    Args:
        optimizer: name of its class, as in torch.optim.
        parameters: number of trainable parameters, 1 or more.
        momentum: factor by which the last update is carried on, at least 0 and below 1, of SGD or
            RMSprop; 0 for the others, whose momentum is an average.
        weight_rms: root mean square of the trainable parameters before training, finite and 0 or
            more; None or 0 where it says nothing.

    Returns:
        The rate, or None for an optimizer that is not known.

    Raises:
        ValueError: if an argument is not as described.

    Example:
        >>> round(typical_rate("AdamW", 10_000), 3), round(typical_rate("SGD", 10_000, 0.9), 3)
        (0.012, 0.1)
        >>> round(typical_rate("AdamW", 10_000, weight_rms=1.0), 3)
        0.027

    Reference:
        Brown et al., "Language Models are Few-Shot Learners", arXiv:2005.14165, table 2.1; He et
        al., "Deep Residual Learning for Image Recognition", arXiv:1512.03385; Chen et al.,
        "Symbolic Discovery of Optimization Algorithms", arXiv:2302.06675, section 5; You et al.,
        "Large Batch Training of Convolutional Networks", arXiv:1708.03888, for the weights.
    """
    if not is_whole(parameters) or parameters < 1:
        raise ValueError(f"parameters must be a whole number, 1 or more, got {parameters!r}")
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must be at least 0 and below 1, got {momentum!r}")
    if weight_rms is not None and not (math.isfinite(weight_rms) and weight_rms >= 0):
        raise ValueError(f"weight_rms must be None, or finite and 0 or more, got {weight_rms!r}")
    larger = _larger_weights(parameters, weight_rms) if weight_rms else 1.0
    if optimizer == "SGD":
        return larger * _SGD * (1 - momentum)
    if optimizer not in ADAPTIVE:
        return None
    rate: float = _ADAM * (_ADAM_PARAMETERS / parameters) ** _ADAM_EXPONENT
    return larger * rate * ADAPTIVE[optimizer] * (1 - momentum)


def _larger_weights(parameters: int, weight_rms: float) -> float:
    """The factor for weights that are larger, or smaller, than those of such models usually."""
    usual = _RMS * (_ADAM_PARAMETERS / parameters) ** _RMS_EXPONENT
    ratio = min(max(weight_rms / usual, 1 / _FARTHEST_RMS), _FARTHEST_RMS)
    factor: float = ratio**_WEIGHTS_EXPONENT
    return factor
