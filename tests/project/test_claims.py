"""The benchmarks of claims and of the recipe: their statistics, a small run, pages that keep up."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import provenance
from benchmarks.research.claims import measure, report
from benchmarks.research.claims.experiments import EXPERIMENTS, SCHEDULES, Experiment
from benchmarks.research.claims.measure import QUICK, Plan, Trial
from benchmarks.research.claims.sides import FINE_TUNING, Side
from benchmarks.research.claims.verdicts import Difference, claim_verdict, difference
from benchmarks.research.intervals import t_interval
from benchmarks.research.recipe import choices
from benchmarks.research.recipe import measure as recipe_measure
from benchmarks.research.recipe import report as recipe_report
from benchmarks.research.suggestions.store import Store
from benchmarks.research.suggestions.train import Result
from lrfast import demo

T_TWO = 4.302652729911275  # Student's t at 0.975 with 2 degrees of freedom, from a table


# Statistics, by hand.


def test_the_t_interval() -> None:
    half = T_TWO / math.sqrt(3)  # the standard deviation of 1, 2, 3 is 1
    np.testing.assert_allclose(t_interval([1, 2, 3]), (2, 2 - half, 2 + half), rtol=1e-9)
    assert t_interval([0.5, 0.5]) == (0.5, 0.5, 0.5)


def test_differences_are_paired_ratios() -> None:
    # Ratios of 1/4, 1/2, 1: logarithms of -2, -1, 0 times ln 2, whose standard deviation is ln 2.
    found = difference([1.0, 5.0, 7.0], [4.0, 10.0, 7.0])
    half = T_TWO / math.sqrt(3)
    wanted = [2**power - 1 for power in (-1, -1 - half, -1 + half)]
    np.testing.assert_allclose([found.mean, found.low, found.high], wanted, rtol=1e-9)
    assert found.verdict == "undecided"
    assert difference([1.0, 5.1, 7.0], [2.0, 10.0, 14.1]).verdict == "better"
    assert difference([2.0, 10.0, 14.1], [1.0, 5.1, 7.0]).verdict == "worse"
    assert difference([2.0, 3.0], [2.0, 3.0]) == Difference(0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("better", "undecided", "worse", "wanted"),
    [
        (3, 2, 0, "reproduced"),
        (2, 2, 0, "undecided"),  # not more than half
        (4, 0, 1, "undecided"),
        (0, 5, 0, "undecided"),
        (1, 3, 1, "undecided"),
        (1, 2, 2, "not reproduced"),
        (0, 4, 1, "not reproduced"),
    ],
)
def test_the_rule(better: int, undecided: int, worse: int, wanted: str) -> None:
    verdicts = ["better"] * better + ["undecided"] * undecided + ["worse"] * worse
    assert claim_verdict(verdicts) == wanted


# What is measured.


def only(experiment: Experiment, sides: tuple[Side, ...]) -> Experiment:
    return replace(experiment, tasks=SCHEDULES.tasks[1:2], sides=sides)  # of three layer groups


@pytest.mark.one_row
@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda each: each.name)
def test_a_small_run_of_all_sides_that_is_not_repeated(
    experiment: Experiment, tmp_path: Path
) -> None:
    small = only(experiment, experiment.sides)
    task = small.tasks[0]
    found = measure.measure(small, task, tmp_path, QUICK)
    assert set(found["sides"]) == {side.name for side in experiment.sides}
    losses = [side["losses"] for side in found["sides"].values()]
    assert all(0 < loss < 3 for side in losses for loss in side)
    assert len({tuple(side) for side in losses}) == len(losses)  # every side trains another way
    lines = stored_lines(tmp_path)
    assert measure.measure(small, task, tmp_path, QUICK) == found
    assert stored_lines(tmp_path) == lines
    plan = replace(QUICK, judging=(*QUICK.judging, 12))
    more = measure.measure(small, task, tmp_path, plan)["sides"]
    assert all(side["losses"][:2] == found["sides"][name]["losses"] for name, side in more.items())
    assert stored_lines(tmp_path) == lines + len(more) + 1  # and the untrained model's


def stored_lines(folder: Path) -> int:
    return sum(len(path.read_text().splitlines()) for path in folder.iterdir())


def test_definitions_tell_trials_apart() -> None:
    task, other = SCHEDULES.tasks[:2]
    side = FINE_TUNING[0]
    changed = (
        Trial(task, side, Plan(), "a"),
        Trial(other, side, Plan(), "a"),
        Trial(replace(task, batch_size=7), side, Plan(), "a"),
        Trial(task, replace(side, is_gradual=True), Plan(), "a"),
        Trial(task, replace(side, rates=FINE_TUNING[1].rates), Plan(), "a"),
        Trial(task, replace(side, steps=side.steps + 1), Plan(), "a"),
        Trial(task, side, QUICK, "a"),
    )
    assert len({measure.fingerprint(trial) for trial in changed}) == len(changed)
    # Other seeds add to what is there.
    assert measure.fingerprint(replace(changed[0], plan=Plan(judging=(1, 2)))) == (
        measure.fingerprint(changed[0])
    )


def scripted(best: dict[str, float], calls: list[tuple[str, int, float]]) -> Any:
    """Stands in for `run`: a loss lowest at a rate of each side, twice as high with seed 9."""

    def run(trial: Trial, seed: int, rate: float) -> Result:
        calls.append((trial.side.name, seed, rate))
        distance = abs(math.log10(rate) - best[trial.side.name])
        return Result(1.0, 0.1 * (1 + distance) * (2 if seed == 9 else 1), 0.5)

    return run


@pytest.mark.parametrize(
    ("best", "wanted"),
    [
        ((-1.0, -1.0), (-2.0, 0.0)),
        ((-1.0, 0.5), (-2.0, 1.0)),
        ((-2.5, 0.0), (-3.0, 0.5)),
        ((-9.0, -1.0), (-3.0, 0.0)),  # two growths at most
    ],
)
def test_the_grid_grows_for_all_sides_alike(
    best: tuple[float, float],
    wanted: tuple[float, float],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    experiment = only(SCHEDULES, SCHEDULES.sides[:2])
    names = [side.name for side in experiment.sides]
    calls: list[tuple[str, int, float]] = []
    monkeypatch.setattr(measure, "run", scripted(dict(zip(names, best, strict=True)), calls))
    plan = Plan(choosing=(0, 9), judging=(20, 21, 22), growths=2)
    found = measure.measure(experiment, experiment.tasks[0], tmp_path, plan)
    np.testing.assert_allclose(np.log10(found["rates"])[[0, -1]], wanted, atol=1e-12)
    for name, at in zip(names, best, strict=True):
        side = found["sides"][name]
        rate = max(at, wanted[0])
        np.testing.assert_allclose(math.log10(side["best_rate"]), rate, atol=1e-12)
        assert np.shape(side["grid_losses"]) == (len(found["rates"]), 2)
        lowest = 0.1 * (1 + rate - at)
        np.testing.assert_allclose(side["losses"], [lowest] * 3)
        np.testing.assert_allclose(np.min(side["grid_losses"], 0), [lowest, 2 * lowest])
        judged = [(seed, r) for who, seed, r in calls if who == name and seed >= 20]
        np.testing.assert_allclose(judged, [(s, side["best_rate"]) for s in (20, 21, 22)])
    assert len(calls) == len(set(calls))


def test_a_loss_is_at_most_the_untrained_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = only(SCHEDULES, SCHEDULES.sides[:1])
    monkeypatch.setattr(measure, "run", lambda *_: Result(math.inf, math.inf, None))
    found = measure.measure(experiment, experiment.tasks[0], tmp_path, QUICK)
    side = found["sides"][experiment.sides[0].name]
    assert side["accuracies"] is None
    np.testing.assert_allclose(np.mean(side["losses"]), found["untrained"])
    assert 2 < found["untrained"] < 3 and found["untrained_accuracy"] < 0.3  # ten classes


def test_gradual_unfreezing_ends_after_half_of_the_steps() -> None:
    gradual = FINE_TUNING[-1]
    assert dict(gradual.timetable(4, 120)) == {0: -1, 20: -2, 40: -3, 60: -4}
    assert dict(FINE_TUNING[0].timetable(4, 120)) == {0: 0}


# Pages.


def made_up(gains: dict[str, float]) -> dict[str, Any]:
    """A result in which every side loses 0.2, times what is given for it, with some spread."""

    def facts(experiment: Experiment) -> dict[str, Any]:
        sides = {
            side.name: {
                "steps": side.steps,
                "grid_losses": [[0.9], [0.5], [0.6]],
                "best_rate": 0.1,
                "losses": [0.2 * gains.get(side.name, 1.0) * spread for spread in (1, 1.1)],
                "accuracies": [0.7, 0.8],
            }
            for side in experiment.sides
        }
        task = {"optimizer": "SGD", "batch_size": 32, "tags": ["text"], "untrained": 2.0}
        task |= {"untrained_accuracy": 0.125}
        return task | {"rates": [0.01, 0.1, 1.0], "sides": sides}

    return provenance.facts() | {
        "seeds": {"choosing": [0], "judging": [10, 11]},
        "experiments": {
            each.name: {task.name: facts(each) for task in each.tasks} for each in EXPERIMENTS
        },
    }


def test_a_page_says_of_every_claim_what_was_measured() -> None:
    text = report.markdown(made_up({"one-cycle": 0.5, "SGDR": 2.0}))
    for claim in (claim for each in EXPERIMENTS for claim in each.claims):
        wanted = {"one-cycle": "reproduced", "SGDR": "not reproduced"}.get(claim.side, "undecided")
        assert f"### {claim.text}: {wanted}\n" in text
        assert re.search(
            rf"^\| {re.escape(claim.text)} \| \*\*{wanted}\*\* \| ", text, re.MULTILINE
        )
    assert text.count("| -50.0 % | -50.0 to -50.0 % | better |") == 5
    assert text.count("| +100.0 % | +100.0 to +100.0 % | worse |") == 10
    assert "| digits-mlp | 0.210 ± 0.014 (1e-01) | 0.105 ± 0.007 (1e-01) |" in text
    assert "| digits-mlp | SGD | 32 | 2.000 | 12.5% | 1.0e-02 to 1.0e+00 | text |" in text
    assert "| digits-mlp | 75.0% |" in text and "| digits-mlp | 0.600 |" in text


def test_the_committed_page_is_made_of_the_committed_results() -> None:
    assert report.markdown(provenance.newest(report.RESULTS)) == report.PAGE.read_text()


def test_the_recipes_page_is_made_of_the_committed_results() -> None:
    text = recipe_report.PAGE.read_text()
    assert recipe_report.page(text, provenance.newest(recipe_report.RESULTS)) == text


# The recipe.


def tiny_model() -> nn.Sequential:
    """As the demo's: the head is number 3."""
    return nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 16), nn.ReLU(), nn.Linear(16, 5))


@pytest.mark.full
def test_a_small_run_of_the_recipe_that_is_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlxtend")
    monkeypatch.setattr(demo, "make_model", tiny_model)
    monkeypatch.setattr(demo, "PASSES", 1)
    monkeypatch.setattr(choices, "CHOICES", choices.CHOICES[:2])
    half = recipe_measure.HALVES[1]
    parts = list(recipe_measure.fill(tmp_path, halves=[half], draws=range(1)))
    assert parts == [f"{part}, reversed, draw 0" for part in recipe_measure.PARTS]
    found = recipe_measure.collect(tmp_path, halves=[half])["parts"]
    found = {name: part["accuracies"][half.name] for name, part in found.items()}
    assert set(found["methods"]) == {recipe_measure.RECIPE, *recipe_measure.BASELINES}
    assert list(found["choices"]) == [choice.name for choice in choices.CHOICES]
    assert set(found["variants"]) == set(recipe_measure.VARIANTS)
    values = [row for part in found.values() for row in part.values()]
    assert all(len(row) == 1 and 0.2 < row[0] < 1 for row in values)
    monkeypatch.setattr(recipe_measure, "_pretrained", None)
    assert list(recipe_measure.fill(tmp_path, halves=[half], draws=range(1))) == parts
    with pytest.raises(TypeError):  # a draw is missing
        list(recipe_measure.fill(tmp_path, halves=[half], draws=range(2)))


def test_the_halves_are_swapped() -> None:
    digits = demo.Digits(torch.arange(6), torch.tensor([0, 4, 5, 9, 7, 2]))
    swapped = choices.swapped(digits)
    assert swapped.classes.tolist() == [5, 9, 0, 4, 2, 7]
    assert swapped.images is digits.images


def test_the_recipes_table_by_hand() -> None:
    def half(recipe: list[float], uniform: list[float]) -> dict[str, list[float]]:
        methods = {recipe_measure.RECIPE: recipe, "one uniform rate": uniform}
        return methods | {name: [0.1] * 4 for name in ("head only", "from scratch")}

    parts = {
        "methods": {
            "a": half([0.92, 0.94, 0.5, 0.5], [0.9, 0.9, 0.6, 0.6]),
            "b": half([0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5]),
        },
        "choices": {
            key: {"another": [0.7, 0.8], recipe_report.DEFAULT: [0.9, 0.7]} for key in "ab"
        },
        "variants": {key: {"recipe, spread=1": [0.3, 0.4, None, None]} for key in "ab"},
    }
    facts = provenance.facts()
    result = facts | {
        "titles": {"a": "digits 5 to 9", "b": "digits 0 to 4"},
        "chosen_on": [0, 1],
        "parts": {name: facts | {"accuracies": found} for name, found in parts.items()},
    }
    lines = recipe_report.section(result).splitlines()
    half_width = (
        12.706204736432095  # t with one degree of freedom; 2 and 4 deviate by the root of 2
    )
    wanted = f"+3.00 | {3 - half_width:+.2f} to {3 + half_width:+.2f} | yes |"
    assert f"| to digits 5 to 9 | 0 to 1 | 93.00% | one uniform rate, 90.00% | {wanted}" in lines
    assert any(line.startswith("| to digits 5 to 9 | 2 to 3 | 50.00%") for line in lines)
    assert [line.rpartition("| ")[2] for line in lines if "| 2 to 3 |" in line] == ["no |", "yes |"]
    stages = [line.split(" | ")[0] for line in lines]
    default = f"| **{recipe_report.DEFAULT}**"
    assert stages.index(default) < stages.index("| another") < stages.index("| head only")
    assert "| recipe, spread=1 | 35.0% |  | 35.0% |  |" in lines
    assert recipe_report.DEFAULT in {each.name for each in choices.CHOICES}


def test_the_store_tells_what_was_measured_by_its_definition(tmp_path: Path) -> None:
    trial = Trial(SCHEDULES.tasks[0], SCHEDULES.sides[0], QUICK, "a")
    Store(tmp_path, lambda _: "old").add(trial, {"kind": "run"})
    assert Store(tmp_path, lambda _: "new").records(trial, "run") == []
    assert len(Store(tmp_path, lambda _: "old").records(trial, "run")) == 1
