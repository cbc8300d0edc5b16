"""What a fine-tuner does besides: accumulation, clipping, averages, mixed precision, the best."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pytest
import torch
from test_no_device_reads import NoDeviceReads
from tiny import OPTIMIZERS, OURS, bits, cross_entropy, failing, make_batches, make_model
from torch import Tensor, nn

import lrfast
from lrfast import FineTuner, accuracy, schedules
from lrfast.finetune import Callback, EarlyStop

STEPS = 5


def make_tuner(kind: str = "sgd", **options: Any) -> FineTuner:
    defaults: dict[str, Any] = {
        "train": make_batches(STEPS),
        "valid": make_batches(2),
        "loss_fn": cross_entropy,
        "optimizer": OPTIMIZERS[kind],
        "metrics": {"accuracy": accuracy},
        "progress": False,
    }
    options = defaults | options
    return FineTuner(make_model(), options.pop("train"), options.pop("valid"), **options)


def smooth_model() -> nn.Module:
    """Without norm and dropout: a mean over rows does not depend on how they are batched."""
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def smooth_tuner(batches: Any, kind: str = "sgd", **options: Any) -> FineTuner:
    train = [(inputs.double(), targets) for inputs, targets in batches]
    return FineTuner(
        smooth_model(),
        train,
        loss_fn=cross_entropy,
        optimizer=OPTIMIZERS[kind],
        progress=False,
        **options,
    )


def weights(tuner: FineTuner) -> list[Tensor]:
    return [p.detach().clone() for p in tuner.model.parameters()]


# Accumulation.


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_window_is_one_large_batch(kind: str) -> None:
    """Also the last one of an epoch, which is short: 5 batches in windows of 2, 2 and 1."""
    small = make_batches(5, 4)
    large = [
        tuple(torch.cat(parts) for parts in zip(*small[i : i + 2], strict=True)) for i in (0, 2, 4)
    ]
    tuners = [smooth_tuner(small, kind, accumulate=2), smooth_tuner(large, kind)]
    stages = [tuner.fit_one_cycle(3, [0.05, 0.2]) for tuner in tuners]
    assert tuners[0].epoch_steps == 3 and len(stages[0].losses) == 9
    np.testing.assert_allclose(stages[0].losses, stages[1].losses, rtol=1e-10)
    for one, other in zip(weights(tuners[0]), weights(tuners[1]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    assert stages[0].rates.tolist() == stages[1].rates.tolist()


# Clipping.


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_clipping_is_torchs(kind: str) -> None:
    norm = 0.05
    losses = []
    for which in (kind, f"torch-{kind}"):
        tuner = smooth_tuner(make_batches(5), which, max_grad_norm=norm)
        losses.append(tuner.fit_one_cycle(3, 0.3, momentum=None).losses)
    np.testing.assert_allclose(*losses, rtol=1e-6)
    free = smooth_tuner(make_batches(5), kind).fit_one_cycle(3, 0.3, momentum=None).losses
    assert abs(free - losses[0]).max() > 1e-3


def test_options_of_the_optimizer_stay_unless_asked_for() -> None:
    make = functools.partial(lrfast.SGD, lr=0.1, max_grad_norm=0.5, ema_decay=0.9)
    tuner = make_tuner(optimizer=make)
    assert (tuner.optimizer._options.max_grad_norm, tuner.optimizer._options.ema_decay) == (
        0.5,
        0.9,
    )
    tuner = make_tuner(optimizer=make, max_grad_norm=2.0)
    assert (tuner.optimizer._options.max_grad_norm, tuner.optimizer._options.ema_decay) == (
        2.0,
        0.9,
    )
    assert [group["weight_decay"] for group in make_tuner().optimizer.param_groups] == [0.01] * 3
    decayed = make_tuner(weight_decay=0.5)
    assert [group["weight_decay"] for group in decayed.optimizer.param_groups] == [0.5] * 3


# Averages.


def test_validation_takes_the_average() -> None:
    """By hand: the average of the weights after each step, from those before the first."""
    decay = 0.8

    class Average(Callback):
        def on_fit_begin(self, tuner: FineTuner) -> None:
            self.mean = weights(tuner)

        def on_step_end(self, tuner: FineTuner, step: int, loss: Tensor) -> None:
            now = weights(tuner)
            self.mean = [
                decay * mean + (1 - decay) * p for mean, p in zip(self.mean, now, strict=True)
            ]

    average = Average()
    valid = [(inputs.double(), targets) for inputs, targets in make_batches(2)]
    found = {}
    for validate_ema in (True, False):
        tuner = smooth_tuner(
            make_batches(5), ema_decay=decay, validate_ema=validate_ema, callbacks=[average]
        )
        tuner.valid = valid
        stage = tuner.fit(1, schedules.constant(), lr=0.5)
        last = weights(tuner)
        assert tuner.validate()["valid_loss"] == stage.epochs[0]["valid_loss"]
        found[validate_ema] = stage.epochs[0]["valid_loss"]
        assert bits(weights(tuner)) == bits(last)  # swapped back
    model = smooth_model()
    for values, wanted in ((average.mean, found[True]), (last, found[False])):
        with torch.no_grad():
            for p, value in zip(model.parameters(), values, strict=True):
                p.copy_(value)
            loss = sum(len(t) * cross_entropy(model(x), t).item() for x, t in valid) / 16
        assert wanted == pytest.approx(loss, rel=1e-12)
    assert found[True] != pytest.approx(found[False], rel=1e-3)


# Mixed precision.


@pytest.mark.parametrize("amp", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_forward_passes_run_in_the_type(kind: str, amp: torch.dtype) -> None:
    tuner = make_tuner(kind, amp=amp)
    seen = set()
    tuner.model[0].register_forward_hook(lambda module, args, output: seen.add(output.dtype))
    stage = tuner.fit_one_cycle(3, 0.05, momentum=None)
    tuner.validate()
    assert seen == {amp} and (tuner.scaler is not None) == (amp is torch.float16)
    plain = make_tuner(kind)
    torch.manual_seed(0)
    assert np.isfinite(stage.losses).all() and stage.losses[-1] < stage.losses[0]
    assert tuner.lr_find(num_iter=6).outcome == "completed" and seen == {amp}
    assert plain.scaler is None


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_skipped_step_counts_nowhere(kind: str) -> None:
    tuner = make_tuner(kind, amp=torch.float16)
    tuner.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24, growth_interval=1000)
    steps: list[int] = []

    class Note(Callback):
        def on_step_end(self, tuner: FineTuner, step: int, loss: Tensor) -> None:
            steps.append(step)

    tuner.callbacks = [Note()]
    before = weights(tuner)
    stage = tuner.fit_one_cycle(3, 0.05)
    halvings = round(math.log2(2.0**24 / tuner.scaler.get_scale()))
    assert halvings >= 2 and steps == list(range(1, 16))
    assert len(stage.losses) == 15 - halvings and stage.epochs[-1]["step"] == 15 - halvings
    wanted = schedules.one_cycle(15).values(range(15 - halvings)) * 0.05
    np.testing.assert_allclose(stage.rates[:, 0], wanted, rtol=1e-13)
    assert bits(weights(tuner)) != bits(before) and stage.outcome == "completed"


@pytest.mark.parametrize("kind", ["adamw", "torch-sgd"])
def test_a_loss_that_is_not_finite_ends_a_scaled_stage_too(kind: str) -> None:
    tuner = make_tuner(kind, amp=torch.float16)
    tuner.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    tuner.loss_fn = failing(4, lambda loss: loss * math.nan)
    stage = tuner.fit_one_cycle(2, 0.05)
    assert stage.outcome == "non-finite" and len(stage.losses) == 4
    assert all(torch.isfinite(p).all() for p in tuner.model.parameters())
    with pytest.raises(ValueError, match="resume needs an interrupted stage"):
        tuner.resume()


# The best model.


@pytest.mark.parametrize(
    ("keep", "mode", "pick"),
    [("valid_loss", None, min), ("accuracy", None, max), ("valid_loss", "max", max)],
)
@pytest.mark.parametrize("ema", [None, 0.5])
def test_the_best_model_comes_back(keep: str, mode: Any, pick: Any, ema: float | None) -> None:
    tuner = make_tuner(keep_best=keep, best_mode=mode, ema_decay=ema)
    tuner.fit(6, schedules.constant(), lr=0.8)
    found = [row[keep] for row in tuner.history.epochs]
    best = pick(found)
    assert tuner.best is not None and tuner.best.value == best
    assert found[-1] != best or ema is not None
    tuner.restore_best()
    tuner.validate_ema = False  # the averaged weights are the model's own now
    assert tuner.validate()[keep] == best


def test_no_best_model() -> None:
    with pytest.raises(ValueError, match='keep_best must be given to the FineTuner, as "valid_los'):
        make_tuner().restore_best()
    with pytest.raises(ValueError, match="restore_best needs a validated epoch, got none"):
        make_tuner(keep_best="accuracy").restore_best()


# Losses of other kinds.


class OwnLoss(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return {"loss": cross_entropy(self.head(self.body(inputs)), targets)}


def test_losses_of_other_kinds() -> None:
    losses = []
    for options in (
        {},
        {"compute_loss": lambda model, batch: model(*batch)["loss"]},
    ):
        torch.manual_seed(6)
        tuner = FineTuner(OwnLoss(), make_batches(3), make_batches(2), progress=False, **options)
        stage = tuner.fit_one_cycle(2, slice(1e-3, 1e-2))
        losses.append((stage.losses.tolist(), stage.epochs))
        assert set(stage.epochs[0]) == {"step", "valid_loss"}
        assert len(tuner.lr_find(num_iter=5).losses) == 5
    assert losses[0] == losses[1]


def test_several_inputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return self.left(left) - self.right(right)

    batches = [(x, 0.5 * x, t) for x, t in make_batches(3)]
    tuner = FineTuner(
        Two(),
        batches,
        batches,
        loss_fn=cross_entropy,
        metrics={"accuracy": accuracy},
        progress=False,
    )
    tuner.fit_one_cycle(4, 0.1)
    rows = tuner.history.epochs
    assert rows[-1]["valid_loss"] < rows[0]["valid_loss"] and 0 <= rows[-1]["accuracy"] <= 1


# Nothing waits.

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bf16": {"amp": torch.bfloat16, "accumulate": 2},
    "fp16": {"amp": torch.float16, "accumulate": 2, "max_grad_norm": 0.5},
    "all": {"ema_decay": 0.9, "max_grad_norm": 0.5, "keep_best": "accuracy", "progress": True},
}


class Losses(Callback):
    def __init__(self) -> None:
        self.losses: list[Tensor] = []

    def on_step_end(self, tuner: FineTuner, step: int, loss: Tensor) -> None:
        assert not loss.requires_grad
        self.losses.append(loss)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("kind", [*OURS, "torch-sgd"])
def test_no_step_reads_from_the_device(kind: str, options: dict[str, Any]) -> None:
    if kind not in OURS:  # torch's own scaled step reads, and keeps no average
        options = {k: v for k, v in options.items() if k not in ("amp", "ema_decay")}
    losses = Losses()
    stop = EarlyStop(patience=9)
    tuner = make_tuner(kind, callbacks=[losses, stop], **options)
    # The product of the betas starts from the count, and a curve's length from the device's own
    # count where steps may be skipped: reads that do not grow with the steps.
    tuner.fit_one_cycle(1, 0.01)
    reads = ReadsOfSteps()
    tuner.callbacks.append(reads)
    losses.losses.clear()
    with reads.mode:
        stage = tuner.fit_one_cycle(3, 0.01, timetable={0: -1, 2: 0})
    assert reads.steps == 3 * tuner.epoch_steps
    assert stage.losses.tolist() == [loss.item() for loss in losses.losses]


class ReadsOfSteps(Callback):
    """Lets reads pass from the end of an epoch's steps to the start of the next one's."""

    def __init__(self) -> None:
        self.mode = Strict()
        self.steps = 0

    def on_fit_begin(self, tuner: FineTuner) -> None:
        self.mode.is_strict = True

    def on_epoch_begin(self, tuner: FineTuner, epoch: int) -> None:
        self.mode.is_strict = True

    def on_step_end(self, tuner: FineTuner, step: int, loss: Tensor) -> None:
        self.steps += 1
        self.mode.is_strict = step % tuner.epoch_steps != 0


class Strict(NoDeviceReads):
    is_strict = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.is_strict:
            return super().__torch_dispatch__(func, types, args, kwargs)
        return func(*args, **(kwargs or {}))


def test_a_callback_that_reads_is_caught() -> None:
    class Reader(Callback):
        def on_step_end(self, tuner: FineTuner, step: int, loss: Tensor) -> None:
            loss.item()

    reads = ReadsOfSteps()
    with reads.mode, pytest.raises(AssertionError, match="reads a value"):
        make_tuner(callbacks=[reads, Reader()]).fit_one_cycle(1, 0.01, momentum=None)


# Bad arguments.

BAD: list[tuple[dict[str, Any], str]] = [
    ({"accumulate": 0}, "accumulate must be a whole number, 1 or more, got 0"),
    ({"accumulate": 1.5}, "accumulate must be a whole number, 1 or more, got 1.5"),
    (
        {"amp": torch.float64},
        "amp must be torch.bfloat16, torch.float16 or None, got torch.float64",
    ),
    ({"amp": True}, "amp must be torch.bfloat16, torch.float16 or None, got True"),
    ({"max_grad_norm": 0.0}, "max_grad_norm must be finite and above 0, or None, got 0.0"),
    (
        {"max_grad_norm": -1.0, "optimizer": torch.optim.SGD},
        "max_grad_norm must be finite and above 0, or None, got -1.0",
    ),
    ({"ema_decay": 1.0}, r"ema_decay must be within \[0, 1\), or None, got 1.0"),
    (
        {"ema_decay": 0.9, "optimizer": torch.optim.AdamW},
        "ema_decay must be None with AdamW of torch.optim, which keeps no average, got 0.9",
    ),
    ({"keep_best": "f1"}, "keep_best must be one of valid_loss, accuracy, got 'f1'"),
    ({"keep_best": "accuracy", "valid": None}, "keep_best needs validation data, got valid=None"),
    (
        {"keep_best": "accuracy", "best_mode": "low"},
        "mode must be 'min', 'max' or None, got 'low'",
    ),
    ({"loss_fn": None}, "metrics need loss_fn"),
    ({"compute_loss": lambda model, batch: 0}, "pass either loss_fn.*got both"),
    ({"train": []}, "train must hold at least one batch, got none"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_tuner(**options)


def test_nothing_to_train() -> None:
    tuner = make_tuner()
    for group in tuner.optimizer.param_groups:
        group["frozen"] = True
    before = [group["lr"] for group in tuner.optimizer.param_groups]
    with pytest.raises(ValueError, match=r"fit needs a layer group that trains.*unfreeze\(\)"):
        tuner.fit_one_cycle(1, 0.1)
    model = make_model().requires_grad_(False)
    tuner = FineTuner(model, make_batches(1), loss_fn=cross_entropy, progress=False)
    with pytest.raises(ValueError, match="fit needs a layer group that trains"):
        tuner.fit(1, schedules.constant())
    assert before == [0.05] * 3 and tuner.history.stages == []
    tuner.fit(2, schedules.constant(), timetable={0: -1})


@pytest.mark.parametrize(
    ("timetable", "message"),
    [
        ({2: 0}, "timetable must name epochs from 0 to 1, got 2"),
        ({-1: 0}, "timetable must name epochs from 0 to 1, got -1"),
        ({"a": 0}, "timetable must name epochs from 0 to 1, got 'a'"),
        ({0: 3}, "timetable must name layer groups from -3 to 2, got 3"),
        ({1: True}, "timetable must name layer groups from -3 to 2, got True"),
    ],
)
def test_bad_timetables(timetable: Any, message: str) -> None:
    tuner = make_tuner()
    with pytest.raises(ValueError, match=message):
        tuner.fit(2, schedules.constant(), lr=0.7, timetable=timetable)
    assert [group["lr"] for group in tuner.optimizer.param_groups] == [0.05] * 3
