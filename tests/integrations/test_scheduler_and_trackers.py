"""The scheduler's face, Accelerate, torch's weight averaging, trackers and data frames."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from trainers import (
    NullOptimizer,
    Reads,
    cross_entropy,
    furthest,
    load,
    make_loader,
    make_model,
    weights,
    with_ours,
    with_theirs,
)

import lrfast
from lrfast import schedules
from lrfast._utils.async_copy import AsyncHostQueue
from lrfast.integrations import trackers
from lrfast.integrations.scheduler import DeviceScheduler

# The scheduler's face.


def make_scheduled(**options: Any) -> tuple[nn.Module, lrfast.AdamW, DeviceScheduler]:
    model = make_model()
    optimizer = lrfast.AdamW(lrfast.discriminative(model, slice(1e-4, 1e-2)), **options)
    return model, optimizer, DeviceScheduler(optimizer, schedules.one_cycle(10))


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    inputs, targets = next(iter(make_loader()))
    cross_entropy(model(inputs), targets).backward()
    optimizer.step()


def test_a_scheduler_says_what_the_device_does() -> None:
    model, optimizer, scheduler = make_scheduled()
    assert isinstance(scheduler, torch.optim.lr_scheduler.LRScheduler)
    for _ in range(12):
        rates = scheduler.get_last_lr()
        assert rates == pytest.approx(optimizer.get_last_lr()) and rates == scheduler.get_lr()
        step(model, optimizer)
        assert optimizer.last_rates.tolist() == pytest.approx(rates)
        scheduler.step()
    with Reads() as reads:
        scheduler.get_last_lr()
        scheduler.step()
    assert reads.count == 0
    assert scheduler.base_lrs == [group["lr"] for group in optimizer.param_groups]


def test_a_scheduler_goes_on_from_a_checkpoint() -> None:
    model, optimizer, scheduler = make_scheduled()
    for _ in range(4):
        step(model, optimizer)
        scheduler.step()
    packed = optimizer.state_dict(), scheduler.state_dict()
    _, resumed, _ = make_scheduled()
    again = DeviceScheduler(resumed)
    resumed.load_state_dict(packed[0])
    again.load_state_dict(packed[1])
    assert again.get_last_lr() == scheduler.get_last_lr() == resumed.get_last_lr()
    again.load_state_dict({"last_epoch": 7})  # as one of torch's schedulers has it
    assert again.last_epoch == 7 and again._step_count == 8


@pytest.mark.parametrize("plan", [schedules.cosine(7), schedules.linear(1.0, 0.0, 16)])
def test_another_schedule_in_a_scheduler_goes_on(
    plan: schedules.Schedule, caplog: pytest.LogCaptureFixture
) -> None:
    """With or without a schedule in the optimizer's checkpoint, of another length or kind."""
    model, optimizer, scheduler = make_scheduled()
    for _ in range(4):
        step(model, optimizer)
        scheduler.step()
    for is_sharded in (False, True):
        _, resumed, _ = make_scheduled()
        again = DeviceScheduler(resumed, plan)
        saved = optimizer.state_dict()
        if is_sharded:
            del saved["lrfast"]
            resumed.load_state_dict(saved)
        else:
            with pytest.warns(UserWarning, match="the attached schedule goes on at the saved step"):
                resumed.load_state_dict(saved)
        again.load_state_dict(scheduler.state_dict())
        assert set(resumed.schedules) == {plan} and resumed.schedule_step == again.last_epoch == 4
        wanted = [group["lr"] * plan.at(4) for group in resumed.param_groups]
        assert again.get_last_lr() == resumed.get_last_lr() == wanted
    (told,) = caplog.messages
    assert told.startswith("the attached schedule goes on at the saved step")
    resumed.load_state_dict(optimizer.state_dict(), schedule="saved")
    assert resumed.schedules == optimizer.schedules
    resumed.set_schedule(plan, step=0)  # the user's own now, of whom the choice is asked
    if plan.name == "linear":
        with pytest.raises(ValueError, match='schedule must be "saved" or "own"'):
            resumed.load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("is_former", [False, True])
def test_a_scheduler_brings_the_schedule_where_the_optimizers_checkpoint_has_none(
    is_former: bool,
) -> None:
    """As torch's functions for sharded optimizers leave it, which keep torch's entries alone; also
    from a file of before the entry had the optimizer's own key."""
    model, optimizer, scheduler = make_scheduled()
    for _ in range(4):
        step(model, optimizer)
        scheduler.step()
    saved = optimizer.state_dict()
    del saved["lrfast"]
    other, resumed, again = make_scheduled()
    step(other, resumed)  # as torch does for states to load into
    resumed.load_state_dict(saved)
    packed = scheduler.state_dict()
    if is_former:
        packed = {name: packed[name] for name in ("last_epoch", "_step_count")} | {
            "optimizer": packed["lrfast"]
        }
        with pytest.raises(ValueError, match="optimizer must be a dict, got 3"):
            again.load_state_dict(packed | {"optimizer": 3})
    again.load_state_dict(packed)
    assert resumed.schedule_step == again.last_epoch == 4
    assert resumed.get_last_lr() == optimizer.get_last_lr()


def test_a_scheduler_goes_on_from_a_checkpoint_of_torchs() -> None:
    """Whose param groups hold scheduled learning rates, and whose scheduler the base ones."""
    model = make_model()
    theirs = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    plan = torch.optim.lr_scheduler.CosineAnnealingLR(theirs, 16)
    for _ in range(4):
        step(model, theirs)
        plan.step()
    optimizer, scheduler = with_ours(model)
    optimizer.load_state_dict(theirs.state_dict())
    with pytest.raises(ValueError, match="base_lrs must be one per group, 1, got 2"):
        scheduler.load_state_dict(plan.state_dict() | {"base_lrs": [0.1, 0.2]})
    with pytest.raises(ValueError, match=r"base_lrs must be a finite number.* got 'high'"):
        scheduler.load_state_dict(plan.state_dict() | {"base_lrs": ["high"]})
    assert optimizer.schedule_step == scheduler.last_epoch == 0
    scheduler.load_state_dict(plan.state_dict())
    assert optimizer.schedule_step == scheduler.last_epoch == 4
    assert optimizer.get_last_lr() == pytest.approx(plan.get_last_lr(), rel=1e-12)
    assert scheduler.get_last_lr() == optimizer.get_last_lr()


def test_a_scheduler_needs_an_optimizer_of_ours() -> None:
    theirs = torch.optim.AdamW(make_model().parameters())
    with pytest.raises(TypeError, match=r"one of lrfast, got torch.optim.adamw.AdamW; lrfast.wrap"):
        DeviceScheduler(theirs)


def test_numbers_arrive_late_and_in_order(device: torch.device) -> None:
    reader = AsyncHostQueue()
    for number in range(5):
        values = [torch.full((1,), 2.0 * number, device=device), torch.ones((), device=device)]
        reader.put(number, values)
    assert list(reader.ready(wait=True)) == [(k, [2.0 * k, 1.0]) for k in range(5)]
    assert list(reader.ready()) == []


# Accelerate.


def train_with_accelerate(optimizer_of: Any, accumulate: int, clip: bool, ours: bool) -> Any:
    accelerate = load("accelerate")
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    model = make_model()
    optimizer, scheduler = optimizer_of(model)
    model, optimizer, loader, scheduler = accelerator.prepare(
        model, optimizer, make_loader(), scheduler
    )
    if ours and clip:
        from lrfast.integrations.accelerate import clip_in_step

        clip_in_step(accelerator, optimizer)
    norms = []
    for _ in range(2):
        for inputs, targets in loader:
            with accelerator.accumulate(model):
                accelerator.backward(cross_entropy(model(inputs), targets))
                norm = None
                if clip and accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(model.parameters(), 0.4)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            if norm is not None:
                norms.append(norm.clone())
    return SimpleNamespace(model=model, norms=norms, optimizer=optimizer, accelerator=accelerator)


@pytest.mark.parametrize(("accumulate", "clip"), [(1, True), (2, True), (1, False)])
def test_accelerate_takes_the_same_steps(accumulate: int, clip: bool) -> None:
    ours = train_with_accelerate(with_ours, accumulate, clip, ours=True)
    theirs = train_with_accelerate(with_theirs, accumulate, clip, ours=False)
    assert furthest(weights(ours.model), weights(theirs.model)) < 1e-5
    assert len(ours.norms) == 16 // accumulate * clip
    torch.testing.assert_close(ours.norms, theirs.norms, rtol=1e-4, atol=1e-6)
    assert ours.optimizer.optimizer.schedule_step == 16 // accumulate


def test_accelerates_clipping_where_the_step_cannot_do_it() -> None:
    """Parameters of another model, other norms; infinity only measures."""
    accelerate = load("accelerate")
    from lrfast.integrations.accelerate import clip_in_step

    accelerator = accelerate.Accelerator(cpu=True)
    model, other = make_model(), nn.Linear(2, 1)
    optimizer = accelerator.prepare(lrfast.SGD(model.parameters(), lr=0.1))
    clip_in_step(accelerator, optimizer)
    other(torch.ones(3, 2)).sum().backward()
    assert accelerator.clip_grad_norm_(other.parameters(), 1.0) > 4
    assert torch.linalg.vector_norm(other.weight.grad) < 1
    accelerator.backward(cross_entropy(model(torch.ones(2, 8)), torch.tensor([0, 1])))
    top = max(float(weight.grad.abs().max()) for weight in model.parameters())
    found = accelerator.clip_grad_norm_(model.parameters(), 1.0, norm_type=math.inf)
    assert found == pytest.approx(top)
    assert accelerator.clip_grad_norm_([], 1.0) == 0
    before = weights(model)[0].clone()
    grad = model[0].weight.grad.clone()
    accelerator.clip_grad_norm_(model.parameters(), 1e-3)
    assert torch.equal(model[0].weight.grad, grad)
    optimizer.optimizer.max_grad_norm = None
    norm = accelerator.clip_grad_norm_(model.parameters(), math.inf)
    optimizer.step()
    torch.testing.assert_close(weights(model)[0], before - 0.1 * grad)
    whole = torch.cat([weight.grad.flatten() for weight in model.parameters()])
    assert norm == pytest.approx(float(torch.linalg.vector_norm(whole)))
    optimizer.optimizer.max_grad_norm = 0.25  # its own stays
    accelerator.clip_grad_norm_(model.parameters(), math.inf)
    assert optimizer.optimizer.max_grad_norm == 0.25


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED"])
def test_shards_that_only_accelerate_knows(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    accelerate = load("accelerate")
    from lrfast.integrations.accelerate import clip_in_step, step_can_clip

    accelerator = accelerate.Accelerator(cpu=True)
    monkeypatch.setattr(
        accelerate.Accelerator, "distributed_type", accelerate.DistributedType[kind]
    )
    assert not step_can_clip(accelerator)
    optimizer = lrfast.SGD(make_model().parameters(), lr=0.1)
    with pytest.raises(ValueError, match=f"must not use FSDP 1 or DeepSpeed, .* got {kind}"):
        clip_in_step(accelerator, optimizer)


def test_accelerate_waits_for_nothing_more_than_without_steps() -> None:
    def without_steps(model: nn.Module) -> Any:
        optimizer = NullOptimizer(model.parameters(), lr=0.1)
        return optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer)

    counts = []
    for make in (with_ours, without_steps):
        with Reads() as reads:
            train_with_accelerate(make, 1, clip=True, ours=make is with_ours)
        counts.append(reads.count)
    assert counts[0] == counts[1]


# torch's weight averaging.


def test_torchs_weight_averaging() -> None:
    """AveragedModel, SWALR and update_bn around ours as around torch's."""
    swa = torch.optim.swa_utils

    def run(make: Callable[..., torch.optim.Optimizer]) -> nn.Module:
        model = nn.Sequential(make_model(), nn.BatchNorm1d(3))
        optimizer = make(model.parameters(), lr=0.05, momentum=0.9)
        averaged = swa.AveragedModel(model)
        scheduler = swa.SWALR(optimizer, swa_lr=0.01, anneal_epochs=3)
        for _ in range(6):
            for inputs, targets in make_loader():
                optimizer.zero_grad()
                cross_entropy(model(inputs), targets).backward()
                optimizer.step()
            scheduler.step()
            averaged.update_parameters(model)
        swa.update_bn(make_loader(), averaged)
        return averaged

    ours, theirs = run(lrfast.SGD), run(torch.optim.SGD)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-4, atol=1e-5, msg=name)


# Trackers and data frames.


def make_tuner(log: trackers.Log, every: int = 3) -> lrfast.FineTuner:
    return lrfast.FineTuner(
        make_model(),
        list(make_loader()),
        list(make_loader()),
        loss_fn=cross_entropy,
        metrics={"accuracy": lrfast.accuracy},
        callbacks=[trackers.Tracking(log, every)],
        progress=False,
    )


def test_tracking_logs_what_the_history_has() -> None:
    rows: list[tuple[int, dict[str, float]]] = []
    run = SimpleNamespace(log=lambda data, step: rows.append((step, data)))
    tuner = make_tuner(trackers.to_run(run))
    tuner.fit_one_cycle(2, 1e-2)
    tuner.fit_one_cycle(1, 1e-3)
    losses = tuner.history.losses
    rates = np.concatenate([stage.rates for stage in tuner.history.stages])
    steps = [(step, row) for step, row in rows if "loss" in row]
    assert [step for step, _ in steps] == [3, 6, 9, 12, 15, 19, 22]
    for step, row in steps:
        assert row["loss"] == pytest.approx(losses[step - 1])
        assert row["lr_0"] == pytest.approx(rates[step - 1, 0])
    ends = [(step, row) for step, row in rows if "valid_loss" in row]
    assert [step for step, _ in ends] == [8, 16, 24] and "accuracy" in ends[0][1]
    with pytest.raises(ValueError, match="every must be a whole number, 1 or more, got 0"):
        make_tuner(trackers.to_run(run), every=0)


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:tensorboard")
def test_tracking_in_tensorboard(tmp_path: Path) -> None:
    load("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        log = trackers.to_tensorboard(writer)
        tuner = make_tuner(log)
        tuner.fit_one_cycle(1, 1e-2)
        found = tuner.lr_find(num_iter=8)
        trackers.log_range_test(found, log)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert {"loss", "lr_0", "valid_loss", "accuracy"} <= set(events.Tags()["scalars"])
    written = [event.value for event in events.Scalars("range_test/lr")]
    assert written == pytest.approx(found.lrs.tolist())
    assert [event.step for event in events.Scalars("loss")] == [3, 6]


def test_data_frames(tmp_path: Path) -> None:
    load("pandas")
    from lrfast.integrations import tables

    tuner = make_tuner(lambda values, step: None)
    assert tables.steps(tuner.history).empty and tables.epochs(tuner.history).empty
    tuner.freeze()
    tuner.fit_one_cycle(1, 1e-2)
    tuner.unfreeze()
    tuner.fit_one_cycle(1, 1e-3)
    steps = tables.steps(tuner.history)
    assert list(steps.columns[:3]) == ["stage", "loss", "momentum"] and len(steps) == 16
    assert steps["loss"].tolist() == tuner.history.losses.tolist()
    assert steps["lr_0"][:8].isna().all() and steps["lr_0"][8:].notna().all()
    assert tables.epochs(tuner.history).index.tolist() == [8.0, 16.0]
    found = tuner.lr_find(num_iter=12)
    points = tables.points(found)
    assert points.index.tolist() == found.lrs.tolist()
    assert points["smoothed"].tolist() == found.smoothed.tolist()
    rules = tables.suggestions(found)
    assert set(rules.index) == set(found.suggestions) and rules["lr"].dtype == np.float64
