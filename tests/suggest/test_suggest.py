"""Suggestion rules against an independent slow reference, and their refusals and errors."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from reference import fastai_rules

from lrfast import suggest

pytestmark = pytest.mark.filterwarnings("error")

RULES = ("steep", "minimum", "valley", "slide")  # those that fastai has
RAW_RULES = ("longest_descent", "last_decreasing", "flat", "cyclic", "auto")
Curve = NDArray[np.float64]


def rates(points: int) -> Curve:
    return np.geomspace(1e-7, 10.0, points)


def s_shape(points: int = 85) -> tuple[Curve, Curve]:
    """A noise-free curve that falls around 4e-3 and rises past 1."""
    lrs = rates(points)
    return lrs, 0.5 + 1.8 / (1 + lrs / 4e-3) + 0.5 * lrs**2


def random_curves() -> list[Curve]:
    rng = np.random.default_rng(3)
    curves: list[Curve] = []
    for points in (16, 17, 20, 33, 85, 200):
        for _ in range(20):
            noise = rng.normal(size=points)
            _, smooth = s_shape(points)
            curves += [
                noise,
                np.cumsum(noise),
                smooth + 0.1 * noise,
                np.round(np.cumsum(noise)),
                rng.integers(0, 4, points).astype(float),
            ]
    # A walk rounded to integers may never fall, and then the rules decline.
    return [curve for curve in curves if np.any(np.diff(curve) < 0)]


def adversarial_curves() -> list[Curve]:
    n = 48
    i = np.arange(n, dtype=float)
    return [
        -i,  # one valley from end to end: starts before the array
        np.r_[-i[:24], -i[:24]],  # two valleys of one length: the earlier one counts
        np.r_[i[:24], -i[:24]],
        np.r_[0.0, i[1:2] - 9.0, i[2:]],
        np.where(i % 2 == 0, -i, i),  # a decline with a gap at every other point
        np.repeat(-i[:12], 4),  # plateaus: equal losses do not extend a decline
        np.r_[np.zeros(24), -np.ones(24)],
        np.r_[5.0, np.zeros(46), -1.0],
        1e30 * np.cos(i),
        np.cos(i) * 1e-30,
    ]


def expected(rule: str, lrs: Curve, losses: Curve) -> int:
    reference: Callable[[list[float], list[float]], int] = getattr(fastai_rules, rule)
    return reference(lrs.tolist(), losses.tolist())


@pytest.mark.parametrize("rule", RULES)
def test_rule_agrees_with_reference_to_the_index(rule: str) -> None:
    compared = 0
    for losses in random_curves() + adversarial_curves():
        lrs = rates(len(losses))
        index = expected(rule, lrs, losses)
        if index < 0:
            assert suggest.get(rule)(lrs, losses).lr is None
            continue
        result = suggest.get(rule)(lrs, losses)
        assert result.index == index, losses
        assert result.lr == lrs[index] / (10 if rule == "minimum" else 1)
        assert result.rule == rule
        compared += 1
    assert compared > 500


@given(
    rule=st.sampled_from(RULES),
    losses=st.lists(st.integers(-6, 6).map(float), min_size=16, max_size=60),
)
def test_rule_agrees_with_reference_on_any_curve(rule: str, losses: list[float]) -> None:
    curve = np.array(losses)
    result = suggest.get(rule)(rates(len(losses)), curve)
    index = expected(rule, rates(len(losses)), curve)
    if index < 0 or np.all(np.diff(curve) >= 0):
        assert result.lr is None
        assert result.index is None
    else:
        assert result.index == index
    assert 0 <= result.confidence <= 1


@pytest.mark.parametrize("points", range(3, 16))
def test_short_curves_agree_with_reference(points: int) -> None:
    rng = np.random.default_rng(points)
    for _ in range(30):
        losses = np.r_[3.0, rng.normal(size=points - 1), -5.0]
        lrs = rates(len(losses))
        for rule in ("steep", "minimum", "valley"):
            assert suggest.get(rule)(lrs, losses).index == expected(rule, lrs, losses)


@pytest.mark.parametrize(
    "options", [{"lr_diff": 1}, {"lr_diff": 7, "loss_threshold": 0.05}, {"loss_threshold": 0.0}]
)
def test_slide_options_agree_with_reference(options: dict[str, Any]) -> None:
    for losses in random_curves():
        lrs = rates(len(losses))
        index = fastai_rules.slide(lrs.tolist(), losses.tolist(), **options)
        assert suggest.slide(lrs, losses, **options).index == index


def test_slide_adjusts_the_rate_but_not_the_mark() -> None:
    lrs, losses = s_shape()
    plain, adjusted = suggest.slide(lrs, losses), suggest.slide(lrs, losses, adjust=0.5)
    assert plain.lr is not None
    assert adjusted.lr == plain.lr / 2
    assert adjusted.index == plain.index


def test_valley_reference_values_by_hand() -> None:
    # n points falling throughout: end = n - 1, start = -1, so -1 + n // 3 + n // 6.
    for points, index in [(3, 0), (6, 2), (12, 5), (30, 14), (85, 41)]:
        assert suggest.valley(rates(points), -np.arange(points)).index == index


def test_steep_is_per_decade_and_not_per_point() -> None:
    # The second step falls further, but over three decades.
    assert suggest.steep([1e-6, 1e-5, 1e-2, 1e-1], [3.0, 2.0, 0.5, 0.4]).index == 0


def test_rules_find_the_middle_of_a_clean_fall() -> None:
    lrs, losses = s_shape()
    found = {name: suggest.get(name)(lrs, losses).lr for name in RULES}
    assert found["steep"] == pytest.approx(4e-3, rel=0.25)  # the grid's step is 1.25
    assert found["minimum"] == pytest.approx(lrs[losses.argmin()] / 10)
    assert all(lr is not None and 1e-6 < lr < 1 for lr in found.values())


def test_valley_is_fast_on_long_sweeps() -> None:
    """Ten times the points take some ten times as long; the quadratic form took a hundred."""

    def seconds(points: int) -> float:
        losses = np.random.default_rng(0).normal(size=points)
        begin = time.process_time()  # not the time in which others had the processor
        suggest.valley(rates(points), losses)
        return time.process_time() - begin

    assert min(seconds(200_000) for _ in range(3)) < 40 * min(seconds(20_000) for _ in range(3))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_curve_is_cut_at_first_loss_that_is_not_finite(rule: str, broken: float) -> None:
    lrs, losses = s_shape()
    cut = suggest.get(rule)(lrs[:60], losses[:60])
    losses[60] = broken
    losses[70] = -100.0
    assert suggest.get(rule)(lrs, losses) == cut
    assert cut.lr is not None


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("losses", "reason"),
    [
        ([], "too few points: 0 with a finite loss"),
        ([1.0], "too few points: 1 with a finite loss"),
        ([np.nan, 1.0, 0.5], "too few points: 0 with a finite loss"),
        (list(range(20)), "the loss never decreases: it is lowest at the start, 0"),
        ([2.5] * 20, "the loss never decreases: it is lowest at the start, 2.5"),
    ],
)
def test_rule_declines(rule: str, losses: list[float], reason: str) -> None:
    result = suggest.get(rule)(rates(len(losses)) if len(losses) > 1 else losses, losses)
    assert result.lr is None
    assert result.index is None
    assert result.confidence == 0
    assert result.rule == rule
    assert result.reason.startswith(reason)


def test_slide_declines_where_fastai_raises() -> None:
    result = suggest.slide(rates(15), -np.arange(15.0))
    assert result.lr is None
    assert result.reason == "too few points: 15 with a finite loss, 16 or more are needed"
    assert suggest.slide(rates(16), -np.arange(16.0)).index == 0


def test_valley_declines_where_fastai_wraps_to_the_last_rate() -> None:
    losses = np.r_[1.0, 0.0, np.arange(1.0, 30.0)]
    assert fastai_rules.valley(rates(31).tolist(), losses.tolist()) == -1
    result = suggest.valley(rates(31), losses)
    assert result.lr is None
    assert result.reason == "the loss decreases only from the first point to the second"


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ("steep", r"the loss decreases fastest per decade at lr 3\.\de-03"),
        ("minimum", r"the loss is lowest at lr 1\.\de-01; a tenth of that keeps a margin"),
        (
            "valley",
            r"the longest valley has \d\d points and ends at lr 1\.\de-01, \d\d points after",
        ),
        ("slide", r"the slope changes by more than 0\.005 over the 15 points from lr \d\.\de-\d\d"),
    ],
)
def test_reasons_state_numbers(rule: str, reason: str) -> None:
    assert re.search(reason, suggest.get(rule)(*s_shape()).reason)


def test_slide_says_when_it_did_not_move() -> None:
    reason = suggest.slide(rates(20), -np.arange(20.0)).reason
    assert "the slope does not change by more than 0.005 over the 15 points from" in reason


def test_confidence_is_high_on_a_clean_fall_and_falls_with_noise() -> None:
    lrs, losses = s_shape()
    noise = np.cumsum(np.random.default_rng(5).normal(size=len(lrs)))
    found = [
        suggest.steep(lrs, losses + sigma * noise).confidence for sigma in (0.0, 0.02, 0.08, 0.5)
    ]
    assert found[0] > 0.95
    assert found == sorted(found, reverse=True)
    assert found[0] - found[2] > 0.2


def test_confidence_is_low_on_noise_alone() -> None:
    rng = np.random.default_rng(11)
    lrs = rates(85)
    walks = [suggest.steep(lrs, np.cumsum(rng.normal(size=85))).confidence for _ in range(400)]
    assert np.median(walks) == 0
    assert np.quantile(walks, 0.95) < 0.6
    white = [suggest.steep(lrs, rng.normal(size=85)).confidence for _ in range(400)]
    assert max(white) == 0


def test_confidence_equals_its_formula() -> None:
    # Steps -1, -3, -1, -3: every second difference is 2, the fall is 8 over 4 steps.
    result = suggest.steep(rates(5), [8.0, 7.0, 4.0, 3.0, 0.0])
    assert result.confidence == pytest.approx(1 - 2 / 0.9539 * 4**0.5 / 8)


def test_confidence_is_zero_without_a_second_difference() -> None:
    assert suggest.minimum(rates(2), [1.0, 0.0]).confidence == 0


def test_confidence_is_zero_when_the_start_is_never_undercut() -> None:
    assert suggest.steep(rates(4), [1.0, 9.0, 3.0, 9.0]).confidence == 0


def test_rules_leave_their_arguments_alone_and_take_lists() -> None:
    lrs, losses = s_shape()
    before = lrs.copy(), losses.copy()
    for name in suggest.names():
        from_arrays = suggest.get(name)(lrs, losses)
        assert suggest.get(name)(lrs.tolist(), losses.tolist()) == from_arrays
    np.testing.assert_array_equal(lrs, before[0])
    np.testing.assert_array_equal(losses, before[1])


def test_trim_takes_a_tenth_and_five() -> None:
    lrs, losses = rates(100), np.arange(100.0)
    trimmed = suggest.trim(lrs, losses)
    np.testing.assert_array_equal(trimmed[0], lrs[10:-5])
    np.testing.assert_array_equal(trimmed[1], losses[10:-5])
    assert len(suggest.trim(lrs[:60], losses[:60])[0]) == 60 - 6 - 5
    assert len(suggest.trim(lrs[:60], losses[:60], skip_start=100 // 10)[0]) == 60 - 10 - 5


def test_trim_by_nothing_keeps_everything() -> None:
    lrs, losses = suggest.trim(rates(9), np.r_[np.arange(8.0), np.nan], skip_start=0, skip_end=0)
    assert len(lrs) == len(losses) == 9
    assert len(suggest.trim(rates(7), np.arange(7.0))[0]) == 2


def test_registry() -> None:
    assert suggest.names() == (*RULES, *RAW_RULES)
    for name in suggest.names():
        assert suggest.get(name) is getattr(suggest, name)
        assert suggest.reads_raw(name) == (name in RAW_RULES)
        assert name in suggest.__all__


def test_suggestion_is_frozen() -> None:
    with pytest.raises(AttributeError):
        suggest.Suggestion(1.0, "steep", "because", 0.5).lr = 2.0  # type: ignore[misc]


LRS, LOSSES = s_shape(20)
CURVE_ERRORS: list[tuple[Any, Any, str]] = [
    (LRS.reshape(4, 5), LOSSES, r"lrs must have one dimension, got shape \(4, 5\); pass one per"),
    (LRS, LOSSES[:, None], r"losses must have one dimension, got shape \(20, 1\); pass one per"),
    (1e-3, LOSSES, r"lrs must have one dimension, got shape \(\); pass one per point"),
    (LRS, LOSSES[:-1], r"losses must have one entry per rate, got 19 for 20 in lrs; pass both"),
    (["a", "b"], [1, 2], r"lrs must be a list or numpy array of numbers, got \['a', 'b'\] \("),
    ([1e-3, 1e-2], [1, None, [2]], r"losses must be a list or numpy array of numbers, got \[1,"),
    ([0.0, 1e-3], [2, 1], r"lrs must be finite and positive, got 0\.0 at index 0; drop that"),
    ([1e-3, -1e-2], [2, 1], r"lrs must be finite and positive, got -0\.01 at index 1; drop that"),
    ([1e-3, np.nan], [2, 1], r"lrs must be finite and positive, got nan at index 1; drop that"),
    ([1e-3, np.inf], [2, 1], r"lrs must be finite and positive, got inf at index 1; drop that"),
    ([1e-3, 1e-3], [2, 1], r"lrs must increase, got 0\.001 after 0\.001 at index 1; pass the"),
    ([1e-4, 1e-2, 1e-3], [2, 1, 0], r"lrs must increase, got 0\.001 after 0\.01 at index 2; pass"),
]


@pytest.mark.parametrize(("lrs", "losses", "message"), CURVE_ERRORS)
@pytest.mark.parametrize("function", [*map(suggest.get, suggest.names()), suggest.trim])
def test_curve_errors(
    function: Callable[..., Any], lrs: object, losses: object, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        function(lrs, losses)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: suggest.get("vally"), r"name must be .*, got 'vally'; did you mean 'valley'\?"),
        (
            lambda: suggest.get("?"),
            r"name must be one of steep, .*, slide, longest_descent, .*, cyclic, auto, got '\?'$",
        ),
        (lambda: suggest.slide(LRS, LOSSES, lr_diff=0), r"lr_diff must be a whole .* 1 on, got 0"),
        (lambda: suggest.slide(LRS, LOSSES, lr_diff=1.5), r"lr_diff must be a .*, got 1\.5"),
        (lambda: suggest.slide(LRS, LOSSES, lr_diff=True), r"lr_diff must be a .*, got True"),
        (
            lambda: suggest.slide(LRS, LOSSES, loss_threshold=-1.0),
            r"loss_threshold must be finite and from 0 on, got -1\.0",
        ),
        (
            lambda: suggest.slide(LRS, LOSSES, loss_threshold=np.nan),
            r"loss_threshold must be finite and from 0 on, got nan",
        ),
        (
            lambda: suggest.slide(LRS, LOSSES, adjust=0.0),
            r"adjust must be finite and positive, got 0\.0; 1\.0 adjusts nothing",
        ),
        (
            lambda: suggest.trim(LRS, LOSSES, skip_start=-1),
            r"skip_start must be a whole number from 0 on, got -1",
        ),
        (
            lambda: suggest.trim(LRS, LOSSES, skip_end=2.5),
            r"skip_end must be a whole number from 0 on, got 2\.5",
        ),
        (
            lambda: suggest.trim(LRS, LOSSES, skip_start=14),
            r"skip_start=14 and skip_end=5 leave 1 of the 20 points in lrs, .*; skip fewer or",
        ),
        (
            lambda: suggest.trim(LRS[:4], LOSSES[:4]),
            r"skip_start=0 and skip_end=5 leave 0 of the 4 points in lrs, and no rule reads fewer",
        ),
    ],
)
def test_option_errors(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"lr": 0.01, "interval": (2e-3, 0.05)}, "suggests 1.0e-02 (sure, 2.0e-03 to 5.0e-02)"),
        ({"lr": 0.01, "base_lr": 1e-3}, "suggests 1.0e-03 to 1.0e-02 (sure)"),
        ({"lr": None}, "has no suggestion (sure)"),
    ],
)
def test_a_suggestion_prints_as_one_sentence(fields: dict[str, Any], text: str) -> None:
    found = suggest.Suggestion(**fields, rule="auto", reason="the loss falls", confidence=0.7)
    assert str(found) == f"auto {text.replace('sure', 'confidence 0.70')}: the loss falls"
