"""What does not belong: each argument of each public callable given as something else.

An argument of the wrong kind is a TypeError or a ValueError of one line that names it, whatever the
callable; only what a callable takes on purpose is in ``TAKEN``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from tiny import cross_entropy, make_batches, make_model
from torch import nn

import lrfast
from lrfast import finetune, plot, schedules, suggest
from lrfast.optim._wrap import TWINS

BATCHES = make_batches(2)
LRS = np.geomspace(1e-4, 1.0, 41)
LOSSES = 1 / (1 + LRS / 1e-2) + 4 * LRS**2
Call = tuple[Callable[..., Any], dict[str, Any]]


class Bench:
    """What the calls are made on."""

    def __init__(self) -> None:
        self.model = make_model()
        self.optimizer = lrfast.AdamW(lrfast.discriminative(self.model, [0.01, 0.02, 0.05]))
        self.swept = {"model": self.model, "optimizer": self.optimizer, "train_loader": BATCHES}
        self.swept |= {"loss_fn": cross_entropy, "num_iter": 2, "progress": False}

    @property
    def tuner(self) -> lrfast.FineTuner:
        return lrfast.FineTuner(self.model, BATCHES, BATCHES, loss_fn=cross_entropy, progress=False)

    @property
    def result(self) -> lrfast.RangeTest:
        return lrfast.lr_find(**self.swept)

    @property
    def history(self) -> lrfast.History:
        tuner = self.tuner
        tuner.fit(1, schedules.cosine(3))
        return tuner.history

    def step(self, batch: Any) -> Any:
        self.optimizer.zero_grad()
        loss = cross_entropy(self.model(batch[0]), batch[1])
        loss.backward()
        self.optimizer.step()
        return loss


def recorded() -> lrfast.LossCurve:
    curve = lrfast.LossCurve(3)
    for loss in (2.0, 1.0, 3.0):
        curve.record(torch.tensor(loss), 0.1 * loss)
    return curve


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(2))]


def tuned(b: Bench) -> Call:
    options = {
        "model": b.model,
        "train_loader": BATCHES,
        "val_loader": BATCHES,
        "loss_fn": cross_entropy,
    }
    return lrfast.FineTuner, options | {"keep_best": "valid_loss", "progress": False}


CALLS: dict[str, Callable[[Bench], Call]] = {
    "lr_find": lambda b: (lrfast.lr_find, b.swept),
    "Retest": lambda b: (
        lrfast.Retest,
        {
            "model": b.model,
            "optimizer": b.optimizer,
            "train_loader": BATCHES,
            "loss_fn": cross_entropy,
        },
    ),
    "Retest.epoch_end": lambda b: (
        lrfast.Retest(b.model, b.optimizer, BATCHES, every=None, patience=2).epoch_end,
        {"valid_loss": 1.0},
    ),
    "FineTuner": tuned,
    "fit": lambda b: (b.tuner.fit, {"epochs": 1, "schedule": schedules.cosine(3), "lr": 0.1}),
    "fit_one_cycle": lambda b: (b.tuner.fit_one_cycle, {"epochs": 1, "max_lr": 0.1}),
    "fit_flat_cos": lambda b: (b.tuner.fit_flat_cos, {"epochs": 1, "lr": 0.1}),
    "fit_sgdr": lambda b: (b.tuner.fit_sgdr, {"cycles": 1, "cycle_len": 1, "max_lr": 0.1}),
    "fine_tune": lambda b: (b.tuner.fine_tune, {"epochs": 1}),
    "recipe": lambda b: (b.tuner.recipe, {}),
    "freeze_to": lambda b: (b.tuner.freeze_to, {"n": 0}),
    **{
        cls.__name__: (lambda b, cls=cls: (cls, {"params": parameters()}))
        for cls in (*TWINS.values(), lrfast.Lion)
    },
    "set_schedule": lambda b: (b.optimizer.set_schedule, {"schedule": None}),
    "planned": lambda b: (b.optimizer.planned, {"steps": 3}),
    "wrap": lambda b: (lrfast.wrap, {"optimizer": torch.optim.SGD(parameters(), 0.1)}),
    "Plateau": lambda b: (lrfast.Plateau, {"optimizer": b.optimizer}),
    "Greedy": lambda b: (lrfast.Greedy, {"optimizer": b.optimizer}),
    "ShardedState": lambda b: (
        lrfast.ShardedState,
        {"model": b.model, "optimizer": b.optimizer},
    ),
    "capture": lambda b: (
        lrfast.capture,
        {"train_step": b.step, "optimizer": b.optimizer, "example_batch": BATCHES[0]},
    ),
    "bench": lambda b: (
        lrfast.bench,
        {"model": b.model, "optimizer": b.optimizer, "batch": BATCHES[0], "loss_fn": cross_entropy},
    ),
    "discriminative": lambda b: (lrfast.discriminative, {"model": b.model, "lr": 0.1}),
    "layer_groups": lambda b: (lrfast.layer_groups, {"model": b.model}),
    "lora_groups": lambda b: (
        lrfast.lora_groups,
        {"model": b.model, "lr": 0.1, "names": ("0", "4")},
    ),
    "muon_groups": lambda b: (
        lrfast.muon_groups,
        {"model": b.model, "lr": 0.02, "adamw_lr": 0.1},
    ),
    "state_groups": lambda b: (lrfast.state_groups, {"model": b.model, "float32": ("0",)}),
    "Muon": lambda b: (lrfast.Muon, {"params": [nn.Parameter(torch.ones(2, 3))]}),
    "spread": lambda b: (lrfast.groups.spread, {"lr": 0.1, "n": 3}),
    "groups.freeze_to": lambda b: (lrfast.freeze_to, {"optimizer": b.optimizer, "n": 0}),
    "freeze": lambda b: (lrfast.freeze, {"optimizer": b.optimizer}),
    "unfreeze": lambda b: (lrfast.unfreeze, {"optimizer": b.optimizer}),
    "set_norm_mode": lambda b: (
        lrfast.set_norm_mode,
        {"model": b.model, "optimizer": b.optimizer, "policy": "keep"},
    ),
    "gradual": lambda b: (lrfast.gradual, {"n_groups": 3}),
    "Timetable": lambda b: (lrfast.Timetable, {"first": {0: -1}}),
    "Timetable.at": lambda b: (lrfast.Timetable({0: -1}).at, {"epoch": 0}),
    "Timetable.apply": lambda b: (
        lrfast.Timetable({0: -1}).apply,
        {"optimizer": b.optimizer, "epoch": 0},
    ),
    "LossCurve": lambda b: (lrfast.LossCurve, {"capacity": 3}),
    "record": lambda b: (lrfast.LossCurve(3).record, {"loss": torch.tensor(1.0)}),
    "truncate": lambda b: (lrfast.LossCurve(3).truncate, {"count": 0}),
    "smoothed": lambda b: (lrfast.LossCurve(3).smoothed, {}),
    "derivative": lambda b: (recorded().derivative, {}),
    "accuracy": lambda b: (
        lrfast.accuracy,
        {"outputs": torch.ones(4, 3), "targets": torch.ones(4).long()},
    ),
    "RangeTest.suggested_lrs": lambda b: (b.result.suggested_lrs, {"rule": "valley"}),
    "RangeTest.apply": lambda b: (b.result.apply, {"optimizer": b.optimizer, "rule": "valley"}),
    "RangeTest.to_csv": lambda b: (b.result.to_csv, {"path": "/dev/null"}),
    "RangeTest.to_json": lambda b: (b.result.to_json, {"path": "/dev/null"}),
    "RangeTest.from_json": lambda b: (lrfast.RangeTest.from_json, {"path": "/dev/null"}),
    "RangeTest.plot": lambda b: (b.result.plot, {}),
    "RangeTest.compare": lambda b: (partial(b.result.compare, b.result), {}),
    "terminal_plot": lambda b: (b.result.terminal_plot, {}),
    "History.plot": lambda b: (b.history.plot, {}),
    "History.to_csv": lambda b: (b.history.to_csv, {"path": "/dev/null"}),
    "plot_range_test": lambda b: (plot.plot_range_test, {"result": b.result}),
    "plot_comparison": lambda b: (plot.plot_comparison, {"results": [b.result] * 2}),
    "plot_history": lambda b: (plot.plot_history, {"history": b.history}),
    "plot_schedule": lambda b: (plot.plot_schedule, {"schedule": schedules.cosine(3)}),
    "plot_schedules": lambda b: (plot.plot_schedules, {"optimizer": b.optimizer, "steps": 3}),
    "EarlyStop": lambda b: (finetune.EarlyStop, {}),
    "Observe": lambda b: (finetune.Observe, {"schedule": lrfast.Plateau(b.optimizer)}),
    "constant": lambda b: (schedules.constant, {"factor": 0.5}),
    "linear": lambda b: (
        schedules.linear,
        {"start_factor": 0.5, "end_factor": 1.0, "total_steps": 9},
    ),
    "cosine": lambda b: (schedules.cosine, {"T_max": 9}),
    "exponential": lambda b: (schedules.exponential, {"total_steps": 9, "gamma": 0.5}),
    "polynomial": lambda b: (schedules.polynomial, {"total_steps": 9}),
    "rex": lambda b: (schedules.rex, {"total_steps": 9}),
    "sweep": lambda b: (schedules.sweep, {"start": 0.1, "end": 1.0, "num_iter": 9}),
    "step": lambda b: (schedules.step, {"step_size": 9}),
    "multistep": lambda b: (schedules.multistep, {"milestones": [9]}),
    "staircase": lambda b: (
        schedules.staircase,
        {"total_steps": 9, "decay_steps": 3, "gamma": 0.5},
    ),
    "one_cycle": lambda b: (schedules.one_cycle, {"total_steps": 9}),
    "cyclic": lambda b: (schedules.cyclic, {"step_size_up": 9}),
    "sgdr": lambda b: (schedules.sgdr, {"cycle_len": 9}),
    "warmup": lambda b: (schedules.warmup, {"steps": 9}),
    "flat_cosine": lambda b: (schedules.flat_cosine, {"total_steps": 9}),
    "wsd": lambda b: (schedules.wsd, {"total_steps": 9, "warmup_steps": 1, "decay_steps": 3}),
    **{
        name: lambda b, name=name: (
            getattr(schedules, name),
            {"warmup_steps": 1, "total_steps": 9},
        )
        for name in ("linear_with_warmup", "cosine_with_warmup")
    },
    "inverse_sqrt": lambda b: (schedules.inverse_sqrt, {"warmup_steps": 1, "total_steps": 9}),
    "slanted_triangular": lambda b: (schedules.slanted_triangular, {"total_steps": 9}),
    "from_function": lambda b: (
        schedules.from_function,
        {"f": lambda step: 1.0, "total_steps": 9},
    ),
    "from_torch": lambda b: (
        schedules.from_torch,
        {
            "scheduler": torch.optim.lr_scheduler.StepLR(torch.optim.SGD(parameters(), 0.1), 3),
            "total_steps": 9,
        },
    ),
    "schedules.get": lambda b: (schedules.get, {"name": "cosine"}),
    "per_epoch": lambda b: (
        schedules.per_epoch,
        {"schedule": schedules.cosine(3), "steps_per_epoch": 2},
    ),
    "Schedule.at": lambda b: (schedules.cosine(3).at, {"step": 2}),
    "Schedule.values": lambda b: (schedules.cosine(3).values, {"steps": [2]}),
    "then": lambda b: (schedules.cosine(3).then, {"other": schedules.cosine(3)}),
    "with_weight_decay": lambda b: (
        schedules.cosine(3).with_weight_decay,
        {"decay": schedules.cosine(3)},
    ),
    "lasting": lambda b: (schedules.cosine(3).lasting, {"steps": 3}),
    "repeat": lambda b: (schedules.cosine(3).repeat, {"times": 3}),
    "Schedule.table": lambda b: (schedules.cosine(3).table, {}),
    "difference": lambda b: (schedules.cosine(3).difference, {"other": schedules.cosine(4)}),
    "extend_to": lambda b: (schedules.cosine(3).extend_to, {"total_steps": 6}),
    "Schedule.plot": lambda b: (schedules.cosine(3).plot, {}),
    **{
        name: (lambda b, name=name: (getattr(suggest, name), {"lrs": LRS, "losses": LOSSES}))
        for name in suggest.names()
    },
    "trim": lambda b: (suggest.trim, {"lrs": LRS, "losses": LOSSES}),
    "suggest.get": lambda b: (suggest.get, {"name": "auto"}),
    "reads_raw": lambda b: (suggest.reads_raw, {"name": "auto"}),
    "typical_rate": lambda b: (suggest.typical_rate, {"optimizer": "SGD", "parameters": 9}),
    "typical_deviation": lambda b: (suggest.typical_deviation, {"optimizer": "SGD"}),
    "rate_scale": lambda b: (suggest.rate_scale, {"optimizer": "SGD"}),
}
FOREIGN: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "text": lambda: "a text",
    "a list": lambda: [object()],
    "a module": lambda: nn.Bilinear(2, 2, 2),
    "an optimizer": lambda: torch.optim.SGD(parameters(), 0.1),
    "a lambda": lambda: lambda *a: None,
}
# What is not tried: kinds that a callable takes. None is one of them where its annotation says so.
TAKEN = {
    *((name, "a module") for name in ("model", "loss_fn", "compute_loss", "step_fn", "train_step")),
    *((name, "a lambda") for name in ("loss_fn", "compute_loss", "step_fn", "train_step", "clock")),
    *((name, "a list") for name in ("train_loader", "val_loader", "judge")),
    *((name, "text") for name in ("path", "monitor")),
    *((name, kind) for name in ("example_batch", "batch") for kind in FOREIGN),
    *(
        (f"{name}.optimizer", "text")
        for name in ("typical_rate", "typical_deviation", "rate_scale")
    ),
    *((f"{name}.optimizer", "an optimizer") for name in CALLS),
    ("reads_raw.name", "text"),
    ("set_schedule.schedule", "None"),
    ("from_function.f", "a lambda"),
}


@pytest.mark.parametrize("name", CALLS)
def test_every_argument_of_every_callable(name: str) -> None:
    function = CALLS[name](Bench())[0]
    wrong = []
    for argument, parameter in inspect.signature(function).parameters.items():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        for kind, make in FOREIGN.items():
            takes_none = parameter.default is None or "None" in str(parameter.annotation)
            if {(argument, kind), (f"{name}.{argument}", kind)} & TAKEN or (
                kind == "None" and takes_none
            ):
                continue
            call, options = CALLS[name](Bench())
            label = f"{name}({argument}) {kind}"
            try:
                call(**options | {argument: make()})
            except (TypeError, ValueError) as error:
                text = str(error)
                if argument not in text or "\n" in text:
                    wrong.append(f"{label}: {type(error).__name__}: {text}")
            except Exception as error:
                wrong.append(f"{label}: {type(error).__name__}: {error}")
            else:
                wrong.append(f"{label}: taken")
    assert not wrong, "\n".join(wrong)
