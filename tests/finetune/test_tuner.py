"""The fine-tuner: rates per group and step, freezing, history, validation, and how stages end."""

from __future__ import annotations

import csv
import functools
import math
import pickle
import random
import re
from typing import Any

import numpy as np
import pytest
import torch
from device_reads import NoDeviceReads
from tiny import (
    OPTIMIZERS,
    OURS,
    CountReads,
    Noisy,
    bits,
    boom,
    cross_entropy,
    failing,
    make_batches,
    make_model,
    trace,
    used_rates,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tuners import STEPS, make_tuner

import lrfast
from lrfast import FineTuner, accuracy, schedules


def parameters(tuner: FineTuner, group: int) -> Any:
    return bits([p.detach().clone() for p in tuner.groups[group].parameters])


# Rates, momentum, steps.

PEAKS = [
    (slice(1e-4, 1e-2), [1e-4, 1e-3, 1e-2]),
    (slice(1e-2), [1e-3, 1e-3, 1e-2]),
    ([0.02, 0.0, 0.005], [0.02, 0.0, 0.005]),
    (0.003, [0.003] * 3),
]


@pytest.mark.parametrize(("max_lr", "peaks"), PEAKS, ids=["slice", "slice-end", "list", "float"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_one_cycle_up_to_each_groups_peak(kind: str, max_lr: Any, peaks: list[float]) -> None:
    tuner = make_tuner(kind)
    used = used_rates(tuner.optimizer)
    stage = tuner.fit_one_cycle(4, max_lr)
    schedule = schedules.one_cycle(4 * STEPS)
    values = schedule.values(range(4 * STEPS))
    np.testing.assert_allclose(stage.rates, np.outer(values, peaks), rtol=1e-14)
    assert stage.rates.tolist() == used
    np.testing.assert_allclose(stage.rates.max(axis=0), peaks, rtol=1e-14)
    np.testing.assert_allclose(stage.rates[-1], np.array(peaks) / (25 * 1e4), rtol=1e-14)
    own = [group["lr"] for group in tuner.optimizer.param_groups]
    assert own == pytest.approx(peaks, rel=1e-14)
    assert kind not in OURS or tuner.optimizer.get_last_lr() == own  # it is detached
    assert stage.losses.shape == (4 * STEPS,)


@pytest.mark.parametrize("kind", ["torch-sgd", "torch-adamw"])
def test_the_momentum_used_is_the_momentum_recorded(kind: str) -> None:
    tuner = make_tuner(kind)
    used = []

    def note(optimizer: Any, args: Any, kwargs: Any) -> None:
        groups = optimizer.param_groups
        used.append([g["betas"][0] if "betas" in g else g["momentum"] for g in groups])

    tuner.optimizer.register_step_post_hook(note)
    own = tuner.optimizer.param_groups[0].get("betas", 0.9)
    stage = tuner.fit_one_cycle(2, 0.01, momentum=(0.9, 0.6))
    assert stage.momentum is not None
    assert used == [[momentum] * 3 for momentum in stage.momentum.tolist()]
    assert (stage.momentum.max(), stage.momentum.min()) == (0.9, 0.6)
    for group in tuner.optimizer.param_groups:
        assert group.get("betas", group.get("momentum")) == own
        assert group.get("betas", (0.8, 0.95)) == (0.8, 0.95)


@pytest.mark.parametrize("pair", [("sgd", "torch-sgd"), ("adamw", "torch-adamw")])
def test_ours_and_torchs_optimizers_train_alike(pair: tuple[str, str]) -> None:
    """AdamW without cycled beta1, whose bias correction torch has wrong."""
    momentum = (0.9, 0.5) if pair[0] == "sgd" else None
    losses = []
    for kind in pair:
        torch.manual_seed(0)
        stage = make_tuner(kind).fit_one_cycle(3, slice(1e-3, 1e-1), momentum=momentum)
        losses.append(stage.losses)
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_options_of_the_cycle() -> None:
    options: dict[str, Any] = {"pct_start": 0.5, "div_factor": 4.0, "final_div_factor": 8.0}
    stage = make_tuner().fit_one_cycle(4, 1.0, momentum=None, **options)
    expected = schedules.one_cycle(4 * STEPS, **options).values(range(4 * STEPS))
    assert stage.rates[:, 0].tolist() == expected.tolist()
    assert stage.rates[9, 0] == 1.0 and stage.momentum is None and stage.name == "one-cycle"


@pytest.mark.parametrize("kind", ["sgd", "torch-sgd"])
def test_any_schedule(kind: str) -> None:
    tuner = make_tuner(kind)
    for group, rate in zip(tuner.optimizer.param_groups, (0.1, 0.2, 0.4), strict=True):
        group["lr"] = rate
    schedule = schedules.linear(1.0, 0.5, 2 * STEPS)
    stage = tuner.fit(2, schedule)
    values = schedule.values(range(2 * STEPS))
    np.testing.assert_allclose(stage.rates, np.outer(values, (0.1, 0.2, 0.4)), rtol=1e-14)
    assert stage.name == "linear" and stage.momentum is None
    again = tuner.fit(1, schedule, lr=[1e-3, 1e-2, 1e-1])
    assert again.rates[0].tolist() == [1e-3, 1e-2, 1e-1]


def test_groups_and_optimizer() -> None:
    model = make_model()
    optimizer = functools.partial(torch.optim.RMSprop, alpha=0.7)
    layers = [[model[0], model[1]], [model[4], model[6]]]
    tuner = FineTuner(
        model,
        make_batches(2),
        loss_fn=cross_entropy,
        optimizer=optimizer,
        groups=layers,
        progress=False,
    )
    assert isinstance(tuner.optimizer, torch.optim.RMSprop)
    assert tuner.optimizer.param_groups[0]["alpha"] == 0.7
    assert [len(group["params"]) for group in tuner.optimizer.param_groups] == [4, 4]
    assert tuner.fit_one_cycle(1, 0.01).rates.shape == (2, 2)
    names = [group["name"] for group in make_tuner().optimizer.param_groups]
    assert names == ["0", "4", "6"]
    plain = FineTuner(make_model(), make_batches(1), loss_fn=cross_entropy)
    assert type(plain.optimizer) is lrfast.AdamW and plain.progress


# Freezing.


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_frozen_groups_stay_to_the_bit_and_train_when_unfrozen(kind: str) -> None:
    tuner = make_tuner(kind)
    tuner.fit_one_cycle(1, 0.01)  # so that there are momenta, which must not move it either
    for start, freeze in ((2, tuner.freeze), (1, lambda: tuner.freeze_to(-2)), (0, tuner.unfreeze)):
        freeze()
        before = [parameters(tuner, group) for group in range(3)]
        stage = tuner.fit_one_cycle(1, 0.01)
        assert np.isnan(stage.rates).tolist() == [[group < start for group in range(3)]] * STEPS
        moved = [parameters(tuner, group) != before[group] for group in range(3)]
        assert moved == [group >= start for group in range(3)]


@pytest.mark.parametrize("kind", ["sgd", "torch-adamw"])
def test_a_range_test_in_the_middle_leaves_no_trace(kind: str) -> None:
    def run(sweeps: bool) -> FineTuner:
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(1)
        loader = DataLoader(Noisy(), batch_size=4, shuffle=True, generator=torch.Generator())
        tuner = make_tuner(kind, train_loader=loader)
        for freeze in (tuner.freeze, tuner.unfreeze):
            freeze()
            if sweeps:
                before = trace(tuner.model, tuner.optimizer)
                assert tuner.lr_find(num_iter=20).ratios[2] == 1.0
                assert trace(tuner.model, tuner.optimizer) == before
            tuner.fit_one_cycle(2, slice(1e-3, 1e-2))
        return tuner

    plain, swept = run(False), run(True)
    assert (
        trace(swept.model, swept.optimizer)["parameters"]
        == trace(plain.model, plain.optimizer)["parameters"]
    )
    assert swept.history.losses.tolist() == plain.history.losses.tolist()
    assert swept.history.epochs == plain.history.epochs and len(swept.history.stages) == 2


def test_a_range_test_takes_the_tuners_data_and_options(terminal: Any) -> None:
    tuner = make_tuner(progress=True)
    result = tuner.lr_find(num_iter=7, start_lr=1e-3, end_lr=1.0)
    assert (len(result.lrs), result.lrs[0], result.lrs[-1]) == (7, 1e-3, 1.0)
    assert result.notes == ("the loader's 5 batches were cycled for 7 steps",)
    assert "range test" in terminal.take()
    make_tuner(progress=False).lr_find(num_iter=7)
    assert terminal.take() == ""
    assert tuner.history.stages == []


# History.


def test_history_over_stages(tmp_path: Any) -> None:
    tuner = make_tuner("sgd")
    first = tuner.fit_one_cycle(2, 0.05)
    second = tuner.fit(1, schedules.constant(), lr=[0.1, 0.2, 0.3])
    history = tuner.history
    assert history.stages == [first, second]
    assert history.losses.tolist() == [*first.losses, *second.losses]
    assert [row["step"] for row in first.epochs] == [STEPS, 2 * STEPS]
    assert [row["step"] for row in history.epochs] == [STEPS, 2 * STEPS, 3 * STEPS]
    assert all(row.keys() == {"step", "valid_loss", "accuracy"} for row in history.epochs)
    assert history.epochs[-1] == tuner.validate() | {"step": 3 * STEPS}
    assert second.epochs[0]["step"] == STEPS and second.seconds > 0
    history.to_csv(tmp_path / "history.csv")
    with open(tmp_path / "history.csv", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["stage", "step", "loss", "momentum", "lr_0", "lr_1", "lr_2"]
    assert [row[0] for row in rows] == ["one-cycle"] * 10 + ["constant"] * 5
    assert [int(row[1]) for row in rows] == list(range(15))
    assert [float(row[2]) for row in rows] == history.losses.tolist()
    assert first.momentum is not None
    assert [row[3] for row in rows] == [*(str(float(m)) for m in first.momentum), *[""] * 5]
    rates = [[float(rate) for rate in row[4:]] for row in rows]
    assert rates == [*first.rates.tolist(), *second.rates.tolist()]


def test_pickles_of_results_name_no_private_module() -> None:
    tuner = make_tuner("sgd")
    tuner.fit(1, schedules.constant(), lr=0.1)
    for value in (tuner.history, tuner.recipe((1, 1)).stages):
        data = pickle.dumps(value)
        assert not re.search(rb"lrfast\.[.\w]*\._", data), data
        assert repr(pickle.loads(data)) == repr(value)


def test_losses_are_those_before_each_update() -> None:
    weight = nn.Parameter(torch.ones(2, 3, dtype=torch.float64))
    model = nn.Linear(3, 2, bias=False).double()
    model.weight = weight
    batch = (torch.eye(3, dtype=torch.float64), torch.zeros(3, 2, dtype=torch.float64))
    tuner = FineTuner(
        model,
        [batch] * 6,
        loss_fn=lambda outputs, targets: outputs.square().sum() / 2,
        optimizer=lrfast.SGD,
        progress=False,
    )
    stage = tuner.fit(1, schedules.constant(), lr=0.1)
    np.testing.assert_allclose(stage.losses, 3 * 0.9 ** (2 * np.arange(6)), rtol=1e-12)
    assert stage.epochs == ({"step": 6.0},) and tuner.history.epochs == [{"step": 6.0}]


def test_progress_shows_epoch_rate_and_loss(terminal: Any) -> None:
    tuner = make_tuner(progress=True)
    stage = tuner.fit_one_cycle(2, 0.01)
    shown = terminal.take()
    assert "one-cycle" in shown
    assert "epoch=1" in shown and "epoch=2" in shown
    assert f"loss={stage.losses[0]:.4g}" in shown
    assert f"lr={stage.rates[0, -1]:.1e}" in shown and f"lr={stage.rates[-1, -1]:.1e}" in shown
    make_tuner().fit_one_cycle(1, 0.01)
    assert terminal.take() == ""


# Validation.


def test_validation_weighs_batches_by_their_size() -> None:
    whole = make_batches(3)
    valid = [whole[0], whole[1], (whole[2][0][:3], whole[2][1][:3])]
    metrics = {"accuracy": accuracy, "mean": lambda outputs, targets: outputs.mean()}
    tuner = make_tuner(val_loader=valid, metrics=metrics)
    tuner.fit_one_cycle(1, 0.05)
    found = tuner.validate()
    tuner.model.eval()
    with torch.no_grad():
        targets = torch.cat([batch[1] for batch in valid])
        outputs = tuner.model(torch.cat([batch[0] for batch in valid]))
    assert list(found) == ["valid_loss", "accuracy", "mean"] and len(targets) == 19
    assert found["valid_loss"] == pytest.approx(cross_entropy(outputs, targets).item(), rel=1e-6)
    hits = int((outputs.argmax(1) == targets).sum())
    assert found["accuracy"] == pytest.approx(hits / 19, rel=1e-12)
    assert found["mean"] == pytest.approx(outputs.mean().item(), rel=1e-5)


def test_accuracy() -> None:
    outputs = torch.tensor([[0.1, 0.9, 0.0], [0.8, 0.1, 0.0], [0.0, 0.1, 0.2]])
    found = accuracy(outputs, torch.tensor([1, 0, 0]))
    assert found.shape == () and found.item() == pytest.approx(2 / 3)


def test_modes() -> None:
    """Training mode in the loop, evaluation mode for validation, then as before."""
    tuner = make_tuner()
    modes = []

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        modes.append((tuner.model.training, torch.is_grad_enabled()))
        return cross_entropy(outputs, targets)

    tuner.loss_fn = loss_fn
    tuner.model.eval()
    tuner.validate()
    assert not tuner.model.training
    tuner.fit_one_cycle(2, 0.01)
    assert tuner.model.training
    epoch = [(True, True)] * STEPS + [(False, False)] * 2
    assert modes == [(False, False)] * 2 + epoch * 2
    tuner.loss_fn = lambda outputs, targets: boom(outputs)
    with pytest.raises(RuntimeError, match="boom"):
        tuner.validate()
    assert all(module.training for module in tuner.model.modules())


def test_validation_keeps_the_modes_of_parts() -> None:
    tuner = make_tuner()
    tuner.model[1].eval()
    tuner.validate()
    assert [module.training for module in tuner.model] == [True, False] + [True] * 5


# How stages end.


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("kind", ["adamw", "torch-sgd"])
def test_a_loss_that_is_not_finite_ends_the_stage(kind: str, bad: float) -> None:
    tuner = make_tuner(kind)
    first = tuner.fit_one_cycle(1, 0.01)
    tuner.loss_fn = failing(STEPS + 2, lambda loss: loss * bad)
    stage = tuner.fit_one_cycle(3, 0.01)
    assert stage.outcome == "non-finite" and first.outcome == "completed"
    assert len(stage.losses) == len(stage.rates) == STEPS + 2
    assert np.isfinite(stage.losses[:-1]).all() and not np.isfinite(stage.losses[-1])
    assert [row["step"] for row in stage.epochs] == [STEPS, STEPS + 2]
    assert tuner.history.stages == [first, stage]


def test_a_loss_that_is_not_finite_does_not_ruin_the_model() -> None:
    tuner = make_tuner("sgd", loss_fn=failing(3, lambda loss: loss * math.nan))
    tuner.fit_one_cycle(1, 0.01)
    assert all(torch.isfinite(p).all() for p in tuner.model.parameters())


@pytest.mark.parametrize(
    "at",
    [
        1,
        2,
        STEPS + 3,
    ],
)
@pytest.mark.parametrize("kind", ["sgd", "torch-sgd"])
def test_an_exception_leaves_what_was_done_in_the_history(kind: str, at: int) -> None:
    tuner = make_tuner(kind, loss_fn=failing(at, boom))
    with pytest.raises(RuntimeError, match="boom"):
        tuner.fit_one_cycle(3, [0.01, 0.02, 0.03])
    (stage,) = tuner.history.stages
    assert stage.losses.shape == (at - 1,) and stage.rates.shape == (at - 1, 3)
    assert stage.momentum is not None and stage.momentum.shape == (at - 1,)
    assert len(stage.epochs) == (at - 1) // STEPS
    assert [group["lr"] for group in tuner.optimizer.param_groups] == [0.01, 0.02, 0.03]
    used = used_rates(tuner.optimizer)
    again = tuner.fit(1, schedules.constant())
    assert used == [[0.01, 0.02, 0.03]] * STEPS and again.outcome == "completed"


# The loop waits for nothing.


def test_no_device_reads() -> None:
    tuners = [make_tuner("sgd"), make_tuner("adamw"), make_tuner("torch-sgd")]
    tuners[1].fit_one_cycle(1, 0.01)  # the product of the betas starts from the count, read once
    plain = make_tuner("adamw", progress=True)
    with NoDeviceReads():
        for tuner in tuners:
            tuner.freeze()
            tuner.fit_one_cycle(2, slice(1e-3, 1e-2))
            tuner.unfreeze()
            tuner.fit_one_cycle(2, slice(1e-3, 1e-2))
        plain.fit_one_cycle(2, 0.01, momentum=None)
    with NoDeviceReads(), pytest.raises(AssertionError, match="reads a value"):
        make_tuner("sgd", loss_fn=failing(3, lambda loss: loss * loss.item())).fit_one_cycle(
            1, 0.01
        )


@pytest.mark.parametrize("kind", OURS)
def test_reads_do_not_grow_with_the_steps(kind: str) -> None:
    counts = []
    for epochs in (1, 4):
        with CountReads() as mode:
            make_tuner(kind).fit_one_cycle(epochs, 0.01)
        counts.append(mode.reads)
    assert counts[0] == counts[1] <= 8  # parameters, at most once each
