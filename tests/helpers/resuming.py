"""What the tests of resuming share: ways to train with all kinds of state, and what is left."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny import OPTIMIZERS, Noisy, bits, cross_entropy, make_model, trace
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

import lrfast
from lrfast import FineTuner, Stage, accuracy, schedules
from lrfast.finetune import Callback, Observe
from lrfast.loss_schedules import LossSchedule

EPOCHS = 3
BATCHES = 6  # per epoch


class Drift(nn.Module):
    """Scales by the number of its forward passes, a buffer that no state dict holds."""

    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.count += 1
        return inputs * (1 + 0.01 * self.count)


@dataclass(frozen=True)
class Case:
    """A way to train; what can have state has some, and no hyperparameter is neutral."""

    name: str
    kind: str
    options: dict[str, Any] = field(default_factory=dict)
    fit: dict[str, Any] = field(default_factory=dict)
    freeze_to: int = 0
    workers: int = 0
    generator: bool = True
    replacement: bool = False
    loss_schedule: tuple[Callable[[Any], LossSchedule], dict[str, Any]] | None = None  # and how

    def steps(self) -> int:
        """Updates in all."""
        return EPOCHS * -(-BATCHES // self.options.get("gradient_accumulation_steps", 1))


# Bad until it is twice as good: so it cuts.
PLATEAU = partial(lrfast.Plateau, factor=0.6, patience=0, threshold=0.5, cooldown=1)

CASES = [
    Case("sgd", "sgd"),
    Case("adamw", "adamw", generator=False),
    Case("ema-clip", "adamw", {"ema_decay": 0.7, "max_grad_norm": 0.3, "keep_best": "accuracy"}),
    Case(
        "accumulate",
        "sgd",
        {"gradient_accumulation_steps": 4, "ema_decay": 0.6, "weight_decay": 0.03},
    ),
    Case("fp16", "adamw", {"amp": torch.float16, "keep_best": "valid_loss"}),
    Case(
        "fp16-all",
        "sgd",
        {"amp": torch.float16, "gradient_accumulation_steps": 4, "max_grad_norm": 0.5},
    ),
    Case("bf16", "sgd", {"amp": torch.bfloat16, "validate_ema": False, "ema_decay": 0.9}),
    Case("frozen", "adamw", freeze_to=1),
    Case("timetable", "sgd", {"keep_best": "accuracy"}, {"timetable": {0: -1, 1: 1, 2: 0}}),
    Case("per-group", "adamw", {"max_grad_norm": 0.4}, {"schedule": True}),
    Case("norms", "sgd", {"norm_mode": "adapt", "no_decay": True}, freeze_to=-1),
    Case("replacement", "sgd", replacement=True),
    Case("plateau", "sgd", loss_schedule=(PLATEAU, {"every": 2})),
    Case("plateau-epoch", "adamw", freeze_to=1, loss_schedule=(PLATEAU, {"monitor": "accuracy"})),
    Case(
        *("greedy-fp16", "sgd", {"amp": torch.float16, "max_grad_norm": 0.5}, {"schedule": True}),
        loss_schedule=(partial(lrfast.Greedy, factor=0.7, patience=0, warmup=1), {"every": 4}),
    ),
    Case("torch-adamw", "torch-adamw", {"max_grad_norm": 0.5, "gradient_accumulation_steps": 4}),
    Case("torch-sgd", "torch-sgd", freeze_to=-2, generator=False),
    Case("torch-fp16", "torch-sgd", {"amp": torch.float16, "max_grad_norm": 0.5}),
]


def make_tuner(case: Case, folder: Path | None = None, **options: Any) -> FineTuner:
    """A tuner as a new process makes it, all random numbers at their start.

    It saves itself into the folder at each corner of its second stage.
    """
    generator = torch.Generator().manual_seed(5) if case.generator else None
    data = Noisy()
    train: Any
    if case.replacement:
        sampler = RandomSampler(data, replacement=True, generator=generator)
        train = DataLoader(data, batch_size=2, sampler=sampler)
    else:
        train = DataLoader(
            data, batch_size=2, shuffle=True, generator=generator, num_workers=case.workers
        )
    rows = torch.Generator().manual_seed(2)
    inputs = torch.randn(10, 4, generator=rows)
    held_out = TensorDataset(inputs, inputs[:, :3].argmax(1))
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    model = make_model()
    model.append(Drift())
    defaults = {"loss_fn": cross_entropy, "metrics": {"accuracy": accuracy}, "progress": False}
    tuner = FineTuner(
        model,
        train,
        DataLoader(held_out, batch_size=4, shuffle=True),
        optimizer=OPTIMIZERS[case.kind],
        callbacks=[Watch(), Saver(folder)],
        **defaults | case.options | options,
    )
    if case.loss_schedule is not None:
        make, options = case.loss_schedule
        tuner.callbacks.insert(0, Observe(make(tuner.optimizer), **options))
    if tuner.scaler is not None:
        # High, and soon higher again: it skips steps at the start and in the middle.
        tuner.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=3)
    return tuner


def fit(tuner: FineTuner, case: Case) -> Stage:
    """What all cases train: a stage before, then the one at stake, a rate for each group."""
    fit_first(tuner, case)
    return fit_second(tuner, case)


def fit_first(tuner: FineTuner, case: Case) -> None:
    """The stage before."""
    tuner.fit(1, schedules.linear(0.5, 1.0, 4), lr=[0.001, 0.002, 0.003])
    if case.freeze_to:
        tuner.freeze_to(case.freeze_to)


def fit_second(tuner: FineTuner, case: Case) -> Stage:
    """The stage at stake."""
    if "schedule" in case.fit:
        makers = (schedules.one_cycle(18), schedules.cosine(18), schedules.linear(0.1, 1.0, 18))
        return tuner.fit(EPOCHS, makers, [0.02, 0.05, 0.1])
    return tuner.fit_one_cycle(
        EPOCHS, [0.02, 0.05, 0.1], momentum=(0.9, 0.6), pct_start=0.4, **case.fit
    )


class Watch(Callback):
    """Keeps what it sees, and keeps the norm's statistics in the second epoch of three."""

    def __init__(self) -> None:
        self.seen: list[list[float]] = []

    def on_epoch_begin(self, tuner: FineTuner, epoch: int) -> None:
        tuner.model.get_submodule("1").train(epoch != 1)

    def on_step_end(self, tuner: FineTuner, step: int, loss: Tensor) -> None:
        self.seen.append([step])

    def on_epoch_end(self, tuner: FineTuner, epoch: int, row: dict[str, float]) -> None:
        self.seen.append([epoch, row["step"]])

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]


class Saver(Callback):
    """Saves the second stage at each of its corners, into a file by the moment's name."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def save(self, tuner: FineTuner, moment: str) -> None:
        if tuner.history.stages and self.folder is not None:
            tuner.save(self.folder / f"{moment}.pt")

    def on_epoch_begin(self, tuner: FineTuner, epoch: int) -> None:
        self.save(tuner, f"begin{epoch}")

    def on_step_end(self, tuner: FineTuner, step: int, loss: Tensor) -> None:
        self.save(tuner, f"step{step}")

    def on_epoch_end(self, tuner: FineTuner, epoch: int, row: dict[str, float]) -> None:
        self.save(tuner, f"epoch{epoch}")


def left(tuner: FineTuner) -> dict[str, Any]:
    """All that a run leaves, in a form that == compares bit for bit."""
    stages = [stage.to_dict() for stage in tuner.history.stages]
    for stage in stages:
        del stage["seconds"]
    found = trace(tuner.model, tuner.optimizer) | {
        "history": bits(stages),
        "best": None if tuner.best is None else bits(tuner.best.state_dict()),
        "scaler": None if tuner.scaler is None else tuner.scaler.state_dict(),
        "order": [bits(each.get_state()) for each in generators(tuner)],
        "callbacks": [callback.state_dict() for callback in tuner.callbacks],
    }
    # Gradients of the last step; nobody resumes after it.
    found["parameters"] = bits([(p, p.requires_grad) for p in tuner.model.parameters()])
    return found


def generators(tuner: FineTuner) -> list[torch.Generator]:
    """The generators of the training data."""
    loader: Any = tuner.train_loader
    return [each for each in (loader.generator, loader.sampler.generator) if each is not None]
