"""The estimate of re-tests from the training's own warm-up: what it sees, and what it does not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from retests import RATES, Finder, fake_lr_find, make_groups, make_retest, rates
from torch import Tensor

import lrfast

PEAK = max(RATES[:3])  # of the groups that train
WARMUP = np.geomspace(PEAK / 100, PEAK, 60)
# The curve of a range test: half of the drop at 0.01, and back up to half of it at about 0.14.
VALLEY = 1 / (1 + (WARMUP / 0.01) ** 2) + (WARMUP / 0.2) ** 2
LOW = 1 / (1 + (WARMUP / 0.005) ** 2) + (WARMUP / 0.02) ** 2
FALL = np.linspace(2.0, 1.0, 60)


@pytest.fixture
def finder(monkeypatch: pytest.MonkeyPatch) -> Finder:
    return fake_lr_find(monkeypatch)


def recorded(lrs: Any, losses: Any) -> lrfast.LossCurve:
    lrs = np.asarray(lrs)
    curve = lrfast.LossCurve(100, width=1 if lrs.ndim == 1 else lrs.shape[1])
    for lr, loss in zip(lrs, losses, strict=True):
        curve.record(torch.tensor(float(loss)), lr if lrs.ndim > 1 else float(lr))
    return curve


def estimated(finder: Finder, lrs: Any, losses: Any) -> lrfast.suggest.Suggestion:
    torch.manual_seed(0)  # of the weights, whose size the usual learning rate goes by
    return make_retest(finder, curve=recorded(lrs, losses)).estimate()


def then(first: Sequence[float], second: Sequence[float]) -> Any:
    return np.concatenate([first, second])


def test_a_rise_in_the_warm_up_lowers_the_learning_rates(finder: Finder) -> None:
    _, optimizer = make_groups()
    curve = recorded(then(WARMUP, WARMUP[-1:]), then(VALLEY, [0.9]))
    retest = make_retest(finder, optimizer, curve=curve, budget=1e-9)
    finder.factor = 1.0
    assert retest.epoch_end().outcome == "kept"  # type: ignore[union-attr]
    found, entry = retest.estimate(), retest.epoch_end()
    assert finder.calls == 1 and entry is not None and found.lr is not None
    assert 0.01 < found.lr < 0.14 and 0 < found.confidence <= 1
    assert (entry.outcome, entry.seconds, entry.confidence) == ("applied", 0, found.confidence)
    assert entry.reason == found.reason and found.reason.startswith("in the warm-up up to 4.0e-01,")
    factor = found.lr / PEAK
    assert entry.new == pytest.approx([factor * lr for lr in RATES[:3]] + [RATES[3]])
    assert list(entry.new) == rates(optimizer)
    again = retest.epoch_end()  # the warm-up went up to a peak that is no more
    assert again is not None and again.outcome == "over budget" and again.new == entry.new
    assert "; no estimate: the warm-up ended at 4.0e-01, and the peak has changed" in again.reason
    assert again.confidence is None


def test_a_range_test_without_a_suggestion_leaves_it_to_the_warm_up(finder: Finder) -> None:
    finder.factor = None
    retest = make_retest(finder, curve=recorded(WARMUP, VALLEY))
    found, entry = retest.estimate(), retest.epoch_end()
    assert entry is not None and found.lr is not None and finder.calls == 1
    assert (entry.outcome, entry.seconds, entry.confidence) == ("applied", 2.0, found.confidence)
    assert max(entry.new[:3]) == pytest.approx(found.lr)
    entry = make_retest(finder, curve=recorded(WARMUP, FALL)).epoch_end()
    assert entry is not None and entry.outcome == "declined" and entry.confidence == 0.9
    assert entry.reason.startswith("a reason; no estimate: the loss does not rise")


def test_the_unit_of_the_loss_and_a_constant_in_it_change_nothing(finder: Finder) -> None:
    first, second = (estimated(finder, WARMUP, each).lr for each in (VALLEY, 70 * VALLEY - 40))
    assert first == pytest.approx(second, rel=1e-6)


def test_the_last_warm_up_counts_and_the_highest_group(finder: Finder) -> None:
    low, high = (estimated(finder, WARMUP, each).lr for each in (VALLEY, LOW))
    assert low is not None and high is not None and low != pytest.approx(high, rel=0.05)
    both = estimated(finder, then(WARMUP, WARMUP)[:100], then(LOW, VALLEY)[:100])
    assert both.lr is None and "ended at" not in both.reason  # the second one is not over
    lrs, valley = then(WARMUP[::2], WARMUP[1::2]), then(LOW[::2], VALLEY[1::2])
    assert estimated(finder, lrs, valley) == estimated(finder, lrs[30:], valley[30:])
    from_zero = then([0.0, 0.0, np.nan], WARMUP), then([9.0, 9.0, 9.0], VALLEY)
    assert estimated(finder, *from_zero) == estimated(finder, WARMUP, VALLEY)
    per_group = np.stack([WARMUP / 4, WARMUP / 2, WARMUP, WARMUP * 0 + 3.0], axis=1)
    assert estimated(finder, per_group, VALLEY) == estimated(finder, WARMUP, VALLEY)


@pytest.mark.parametrize(
    ("lrs", "losses", "reason"),
    [
        (WARMUP, FALL, "the loss does not rise up to 4.0e-01"),
        (WARMUP, FALL * 0 + 2.0, "the loss does not rise up to 4.0e-01"),
        (WARMUP[:0], VALLEY[:0], "has not risen over 10 or more recorded losses"),
        (WARMUP[-9:], VALLEY[-9:], "has not risen over 10"),
        (WARMUP * 0 + PEAK, VALLEY, "has not risen over 10"),
        (WARMUP[::-1], VALLEY, "has not risen over 10"),
        (WARMUP * np.nan, VALLEY, "has not risen over 10"),
        (WARMUP * 2, VALLEY, "the warm-up ended at 8.0e-01, and the peak has changed to 4.0e-01"),
    ],
)
def test_no_estimate(lrs: Any, losses: Any, reason: str, finder: Finder) -> None:
    found = estimated(finder, lrs, losses)
    assert found.lr is None and found.confidence == 0 and reason in found.reason


def test_after_a_range_test_has_changed_the_peak_its_warm_up_must_reach_it(finder: Finder) -> None:
    early = recorded(WARMUP / 8, VALLEY)  # a warm-up under way
    retest = make_retest(finder, curve=early, budget=1e-9)
    assert retest.estimate().lr is not None
    finder.factor = 2.0
    assert retest.epoch_end().outcome == "applied"  # type: ignore[union-attr]
    assert "the peak has changed to 8.0e-01" in retest.estimate().reason


def test_ranks_read_the_mean_of_their_losses(finder: Finder) -> None:
    class Others:
        is_alone, count = False, 2

        def mean(self, losses: Tensor) -> Tensor:
            return losses + torch.linspace(0, 4, len(losses), dtype=torch.float64)

    retest = make_retest(finder, curve=recorded(WARMUP, FALL))
    assert retest.estimate().lr is None
    retest._ranks = Others()  # type: ignore[assignment]
    assert retest.estimate().lr is not None


def test_bad_curves(finder: Finder) -> None:
    with pytest.raises(ValueError, match="curve must be given to Retest for an estimate, got None"):
        make_retest(finder).estimate()
    with pytest.raises(ValueError, match=r"curve must hold .*, got 3 for 4 groups"):
        make_retest(finder, curve=lrfast.LossCurve(5, width=3))
    with pytest.raises(TypeError, match=r"curve must be .*LossCurve or None, got a list"):
        make_retest(finder, curve=[1.0])
