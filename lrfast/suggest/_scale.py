"""How the size of batches and the amount of data move the rate that trains best."""

from __future__ import annotations

from typing import Final

from lrfast.suggest._curve import is_whole
from lrfast.suggest._priors import ADAPTIVE

_USUAL_BATCH: Final = 32

# The batch whose noise halves the best rate. It differs from training to training; on the tasks of
# benchmarks/research/suggestions 100 to 400 do equally well, as do powers from 0.2 to 0.4 below.
_CRITICAL_BATCH: Final = 200.0

# Of parameters per class to predict. With more of them than classes a model learns its data by
# heart, the sooner the higher the rate, and grows ever surer of it. Squared errors of numbers do
# not grow so: on the tasks of benchmarks/research/suggestions the factor does harm there.
_DATA_EXPONENT: Final = 0.3
_MOST_PER_TARGET: Final = 30.0


def rate_scale(
    optimizer: str,
    *,
    batch_size: int | None = None,
    parameters: int | None = None,
    targets: int | None = None,
) -> float:
    """Return the factor by which a training's rate differs from that of a usual one.

    A usual one has batches of 32 rows and at least as many targets as parameters. SGD's rate goes
    with ``1 / (1 + 200 / batch_size)``: in proportion to small batches, whose noise limits it, and
    not at all to large ones. The rate of rules that divide by the gradients' size goes with its
    root. Where targets are fewer than parameters, it goes with the power 0.3 of their ratio, which
    counts as a thirtieth at least.

    Args:
        optimizer: name of its class, as in torch.optim; batches do not matter to unknown ones.
        batch_size: rows per update, 1 or more; None where nobody knows.
        parameters: number of trainable parameters, 1 or more; None where nobody knows.
        targets: classes that the model learns to predict in all of the data, 1 or more; None where
            nobody knows, and where it predicts numbers.

    Returns:
        The factor, 1 for a usual training and where nothing is known.

    Raises:
        ValueError: if a count is not as described.

    Example:
        >>> round(rate_scale("SGD", batch_size=64), 2), round(rate_scale("Adam", batch_size=64), 2)
        (1.76, 1.33)
        >>> round(rate_scale("Adam", parameters=10_000, targets=1_000), 2)
        0.5

    Reference:
        McCandlish et al., "An Empirical Model of Large-Batch Training", arXiv:1812.06162, equation
        2.7; Malladi et al., "On the SDEs and Scaling Rules for Adaptive Gradient Algorithms",
        arXiv:2205.10287, for the root.
    """
    counts = {"batch_size": batch_size, "parameters": parameters, "targets": targets}
    for name, count in counts.items():
        if count is not None and not (is_whole(count) and count >= 1):
            raise ValueError(f"{name} must be None, or a whole number, 1 or more, got {count!r}")
    scale = 1.0
    if batch_size is not None:
        noise = (1 + _CRITICAL_BATCH / _USUAL_BATCH) / (1 + _CRITICAL_BATCH / batch_size)
        scale *= noise ** _exponent(optimizer)
    if parameters is not None and targets is not None:
        scale /= min(max(parameters / targets, 1.0), _MOST_PER_TARGET) ** _DATA_EXPONENT
    return scale


def _exponent(optimizer: str) -> float:
    """The power of the batch's share that an optimizer's rate goes with."""
    if optimizer == "SGD":
        return 1.0
    return 0.5 if optimizer in ADAPTIVE else 0.0
