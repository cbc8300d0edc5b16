"""The recipe: its plan, its rates and their reasons, stage by stage, planned against applied."""

from __future__ import annotations

import math
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from tiny import cross_entropy, make_batches
from torch import nn
from tuners import STEPS, Scripted, make_tuner

from lrfast import FineTuner, RangeTest
from lrfast.finetune import Callback, Recipe
from lrfast.suggest import Suggestion

KINDS: tuple[dict[str, Any], ...] = (
    {},
    {"top": "head", "feature_epochs": 1, "plain": make_batches(3)},
    {"epochs": (2, 3), "cycle_mult": 2.0},
)


class Oracle:
    """Stands in for a tuner's range tests: what "auto" and "minimum" say, test after test."""

    def __init__(self, tuner: FineTuner, *answers: tuple[float | None, float | None]) -> None:
        self.asked: list[list[bool]] = []
        self._tuner, self._answers = tuner, iter(answers)
        self._find = tuner.lr_find
        tuner.lr_find = self  # type: ignore[method-assign]

    def __call__(self, **options: Any) -> RangeTest:
        assert options == {"vary": "same", "adaptive": True}
        groups = self._tuner.optimizer.param_groups
        self.asked.append([bool(group.get("frozen")) for group in groups])
        found = self._find(**options, num_iter=20)
        said = {
            name: Suggestion(lr, name, f"{name} saw it so", 0.5)
            for name, lr in zip(("auto", "minimum"), next(self._answers), strict=True)
        }
        return replace(found, suggestions=MappingProxyType(dict(found.suggestions) | said))


def state(tuner: FineTuner) -> list[bytes]:
    return [value.numpy().tobytes() for value in tuner.model.state_dict().values()]


# The plan.


def test_the_plan_is_a_table_before_anything_runs() -> None:
    tuner = make_tuner()
    before = state(tuner)
    plan = tuner.recipe((2, 7), feature_epochs=1, plain=make_batches(3), cycle_mult=2.0)
    assert [(s.name, s.epochs, s.steps) for s in plan.stages] == [
        ("head on features", 1, 3),
        ("head", 2, 2 * STEPS),
        ("all layers", 7, 7 * STEPS),
    ]
    assert [s.frozen for s in plan.stages] == [("0", "4"), ("0", "4"), ()]
    assert [s.norms for s in plan.stages] == ["statistics kept", "statistics move", "all train"]
    lines = str(plan).splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines if line[0] != " "] == [
        *("stage", "epochs", "steps", "frozen", "batch", "schedule", "learning", "reason")
    ]
    wanted = (
        ("range test on the head", "one cycle", "0, 4"),
        ("as before", "2 x cosine of 1 epoch", "spoil what is pretrained"),
        ("before training; first group 3 times lower", "3 cosines", "until overfitting", "none"),
    )
    html = plan._repr_html_()
    # Three columns of words, each wrapped on its own.
    begin = (
        lines[0].index("head on features"),
        lines[0].index("head ", 30),
        lines[0].index("all layers"),
    )
    for start, end, parts in zip(begin, (*begin[1:], None), wanted, strict=True):
        column = " ".join(line[start:end].strip() for line in lines)
        assert all(part in column and part in html for part in parts)
    assert html.count("<tr>") == 4 and plan.report() == "No stage has run yet."
    assert repr(plan) == (
        "Recipe(head on features: 3 steps, head: 10 steps, all layers: 35 steps; 0 of 3 run)"
    )
    assert state(tuner) == before and not tuner.history.stages and not plan.tests
    short = tuner.recipe((1, 2), top="head", head_drop=5.0, spread=4.0)
    assert "s over 5, within a range test on all; first group 4 times" in short._repr_html_()


def test_a_model_without_norms_and_one_of_many_groups() -> None:
    layers = [nn.Linear(4, 4) for _ in range(5)]
    tuner = FineTuner(
        nn.Sequential(*layers), make_batches(1), loss_fn=cross_entropy, progress=False
    )
    assert [s.norms for s in tuner.recipe().stages] == ["none", "none"]
    assert "0 to 3 (4)" in str(tuner.recipe())


# What runs.


@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_stage_by_stage_is_all_at_once_bit_for_bit(kind: int) -> None:
    tuners = [make_tuner(), make_tuner()]
    plans = []
    for tuner in tuners:
        torch.manual_seed(3)
        plans.append(tuner.recipe(**KINDS[kind]))
        if tuner is tuners[0]:
            assert plans[0].run() is plans[0].applied
            continue
        while plans[1].next_stage is not None:
            done = plans[1].run_next()
            assert done is plans[1].applied[-1]
    assert state(tuners[0]) == state(tuners[1])
    assert [a.choice for a in plans[0].applied] == [a.choice for a in plans[1].applied]
    losses = [tuner.history.losses for tuner in tuners]
    assert np.array_equal(*losses) and len(losses[0]) > 0


def test_it_is_what_one_does_by_hand() -> None:
    torch.manual_seed(3)
    tuner = make_tuner()
    tuner.recipe((1, 2)).run()
    torch.manual_seed(3)
    hand = make_tuner()
    top = hand.lr_find(adaptive=True).suggestion.lr
    hand.freeze()
    hand.fit_one_cycle(1, hand.lr_find(adaptive=True).suggestion.lr)
    hand.unfreeze()
    assert top is not None
    hand.fit_one_cycle(2, slice(top / 3, top))
    assert state(tuner) == state(hand)


def test_the_rates_are_those_of_the_range_tests() -> None:
    for scale in (1.0, 2.0):
        tuner = make_tuner()
        oracle = Oracle(tuner, (6e-3 * scale, None), (2e-2 * scale, None))
        head, whole = tuner.recipe((1, 1), spread=9.0).run()
        assert oracle.asked == [[False] * 3, [True, True, False]]
        np.testing.assert_allclose(head.peaks, [math.nan, math.nan, 2e-2 * scale], rtol=1e-12)
        wanted = np.array([6e-3 / 9, 2e-3, 6e-3]) * scale
        np.testing.assert_allclose(whole.peaks, wanted, rtol=1e-12)
        np.testing.assert_allclose(whole.rates, whole.peaks, rtol=1e-12)
        assert f"on the head suggests {2e-2 * scale:.1e}" in head.choice.reason
        assert f"before training suggests {6e-3 * scale:.1e}" in whole.choice.reason
        assert whole.choice.reason.endswith("the first group's is 9 times lower")


@pytest.mark.parametrize(
    ("limit", "top", "reason"),
    [
        (None, 2e-3, "over 10 is 2.0e-03, and the second range test names no limit"),
        (5e-3, 2e-3, "over 10 is 2.0e-03; the first"),
        (4e-4, 4e-4, "gets worse from 4.0e-03 on, and the head stays at a tenth"),
    ],
)
def test_a_tenth_of_the_heads_rate(limit: float | None, top: float, reason: str) -> None:
    tuner = make_tuner()
    oracle = Oracle(tuner, (2e-2, None), (5.0, limit))
    head, whole = tuner.recipe((1, 1), top="head").run()
    assert oracle.asked == [[True, True, False], [False] * 3]
    assert whole.choice.last == pytest.approx(top) and reason in whole.choice.reason
    assert whole.choice.first == pytest.approx(top / 3)
    assert head.choice.last == 2e-2


def test_auto_declines() -> None:
    tuner = make_tuner()
    Oracle(tuner, (1e-3, None), (None, 7e-3))
    plan = tuner.recipe((1, 1), spread=1.0)
    head, whole = plan.run()
    assert head.choice.last == 7e-3 and "has no suggestion (auto saw it so)" in head.choice.reason
    assert "lowest loss, 7.0e-03" in plan.report()
    assert whole.choice.rates == 1e-3 and "lower" not in whole.choice.reason


def test_no_rule_answers() -> None:
    tuner = make_tuner()
    Oracle(tuner, (1e-3, None), (None, None), (4e-3, None))
    before = state(tuner)
    plan = tuner.recipe((1, 1))
    with pytest.raises(ValueError, match=r"no rate .* the head: auto saw it so; minimum saw it so"):
        plan.run()
    assert state(tuner) == before and plan.applied == [] and plan.next_stage is plan.stages[0]


def test_features_come_from_the_data_without_augmentation() -> None:
    tuner = make_tuner()
    train = tuner.train_loader
    features, head, _ = tuner.recipe((1, 1), feature_epochs=2, plain=make_batches(3)).run()
    assert len(features.stage.losses) == 6 and len(head.stage.losses) == STEPS
    assert tuner.train_loader is train and features.choice == head.choice
    assert np.isnan(features.peaks[:2]).all()


def test_cycles_until_overfitting() -> None:
    tuner = make_tuner(keep_best=None, metrics={})
    losses = Scripted([1.0, 1.0, 0.9, 0.9, 0.5, 0.5, 0.6, 0.7, *[0.8] * 30])
    tuner.validate = lambda: {"valid_loss": 0.0}  # type: ignore[method-assign]
    tuner._validate = lambda *_: {"valid_loss": losses(None, None).item()}  # type: ignore[arg-type,method-assign]
    plan = tuner.recipe((2, 15), cycle_mult=2.0)
    head, whole = plan.run()
    assert (head.stage.outcome, head.stage.name) == ("completed", "sgdr")
    np.testing.assert_allclose(head.stage.rates[[0, STEPS], 2], head.choice.last, rtol=1e-12)
    # Cycle ends behind epochs 1, 3, 7, 15: 0.9, then 0.5, then 0.8.
    assert whole.stage.outcome == "stopped" and len(whole.stage.epochs) == 7
    assert tuner.callbacks == [] and "stopped" in plan.report()


# Planned against applied.


def test_the_report() -> None:
    plan = make_tuner().recipe((1, 2))
    first = plan.run_next()
    assert plan.report().count("completed, ") == 2 and plan.next_stage is plan.stages[1]
    second = plan.run_next()
    lines = plan.report().splitlines()
    assert max(map(len, lines)) <= 80
    end = next(place for place, line in enumerate(lines) if line.startswith("seconds")) + 1
    start = lines[0].index("all layers")
    halves = zip(*[(line[:start], line[start:]) for line in lines[:end]], strict=True)
    columns = [" ".join(" ".join(half).split()) for half in halves]
    for each, line in zip((first, second), columns, strict=True):
        assert len(each.stage.losses) == each.plan.steps == each.plan.epochs * STEPS
        np.testing.assert_allclose(each.peaks, each.rates, rtol=1e-12)
        assert line.count(f"{each.rates[-1]:.1e}") == 2 and "completed" in line
        shown = [
            f"accuracy {each.before['accuracy']:.3f}",
            f"accuracy {each.after['accuracy']:.3f}",
        ]
        assert all(part in line for part in shown)
    assert first.after == second.before and "step" not in first.after
    assert "2 x frozen" in columns[0] and "frozen" not in columns[1]
    notes = [line.split()[0] for line in lines[end:] if line[0] != " "]
    assert notes == ["Range", "Range", "Rates", "Rates"]
    assert plan._repr_html_().count("<table>") == 2
    with pytest.raises(ValueError, match="recipe must have a stage left, got all 2 run"):
        plan.run()


def test_the_peaks_applied_are_those_of_the_history() -> None:
    (head, _) = make_tuner().recipe((1, 1)).run()
    half = replace(head, stage=replace(head.stage, rates=head.stage.rates / 2))
    np.testing.assert_allclose(half.peaks, np.array(head.rates) / 2, rtol=1e-12)
    none = replace(head.stage, losses=np.empty(0), rates=np.empty((0, 3)))
    assert all(math.isnan(peak) for peak in replace(head, stage=none).peaks)


def test_without_validation_data() -> None:
    plan = make_tuner(val_loader=None).recipe((1, 1))
    assert [each.after for each in plan.run()] == [{}, {}]
    assert plan.report().count("not validated") == 4


class Failing(Callback):
    """Raises once, at a step of the second stage."""

    failed = False

    def on_step_end(self, tuner: Any, step: int, loss: Any) -> None:
        if not self.failed and step == 3 and not tuner.optimizer.param_groups[0].get("frozen"):
            self.failed = True
            raise OSError("disk full")


@pytest.mark.parametrize("by_hand", [False, True])
def test_it_goes_on_after_an_interruption(by_hand: bool) -> None:
    results = []
    for callbacks in ([], [Failing()]):
        torch.manual_seed(3)
        tuner = make_tuner(callbacks=callbacks)
        plan = tuner.recipe((1, 1))
        if callbacks:
            with pytest.raises(OSError, match="disk full"):
                plan.run()
            assert len(plan.applied) == 1
            if by_hand:
                tuner.resume()
        plan.run()
        assert [len(each.stage.losses) for each in plan.applied] == [STEPS, STEPS]
        results.append((state(tuner), plan.applied[1].before))
    assert results[0] == results[1]


def test_a_loss_that_is_not_finite_ends_it() -> None:
    tuner = make_tuner()
    plan = tuner.recipe((1, 1))
    calls = 0

    def broken(outputs: Any, targets: Any) -> Any:
        nonlocal calls
        calls += 1
        return cross_entropy(outputs, targets) * math.nan

    Oracle(tuner, (1e-3, None), (1e-3, None))
    find = tuner.lr_find

    def then_break(**options: Any) -> RangeTest:
        found = find(**options)
        if len(plan.tests) == 1:
            tuner.loss_fn = broken
        return found

    tuner.lr_find = then_break  # type: ignore[method-assign]
    (only,) = plan.run()
    assert only.stage.outcome == "non-finite" and calls > 0
    assert plan.report().endswith("all layers was not run because head is non-finite.")


# Errors.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 3}, r"epochs must be two numbers, .* got 3"),
        ({"epochs": (1, 2, 3)}, r"epochs must be two numbers, .* got \(1, 2, 3\)"),
        ({"epochs": (0, 3)}, r"epochs\[0\] must be a whole number, 1 or more, got 0"),
        ({"epochs": (1, 2.5)}, r"epochs\[1\] must be a whole number, 1 or more, got 2.5"),
        ({"top": "tail"}, "top must be 'before' or 'head', got 'tail'"),
        ({"head_drop": 0.5}, "head_drop must be finite and 1 or more, got 0.5"),
        ({"spread": math.inf}, "spread must be finite and 1 or more, got inf"),
        ({"feature_epochs": -1}, "feature_epochs must be a whole number, 1 or more, got -1"),
        ({"plain": []}, "plain needs feature_epochs of 1 or more, got 0"),
        ({"feature_epochs": 1, "plain": []}, "at least one batch, got none"),
        ({"cycle_mult": 0.5}, "cycle_mult must be finite and 1 or more, got 0.5"),
        (
            {"cycle_mult": 2.0, "epochs": (1, 4)},
            r"epochs\[1\] must hold whole cycles \(1, 3, 7, 15 and so on .*=2\), got 4",
        ),
    ],
)
def test_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_tuner().recipe(**options)


def test_tuners_that_do_not_fit() -> None:
    single = FineTuner(nn.Linear(4, 3), make_batches(1), loss_fn=cross_entropy, progress=False)
    with pytest.raises(ValueError, match="a body and a head, two layer groups or more, got one"):
        single.recipe()
    with pytest.raises(ValueError, match="cycle_mult needs a val_loader"):
        make_tuner(val_loader=None).recipe((1, 3), cycle_mult=2.0)
    body, head = nn.Linear(4, 4), nn.Linear(4, 3)
    other = FineTuner(
        nn.ModuleDict({"a": body, "b": head}),
        make_batches(1),
        compute_loss=lambda model, batch: cross_entropy(head(body(batch[0])), batch[1]),
        progress=False,
    )
    assert isinstance(other.recipe(), Recipe)
    with pytest.raises(TypeError, match=r"nn.Sequential of body and head .* got ModuleDict"):
        other.recipe(feature_epochs=1)
