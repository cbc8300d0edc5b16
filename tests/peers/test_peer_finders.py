"""Numbers from the tests of other finders, which lrfast has to give too, or says where it differs.

torch-lr-finder 0.2.2, Lightning 2.5, ignite 0.5, fastai 2.8. Where a number follows from a rule
that lrfast lacks, the test computes that rule from public arrays, as a thin shim would.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from reference.lr_finder_shim import LRFinder, seeded_average
from tiny import cross_entropy, make_batches, make_model, make_scripted
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lrfast
from lrfast import LossCurve, RangeTest, lr_find, suggest

NAN, INF = math.nan, math.inf


def sweep(losses: Any, **options: Any) -> RangeTest:
    """The range test that sees these losses."""
    model = nn.Linear(2, 1).double()
    settings = {"num_iter": len(losses), "progress": False} | options
    optimizer = lrfast.SGD(model.parameters(), lr=0.1)
    return lr_find(model, optimizer, [None], compute_loss=make_scripted(losses), **settings)


def slopes(losses: Any, wrt: Any, lrs: Any = None) -> Any:
    """Central differences of the losses as they are, one-sided at both ends."""
    curve = LossCurve(len(losses), rates=np.ones(len(losses)) if lrs is None else lrs)
    for loss in losses:
        curve.record(torch.tensor(float(loss), dtype=torch.float64))
    return curve.derivative(wrt, beta=0.0).numpy()


def is_sound(suggestion: suggest.Suggestion, lrs: Any) -> bool:
    """Whether it is a rate from the sweep's range, a decade below it at most, or a refusal."""
    if suggestion.lr is None:
        return bool(suggestion.reason)
    return bool(lrs[0] / 10 * (1 - 1e-12) <= suggestion.lr <= lrs[-1])


# torch-lr-finder

INDICES = [([10, 8, 4, 1, 4, 16], 2), ([1, 0, 1, 2, 3, 4], 0), ([0, 1, 2, 3, 4, 3], 5)]


@pytest.mark.parametrize(("losses", "index"), INDICES)
def test_the_steepest_point(losses: list[float], index: int) -> None:
    """Central differences per point; `suggest.steep` takes forward ones, as fastai does."""
    assert int(np.argmin(slopes(losses, "step"))) == index
    lrs = np.geomspace(1e-5, 1, 6)
    assert int(np.argmin(slopes(losses, "log_lr", lrs))) == index
    assert suggest.steep(lrs, losses).index == int(np.argmin(np.diff(losses)))


def xor_finder(rates: list[float]) -> tuple[LRFinder, Any]:
    inputs = torch.randint(0, 2, (160, 8)).float()
    data = TensorDataset(inputs, inputs.sum(1, keepdim=True) % 2)
    model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 1))
    layers = zip(model, rates, strict=False)
    groups = [{"params": list(layer.parameters()), "lr": rate} for layer, rate in layers]
    optimizer = torch.optim.SGD(groups, momentum=0.5)
    return LRFinder(model, optimizer, nn.MSELoss()), DataLoader(data, batch_size=8)


@pytest.mark.parametrize(
    ("mode", "end", "rates"),
    [
        ("linear", 5e-5, [1e-5, 2e-5, 3e-5, 4e-5, 5e-5]),
        ("exp", 0.1, [1e-5, 1e-4, 1e-3, 1e-2, 0.1]),
    ],
)
@pytest.mark.parametrize("groups", [[1e-5], [1e-5, 1e-7]])
def test_histories_of_rates(mode: str, end: float, rates: list[float], groups: list[float]) -> None:
    finder, loader = xor_finder(groups)
    finder.range_test(loader, num_iter=5, end_lr=end, step_mode=mode)
    np.testing.assert_allclose(finder.history["lr"], rates, rtol=1e-12)
    assert [group["lr"] for group in finder.optimizer.param_groups] == groups
    assert finder.result is not None
    ends = [(rate, end) for rate in groups]
    assert list(finder.result.sweep.ranges) == ends


def test_the_shims_history_and_plot() -> None:
    finder, loader = xor_finder([1e-5])
    finder.range_test(loader, num_iter=11, end_lr=0.1, smooth_f=0.3)
    assert finder.result is not None
    np.testing.assert_array_equal(
        finder.history["loss"], seeded_average(finder.result.losses.tolist(), 0.3)
    )
    assert finder.best_loss == min(finder.history["loss"])
    axes, rate = finder.plot(skip_start=2, skip_end=3)
    shown = axes.lines[0].get_xdata(), axes.lines[0].get_ydata()
    np.testing.assert_array_equal(shown, [finder.history["lr"][2:-3], finder.history["loss"][2:-3]])
    steepest = int(np.argmin(slopes(finder.history["loss"][2:-3], "step")))
    assert rate == finder.history["lr"][2 + steepest]
    with pytest.raises(RuntimeError, match="Need at least 12"):
        finder.plot(skip_start=5, skip_end=5)


def test_an_average_that_begins_with_the_first_loss() -> None:
    assert seeded_average([4.0, 2.0, 0.0], 0.5) == [4.0, 3.0, 1.5]
    assert seeded_average([4.0, 2.0, 0.0], 0.0) == [4.0, 2.0, 0.0]


# Lightning

HOLES = [NAN, NAN, 0, INF, 1, 2, 3, INF, 2, NAN, 1]
# What to skip at either end, the losses, whether Lightning has points enough for a rate.
FEW_POINTS: list[tuple[int, int, list[float], bool]] = [
    (0, 0, [], False),
    (10, 1, [], False),
    (0, 2, [0, 1, 2], False),
    (0, 1, [0, 1, 2], True),
    (1, 1, [0, 1, 2], False),
    (1, 1, [0, 1, 2, 3], True),
    (0, 1, HOLES, True),
    (4, 1, HOLES, True),
]


@pytest.mark.parametrize("rule", suggest.names())
@pytest.mark.parametrize(("start", "end", "losses", "enough"), FEW_POINTS)
def test_few_finite_points(
    rule: str, start: int, end: int, losses: list[float], enough: bool
) -> None:
    """Lightning drops what is not finite, lrfast also all behind it; none of these curves falls."""
    kept = slice(start, len(losses) - end)
    lrs = np.geomspace(1e-8, 1, len(losses))[kept]
    suggestion = suggest.get(rule)(lrs, losses[kept])
    assert suggestion.lr is None and suggestion.reason
    with_fall = [*losses[kept], -5.0] if enough else losses[kept]
    falling = suggest.get(rule)(np.geomspace(1e-8, 1, len(with_fall)), with_fall)
    assert is_sound(falling, [1e-8, 1.0])


@pytest.mark.parametrize("start", range(4))
def test_too_few_to_trim(start: int) -> None:
    """Two points are the least that both take."""
    lrs, losses = [1e-3, 1e-2, 1e-1], [2.0, 1.0, 0.5]
    if start > 1:
        with pytest.raises(ValueError, match=r"leave . of the 3 points"):
            suggest.trim(lrs, losses, start, 0)
    else:
        assert len(suggest.trim(lrs, losses, start, 0)[0]) == 3 - start


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("holes", [[5, 12, 17], [0], [99], [12, 60]])
def test_holes_in_a_sweep(bad: float, holes: list[int]) -> None:
    """Lightning goes on behind a NaN; lrfast ends there, and its rules see what came before."""
    x = np.linspace(0, 1, 100)
    losses = 0.4 + 1.9 / (1 + np.exp(14 * (x - 0.45)))
    losses[holes] = bad
    result = sweep(losses)
    assert result.outcome == "non-finite"
    # The loss that ended it stays in the curve, the only one that is not finite.
    assert np.isfinite(result.losses).sum() == len(result.losses) - 1 == holes[0]
    for suggestion in result.suggestions.values():
        assert is_sound(suggestion, result.lrs)
    if holes == [99]:
        assert result.suggestions["steep"].lr is not None


@pytest.mark.parametrize("rule", ["steep", "minimum", "valley", "slide"])
def test_a_nan_at_the_end_changes_nothing(rule: str) -> None:
    lrs = np.geomspace(1e-8, 1, 100)
    losses = 0.4 + 1.9 / (1 + (lrs / 1e-4))
    expected = suggest.get(rule)(lrs[:-1], losses[:-1])
    losses[-1] = NAN
    assert suggest.get(rule)(lrs, losses) == expected and expected.lr is not None


def test_the_slope_per_rate_of_a_sine_is_lowest_at_pi() -> None:
    lrs = np.linspace(0, 2 * math.pi, 1000)
    steepest = int(np.argmin(slopes(np.sin(lrs), "lr", lrs)))
    assert lrs[steepest] == pytest.approx(math.pi, abs=1e-2)


def test_accumulation_over_a_whole_sweep() -> None:
    """100 points of 2 batches; Lightning's last index is 199."""
    model = make_model()
    optimizer = lrfast.SGD(model.parameters(), lr=0.1)
    calls = 0

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return cross_entropy(outputs, targets)

    options: Any = {
        "gradient_accumulation_steps": 2,
        "diverge_threshold": None,
        "end_lr": 0.1,
        "progress": False,
    }
    result = lr_find(model, optimizer, make_batches(4), loss_fn, **options)
    assert (len(result.lrs), len(result.losses), calls) == (100, 100, 200)


def test_three_sweeps_of_three_points_are_one() -> None:
    """As often as they are asked for, with the same result, and between the ends."""
    model = make_model()
    optimizer = lrfast.AdamW(model.parameters(), lr=0.1)
    options: Any = {"start_lr": 1e-8, "end_lr": 1.0, "num_iter": 3, "progress": False}
    results = [
        lr_find(model, optimizer, make_batches(4), cross_entropy, **options) for _ in range(3)
    ]
    assert len({(tuple(each.lrs), tuple(each.losses)) for each in results}) == 1
    assert len(results[0].lrs) == 3 and np.all((results[0].lrs >= 1e-8) & (results[0].lrs <= 1))


def test_without_a_suggestion_the_rate_stays() -> None:
    result = sweep([1.0, 2.0])
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.123)
    with pytest.raises(ValueError, match="rule 'steep' suggests no rate"):
        result.apply(optimizer, "steep")
    assert optimizer.param_groups[0]["lr"] == 0.123


# ignite


def steepest_left_of_the_minimum(losses: Any) -> int:
    """ignite's rule, which takes no end point."""
    lowest = int(np.argmin(losses))
    return 1 + int(np.argmin(slopes(losses, "step")[1:lowest]))


def test_a_parabola_over_one_group() -> None:
    losses = np.linspace(-5, 5, 100) ** 2 + 0.05
    result = sweep(losses, start_lr=0.01, end_lr=10.0, mode="linear", diverge_threshold=None)
    rate = result.lrs[steepest_left_of_the_minimum(result.losses)]
    assert rate == pytest.approx(0.110909089, rel=1e-6)


def test_a_parabola_over_two_groups() -> None:
    """A range per group, and a rate per group from the same point."""
    rates = np.linspace(0.01, 10, 100).reshape(50, 2)
    losses = np.linspace(-5, 5, 50) ** 2 + 0.06
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)).double()
    optimizer = lrfast.SGD([{"params": layer.parameters(), "lr": 0.1} for layer in model], lr=0.1)
    result = lr_find(
        model,
        optimizer,
        [None],
        compute_loss=make_scripted(losses),
        start_lr=rates[0].tolist(),
        end_lr=rates[-1].tolist(),
        num_iter=50,
        mode="linear",
        diverge_threshold=None,
        progress=False,
    )
    index = steepest_left_of_the_minimum(result.losses)
    expected = [0.21181818, 0.31272727]
    np.testing.assert_allclose(result.sweep.table()[index], expected, rtol=1e-6)
    np.testing.assert_allclose(result.sweep.rates_at(result.lrs[index]), expected, rtol=1e-6)


@pytest.mark.parametrize("num_iter", [50, 150, 200, 1000])
@pytest.mark.parametrize("mode", ["exp", "linear"])
def test_as_many_points_as_asked_for(num_iter: int, mode: Any) -> None:
    """ignite makes one more where it can, and its first exponential rate is not the first."""
    result = sweep(np.ones(num_iter), start_lr=0.01, end_lr=10.0, mode=mode)
    assert len(result.lrs) == len(result.losses) == num_iter
    assert result.lrs[0] == 0.01 and np.all(np.diff(result.lrs) > 0)


# fastai

FASTAI = 1e-7 * (10 / 1e-7) ** (np.arange(100) / 100)


def test_fastais_rates() -> None:
    """Its i-th of 100 is at i / 100, so that the last rate is never reached; ours at i / 99.

    The same rates come with the last one as the end, or as all but the last of 101.
    """
    to_its_last = sweep(np.ones(100), end_lr=float(FASTAI[-1]))
    np.testing.assert_allclose(to_its_last.lrs, FASTAI, rtol=1e-12)
    one_more = sweep(np.ones(101))
    np.testing.assert_allclose(one_more.lrs[:-1], FASTAI, rtol=1e-12)
    assert one_more.lrs[-1] == 10.0


def test_fastais_average() -> None:
    """Four steps of AvgSmoothLoss: beta 0.98, corrected by 1 - beta ** n."""
    losses = torch.randn(4, dtype=torch.float64)
    curve = LossCurve(4, beta=0.98)
    value = 0.0
    for count, loss in enumerate(losses, 1):
        curve.record(loss)
        value = 0.98 * value + 0.02 * float(loss)
        assert curve.status().smoothed == pytest.approx(value / (1 - 0.98**count), rel=1e-12)


def test_a_sweep_that_stopped_ended_above_four_times_its_best() -> None:
    losses = np.concatenate([np.geomspace(2.0, 0.5, 60), np.geomspace(0.5, 500.0, 40)])
    result = sweep(losses)
    assert result.outcome == "diverged" and len(result.lrs) < 100
    assert result.smoothed[-1] > 4 * result.smoothed.min()
    assert result.smoothed[-2] <= 4 * result.smoothed[:-1].min()
