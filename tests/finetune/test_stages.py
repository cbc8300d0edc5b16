"""The stages by name, callbacks and early stops."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from tiny import OPTIMIZERS, cross_entropy, make_batches, trace, used_rates
from torch import Tensor, nn
from tuners import STEPS, Scripted, make_tuner

import lrfast
from lrfast import FineTuner, schedules
from lrfast.finetune import Callback, EarlyStop
from lrfast.groups import gradual
from lrfast.schedules._schedule import cycle_ends

# The stages by name.


def cosine(u: Any) -> Any:
    return (1 + np.cos(np.pi * u)) / 2


def test_flat_cosine() -> None:
    tuner = make_tuner("sgd")
    stage = tuner.fit_flat_cos(4, [0.1, 0.2, 0.4], pct_start=0.75, final_div_factor=100.0)
    falls = 0.01 + 0.99 * cosine(np.arange(5) / 4)
    wanted = np.concatenate([np.ones(15), falls])
    np.testing.assert_allclose(stage.rates, np.outer(wanted, (0.1, 0.2, 0.4)), rtol=1e-12)
    assert (stage.name, stage.momentum) == ("flat-cosine", None)
    assert stage.rates[15, 0] == 0.1 and stage.rates[-1, 0] == pytest.approx(1e-3, rel=1e-14)
    falling = make_tuner("sgd").fit_flat_cos(1, 1e-3, pct_start=0.0).rates[:, 0]
    assert falling[0] == 1e-3 and falling[-1] == pytest.approx(1e-8, rel=1e-13)
    assert make_tuner("sgd").fit_flat_cos(1, 1e-3, pct_start=1.0).rates[:, 0].tolist() == [1e-3] * 5
    assert make_tuner("sgd", train_loader=make_batches(1)).fit_flat_cos(1, 1e-3).rates[0, 0] == 1e-3


@pytest.mark.parametrize(
    ("cycle_mult", "lengths"), [(2.0, [1, 2, 4]), (1.0, [1, 1, 1]), (1.5, [1, 2, 2])]
)
def test_warm_restarts(cycle_mult: float, lengths: list[int]) -> None:
    stage = make_tuner("sgd").fit_sgdr(3, 1, slice(1e-4, 1e-2), cycle_mult=cycle_mult, eta_min=0.1)
    spans = [n * STEPS for n in lengths]
    spans[-1] -= 1  # the last step is made at the lowest rate
    parts = [
        0.1 + 0.9 * cosine(np.arange(n * STEPS) / m) for n, m in zip(lengths, spans, strict=True)
    ]
    np.testing.assert_allclose(stage.rates[:, 2], 1e-2 * np.concatenate(parts), rtol=1e-12)
    np.testing.assert_allclose(stage.rates[:, 0], stage.rates[:, 2] / 100, rtol=1e-12)
    assert len(stage.epochs) == sum(lengths) and stage.name == "sgdr"
    assert stage.rates[-1, 2] == 1e-2 * 0.1


def test_fine_tune_is_fastais() -> None:
    """Peaks, first and last rates by fastai's formulas, as fractions of the peak."""
    tuner = make_tuner("adamw")
    head, whole = tuner.fine_tune(
        3, 4e-3, freeze_epochs=2, lr_mult=50.0, pct_start=0.4, div_factor=8.0
    )
    assert np.isnan(head.rates[:, :2]).all() and len(head.losses) == 2 * STEPS
    assert head.rates[:, 2].max() == 4e-3 and head.rates[:, 2].argmax() == 9  # 99 % of 10 steps
    assert head.rates[0, 2] == pytest.approx(4e-3 / 25, rel=1e-14)
    np.testing.assert_allclose(whole.rates.max(0), [4e-5, 4e-5 * 50**0.5, 2e-3], rtol=1e-13)
    np.testing.assert_allclose(whole.rates[0], whole.rates.max(0) / 8, rtol=1e-13)
    np.testing.assert_allclose(whole.rates[-1], whole.rates.max(0) / 1e5, rtol=1e-13)
    assert whole.rates[:, 2].argmax() == 0.4 * 15 - 1
    assert whole.momentum is not None
    assert (whole.momentum.max(), whole.momentum.min()) == (0.95, 0.85)


def test_fine_tune_has_fastais_defaults() -> None:
    head, whole = make_tuner("adamw").fine_tune(2)
    assert len(head.losses) == STEPS and head.rates[:, 2].max() == 2e-3
    np.testing.assert_allclose(whole.rates.max(0), [1e-5, 1e-4, 1e-3], rtol=1e-13)
    np.testing.assert_allclose(whole.rates[0], whole.rates.max(0) / 5, rtol=1e-13)
    assert whole.rates[:, 2].argmax() == 0.3 * 10 - 1


def test_gradual_unfreezing() -> None:
    tuner = make_tuner("sgd")
    stage = tuner.fit(4, schedules.constant(), 0.05, timetable={0: -1, 1: 1, 3: 0})
    frozen = [[True, True, False]] + [[True, False, False]] * 2 + [[False] * 3]
    assert np.isnan(stage.rates).tolist() == [row for row in frozen for _ in range(STEPS)]


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_schedule_for_each_group(kind: str) -> None:
    tuner = make_tuner(kind)
    used = used_rates(tuner.optimizer)
    parts = [schedules.linear(0.2, 1.0, 10), schedules.one_cycle(10), schedules.cosine(10)]
    stage = tuner.fit(2, parts, [0.01, 0.02, 0.03])
    wanted = [part.values(range(10)) * rate for part, rate in zip(parts, (1, 2, 3), strict=True)]
    np.testing.assert_allclose(stage.rates, 0.01 * np.stack(wanted, axis=1), rtol=1e-13)
    assert stage.rates.tolist() == used and stage.name == "linear, one-cycle, cosine"
    assert stage.momentum is None
    for bad, error in ((parts[:2], ValueError), ([*parts[:2], 1.0], TypeError), ("x", TypeError)):
        with pytest.raises(error, match=r"schedule.* must be"):
            tuner.fit(2, bad)


@pytest.mark.parametrize(
    ("mode", "moves", "trains"),
    [("train", True, False), ("keep", False, False), ("adapt", True, True)],
)
def test_norms_in_a_frozen_body(mode: Any, moves: bool, trains: bool) -> None:
    tuner = make_tuner("sgd", norm_mode=mode, no_decay=True)
    norm = tuner.model.get_submodule("1")
    tuner.freeze()
    before = [values.clone() for values in (norm.running_mean, norm.weight.detach())]
    body = [p.detach().clone() for p in tuner.model[0].parameters()]
    stage = tuner.fit_one_cycle(2, [0.01, 0.02, 0.04])
    assert torch.equal(norm.running_mean, before[0]) != moves
    assert torch.equal(norm.weight, before[1]) != trains
    assert all(torch.equal(*p) for p in zip(tuner.model[0].parameters(), body, strict=True))
    layers = [group["layer"] for group in tuner.optimizer.param_groups]
    assert layers == [0, 0, *([0] if trains else []), 1, 1, 2, 2]
    # The adapted norm's weights and biases make the third param group.
    runs = np.array([layer == 2 or (trains and i == 2) for i, layer in enumerate(layers)])
    assert (~np.isnan(stage.rates)).all(0).tolist() == runs.tolist()
    peaks = np.array([0.01, 0.02, 0.04])[layers]
    np.testing.assert_allclose(stage.rates[:, runs].max(0), peaks[runs])
    decays = [group["weight_decay"] for group in tuner.optimizer.param_groups]
    assert decays.count(0.0) == len(layers) - 3 and decays[0] == 0.01
    tuner.unfreeze()
    tuner.fit_one_cycle(1, 0.01)
    assert not torch.equal(norm.running_mean, before[0])


def test_a_timetable_object() -> None:
    stage = make_tuner("sgd").fit(3, schedules.constant(), 0.05, timetable=gradual(3))
    wanted = [[True, True, False], [True, False, False], [False] * 3]
    assert np.isnan(stage.rates[::STEPS]).tolist() == wanted


def deep_model() -> nn.Sequential:
    torch.manual_seed(3)
    layers = [nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(11)]
    return nn.Sequential(*layers, nn.Linear(4, 3)).double()


@pytest.mark.parametrize("rule", ["SGD", "AdamW"])
def test_gradual_unfreezing_of_twelve_layers_is_what_torch_does_by_hand(rule: str) -> None:
    """Five stages of one optimizer, whose states outlive them, against torch with schedulers."""
    batches = [(inputs.double(), targets) for inputs, targets in make_batches(10)]
    options = {"momentum": 0.9} if rule == "SGD" else {"betas": (0.8, 0.9)}
    options |= {"weight_decay": 0.05}
    firsts, rates = [-1, -2, -4, -8, 0], np.geomspace(0.01, 0.1, 12).tolist()
    tuner = FineTuner(
        deep_model(),
        batches,
        loss_fn=cross_entropy,
        optimizer=lambda groups: getattr(lrfast, rule)(groups, lr=0.1, **options),
        progress=False,
    )
    ours = tuner.optimizer
    for first in firsts:
        tuner.freeze_to(first)
        tuner.fit_one_cycle(1, slice(0.01, 0.1), momentum=None)
    assert tuner.optimizer is ours and len(ours.param_groups) == 12
    model = deep_model()
    groups = [{"params": list(layer.parameters()), "lr": 0.1} for layer in model]
    optimizer = getattr(torch.optim, rule)(groups, **options)
    losses = []
    for first in firsts:
        for index, layer in enumerate(model):
            layer.requires_grad_(index >= first % 12)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, rates, total_steps=10, pct_start=0.3, cycle_momentum=False
        )
        for inputs, targets in batches:
            optimizer.zero_grad()
            loss = cross_entropy(model(inputs), targets)
            loss.backward()
            optimizer.step()
            with warnings.catch_warnings():  # one call too many at the end
                warnings.simplefilter("ignore")
                scheduler.step()
            losses.append(loss.item())
    np.testing.assert_allclose(tuner.history.losses, losses, rtol=1e-9)
    for one, other in zip(tuner.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-11)


BAD_STAGES: list[tuple[str, tuple[Any, ...], dict[str, Any], str]] = [
    ("fit_flat_cos", (0, 0.1), {}, "epochs must be a whole number, 1 or more, got 0"),
    ("fit_flat_cos", (1, 0.1), {"pct_start": 1.1}, r"pct_start must lie in \[0, 1\], got 1.1"),
    (
        "fit_flat_cos",
        (1, 0.1),
        {"final_div_factor": 0.5},
        "final_div_factor must be finite and 1 or more",
    ),
    ("fit_sgdr", (0, 1, 0.1), {}, "cycles must be a whole number, 1 or more, got 0"),
    ("fit_sgdr", (1, 0, 0.1), {}, "cycle_len must be a whole number, 1 or more, got 0"),
    ("fit_sgdr", (1, 1, 0.1), {"cycle_mult": 0.5}, "cycle_mult must be finite and 1 or more"),
    ("fit_sgdr", (1, 1, 0.1), {"eta_min": -0.5}, "eta_min must be finite and not negative"),
    ("fit_one_cycle", (1, 0.1), {"pct_start": -0.1}, r"pct_start must lie in \[0, 1\], got -0.1"),
    ("fit_one_cycle", (1, [0.1]), {}, "lr must have one rate per group, got 1 for 3 groups"),
    ("fine_tune", (0,), {}, "epochs must be a whole number, 1 or more, got 0"),
    ("fine_tune", (1,), {"freeze_epochs": 0}, "freeze_epochs must be a whole number, 1 or more"),
    ("fine_tune", (1,), {"base_lr": 0.0}, "base_lr must be finite and above 0, got 0.0"),
    ("fine_tune", (1,), {"lr_mult": math.inf}, "lr_mult must be finite and above 0, got inf"),
    ("fine_tune", (1,), {"div_factor": 0.5}, "div_factor must lie within 1 and 100000, got 0.5"),
    ("fine_tune", (1,), {"pct_start": 2.0}, r"pct_start must lie in \[0, 1\], got 2.0"),
]


@pytest.mark.parametrize(("method", "args", "options", "message"), BAD_STAGES)
def test_bad_stages(method: str, args: Any, options: Any, message: str) -> None:
    tuner = make_tuner("sgd")
    before = trace(tuner.model, tuner.optimizer)
    with pytest.raises(ValueError, match=message):
        getattr(tuner, method)(*args, **options)
    assert trace(tuner.model, tuner.optimizer) == before
    assert tuner.history.stages == [] and tuner.running is None


def test_one_group_has_no_head_to_fine_tune() -> None:
    tuner = FineTuner(nn.Linear(4, 3), make_batches(1), loss_fn=cross_entropy, progress=False)
    with pytest.raises(ValueError, match="freeze needs a body before the head, got one"):
        tuner.fine_tune(1)


# Callbacks.


class Log(Callback):
    def __init__(self, name: str, log: list[Any]) -> None:
        self.name, self.log = name, log

    def on_fit_begin(self, tuner: FineTuner) -> None:
        assert tuner.running is not None
        self.log.append((self.name, "fit", tuner.running.is_resumed))

    def on_epoch_begin(self, tuner: FineTuner, epoch: int) -> None:
        assert tuner.model.training
        self.log.append((self.name, "epoch", epoch))

    def on_step_end(self, tuner: FineTuner, step: int, loss: Tensor) -> None:
        self.log.append((self.name, "step", step))

    def on_epoch_end(self, tuner: FineTuner, epoch: int, row: dict[str, float]) -> None:
        assert row == tuner.running.rows[-1] and set(row) == {"step", "valid_loss", "accuracy"}
        self.log.append((self.name, "end", epoch))

    def on_fit_end(self, tuner: FineTuner) -> None:
        assert tuner.running is None
        self.log.append((self.name, "done", tuner.history.stages[-1].outcome))


def test_callbacks_are_called_in_order() -> None:
    log: list[Any] = []
    make_tuner(
        "sgd", train_loader=make_batches(2), callbacks=[Log("a", log), Log("b", log)]
    ).fit_one_cycle(2, 0.01)
    moments = [("fit", False)]
    for epoch in (0, 1):
        moments += [("epoch", epoch)]
        moments += [("step", 2 * epoch + 1), ("step", 2 * epoch + 2), ("end", epoch)]
    moments += [("done", "completed")]
    assert log == [(name, *moment) for moment in moments for name in ("a", "b")]


class StopAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, tuner: FineTuner, step: int, loss: Tensor) -> None:
        if step == self.step:
            tuner.stop()


def test_a_callback_stops_a_stage() -> None:
    log: list[Any] = []
    tuner = make_tuner("sgd", callbacks=[StopAt(7), Log("a", log)])
    stage = tuner.fit_one_cycle(3, 0.01)
    assert stage.outcome == "stopped" and len(stage.losses) == 7
    assert [row["step"] for row in stage.epochs] == [5, 7]
    assert log[-3:] == [("a", "step", 7), ("a", "end", 1), ("a", "done", "stopped")]
    tuner.callbacks = []
    assert tuner.fit_one_cycle(1, 0.01).outcome == "completed"
    with pytest.raises(ValueError, match="resume needs an interrupted stage"):
        tuner.resume()


def test_a_range_test_by_a_callback_changes_nothing() -> None:
    class Tester(Callback):
        def on_step_end(self, tuner: FineTuner, step: int, loss: Tensor) -> None:
            if step == 7:
                assert len(tuner.lr_find(num_iter=5, diverge_threshold=None).losses) == 5

    for kind in OPTIMIZERS:
        runs = []
        for callbacks in ([], [Tester()]):
            torch.manual_seed(0)
            tuner = make_tuner(kind, callbacks=callbacks)
            tuner.fit_one_cycle(3, 0.05)
            runs.append((trace(tuner.model, tuner.optimizer)["parameters"], tuner.history.epochs))
        assert runs[0] == runs[1]


def test_the_flag_still_guards_the_weights_after_a_callbacks_range_test() -> None:
    moved = []

    class Tester(Callback):
        def on_step_end(self, tuner: FineTuner, step: int, loss: Tensor) -> None:
            if step == 2:
                tuner.lr_find(num_iter=5)
                flag = tuner._loop.driver._stop_flag
                for value in (1.0, 0.0):
                    flag.fill_(value)
                    before = [p.detach().clone() for p in tuner.model.parameters()]
                    tuner.optimizer.step()
                    after = tuner.model.parameters()
                    moved.append(any(not torch.equal(*p) for p in zip(before, after, strict=True)))

    make_tuner("sgd", callbacks=[Tester()]).fit_one_cycle(1, 0.05)
    assert moved == [False, True]


# Early stops.


@pytest.mark.parametrize(
    ("values", "options", "epochs"),
    [
        ([1, 2, 1, 2, 2, 9, 9], {"patience": 3}, 5),
        ([1, 2, 1, 3, 2, 2, 9], {"patience": 3}, 7),
        ([1, 1.05, 1.06, 9, 9, 9, 9], {"patience": 2, "min_delta": 0.1}, 3),
        ([5, 4, 4, 3, 3, 3, 1], {"patience": 2, "mode": "min"}, 6),
        ([5, 4.95, 4.92, 1, 1, 1, 1], {"patience": 2, "mode": "min", "min_delta": 0.1}, 3),
        ([math.nan, math.nan, 1, 2, 9, 9, 9], {"patience": 2}, 2),
        ([1, math.nan, math.nan, 9, 9, 9, 9], {"patience": 2}, 3),
        ([1, math.inf, 2, 3, 4, 5, 6], {"patience": 6}, 7),
    ],
)
def test_early_stop(values: list[float], options: dict[str, Any], epochs: int) -> None:
    stop = EarlyStop(monitor="script", **options)
    tuner = make_tuner(
        "sgd", val_loader=make_batches(1), metrics={"script": Scripted(values)}, callbacks=[stop]
    )
    stage = tuner.fit_one_cycle(7, 0.01)
    assert len(stage.epochs) == epochs
    assert stage.outcome == ("completed" if epochs == 7 else "stopped")


@pytest.mark.parametrize(
    ("values", "epochs", "best"),
    [([5, 9, 4, 9, 9, 9, 4.5], 7, 4), ([5, 9, 6], 3, 5), ([5, 1, 4, 1, 1, 1, 3], 7, 3)],
)
def test_until_overfitting_looks_at_the_ends_of_cycles(
    values: list[float], epochs: int, best: float
) -> None:
    """Cycles of 1, 2 and 4 epochs end at epochs 1, 3 and 7; what lies between does not count."""
    stop = EarlyStop(patience=1, monitor="script", mode="min", at="cycle")
    tuner = make_tuner(
        "sgd", val_loader=make_batches(1), metrics={"script": Scripted(values)}, callbacks=[stop]
    )
    stage = tuner.fit_sgdr(3, 1, 0.01)
    assert len(stage.epochs) == epochs and stop.best == best
    assert stage.outcome == ("completed" if best == 3 else "stopped")


def test_a_stage_begins_with_nothing_waited_for() -> None:
    stop = EarlyStop(patience=1, monitor="script")
    script = Scripted([5.0, 1.0, 1.0, 0.5, 9.0])
    tuner = make_tuner(
        "sgd", val_loader=make_batches(1), metrics={"script": script}, callbacks=[stop]
    )
    assert len(tuner.fit_one_cycle(3, 0.01).epochs) == 2
    assert len(tuner.fit_one_cycle(3, 0.01).epochs) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patience": 0}, "patience must be a whole number, 1 or more, got 0"),
        ({"min_delta": -1.0}, "min_delta must be finite and not negative, got -1.0"),
        ({"at": "step"}, "at must be 'epoch' or 'cycle', got 'step'"),
        ({"mode": "low"}, "mode must be 'min', 'max' or None, got 'low'"),
    ],
)
def test_bad_early_stops(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EarlyStop(**options)


def test_what_is_monitored_must_be_measured() -> None:
    tuner = make_tuner("sgd", callbacks=[EarlyStop(monitor="f1")])
    with pytest.raises(ValueError, match=r"measures \(accuracy, valid_loss\), got 'f1'"):
        tuner.fit_one_cycle(2, 0.01)


def test_cycle_ends() -> None:
    S = schedules
    assert cycle_ends(S.one_cycle(20), 20).tolist() == [20]
    assert cycle_ends(S.constant(), 7).tolist() == [7]
    assert cycle_ends(S.cosine(5).then(S.cosine(10)), 15).tolist() == [5, 15]
    zigzag = S.linear(0, 1, 3).then(S.linear(1, 0, 3)).then(S.linear(0, 1, 3))
    assert cycle_ends(zigzag.then(S.linear(1, 0, 3)), 12).tolist() == [7, 12]
    assert cycle_ends(S.linear(1, 0, 3).then(S.linear(0, 0, 4)).then(S.cosine(3)), 10).tolist() == [
        *(7, 10)
    ]
