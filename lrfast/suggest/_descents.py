"""Suggestion methods for raw losses: the longest fall, its end, and a pair for cycles."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lrfast.suggest._shape import Shape, noise_reason, read_shape
from lrfast.suggest._suggestion import Suggestion, no_suggestion

_CLEARLY: Final = 0.2  # fraction of the steepest slope that a clear fall has at least
_ONSET: Final = 0.1  # fraction of the fall at which the loss starts to fall, or to rise


def longest_descent(lrs: ArrayLike, losses: ArrayLike) -> Suggestion:
    """Suggest the middle of the longest stretch over which the loss falls without a break.

    Args:
        lrs: [points] learning rates, finite, positive, increasing.
        losses: [points] raw losses; the curve is cut at the first one that is not finite.

    Returns:
        The geometric mean of its ends; none below 10 points and if noise may be all of the fall.

    Raises:
        ValueError: If an array is not as described.

    Example:
        >>> lrs = np.geomspace(1e-4, 1.0, 41)
        >>> longest_descent(lrs, 1 / (1 + lrs / 1e-2) + 4 * lrs**2).reason
        'the loss decreases steadily from lr 1.0e-04 to 1.0e-01'
    """
    shape = _clear_shape(lrs, losses)
    if isinstance(shape, str):
        return no_suggestion("longest_descent", shape)
    begin, end = _longest_run(np.diff(shape.smooth) < 0)
    first, last = shape.rate(begin), shape.rate(end)
    reason = f"the loss decreases steadily from lr {first:.1e} to {last:.1e}"
    return _answer("longest_descent", reason, shape, shape.rate((begin + end) / 2))


def last_decreasing(lrs: ArrayLike, losses: ArrayLike) -> Suggestion:
    """Suggest the highest learning rate at which the loss still falls clearly.

    Clearly means a fifth of its fastest fall per decade, or more. From "Deep Learning for Coders
    with fastai and PyTorch", Howard & Gugger, 2020, chapter 5.

    Args:
        lrs: [points] learning rates, finite, positive, increasing.
        losses: [points] raw losses; the curve is cut at the first one that is not finite.

    Returns:
        The suggestion; none below 10 points and if noise may be all of the fall.

    Raises:
        ValueError: If an array is not as described.

    Example:
        >>> lrs = np.geomspace(1e-4, 1.0, 41)
        >>> last_decreasing(lrs, 1 / (1 + lrs / 1e-2) + 4 * lrs**2).reason
        'the loss decreases clearly up to lr 6.3e-02'
    """
    shape = _clear_shape(lrs, losses)
    if isinstance(shape, str):
        return no_suggestion("last_decreasing", shape)
    slopes = np.diff(shape.smooth) / np.diff(shape.log_rates)
    until = slopes[: max(shape.lowest, 1)]
    index = int(np.flatnonzero(until <= _CLEARLY * until.min())[-1])
    lr = shape.rate(index)
    return _answer("last_decreasing", f"the loss decreases clearly up to lr {lr:.1e}", shape, lr)


def cyclic(lrs: ArrayLike, losses: ArrayLike) -> Suggestion:
    """Suggest learning rates for cyclic schedules, at which the loss starts to fall and to rise.

    From "Cyclical Learning Rates for Training Neural Networks", Smith, arXiv:1506.01186, 3.3.

    Args:
        lrs: [points] learning rates, finite, positive, increasing.
        losses: [points] raw losses; the curve is cut at the first one that is not finite.

    Returns:
        The upper learning rate `lr`, at which a tenth of the fall is lost again, and the lower one
        `base_lr`, at which a tenth is done. None below 10 points, if noise may be all of the fall,
        and if the loss never rises.

    Raises:
        ValueError: If an array is not as described.

    Example:
        >>> lrs = np.geomspace(1e-4, 1.0, 41)
        >>> cyclic(lrs, 1 / (1 + lrs / 1e-2) + 4 * lrs**2).reason
        'the loss starts to decrease at lr 1.3e-03 and to increase at 2.0e-01'
    """
    shape = _clear_shape(lrs, losses)
    if isinstance(shape, str):
        return no_suggestion("cyclic", shape)
    up = shape.rises_by(_ONSET)
    if up is None:
        last = shape.rate(len(shape.smooth) - 1)
        reason = f"the loss has not increased up to the last learning rate, {last:.1e}"
        return no_suggestion("cyclic", reason)
    base, lr = shape.rate(shape.falls_by(_ONSET)), shape.rate(up)
    reason = f"the loss starts to decrease at lr {base:.1e} and to increase at {lr:.1e}"
    return _answer("cyclic", reason, shape, lr, base)


def _clear_shape(lrs: ArrayLike, losses: ArrayLike) -> Shape | str:
    shape = read_shape(lrs, losses)
    return shape if isinstance(shape, str) else noise_reason(shape) or shape


def _answer(
    rule: str, reason: str, shape: Shape, lr: float, base_lr: float | None = None
) -> Suggestion:
    return Suggestion(lr, rule, reason, shape.confidence, shape.nearest(lr), base_lr)


def _longest_run(flags: NDArray[np.bool_]) -> tuple[int, int]:
    """Return the first and the last point of the longest run of true differences."""
    edges = np.diff(np.concatenate([[0], flags.astype(np.int8), [0]]))
    begins, ends = np.flatnonzero(edges > 0), np.flatnonzero(edges < 0)
    longest = int(np.argmax(ends - begins))
    return int(begins[longest]), int(ends[longest])
