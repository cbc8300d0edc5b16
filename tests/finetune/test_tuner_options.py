"""What a fine-tuner does besides: accumulation, clipping, averages, mixed precision, the best."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pytest
import torch
from tiny import OPTIMIZERS, bits, cross_entropy, failing, make_batches
from torch import Tensor, nn
from tuners import STEPS, make_tuner

import lrfast
from lrfast import FineTuner, accuracy, schedules
from lrfast.finetune import Callback


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
    tuners = [smooth_tuner(small, kind, gradient_accumulation_steps=2), smooth_tuner(large, kind)]
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
    for asked, norm in (({}, 0.5), ({"max_grad_norm": 2.0}, 2.0)):
        options = make_tuner(optimizer=make, **asked).optimizer._options
        assert (options.max_grad_norm, options.ema_decay) == (norm, 0.9)
    plain = make_tuner("sgd")
    assert [group["weight_decay"] for group in plain.optimizer.param_groups] == [0.01] * 3
    decayed = make_tuner("sgd", weight_decay=0.5)
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
        tuner.val_loader = valid
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


def test_validation_takes_the_average_of_the_buffers() -> None:
    """By hand, from those that the training starts with, not those of the tuner's beginning."""
    decay = 0.8

    class Average(Callback):
        def on_fit_begin(self, tuner: FineTuner) -> None:
            self.mean = {n: value.clone() for n, value in tuner.model.state_dict().items()}

        def on_step_end(self, tuner: FineTuner, step: int, loss: Tensor) -> None:
            for name, value in tuner.model.state_dict().items():
                mean = self.mean[name]
                self.mean[name] = mean.lerp(value, 1 - decay) if value.is_floating_point() else mean

    tuner = make_tuner(ema_decay=decay, callbacks=[Average()], keep_best="valid_loss")
    twin = make_tuner().model
    start = {name: value + 1 for name, value in tuner.model.state_dict().items()}
    tuner.model.load_state_dict(start)
    stage = tuner.fit(1, schedules.constant(), lr=0.05)
    mean = tuner.callbacks[0].mean  # type: ignore[attr-defined]
    twin.load_state_dict(mean)
    twin.eval()
    with torch.no_grad():
        losses = [cross_entropy(twin(x), t).item() for x, t in make_batches(2)]
    assert stage.epochs[0]["valid_loss"] == pytest.approx(sum(losses) / 2, rel=1e-5)
    tuner.restore_best()
    for name, value in tuner.model.named_buffers():
        if value.is_floating_point():
            torch.testing.assert_close(value, mean[name])


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
    tuner = make_tuner("sgd", keep_best=keep, best_mode=mode, ema_decay=ema)
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
        make_tuner("sgd").restore_best()
    with pytest.raises(ValueError, match="restore_best needs a validated epoch, got none"):
        make_tuner("sgd", keep_best="accuracy").restore_best()


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


# The schedules of the stages by name.


def test_stages_by_name_have_the_schedules_of_that_name() -> None:
    """One rule for both: where a phase begins, and that the end is hit at the last step."""
    for pct_start in (0.0, 0.4, 0.75, 0.9, 1.0):
        stage = make_tuner("sgd").fit_flat_cos(3, 0.1, pct_start=pct_start, final_div_factor=50.0)
        schedule = schedules.flat_cosine(3 * STEPS, pct_start, 1 / 50)
        assert stage.rates[:, 0].tolist() == (0.1 * schedule.values(range(3 * STEPS))).tolist()
    stage = make_tuner("sgd").fit_sgdr(3, 2, 0.1, cycle_mult=1.3, eta_min=0.2)
    schedule = schedules.sgdr(2 * STEPS, 1.3, 3, 0.2, unit=STEPS)
    assert len(stage.losses) == schedule.total_steps == (2 + 3 + 3) * STEPS
    assert stage.rates[:, 0].tolist() == (0.1 * schedule.values(range(8 * STEPS))).tolist()
