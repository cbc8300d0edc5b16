"""Smoothing and differentiating a million losses, against numpy, scipy and pandas.

Peers that are not installed do not take part. All find the same values away from the ends, where
each has its own idea of what lies beyond; that they do is checked before they are timed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

import lrfast
from benchmarks.conftest import Measure
from benchmarks.speed import timing

COUNT = 1_000_000
BETA, WINDOW, ORDER = 0.98, 101, 3
INNER = slice(2000, -2000)  # where the ends have no say: BETA ** 2000 is 3e-18

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """The same losses for all."""

    ours: lrfast.LossCurve
    losses: Array
    log_rates: Array


def _curve(device: str) -> Curve:
    random = np.random.default_rng(1)
    losses = 3 + np.cumsum(random.normal(size=COUNT)) / COUNT + random.normal(size=COUNT) / 10
    rates = np.geomspace(1e-7, 10, COUNT)
    ours = lrfast.LossCurve(
        COUNT, device=device, rates=torch.from_numpy(rates), diverge_threshold=None
    )
    for loss in torch.from_numpy(losses.astype(np.float32)).to(device):
        ours.record(loss)
    kept = ours.losses.double().cpu().numpy()
    return Curve(ours, kept, np.log(ours.lrs.double().cpu().numpy().ravel()))


def _pandas(losses: Array) -> Any:
    return import_module("pandas").Series(losses)


def _filters() -> Any:
    return import_module("scipy.signal")


def _numpy_mean(losses: Array) -> Array:
    sums = np.cumsum(np.concatenate([[0.0], losses]))
    means: Array = (sums[WINDOW:] - sums[:-WINDOW]) / WINDOW
    return np.pad(means, WINDOW // 2)


def _array(values: Any) -> Array:
    """What pandas found."""
    found: Array = values.to_numpy()
    return found


Analysis = Callable[[Curve], Any]

ANALYSES: dict[str, dict[str, Analysis]] = {
    "ema": {
        "lrfast": lambda c: c.ours.smoothed("ema", beta=BETA),
        "scipy": lambda c: _filters().lfilter([1 - BETA], [1, -BETA], c.losses),
        "pandas": lambda c: _array(_pandas(c.losses).ewm(alpha=1 - BETA).mean()),
    },
    "sma": {
        "lrfast": lambda c: c.ours.smoothed("sma", window=WINDOW),
        "numpy": lambda c: _numpy_mean(c.losses),
        "scipy": lambda c: import_module("scipy.ndimage").uniform_filter1d(c.losses, WINDOW),
        "pandas": lambda c: _array(_pandas(c.losses).rolling(WINDOW, center=True).mean()),
    },
    "median": {
        "lrfast": lambda c: c.ours.smoothed("median", window=WINDOW),
        "scipy": lambda c: import_module("scipy.ndimage").median_filter(c.losses, WINDOW),
        "pandas": lambda c: _array(_pandas(c.losses).rolling(WINDOW, center=True).median()),
    },
    "savgol": {
        "lrfast": lambda c: c.ours.smoothed("savgol", window=WINDOW, order=ORDER),
        "scipy": lambda c: _filters().savgol_filter(c.losses, WINDOW, ORDER),
    },
    "derivative": {
        "lrfast": lambda c: c.ours.derivative(wrt="log_lr", method="none"),
        "numpy": lambda c: np.gradient(c.losses, c.log_rates),
    },
}


@pytest.fixture(scope="module")
def curves() -> dict[str, Curve]:
    return {}


@pytest.mark.parametrize(
    "analysis",
    [pytest.param(name, marks=[pytest.mark.quick] * (name == "ema")) for name in ANALYSES],
)
def test_curve(measure: Measure, curves: dict[str, Curve], analysis: str) -> None:
    if measure.device not in curves:
        curves[measure.device] = _curve(measure.device)
    curve = curves[measure.device]
    ways = {
        name: way
        for name, way in ANALYSES[analysis].items()
        if name == "lrfast" or find_spec(name) is not None
    }
    expected = ways["lrfast"](curve).double().cpu().numpy()[INNER]
    for name, way in ways.items():
        if name != "lrfast":
            scale = np.abs(expected).max()
            difference = np.abs(way(curve)[INNER] - expected).max() / scale
            assert difference < 1e-5, f"{analysis} of {name} differs by {difference:.1e}"
    works = {
        name: timing.Work(lambda way=way: way(curve))  # type: ignore[misc]
        for name, way in ways.items()
    }
    row = {"analysis": analysis, "losses": COUNT}
    measure("curve", row, works, ways=("turns",))
