"""Updates of a sweep inside Hugging Face's Trainer: those that training makes, bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from trainers import load, options_in_docs

load("accelerate")
transformers = load("transformers")

from huggingface_runs import make_trainer, train  # noqa: E402

import lrfast  # noqa: E402
from lrfast.integrations import huggingface  # noqa: E402
from lrfast.integrations.scheduler import DeviceScheduler  # noqa: E402

UPDATES = 4
RATES = {"start_lr": 1e-3, "end_lr": 5e-2, "num_iter": UPDATES, "diverge_threshold": None}


class Plain(transformers.Trainer):  # type: ignore[misc]
    """Takes its data in order, because a sweep draws another order than the training after it."""

    def _get_train_sampler(self, *args: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)


class Tuples(Plain):
    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        return model(input_ids=inputs[0], labels=inputs[1]).loss


class Prepares(Plain):
    def _prepare_inputs(self, inputs: Any) -> Any:
        named = super()._prepare_inputs(inputs)
        named["input_ids"] = named["input_ids"].flip(-1)
        return named


class Steps(Plain):
    """A training step that adds to the gradients, counts itself and pops an entry."""

    counted = 0

    def training_step(self, model: nn.Module, inputs: Any, *args: Any) -> Any:
        self.counted += 1
        loss = super().training_step(model, {"labels": inputs.pop("labels"), **inputs}, *args)
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad += 1e-3 * self.counted
        return loss


class Anneals(Plain):
    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        return super().compute_loss(*args, **kwargs) * (1 + self.state.global_step)


class Halves(transformers.TrainerCallback):  # type: ignore[misc]
    """Changes gradients before the step, and weights after it."""

    def __init__(self) -> None:
        self.count = 0

    def on_substep_end(self, *args: Any, model: Any, **kwargs: Any) -> None:
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad *= 0.75

    def on_pre_optimizer_step(self, *args: Any, model: Any, **kwargs: Any) -> None:
        self.count += 1
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad *= 0.5 / self.count

    @torch.no_grad()
    def on_optimizer_step(self, *args: Any, model: Any, **kwargs: Any) -> None:
        for parameter in model.parameters():
            parameter.clamp_(-0.05, 0.05)


class Watch(transformers.TrainerCallback):  # type: ignore[misc]
    """Seeds each update by its number, and notes what it leaves."""

    def __init__(self, seen: list[Any]) -> None:
        self._note = seen.append  # a list of its own would be restored

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        torch.manual_seed(state.global_step)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        optimizer = given["optimizer"].optimizer
        states = [optimizer.state.get(p, {}) for g in optimizer.param_groups for p in g["params"]]
        weights = [parameter.detach().clone() for parameter in given["model"].parameters()]
        counts = (state.global_step, round(state.epoch * 100))
        self._note((weights, copy.deepcopy(states), counts))


def summed(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    return nn.functional.cross_entropy(outputs["logits"], labels, reduction="sum") / (
        num_items_in_batch
    )


def as_tuples(rows: list[dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.stack([row["input_ids"] for row in rows]), torch.stack(
        [row["labels"] for row in rows]
    )


def language_model(trainer: Any) -> None:
    """A model whose loss is divided by the number of targets of the whole update."""
    torch.manual_seed(0)
    size = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16, "vocab_size": 50}
    rows = torch.randint(0, 50, (64, 8), generator=torch.Generator().manual_seed(1))
    labels = torch.where(torch.arange(8) < (rows[:, :1] % 7 + 1), rows, -100)
    pairs = zip(rows, labels, strict=True)
    trainer.train_dataset = [{"input_ids": row, "labels": label} for row, label in pairs]
    trainer.model = trainer.model_wrapped = trainer.callback_handler.model = (
        transformers.GPT2LMHeadModel(transformers.GPT2Config(**size, loss_type="ForCausalLM"))
    )
    trainer.model_accepts_loss_kwargs = True


def with_sgd(trainer: Any) -> None:
    trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.1, momentum=0.9)


def with_scaler(trainer: Any) -> None:
    """A GradScaler as for fp16, which Accelerate makes on GPUs only."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    trainer.accelerator.scaler = scaler


# Row of the table in docs/integrations.md -> options of the trainer, and what else is done to it.
CASES: dict[str, list[tuple[dict[str, Any], Callable[[Any], Any] | None]]] = {
    "`max_grad_norm`": [
        ({"max_grad_norm": 0.05}, None),
        ({"max_grad_norm": 0.0}, None),
        ({"max_grad_norm": 0.05}, huggingface.use),
        ({"max_grad_norm": 0.0}, huggingface.use),
    ],
    "`gradient_accumulation_steps`": [
        ({"gradient_accumulation_steps": 2}, None),
        ({"gradient_accumulation_steps": 2}, huggingface.use),
    ],
    "`bf16`, `fp16`": [
        ({"bf16": True, "label_smoothing_factor": 0.1}, None),
        ({"max_grad_norm": 20.0}, with_scaler),
        ({}, lambda trainer: with_scaler(huggingface.use(trainer))),
        ({"bf16": True, "max_grad_norm": 0.05}, huggingface.use),
    ],
    "`label_smoothing_factor`": [({"label_smoothing_factor": 0.2}, None)],
    "`neftune_noise_alpha`": [({"neftune_noise_alpha": 5.0}, None)],
    "`optim`, `optimizers`": [
        ({"optim": "adafactor"}, None),
        ({"max_grad_norm": 0.05}, with_sgd),
        ({}, lambda trainer: huggingface.use(trainer, lrfast.Lion, decay=0.5)),
    ],
    "`compute_loss_func`, `num_items_in_batch`": [
        ({"gradient_accumulation_steps": 2, "compute_loss_func": summed}, None),
        ({"gradient_accumulation_steps": 2}, language_model),
    ],
    "`compute_loss`": [({"trainer_class": Anneals}, None)],
    "`training_step`": [
        ({"trainer_class": Steps}, None),
        ({"trainer_class": Steps, "gradient_accumulation_steps": 2}, huggingface.use),
    ],
    "`_prepare_inputs`": [({"trainer_class": Prepares}, None)],
    "`data_collator`": [({"trainer_class": Tuples, "data_collator": as_tuples}, None)],
    "callbacks up to `on_optimizer_step`": [
        ({"callbacks": [Halves], "gradient_accumulation_steps": 2}, None),
        ({"callbacks": [Halves], "max_grad_norm": 0.05}, huggingface.use),
    ],
}
ROWS = [(f"{name}-{i}", *row) for name, rows in CASES.items() for i, row in enumerate(rows)]


def make(
    folder: Path, options: dict[str, Any], prepare: Callable[[Any], Any] | None, seen: list[Any]
) -> Any:
    flat = {"lr_scheduler_type": "constant", "warmup_steps": 0}  # at 0 there are no ratios
    options = {"trainer_class": Plain, "max_steps": UPDATES, **flat, **options}
    callbacks = [Watch(seen), *(kind() for kind in options.pop("callbacks", []))]
    late = {k: options.pop(k) for k in ("compute_loss_func", "data_collator") if k in options}
    trainer = make_trainer(folder, callbacks=callbacks, **options)
    for name, value in late.items():
        setattr(trainer, name, value)
    if prepare is not None:
        prepare(trainer)
    return trainer


class Fixed(torch.optim.lr_scheduler.LRScheduler):
    """Sets the learning rates of a table."""

    def __init__(self, optimizer: Any, table: Any) -> None:
        self._table = [*table.tolist(), table[-1].tolist()]
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        return self._table[min(self.last_epoch, len(self._table) - 1)]


def train_at(trainer: Any, sweep: Any) -> None:
    """Train at a sweep's learning rates."""
    optimizer = trainer.create_optimizer()
    if isinstance(optimizer, lrfast.optim.FusedOptimizer):
        parts = sweep.parts()
        for group, (rate, _) in zip(optimizer.param_groups, parts, strict=True):
            group["lr"] = rate
        trainer.lr_scheduler = DeviceScheduler(optimizer, [schedule for _, schedule in parts])
    else:
        trainer.lr_scheduler = Fixed(optimizer, sweep.table())
    train(trainer)


def assert_same(one: Any, other: Any) -> None:
    if isinstance(one, Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for mine, its in zip(one, other, strict=True):
            assert_same(mine, its)
    else:
        assert one == other


@pytest.mark.parametrize(
    "inside", [False, pytest.param(True, marks=pytest.mark.full)], ids=["before", "inside"]
)
@pytest.mark.parametrize(
    ("options", "prepare"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS]
)
def test_an_update_of_the_sweep_is_the_trainers_own(
    tmp_path: Path, options: dict[str, Any], prepare: Callable[[Any], Any] | None, inside: bool
) -> None:
    """Weights, states and counts after each; also from within a training that has begun."""
    swept: list[Any] = []
    trainer = make(tmp_path, options, prepare, swept)
    if inside:
        trainer.add_callback(Inside(trainer))
        train(trainer)
        result = trainer.results[0]
        del swept[UPDATES:]
    else:
        result = huggingface.lr_find(trainer, **RATES)
    trained: list[Any] = []
    train_at(make(tmp_path, options, prepare, trained), result.sweep)
    assert len(swept) == len(trained) == UPDATES
    for one, other in zip(swept, trained, strict=True):
        assert_same(one, other)
    first, last = trained[0][0], trained[-1][0]
    assert not all(torch.equal(a, b) for a, b in zip(first, last, strict=True))


class Inside(transformers.TrainerCallback):  # type: ignore[misc]
    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if state.global_step == 0:
            self._trainer.results = [huggingface.lr_find(self._trainer, **RATES)]


def test_the_docs_list_what_is_tested() -> None:
    assert list(options_in_docs("Hugging Face Trainer")) == list(CASES)


def test_the_losses_are_those_that_trainer_logs(tmp_path: Path) -> None:
    options = {"gradient_accumulation_steps": 2, "max_grad_norm": 0.05, "logging_steps": 1}
    result = huggingface.lr_find(make(tmp_path, options, None, []), **RATES)
    trainer = make(tmp_path, options, None, [])
    train_at(trainer, result.sweep)
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert result.losses.tolist() == pytest.approx(logged, rel=1e-6)
    assert result.lrs.tolist() == result.sweep.table()[:, result.sweep.reference].tolist()


class Collects(Steps):
    """Keeps losses in a list, in a tensor and in its state, as some trainers do."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.kept: dict[str, list[float]] = {"losses": []}
        self.total = torch.zeros(())

    def training_step(self, *args: Any) -> Any:
        loss = super().training_step(*args)
        self.kept["losses"].append(float(loss))
        self.total += loss
        return loss


@pytest.mark.parametrize(
    ("bf16", "options"),
    [(False, {}), (True, {"adaptive": True, "repeats": 2}), (False, {"verify": 4})],
    ids=["plain", "bf16-repeats", "verify"],
)
def test_trainer_and_callbacks_keep_no_trace(
    tmp_path: Path, bf16: bool, options: dict[str, Any]
) -> None:
    trainer = make(tmp_path, {"trainer_class": Collects, "bf16": bf16}, huggingface.use, [])
    late, halves = huggingface.LateLogs(trainer), Halves()
    trainer.add_callback(late)
    trainer.add_callback(halves)
    accelerator, optimizer = trainer.accelerator, trainer.create_optimizer()
    trainer._set_signature_columns_if_needed()  # cached once a loader is made
    held = [getattr(accelerator, f"_{n}") for n in ("models", "optimizers", "dataloaders")]
    owners = [trainer, trainer.state, trainer.control, late, halves, trainer.model]
    before = [dict(vars(owner)) for owner in owners]
    result = huggingface.lr_find(trainer, **RATES | options)
    assert len(result.losses) >= UPDATES
    for owner, kept in zip(owners, before, strict=True):
        now = vars(owner)
        assert now.keys() == kept.keys()
        assert [n for n in kept if now[n] is not kept[n] and now[n] != kept[n]] == []
    assert trainer.kept == {"losses": []} and trainer.total == 0 and trainer.counted == 0
    assert halves.count == 0 and "step" not in vars(optimizer)
    assert late._sum is None and held == [[], [], []]


class Ends(transformers.TrainerCallback):  # type: ignore[misc]
    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        raise AssertionError("a sweep logs and saves nothing")

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        raise AssertionError("a sweep is no training")


def test_events_that_are_left_out_are_named(tmp_path: Path) -> None:
    trainer = make(tmp_path, {"activation_checkpointing": True}, None, [])
    trainer.add_callback(Ends())
    result = huggingface.lr_find(trainer, **RATES)
    assert result.notes == (
        "on_step_end of Ends is left out of the sweep",
        "on_train_begin of Ends is left out of the sweep",
        "a sweep before training stores all activations; LRFindCallback's does not",
    )


@pytest.mark.parametrize("name", ["loss_fn", "compute_loss", "step_fn", "scaler", "capture"])
def test_what_is_the_trainers_is_refused(tmp_path: Path, name: str) -> None:
    trainer = make(tmp_path, {}, None, [])
    with pytest.raises(ValueError, match=f"{name} must be left out: the updates are the trainer's"):
        huggingface.lr_find(trainer, **{name: None})
    trainer.is_deepspeed_enabled = True
    with pytest.raises(ValueError, match="trainer must not use DeepSpeed"):
        huggingface.lr_find(trainer)


def test_lomo_is_refused(tmp_path: Path) -> None:
    trainer = make(tmp_path, {}, None, [])
    trainer.args.optim = transformers.training_args.OptimizerNames.LOMO
    with pytest.raises(ValueError, match="optim must step after the backward pass, got"):
        huggingface.lr_find(trainer)


@pytest.mark.parametrize(
    "options", [{"lag": 1}, {"val_loader": True}, {"verify": 4, "judge": True}]
)
def test_losses_without_an_update_are_trainers_too(tmp_path: Path, options: dict[str, Any]) -> None:
    trainer = make(tmp_path, {"trainer_class": Tuples, "data_collator": as_tuples}, None, [])
    batches = list(trainer.get_train_dataloader())[:2]
    given = {k: batches if v is True else v for k, v in options.items()}
    result = huggingface.lr_find(trainer, **RATES | given)
    assert len(result.losses) == UPDATES and bool(torch.tensor(result.losses).isfinite().all())
