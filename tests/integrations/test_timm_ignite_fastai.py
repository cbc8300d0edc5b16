"""Inside timm, Ignite and fastai: the steps that torch's optimizers make there."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from trainers import (
    check_example,
    cross_entropy,
    furthest,
    load,
    make_loader,
    make_model,
    run_example,
    weights,
    with_ours,
    with_theirs,
)

import lrfast
from lrfast import schedules

# timm.


def make_vit() -> nn.Module:
    timm = load("timm")
    torch.manual_seed(0)
    model: nn.Module = timm.models.VisionTransformer(
        img_size=8, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=3
    )
    # The keys' biases have no gradient but rounding errors; in doubles, epsilon covers them.
    return model.double()


@pytest.mark.parametrize("name", ["sgd", "momentum", "adamw", "rmsprop"])
@pytest.mark.parametrize("layer_decay", [None, 0.6])
def test_timms_factory_and_schedulers(name: str, layer_decay: float | None) -> None:
    """Three updates per epoch, with a warm-up per update, against timm's own loop."""
    timm = load("timm")
    from lrfast.integrations import timm as integration

    options = {"lr": 1e-2, "weight_decay": 0.05, "momentum": 0.8, "layer_decay": layer_decay}
    sched = {
        "sched": "cosine",
        "num_epochs": 4,
        "warmup_epochs": 1,
        "warmup_lr": 1e-4,
        "min_lr": 1e-3,
        "step_on_epochs": False,
    }
    images, targets = torch.randn(6, 3, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2] * 2)

    def train(model: nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any) -> nn.Module:
        for update in range(12):
            optimizer.zero_grad()
            cross_entropy(model(images), targets).backward()
            optimizer.step()
            if scheduler is not None:
                scheduler.step_update(update + 1)
        return model

    theirs = make_vit()
    optimizer = timm.optim.create_optimizer_v2(theirs, name, **options)
    scheduler, _ = timm.scheduler.create_scheduler_v2(optimizer, updates_per_epoch=3, **sched)
    train(theirs, optimizer, scheduler)

    ours = make_vit()
    fused = integration.create_optimizer_v2(ours, name, max_grad_norm=None, **options)
    schedule, epochs = integration.create_schedule(fused, 3, **sched)
    fused.set_schedule(schedule)
    assert epochs == 4 and "lr_scale" not in fused.param_groups[0]
    train(ours, fused, None)
    assert type(fused).__module__.startswith("lrfast.")
    assert furthest(weights(ours), weights(theirs)) < 1e-7


def test_timms_train_script_finds_ours_by_name() -> None:
    timm = load("timm")
    from lrfast.integrations import timm as integration

    names = integration.register()
    assert {"lrfastadamw", "lrfastsgd", "lrfastadam"} <= set(names) == set(integration.register())
    args = SimpleNamespace(opt="lrfastadamw", lr=1e-2, weight_decay=0.05, momentum=0.9)
    args.opt_betas, args.layer_decay = (0.8, 0.95), 0.5
    optimizer = timm.optim.create_optimizer(args, make_vit())
    assert type(optimizer) is lrfast.AdamW and optimizer.defaults["betas"] == (0.8, 0.95)
    assert len({group["lr_scale"] for group in optimizer.param_groups}) > 2
    with pytest.raises(ValueError, match=r"opt must be one of .*adamw.*, got 'lamb'"):
        integration.create_optimizer_v2(make_vit(), "lamb")


# As timm's train.py parses them; the rest is left to timm's defaults.
TRAIN_SCRIPT = {
    "opt": "adamw",
    "lr": 1e-2,
    "weight_decay": 0.05,
    "momentum": 0.9,
    "opt_eps": 1e-6,
    "opt_betas": (0.8, 0.95),
    "layer_decay": 0.6,
    "sched": "cosine",
    "sched_on_updates": True,
    "epochs": 4,
    "warmup_epochs": 1,
    "warmup_lr": 1e-4,
    "min_lr": 1e-3,
    "cooldown_epochs": 0,
    "decay_epochs": 30,
    "decay_rate": 0.1,
    "decay_milestones": (90, 180),
    "patience_epochs": 10,
    "lr_cycle_mul": 1.0,
    "lr_cycle_decay": 0.5,
    "lr_cycle_limit": 1,
    "lr_k_decay": 1.0,
    "lr_noise": None,
    "lr_noise_pct": 0.67,
    "lr_noise_std": 1.0,
    "eval_metric": "top1",
    "seed": 42,
    "warmup_prefix": False,
}


def test_timms_train_script_hands_over_its_options() -> None:
    """``optimizer_kwargs`` and ``scheduler_kwargs`` of its arguments, as in its own loop."""
    timm = load("timm")
    from lrfast.integrations import timm as integration

    args = SimpleNamespace(**TRAIN_SCRIPT)
    options, sched = timm.optim.optimizer_kwargs(cfg=args), timm.scheduler.scheduler_kwargs(args)
    theirs = timm.optim.create_optimizer_v2(make_vit(), **options)
    scheduler, _ = timm.scheduler.create_scheduler_v2(theirs, updates_per_epoch=5, **sched)
    ours = integration.create_optimizer_v2(make_vit(), **options)
    schedule, epochs = integration.create_schedule(ours, 5, **sched)
    ours.set_schedule(schedule)
    assert epochs == 4 and ours.defaults["betas"] == (0.8, 0.95) and ours.defaults["eps"] == 1e-6
    for update in range(20):
        rates = [group["lr"] for group in theirs.param_groups]
        assert ours.planned(21).rates[update] == pytest.approx(rates, rel=1e-12)
        scheduler.step_update(update + 1)


def test_timms_schedules_by_epoch() -> None:
    load("timm")
    from lrfast.integrations import timm as integration

    falling = schedules.linear(1.0, 0.0, 10)
    options = {"lr": 0.2, "weight_decay": 0.1, "schedule": falling}
    optimizer = integration.create_optimizer_v2(make_model(), "sgd", **options)
    assert optimizer._schedules == [falling, falling]
    schedule, epochs = integration.create_schedule(
        optimizer, 5, sched="step", num_epochs=6, decay_epochs=2, decay_rate=0.3
    )
    assert isinstance(schedule, schedules.Schedule)
    rates = [round(schedule.at(update), 6) for update in (0, 9, 10, 19, 20, 29)]
    assert epochs == 6 and rates == [1.0, 1.0, 0.3, 0.3, 0.09, 0.09]
    constant, _ = integration.create_schedule(optimizer, 5, sched="none", num_epochs=2)
    assert constant == schedules.constant()
    with pytest.raises(ValueError, match="sched must follow the step alone, got 'plateau'"):
        integration.create_schedule(optimizer, 5, sched="plateau")
    optimizer.param_groups[0]["lr"] = 0.1
    several, _ = integration.create_schedule(optimizer, 5, sched="cosine", min_lr=0.05)
    assert isinstance(several, list) and several[0].at(10**6) == pytest.approx(0.5)


# Ignite.


def test_ignite_takes_the_same_steps_and_finds_a_rate() -> None:
    engine = load("ignite").engine
    from lrfast.integrations.ignite import LRFindHandler

    def run(optimizer_of: Any, **options: Any) -> Any:
        model = make_model()
        optimizer, scheduler = optimizer_of(model)
        trainer = engine.create_supervised_trainer(
            model, optimizer, cross_entropy, output_transform=lambda x, y, y_pred, loss: loss
        )
        finder = LRFindHandler(model, optimizer, progress=False, **options)
        if options:
            finder.attach(trainer)
        trainer.add_event_handler(engine.Events.ITERATION_COMPLETED, lambda: scheduler.step())
        trainer.run(make_loader(), max_epochs=2)
        return model, optimizer, finder

    theirs, _, _ = run(with_theirs)
    ours, plain, _ = run(with_ours)
    assert furthest(weights(ours), weights(theirs)) < 1e-5 and plain.schedule_step == 16
    _, optimizer, finder = run(with_ours, rule="steep", num_iter=20)
    assert optimizer.param_groups[0]["lr"] == finder.results[0].suggestions["steep"].lr != 1e-2
    assert optimizer.schedule_step == 16


# fastai.


def test_fastai_trains_with_ours_as_with_torchs() -> None:
    learners = load("fastai").learner
    from fastai.data.core import DataLoaders
    from fastai.optimizer import OptimWrapper

    from lrfast.integrations import fastai as integration

    def fit(opt_func: Any, find: bool = False) -> Any:
        data = DataLoaders(make_loader(), make_loader())
        body_and_head = [nn.Sequential(*make_model()[:3]), make_model()[3]]
        learner = learners.Learner(
            data,
            nn.Sequential(*body_and_head),
            loss_func=nn.CrossEntropyLoss(),
            opt_func=opt_func,
            splitter=lambda model: [list(part.parameters()) for part in model],
        )
        if find:
            learner.found = integration.lr_find(learner, num_iter=15, progress=False)
        with learner.no_bar(), learner.no_logging():
            learner.freeze()
            learner.fit_one_cycle(1, 1e-2)
            learner.unfreeze()
            learner.fit_one_cycle(2, slice(1e-3, 1e-2), wd=0.1)
        return learner

    theirs = fit(lambda params, **options: OptimWrapper(params, torch.optim.AdamW, **options))
    ours = fit(integration.opt_func())
    assert type(ours.opt.opt) is lrfast.AdamW
    assert furthest(weights(ours.model), weights(theirs.model)) < 2e-4  # bias correction, moving
    tested = fit(integration.opt_func(), find=True)
    assert len(tested.found.lrs) > 3
    assert furthest(weights(tested.model), weights(ours.model)) == 0


# Examples.


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "library", "after"),
    [
        ("accelerate_loop", "accelerate", 2),
        ("ignite_engine", "ignite", 2),
        ("timm_model", "timm", 0),
        ("fastai_learner", "fastai", None),  # some hundred of its own
    ],
)
def test_the_examples(
    name: str,
    library: str,
    after: int | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The steps of the library's own AdamW, scheduler and clipping, and fewer waits."""
    load(library)
    run_example(name, ["--steps", "6"], monkeypatch)
    check_example(capsys.readouterr().out, after)
