"""Results from recorded curves: pairing, medians over repeats, smoothing, suggestions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType

import numpy as np
import torch

from lrfast import suggest
from lrfast._utils.extension import extension
from lrfast.curve import LossCurve
from lrfast.range_test._priors import RatePrior
from lrfast.range_test._result import Outcome, RangeTest
from lrfast.range_test._sweep import FloatArray, Sweep
from lrfast.suggest import Suggestion


@dataclass(frozen=True)
class Recording:
    """Learning rates and losses of one sweep, [points] each, and its outcome."""

    lrs: FloatArray
    losses: FloatArray
    outcome: Outcome


def read(curve: LossCurve, lag: int) -> Recording:
    """Return the part of a curve up to its stop flag. Synchronises with the device.

    A ``lag`` of 0 pairs a learning rate with the loss before its update, 1 with the one after.
    """
    status = curve.status()
    if status.stopped_at is not None:
        # A GPU may run a few steps past the flag before the host reads it.
        curve.truncate(status.stopped_at + 1)
    lrs, losses = curve.lrs.cpu().numpy(), curve.losses.cpu().numpy()
    lrs, losses = lrs[: len(lrs) - lag], losses[lag:]
    # A step function may skip updates, as a scaler does; their learning rates come once more.
    is_new = np.diff(lrs, prepend=0.0) > 0
    outcome: Outcome = "completed" if status.outcome == "running" else status.outcome
    return Recording(lrs[is_new], losses[is_new], outcome)


def summarise(
    sweep: Sweep, recordings: Sequence[Recording], beta: float, prior: RatePrior
) -> RangeTest:
    """Return the result of one or several sweeps over the same learning rates.

    Several are reduced to their median, point by point, until half of them have ended.
    """
    longest = max(recordings, key=lambda recording: len(recording.lrs))
    repeats = np.full((len(recordings), len(longest.lrs)), math.nan)
    for row, recording in zip(repeats, recordings, strict=True):
        row[: len(recording.losses)] = recording.losses
    if len(recordings) == 1:
        losses = repeats[0]
    else:
        # A sweep that has ended counts as worse than any loss.
        medians = np.median(np.where(np.isfinite(repeats), repeats, math.inf), axis=0)
        losses = medians[: np.append(np.flatnonzero(np.isinf(medians)), len(medians))[0]]
    lrs = longest.lrs[: len(losses)]
    smoothed, derivative = _smooth(lrs, losses, beta)
    outcomes = [recording.outcome for recording in recordings]
    outcome = max(outcomes, key=outcomes.count)
    suggestions = suggest_all(lrs, losses, smoothed, sweep.num_iter, prior)
    curves = (lrs, losses, smoothed, derivative)
    several = repeats if len(recordings) > 1 else None
    return RangeTest(*curves, sweep, suggestions, outcome, seconds=0.0, repeats=several)


def _smooth(lrs: FloatArray, losses: FloatArray, beta: float) -> tuple[FloatArray, FloatArray]:
    """Return the EMA of the losses, and its slope over the logarithm of the learning rate."""
    if len(lrs) == 0:
        return losses, losses
    # Copies: arrays may be read-only, which tensors cannot be.
    smoothed = extension().smooth_ema(torch.from_numpy(losses.copy()), beta)
    if len(lrs) == 1:
        return smoothed.numpy(), losses * math.nan
    slopes = extension().derivative(smoothed, torch.from_numpy(lrs.copy()).log(), 1)
    return smoothed.numpy(), slopes.numpy()


def suggest_all(
    lrs: FloatArray, losses: FloatArray, smoothed: FloatArray, num_iter: int, prior: RatePrior
) -> MappingProxyType[str, Suggestion]:
    """Return the suggestion of every method.

    Methods that smooth by themselves read all raw losses; the others read the smoothed curve
    without its first tenth and last five points, as in fastai.
    """
    skip = min(num_iter // 10, max(len(lrs) - 7, 0))
    skip_end = 5 if len(lrs) - skip >= 7 else 0
    kept = slice(skip, len(lrs) - skip_end)
    found = {}
    for name in suggest.names():
        rule = suggest.get(name)
        if name == "auto":
            found[name] = suggest.auto(lrs, losses, **asdict(prior))
        elif suggest.reads_raw(name):
            found[name] = rule(lrs, losses)
        else:
            found[name] = cut = rule(lrs[kept], smoothed[kept])
            if cut.index is not None:
                found[name] = replace(cut, index=cut.index + skip)
    return MappingProxyType(found)
