"""Rules that read raw losses, rule by rule: what they answer, and what they decline and why."""

from __future__ import annotations

import re

import numpy as np
import pytest
from reference.curves import leaves_its_level, longest_fall, noise_only, rates, s_curve

from lrfast import suggest
from lrfast.suggest import Suggestion
from lrfast.suggest._shape import read_shape

SEEDS = range(20)
LRS = rates()


def decades_apart(lr: float | None, other: float) -> float:
    assert lr is not None
    return abs(float(np.log10(lr / other)))


# auto


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.3])
@pytest.mark.parametrize("depth", [0.05, 1.0, 20.0])
@pytest.mark.parametrize(
    ("fall_at", "rise_at"), [(1e-5, 1e-2), (1e-3, 0.3), (3e-3, 2.0), (1e-4, 1.0)]
)
def test_auto_finds_the_middle_of_a_valley(
    fall_at: float, rise_at: float, depth: float, noise: float
) -> None:
    middle = fall_at * (rise_at / fall_at) ** 0.375
    answers = [
        suggest.auto(LRS, s_curve(LRS, fall_at, rise_at, depth, noise=noise, seed=seed))
        for seed in SEEDS
    ]
    found = [answer.lr for answer in answers]
    assert max(decades_apart(lr, middle) for lr in found) < np.log10(2.0 if noise < 0.1 else 3.0)
    assert max(lr or np.inf for lr in found) < (3 if noise < 0.1 else 4) * min(
        lr or 0 for lr in found
    )
    for answer in answers:
        assert (LRS[answer.index] / answer.lr) ** 2 < LRS[1] / LRS[0] * 1.001  # the nearest point


def test_auto_takes_three_eighths_of_the_way_between_both_crossings() -> None:
    answer = suggest.auto(LRS, s_curve(LRS, 1e-3, 1.0))
    shape = read_shape(LRS, s_curve(LRS, 1e-3, 1.0))
    assert not isinstance(shape, str)
    down, up = shape.falls_by(0.5), shape.rises_by(0.5)
    assert up is not None
    assert answer.lr == pytest.approx(LRS[down] * (LRS[up] / LRS[down]) ** 0.375, rel=1e-12)
    assert answer.interval == pytest.approx((answer.lr / 10**0.7, answer.lr * 10**0.7))
    narrow = suggest.auto(LRS, s_curve(LRS, 3e-2, 0.1))
    rise = float(narrow.reason.split("back up to half at ")[1])
    assert narrow.interval is not None and narrow.interval[1] == pytest.approx(rise, rel=0.05)
    assert f"{LRS[down]:.1e} and is back up to half at {LRS[up]:.1e}" in answer.reason
    assert decades_apart(LRS[down], 1e-3) < 0.2 and decades_apart(LRS[up], 1.0) < 0.2


@pytest.mark.parametrize("points", [10, 15, 30, 300, 1000])
def test_auto_does_not_depend_on_the_number_of_points(points: int) -> None:
    lrs = rates(points)
    step = float(np.log10(lrs[1] / lrs[0]))
    answer = suggest.auto(lrs, s_curve(lrs))
    assert decades_apart(answer.lr, 3e-3 * (1.0 / 3e-3) ** 0.375) < max(0.3, step)


@pytest.mark.parametrize("beta", [0.9, 0.98])
@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_auto_stays_sane_on_smoothed_losses(beta: float, noise: float) -> None:
    total, weight, smoothed = 0.0, 0.0, []
    for loss in s_curve(LRS, noise=noise):
        total, weight = beta * total + loss, beta * weight + 1
        smoothed.append(total / weight)
    answer = suggest.auto(LRS, smoothed)
    assert answer.lr is not None and 3e-3 < answer.lr < 1.0  # within the valley


def test_auto_does_not_need_a_rise() -> None:
    """The loss is level long before the end."""
    answer = suggest.auto(LRS, s_curve(LRS, 1e-4, 1e9))
    # Nine tenths of a logistic curve of slope 3 per decade are done 0.73 decades past its middle.
    assert decades_apart(answer.lr, 1e-4 * 10 ** (np.log(9) / 3)) < 0.2
    assert re.search(r"90 % of it at 6\.3e-04, and never comes back up to half$", answer.reason)


@pytest.mark.parametrize(("fall_at", "answers"), [(0.03, True), (0.2, True), (2.0, False)])
def test_a_fall_that_goes_on_is_one_whose_last_tenth_is_at_the_end(
    fall_at: float, answers: bool
) -> None:
    answer = suggest.auto(LRS, s_curve(LRS, fall_at, 1e9))
    assert (answer.lr is not None) == answers
    assert ("still decreases" in answer.reason) != answers


def test_a_loss_that_is_not_finite_is_a_rise() -> None:
    curve = s_curve(LRS, 1e-4, 1e9)
    curve[70:] = np.nan
    answer = suggest.auto(LRS, curve)
    assert answer.reason.endswith(f"back up to half at {LRS[69]:.1e}")
    assert answer.lr is not None and 1e-3 < answer.lr < LRS[69]
    cut = suggest.cyclic(LRS, curve)
    assert cut.lr == pytest.approx(LRS[69]) and suggest.cyclic(LRS[:70], curve[:70]).lr is None


@pytest.mark.parametrize("rule", ["longest_descent", "last_decreasing", "cyclic", "auto"])
def test_noise_is_declined(rule: str) -> None:
    answers = [suggest.get(rule)(LRS, noise_only(100, seed)) for seed in range(200)]
    declined = [answer for answer in answers if answer.lr is None]
    assert len(declined) >= 0.97 * 200
    reasons = (
        "noise is larger than the drop: losses scatter by .* and drop by|the loss never decreases"
    )
    assert all(re.match(reasons, answer.reason) for answer in declined)
    scatters = [found for a in declined if (found := re.search(r"by ([\d.]+) and", a.reason))]
    assert len(scatters) > 50
    assert np.median([float(found[1]) for found in scatters]) == pytest.approx(1.0, abs=0.15)


def test_auto_guesses_where_noise_diverges() -> None:
    guessed = 0
    for seed in range(200):
        curve = noise_only(100, seed, scatter=0.2)
        curve[-8:] += np.geomspace(1, 100, 8)
        answer = suggest.auto(LRS, curve)
        if answer.lr is None:
            assert answer.reason.startswith("the loss never decreases")
            continue
        # By chance one seed in a hundred seems to fall beyond doubt.
        if "as a guess, a tenth of" in answer.reason:
            guessed += 1
            assert LRS[-8] / 20 < answer.lr < LRS[-3] / 9 and answer.confidence == 0.1
            assert answer.next_range == (LRS[0], LRS[-1])
        assert answer.lr < LRS[-8]
        assert suggest.cyclic(LRS, curve).lr is None or "guess" not in answer.reason
    assert guessed > 0.7 * 200


def test_auto_says_where_to_sweep_next() -> None:
    noisy = next(
        answer
        for seed in SEEDS
        if "repeats" in (answer := suggest.auto(LRS, noise_only(100, seed))).reason
    )
    assert noisy.reason.endswith("use more points or repeats")
    assert noisy.next_range == (LRS[0], LRS[-1])
    level = suggest.auto(LRS, np.full(100, 2.5))
    assert level.reason.startswith("the loss never decreases: it starts at 2.5")
    assert level.next_range == pytest.approx((1e-7, 1e3))
    broken = np.ones(100)
    broken[50:] = np.nan
    for curve in (np.linspace(1, 5, 100), broken):
        answer = suggest.auto(LRS, curve)
        assert answer.reason.startswith("the loss never decreases")
        assert answer.next_range == pytest.approx((1e-9, 10.0))
    falling = suggest.auto(LRS, s_curve(LRS, 10.0, 1e9))
    assert falling.reason.endswith(" and still decreases at the last one, 1.0e+01")
    assert falling.next_range == pytest.approx((1e-7, 1e3))
    for answer in (noisy, level, falling):
        assert answer.lr is None and answer.index is None and answer.confidence == 0
    assert suggest.auto(LRS, s_curve(LRS)).next_range is None


# flat


@pytest.mark.parametrize("slope", [-0.3, 0.3])
@pytest.mark.parametrize("onset", [30, 60, 73])
def test_flat_is_exact_without_noise(slope: float, onset: int) -> None:
    answer = suggest.flat(LRS, leaves_its_level(100, onset, slope))
    assert (answer.index, answer.lr) == (onset - 1, LRS[onset - 1])
    assert answer.reason == f"the loss stays at its initial level, 0.3, up to lr {answer.lr:.1e}"


@pytest.mark.parametrize("slope", [-1.0, 1.0])
@pytest.mark.parametrize("scatter", [0.01, 0.3])
def test_flat_finds_the_onset_in_noise(slope: float, scatter: float) -> None:
    curves = [leaves_its_level(100, 60, slope * scatter, 2.0, scatter, s) for s in range(200)]
    for curve in curves:
        assert suggest.flat(LRS, curve).lr is not None
    found = np.array([suggest.flat(LRS, curve).index for curve in curves])
    assert abs(np.median(found) - 59) <= 1
    assert found.max() <= 62 and np.quantile(found, 0.05) >= 50


@pytest.mark.parametrize("points", [20, 40, 100, 400, 1000])
def test_flat_raises_few_false_alarms(points: int) -> None:
    before = 6 * points // 10 if points > 40 else points
    lrs = rates(points)[:before]
    answers = [suggest.flat(lrs, noise_only(points, s)[:before]) for s in range(200)]
    quiet = [answer for answer in answers if "has not changed" in answer.reason]
    assert len(quiet) >= 0.95 * 200
    for answer in quiet:
        assert answer.next_range == pytest.approx((lrs[0], 1000 * lrs[-1]))


def test_flat_sees_a_change_of_a_few_standard_deviations() -> None:
    """Eight points, four standard deviations off: more than twice what raises the alarm."""
    for seed in SEEDS:
        curve = noise_only(100, seed, scatter=0.1)
        curve[92:] += 0.4
        index = suggest.flat(LRS, curve).index
        assert index is not None and index <= 93


def test_flat_takes_a_small_change_for_none() -> None:
    """A thousandth of the level, however little losses scatter."""
    small, large = leaves_its_level(100, 60, 1e-5), leaves_its_level(100, 60, 1e-3)
    assert suggest.flat(LRS, small).lr is None
    assert suggest.flat(LRS, small - 0.3).index == 59  # around zero it is not small
    assert suggest.flat(LRS, large).index == 59


@pytest.mark.parametrize("end", [np.nan, np.inf, -np.inf, 5.0, 1.7e308])
def test_flat_keeps_clear_of_a_divergence(end: float) -> None:
    curve = noise_only(100, 1, scatter=0.1)
    curve[80:] = end
    answer = suggest.flat(LRS, curve)
    last = LRS[-1] if np.isfinite(end) and end > 0 else LRS[79]
    assert answer.lr == pytest.approx(last / 100, rel=1e-12) and answer.index is not None
    assert decades_apart(answer.lr, LRS[answer.index]) < 0.041  # half a step
    assert f"but diverges at {last:.1e}; a hundredth of that" in answer.reason
    assert f"up to lr {LRS[79]:.1e}, but" in answer.reason
    curve[80:] = -5.0  # a fall is no divergence
    answer = suggest.flat(LRS, curve)
    assert answer.index in range(75, 80) and answer.lr == LRS[answer.index]


def test_flat_declines() -> None:
    changing = suggest.flat(LRS, np.linspace(2, 1, 100))
    assert changing.lr is None and "too early to know its initial level" in changing.reason
    assert changing.next_range == pytest.approx((1e-10, 10.0))
    few = suggest.flat(LRS[:19], np.ones(19))
    assert few.reason == "too few points: 19 with a finite loss, 20 or more are needed"
    assert few.lr is None and few.next_range is None
    assert "has not changed" in suggest.flat(LRS[:20], np.ones(20)).reason


def test_flat_knows_its_level_better_from_more_points() -> None:
    confidences = [
        suggest.flat(rates(n), leaves_its_level(n, n // 2, 0.1)).confidence for n in (20, 100, 1000)
    ]
    assert confidences == sorted(confidences) and 0.6 < confidences[0] < confidences[2] < 1


# cyclic, longest_descent, last_decreasing


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_cyclic_spans_the_valley(noise: float) -> None:
    for seed in SEEDS:
        answer = suggest.cyclic(LRS, s_curve(LRS, noise=noise, seed=seed))
        assert answer.base_lr is not None and answer.lr is not None
        # A tenth of a logistic curve of slope 3 per decade is done 0.73 decades before its middle.
        assert decades_apart(answer.base_lr, 3e-3 * 10 ** -(np.log(9) / 3)) < 0.35
        assert decades_apart(answer.lr, 10 ** (np.log(0.2) / 4)) < 0.3
        assert f"{answer.base_lr:.1e} and to increase at {answer.lr:.1e}" in answer.reason


def test_cyclic_declines_without_a_rise() -> None:
    answer = suggest.cyclic(LRS, s_curve(LRS, 1e-4, 1e9))
    assert answer.reason == "the loss has not increased up to the last learning rate, 1.0e+01"
    assert (answer.lr, answer.base_lr) == (None, None)


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.1])
def test_longest_descent_is_the_longest_fall_of_the_smoothed_curve(noise: float) -> None:
    for seed in SEEDS[:5]:
        lrs = rates(50)
        curve = s_curve(lrs, noise=noise, seed=seed)
        shape = read_shape(lrs, curve)
        assert not isinstance(shape, str)
        begin, end = longest_fall(shape.smooth)
        answer = suggest.longest_descent(lrs, curve)
        assert answer.lr == pytest.approx((lrs[begin] * lrs[end]) ** 0.5, rel=1e-12)
        assert answer.reason.endswith(f"from lr {lrs[begin]:.1e} to {lrs[end]:.1e}")


def test_longest_descent_takes_the_first_of_equals() -> None:
    curve = np.r_[np.full(10, 9.0), 8 - np.arange(12), np.full(9, 0.0), -1 - np.arange(12)]
    shape = read_shape(rates(43), curve)
    assert not isinstance(shape, str)
    begin, end = longest_fall(shape.smooth)
    answer = suggest.longest_descent(rates(43), curve)
    assert answer.lr == pytest.approx((rates(43)[begin] * rates(43)[end]) ** 0.5, rel=1e-12)


def test_last_decreasing_is_past_the_steepest_and_before_the_lowest() -> None:
    curve = s_curve(LRS)
    answer = suggest.last_decreasing(LRS, curve)
    shape = read_shape(LRS, curve)
    assert not isinstance(shape, str) and answer.index is not None
    assert answer.lr == pytest.approx(LRS[answer.index], rel=1e-12)
    slopes = np.diff(shape.smooth) / np.diff(np.log(LRS))
    steepest = slopes[: shape.lowest].min()
    assert slopes[answer.index] <= 0.2 * steepest
    assert (slopes[answer.index + 1 : shape.lowest] > 0.2 * steepest).all()
    # The slope of a logistic curve of 3 per decade is a fifth of its largest at 1.26 decades.
    assert decades_apart(answer.lr, 3e-3 * 10 ** (np.log(18) / 3)) < 0.3


# What they decline alike.


@pytest.mark.parametrize("rule", ["longest_descent", "last_decreasing", "cyclic", "auto"])
@pytest.mark.parametrize(
    ("losses", "reason"),
    [
        ([], "too few points: 0 with a finite loss, 10 or more are needed"),
        ([np.nan] * 30, "too few points: 0 with a finite loss, 10 or more are needed"),
        ([2.0, 1.0, 0.0] * 3, "too few points: 9 with a finite loss, 10 or more are needed"),
        ([*range(9, 0, -1), np.inf, *[1.0] * 20], "too few points: 9 with a finite loss"),
        ([2.5] * 30, "the loss never decreases: it starts at 2.5 and is never lower"),
        (list(range(30)), "the loss never decreases: no part of the curve lies below its start"),
        ([1 + 1e-15 * (-1) ** k for k in range(30)], "the loss never decreases"),
        ([1.0] * 15 + [1 - 1e-15] * 15, "the loss never decreases"),
    ],
)
def test_curves_without_a_fall(rule: str, losses: list[float], reason: str) -> None:
    answer = suggest.get(rule)(rates(len(losses)), losses)
    assert answer.reason.startswith(reason)
    assert answer == Suggestion(None, rule, answer.reason, 0.0, next_range=answer.next_range)
    assert (answer.next_range is None) == (rule != "auto" or len(losses) < 2)
