"""Inside Hugging Face's Trainer: the steps of its own AdamW and schedulers, and fewer waits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from trainers import NullOptimizer, Reads, check_example, furthest, load, run_example

load("accelerate")
transformers = load("transformers")

from huggingface_runs import STEPS, losses, make_model, make_trainer, train  # noqa: E402

import lrfast  # noqa: E402
from lrfast import schedules  # noqa: E402
from lrfast.integrations import huggingface  # noqa: E402
from lrfast.integrations.scheduler import DeviceScheduler  # noqa: E402


@pytest.mark.one_row
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lr_scheduler_type": "cosine", "gradient_accumulation_steps": 2, "warmup_steps": 0},
        {"lr_scheduler_type": "constant_with_warmup", "max_grad_norm": 0.0},
        {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": 2.0}},
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-4}},
        {"lr_scheduler_type": "inverse_sqrt", "label_smoothing_factor": 0.1},
    ],
    ids=["linear", "cosine", "constant", "polynomial", "min-lr", "inverse-sqrt"],
)
def test_it_takes_the_steps_of_trainers_own(tmp_path: Path, options: dict[str, Any]) -> None:
    theirs = train(make_trainer(tmp_path, **options))
    ours = train(huggingface.use(make_trainer(tmp_path, **options)))
    assert type(ours.optimizer.optimizer) is lrfast.AdamW
    assert type(ours.lr_scheduler) is DeviceScheduler
    start = furthest(theirs.model.parameters(), make_model().parameters())
    assert furthest(ours.model.parameters(), theirs.model.parameters()) < 2e-5 < start / 100
    compared = ("loss", "grad_norm", "learning_rate")
    for mine, other in zip(ours.state.log_history, theirs.state.log_history, strict=True):
        assert mine.keys() == other.keys()
        for key in set(compared) & mine.keys():
            assert mine[key] == pytest.approx(other[key], rel=2e-4), key


def test_by_trainers_own_arguments(tmp_path: Path) -> None:
    """``optimizers=`` and ``optimizer_cls_and_kwargs=``, without ``use``."""
    theirs = train(make_trainer(tmp_path))
    by_class = make_trainer(tmp_path)
    by_class.optimizer_cls_and_kwargs = huggingface.optimizer_cls_and_kwargs(by_class.args)
    train(by_class)
    assert type(by_class.optimizer.optimizer) is lrfast.AdamW
    assert furthest(by_class.model.parameters(), theirs.model.parameters()) < 2e-5

    given = make_trainer(tmp_path)
    cls, options = huggingface.optimizer_cls_and_kwargs(given.args)
    decayed = set(given.get_decay_parameter_names(given.model))
    named = list(given.model.named_parameters())
    groups = [
        {"params": [p for n, p in named if n in decayed], "weight_decay": 0.1},
        {"params": [p for n, p in named if n not in decayed], "weight_decay": 0.0},
    ]
    given.optimizer = cls(groups, **options)
    schedule = huggingface.schedule_of(given.args, STEPS)
    given.lr_scheduler = DeviceScheduler(given.optimizer, schedule)
    train(given)
    assert furthest(given.model.parameters(), theirs.model.parameters()) < 2e-5
    with_eps = [lrfast.Adam, lrfast.Adamax, lrfast.NAdam, lrfast.RAdam]
    for cls in [*with_eps, lrfast.Lion, lrfast.SGD]:
        _, options = huggingface.optimizer_cls_and_kwargs(given.args, cls)
        assert options.keys() == {"lr"} | ({"betas", "eps"} if cls in with_eps else set())


@pytest.mark.parametrize(
    "kind",
    [kind.value for kind in transformers.SchedulerType],
)
def test_schedules_are_theirs(tmp_path: Path, kind: str) -> None:
    options = {
        "warmup_stable_decay": {"num_decay_steps": 20, "min_lr_ratio": 0.1},
        "cosine_with_min_lr": {"min_lr_rate": 0.1},
        "cosine_warmup_with_min_lr": {"min_lr_rate": 0.1, "warmup_lr_rate": 0.01},
    }.get(kind)
    args = transformers.TrainingArguments(str(tmp_path), use_cpu=True, warmup_steps=7)
    args.lr_scheduler_type, args.lr_scheduler_kwargs = transformers.SchedulerType(kind), options
    if kind in ("reduce_lr_on_plateau", "greedy"):
        with pytest.raises(ValueError, match="lr_scheduler_type must follow the step alone, got"):
            huggingface.schedule_of(args, 60)
        return
    schedule = huggingface.schedule_of(args, 60)
    assert isinstance(schedule, schedules.Schedule)
    stand_in = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=args.learning_rate)
    theirs = transformers.get_scheduler(kind, stand_in, 7, 60, options)
    for step in range(61):
        rate = theirs.get_last_lr()[0]
        assert schedule.at(step) * args.learning_rate == pytest.approx(rate, rel=1e-12, abs=1e-20)
        stand_in.step()
        theirs.step()


def test_schedules_that_follow_a_metric_stay_trainers(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, warmup_steps=0)
    trainer.args.lr_scheduler_type = transformers.SchedulerType("reduce_lr_on_plateau")
    train(huggingface.use(trainer))
    assert type(trainer.lr_scheduler) is torch.optim.lr_scheduler.ReduceLROnPlateau


@pytest.mark.one_row
@pytest.mark.parametrize("at", [4, 8])
def test_resume_gives_the_same_weights(tmp_path: Path, at: int) -> None:
    """In mid-epoch and between two; with an average of the weights, which is in the checkpoint."""
    options = {"save_strategy": "steps", "save_steps": at, "lr_scheduler_type": "cosine"}

    def make() -> Any:
        trainer = make_trainer(tmp_path, **options)
        return huggingface.use(trainer, decay=0.5, ema_decay=0.9)

    whole = train(make())
    resumed = make()
    train(resumed, resume_from_checkpoint=str(tmp_path / f"checkpoint-{at}"))
    assert resumed.state.global_step == STEPS
    for mine, other in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(mine, other)
    packed = [trainer.optimizer.state_dict()["state"] for trainer in (resumed, whole)]
    for mine, other in zip(*(state.values() for state in packed), strict=True):
        assert torch.equal(mine["ema"], other["ema"])
    assert resumed.optimizer.optimizer.schedule_step == STEPS
    assert losses(resumed) == losses(whole)


PLANNED = {"dropout": 0.0, "logging_steps": 1}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Checkpoints of the fourth of 16 steps: Trainer's own, and with ``use``."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("own", "use")}
    saving = PLANNED | {"save_strategy": "steps", "save_steps": 4}
    train(make_trainer(folders["own"], **saving))
    train(huggingface.use(make_trainer(folders["use"], **saving)))
    return {name: str(folder / "checkpoint-4") for name, folder in folders.items()}


@pytest.mark.parametrize("schedule", [None, schedules.one_cycle(20).extend_to(28, 4)])
@pytest.mark.parametrize(
    "changes",
    [
        {"num_train_epochs": 3},
        {"per_device_train_batch_size": 4},
        {"gradient_accumulation_steps": 2, "num_train_epochs": 3},
        {"max_steps": 10},
        {"lr_scheduler_type": "cosine", "warmup_steps": 0},
    ],
    ids=["epochs", "batch", "accumulation", "steps", "type"],
)
def test_resume_with_another_plan(
    tmp_path: Path,
    changes: dict[str, Any],
    schedule: schedules.Schedule | None,
    checkpoints: dict[str, str],
) -> None:
    """Trainer's own scheduler goes on at the saved step, with the length of the new plan."""
    ours = huggingface.use(make_trainer(tmp_path, **PLANNED | changes), schedule=schedule)
    with pytest.warns(UserWarning, match="the attached schedule goes on at the saved step"):
        train(ours, resume_from_checkpoint=checkpoints["use"])
    steps = ours.state.global_step
    assert ours.optimizer.optimizer.schedule_step == steps > 4
    rates = rates_after(4, ours)
    assert len(rates) == steps - 4
    if schedule is None:
        theirs = make_trainer(tmp_path, **PLANNED | changes)
        train(theirs, resume_from_checkpoint=checkpoints["own"])
        assert theirs.state.global_step == steps
        # Trainer's first update still has the old plan's learning rate.
        assert rates[1:] == pytest.approx(rates_after(4, theirs)[1:], rel=1e-6, abs=1e-12)
    plan = schedule or huggingface.schedule_of(ours.args, steps)
    assert rates == pytest.approx([3e-3 * plan.at(k) for k in range(4, steps)])


def rates_after(step: int, trainer: Any) -> list[float]:
    """The learning rates that Trainer has logged with a loss, behind a step."""
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    return [entry["learning_rate"] for entry in logged if entry["step"] > step]


def test_resume_from_a_checkpoint_of_trainers_own(tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 8, "dropout": 0.0, "logging_steps": 1}
    theirs = train(make_trainer(tmp_path, **options))
    ours = huggingface.use(make_trainer(tmp_path, **options))
    train(ours, resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    rates = [
        [e["learning_rate"] for e in trainer.state.log_history if "loss" in e]
        for trainer in (theirs, ours)
    ]
    assert len(rates[0]) == STEPS and rates[1] == pytest.approx(rates[0], rel=1e-6, abs=1e-12)
    assert furthest(ours.model.parameters(), theirs.model.parameters()) < 2e-5


@pytest.mark.one_row
@pytest.mark.parametrize("kind", ["linear", "cosine", "inverse_sqrt", "constant_with_warmup"])
def test_trainers_own_goes_on_from_a_checkpoint(tmp_path: Path, kind: str) -> None:
    """Back to a Trainer without ``use``: its first update has the base learning rate."""
    options = {"lr_scheduler_type": kind, "save_strategy": "steps", "save_steps": 8}
    options |= {"dropout": 0.0, "logging_steps": 1}
    ours = train(huggingface.use(make_trainer(tmp_path, **options)))
    theirs = make_trainer(tmp_path, **options | {"learning_rate": 1e-2})  # the checkpoint's counts
    train(theirs, resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    assert type(theirs.optimizer.optimizer) is torch.optim.AdamW
    rates, losses_ = (
        [[e[key] for e in trainer.state.log_history if "loss" in e] for trainer in (ours, theirs)]
        for key in ("learning_rate", "loss")
    )
    assert len(rates[1]) == STEPS and rates[1][8] == 3e-3
    assert rates[1][9:] == pytest.approx(rates[0][9:], rel=1e-6, abs=1e-12)
    assert losses_[1][8] == pytest.approx(losses_[0][8], rel=1e-5)  # before that update
    if kind == "constant_with_warmup":  # where the base is the scheduled learning rate
        assert furthest(ours.model.parameters(), theirs.model.parameters()) < 2e-5


@pytest.mark.one_row
@pytest.mark.parametrize(
    ("kind", "warmup", "options"),
    [
        ("linear", 0, {}),
        ("linear", 7, {}),
        ("cosine", 0, {}),
        ("cosine", 7, {}),
        ("cosine", 5, {"num_cycles": 1.3}),
        ("cosine", 39, {"num_cycles": 0.2}),
    ],
)
def test_schedules_with_warmup_are_those_of_transformers(
    kind: str, warmup: int, options: dict[str, float]
) -> None:
    total = 40
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    make = getattr(transformers, f"get_{kind}_schedule_with_warmup")
    theirs = make(optimizer, warmup, total, **options)
    ours = getattr(schedules, f"{kind}_with_warmup")(warmup, total, **options)
    for step in range(total + 1):
        assert ours.at(step) == pytest.approx(theirs.get_last_lr()[0], rel=1e-12, abs=1e-15)
        optimizer.step()
        theirs.step()


class CountingTrainer(transformers.Trainer):  # type: ignore[misc]
    def get_learning_rates(self) -> list[float]:
        return [float(self.state.global_step)]


def test_learning_rates_are_the_scheduled_ones(tmp_path: Path) -> None:
    seen: list[list[list[float]]] = []
    for prepare in (lambda trainer, **options: trainer, huggingface.use, huggingface.use):
        layered = {"decay": 0.5} if len(seen) == 2 else {}
        trainer = prepare(make_trainer(tmp_path, lr_scheduler_type="cosine"), **layered)
        with pytest.raises(ValueError, match="optimizer is None"):
            trainer.get_learning_rates()
        trainer.create_optimizer()
        before = trainer.get_learning_rates()
        assert max(before) == 3e-3
        trainer.create_scheduler(STEPS)
        steps = []
        for _ in range(STEPS):
            steps.append(trainer.get_learning_rates())
            trainer.optimizer.step()
            trainer.lr_scheduler.step()
        seen.append(steps)
    for theirs, ours, layered_rates in zip(*seen, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-12)
        assert max(layered_rates) == pytest.approx(max(theirs), rel=1e-6, abs=1e-12)
        assert len(layered_rates) > len(theirs)
    assert seen[0][0] == [0.0, 0.0] and seen[0][3] == [3e-3, 3e-3]
    own = huggingface.use(make_trainer(tmp_path, CountingTrainer))
    assert train(own).get_learning_rates() == [STEPS]
    by_metric = huggingface.use(make_trainer(tmp_path, warmup_steps=0))
    by_metric.args.lr_scheduler_type = transformers.SchedulerType("reduce_lr_on_plateau")
    assert train(by_metric).get_learning_rates() == [3e-3, 3e-3]


def test_training_again_starts_the_schedule_again(tmp_path: Path) -> None:
    trainer = train(huggingface.use(make_trainer(tmp_path, max_grad_norm=0.1)))
    hooks = len(trainer.optimizer.optimizer._optimizer_step_post_hooks)
    train(trainer)
    rates = [e["learning_rate"] for e in trainer.state.log_history if "learning_rate" in e]
    assert rates[0] == pytest.approx(1e-3) and max(rates) == pytest.approx(3e-3)
    assert len(trainer.optimizer.optimizer._optimizer_step_post_hooks) == hooks == 1


def test_a_model_init_and_arguments_that_change(tmp_path: Path) -> None:
    """As a search for hyperparameters has them: a new model and optimizer in each training."""
    trainer = make_trainer(tmp_path)
    trainer.model_init = make_model
    huggingface.use(trainer)
    train(trainer)
    first = trainer.optimizer.optimizer
    trainer.args.learning_rate, trainer.args.max_grad_norm = 1e-3, 0.2
    train(trainer)
    second = trainer.optimizer.optimizer
    assert second is not first and (first.max_grad_norm, second.max_grad_norm) == (0.5, 0.2)
    assert second.param_groups[0]["lr"] == 1e-3 and second.schedule_step == STEPS
    theirs = make_trainer(tmp_path, learning_rate=1e-3, max_grad_norm=0.2)
    theirs.model_init = make_model
    train(theirs)
    assert furthest(trainer.model.parameters(), theirs.model.parameters()) < 2e-5


def test_layer_groups_and_a_schedule_of_ours(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    huggingface.use(trainer, lr=slice(1e-5, 1e-3), schedule=schedules.one_cycle)
    decayed = set(trainer.get_decay_parameter_names(trainer.model))
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    train(trainer)
    groups = trainer.optimizer.param_groups
    rates = {group["layer"]: group["lr"] for group in groups}
    assert rates[0] == pytest.approx(1e-5) and max(rates.values()) == pytest.approx(1e-3)
    assert len(set(rates.values())) == len(rates) > 3
    for group in groups:
        for param in group["params"]:
            assert group["weight_decay"] == (0.1 if names[id(param)] in decayed else 0.0)
    (schedule,) = set(trainer.optimizer.optimizer._schedules)
    assert schedule == schedules.one_cycle(STEPS)


class DrawingTrainer(transformers.Trainer):  # type: ignore[misc]
    """Draws random numbers where it makes a loader, as some samplers do."""

    def get_train_dataloader(self) -> Any:
        torch.rand(3)
        return super().get_train_dataloader()


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("prepare", [huggingface.use, lambda trainer: trainer], ids=["use", "own"])
def test_a_range_test_leaves_no_trace(
    tmp_path: Path, prepare: Callable[[Any], Any], bf16: bool
) -> None:
    plain = train(prepare(make_trainer(tmp_path, DrawingTrainer, bf16=bf16)))
    tested = prepare(make_trainer(tmp_path, DrawingTrainer, bf16=bf16))
    known = tested.accelerator.gradient_state.dataloader_references
    result = huggingface.lr_find(tested, num_iter=25)
    assert len(result.lrs) > 5
    assert tested.accelerator.gradient_state.dataloader_references == known
    train(tested)
    for mine, other in zip(tested.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(mine, other)
    assert losses(tested) == losses(plain)


def test_a_range_test_with_trainers_own_optimizer(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, gradient_accumulation_steps=2, label_smoothing_factor=0.1)
    result = huggingface.lr_find(trainer, num_iter=10, diverge_threshold=None)
    assert len(result.lrs) == 10 and type(trainer.optimizer) is not lrfast.AdamW
    train(trainer)


def test_a_range_test_waits_for_fsdp_to_shard(tmp_path: Path) -> None:
    trainer = huggingface.use(make_trainer(tmp_path))
    trainer.is_fsdp_enabled = True
    with pytest.raises(ValueError, match="must be training for a range test under FSDP"):
        huggingface.lr_find(trainer)


def test_the_callback_applies_what_it_finds(tmp_path: Path) -> None:
    trainer = huggingface.use(make_trainer(tmp_path))
    finder = huggingface.LRFindCallback(trainer, epochs=(0, 1), rule="steep", num_iter=30)
    trainer.add_callback(finder)
    train(trainer)
    assert len(finder.results) == 2
    found = finder.results[1].suggestions["steep"].lr
    assert [group["lr"] for group in trainer.optimizer.param_groups] == [found, found]
    assert trainer.optimizer.optimizer.schedule_step == STEPS


def test_the_callback_lets_a_resumed_epoch_be(tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 4}
    train(huggingface.use(make_trainer(tmp_path, **options)))
    resumed = huggingface.use(make_trainer(tmp_path, **options))
    finder = huggingface.LRFindCallback(resumed, epochs=(0, 1), rule="steep", num_iter=5)
    resumed.add_callback(finder)
    train(resumed, resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert len(finder.results) == 1  # at epoch 1, not within epoch 0


def test_late_logs_say_what_trainer_says(tmp_path: Path) -> None:
    plain = train(huggingface.use(make_trainer(tmp_path, gradient_accumulation_steps=2)))
    late = huggingface.use(make_trainer(tmp_path, gradient_accumulation_steps=2))
    late.add_callback(huggingface.LateLogs(late))
    train(late)
    theirs = [entry for entry in plain.state.log_history if "loss" in entry]
    ours = [entry for entry in late.state.log_history if "loss" in entry]
    assert [entry["measured_at"] for entry in ours] == [entry["step"] for entry in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        for key in ("loss", "learning_rate", "grad_norm"):
            assert mine[key] == pytest.approx(other[key], rel=1e-4), key
    final = [entry["train_loss"] for entry in late.state.log_history if "train_loss" in entry]
    theirs = [entry["train_loss"] for entry in plain.state.log_history if "train_loss" in entry]
    assert final == pytest.approx(theirs, rel=1e-6)


def reads_of(prepare: Callable[[Any], Any], folder: Path, **options: Any) -> int:
    """Waits of the second half of a training, which has no set-up in it."""
    counts = []
    for epochs in (1, 2):
        trainer = make_trainer(folder, num_train_epochs=epochs, **options)
        prepare(trainer)
        with Reads() as reads:
            train(trainer)
        counts.append(reads.count)
    return counts[1] - counts[0]


def without_an_optimizer(trainer: Any) -> None:
    trainer.optimizer_cls_and_kwargs = (NullOptimizer, {"lr": 1e-3})


@pytest.mark.one_row
@pytest.mark.parametrize("logging_nan_inf_filter", [False, True])
def test_no_wait_but_trainers_own(tmp_path: Path, logging_nan_inf_filter: bool) -> None:
    """8 steps: 2 per step for the filter, 2 per log, 1 per epoch for the sampler's seed."""
    options = {"logging_nan_inf_filter": logging_nan_inf_filter, "logging_steps": 2}
    theirs = reads_of(without_an_optimizer, tmp_path, **options)
    assert reads_of(huggingface.use, tmp_path, **options) == theirs
    assert theirs == 16 * logging_nan_inf_filter + 8 + 1


def test_no_wait_at_all_with_late_logs(tmp_path: Path) -> None:
    def prepare(trainer: Any) -> None:
        huggingface.use(trainer).add_callback(huggingface.LateLogs(trainer))

    assert reads_of(prepare, tmp_path, logging_nan_inf_filter=False, logging_steps=1) == 1


def test_the_example(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run_example("huggingface_trainer", ["--steps", "6"], monkeypatch)
    check_example(capsys.readouterr().out, after=2)


ERRORS: list[tuple[Callable[[Any], Any], type[Exception], str]] = [
    (
        lambda trainer: (
            setattr(trainer, "optimizer", torch.optim.SGD(trainer.model.parameters())),
            huggingface.use(trainer),
        ),
        TypeError,
        "optimizer must be one of lrfast, got torch.optim.sgd.SGD; lrfast.wrap takes over",
    ),
    (
        lambda trainer: (
            setattr(trainer, "optimizer", lrfast.SGD(trainer.model.parameters())),
            huggingface.use(trainer, decay=0.5, ema_decay=0.9),
        ),
        ValueError,
        "lr, decay, ema_decay must be left out where the trainer has its optimizer",
    ),
    (
        lambda trainer: (
            setattr(trainer, "model_init", make_model),
            huggingface.use(trainer, decay=0.5),
        ),
        ValueError,
        "lr and decay must be left out with model_init",
    ),
    (
        lambda trainer: (
            setattr(trainer, "is_deepspeed_enabled", True),
            huggingface.use(trainer),
        ),
        ValueError,
        "trainer must not use DeepSpeed",
    ),
    (
        lambda trainer: huggingface.use(trainer, max_grad_norm=0.5),
        ValueError,
        "max_grad_norm must be set in the trainer's arguments",
    ),
    (
        lambda trainer: huggingface.LRFindCallback(trainer, rule="valey"),
        ValueError,
        "did you mean|must be one of",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), ERRORS)
def test_errors(
    tmp_path: Path, call: Callable[[Any], Any], error: type[Exception], message: str
) -> None:
    trainer = make_trainer(tmp_path)
    with pytest.raises(error, match=message):
        call(trainer)
