"""The commonest slips of beginners: each is an error that names the argument and the right call."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sweep_setups import Bench
from tiny import boom, cross_entropy, make_batches, make_model, trace
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

import lrfast
from lrfast import schedules

BATCHES = make_batches(2)
X = torch.ones(2)
Slip = tuple[str, Callable[[Bench], Any], str]


def find(b: Bench, *arguments: Any, **options: Any) -> Any:
    given = (b.model, b.optimizer, b.batches, cross_entropy)
    return lrfast.lr_find(*arguments, *given[len(arguments) :], **options)


def adamw(b: Bench, *arguments: Any, **options: Any) -> Any:
    return lrfast.AdamW(*(arguments or (b.model.parameters(),)), **options)


def wrapped(b: Bench) -> Any:
    """An optimizer that holds the real one, as that of fastai."""
    wrapper = SimpleNamespace(param_groups=b.optimizer.param_groups)
    wrapper.opt = b.optimizer
    return wrapper


def torch_scheduler(b: Bench) -> Any:
    return CosineAnnealingLR(torch.optim.SGD(b.model.parameters(), 0.1), 9)


def meta() -> nn.Module:
    with torch.device("meta"):
        return nn.Sequential(nn.Linear(4, 3))


SLIPS: list[Slip] = [
    # Names.
    ("learning_rate=", lambda b: adamw(b, learning_rate=0.1), "argument 'learning_rate'; .*lr?"),
    ("lr= in fit", lambda b: b.tuner.fit_one_cycle(1, lr=0.1), "argument 'lr'; .* max_lr?"),
    ("lr_max=", lambda b: b.tuner.fit_one_cycle(1, lr_max=0.1), "'lr_max'; did you mean max_lr?"),
    ("criterion=", lambda b: find(b, criterion=boom), "'criterion'; did you mean loss_fn?"),
    ("min_lr=", lambda b: find(b, min_lr=1e-6), "'min_lr'; did you mean start_lr?"),
    ("max_lr= in lr_find", lambda b: find(b, max_lr=1.0), "'max_lr'; did you mean end_lr?"),
    ("num_training=", lambda b: find(b, num_training=9), "'num_training'; did you mean num_iter?"),
    ("num_itr=", lambda b: find(b, num_itr=9), "'num_itr'; did you mean num_iter?"),
    ("max_lr= in one_cycle", lambda b: schedules.one_cycle(9, max_lr=0.1),  # type: ignore[call-arg]
     r"'max_lr'; .*AdamW\(params, lr=..., schedule=one_cycle\(...\)\)"),
    ("div=", lambda b: schedules.one_cycle(9, div=5),  # type: ignore[call-arg]
     "'div'; did you mean div_factor?"),
    ("div= in flat_cos", lambda b: b.tuner.fit_flat_cos(1, 0.1, div=5.0), "mean final_div_factor"),
    ("steps=", lambda b: schedules.one_cycle(steps=9), "'steps'; did you mean total_steps?"),  # type: ignore[call-arg]
    ("num_epochs=", lambda b: b.tuner.fit_one_cycle(num_epochs=3), "'num_epochs'; .* epochs?"),
    ("clip=", lambda b: adamw(b, clip=1.0), "'clip'; did you mean max_grad_norm?"),
    ("scheduler=", lambda b: adamw(b, scheduler=None), "'scheduler'; did you mean schedule?"),
    ("max_grad_nrm=", lambda b: adamw(b, max_grad_nrm=1.0), "did you mean max_grad_norm?"),
    ("nothing near", lambda b: find(b, qqq=1), "'qqq', which takes model, optimizer, train_loader"),
    ("optimizer=", lambda b: schedules.cosine(optimizer=b.optimizer, T_max=9),  # type: ignore[call-arg]
     r"'optimizer'; .*AdamW\(params, lr=..., schedule=cosine\(...\)\)"),
    ("num_warmup_steps=", lambda b: schedules.linear_with_warmup(num_warmup_steps=1),  # type: ignore[call-arg]
     "'num_warmup_steps'; did you mean warmup_steps?"),
    ("min_lr= in Plateau", lambda b: lrfast.Plateau(b.optimizer, min_lr=0.1),  # type: ignore[call-arg]
     "'min_lr'; did you mean min_factor?"),
    ("max_lr first in one_cycle", lambda b: schedules.one_cycle(0.1, total_steps=9),  # type: ignore[misc]
     r"got total_steps twice, 0.1 and 9; .* multiplies .*AdamW\(params, lr=..., schedule="),
    ("torch's OneCycleLR", lambda b: schedules.one_cycle(b.optimizer, 0.1, total_steps=9),  # type: ignore[misc]
     r"total_steps must be a whole number, got an AdamW; the optimizer takes the schedule: AdamW"),
    ("twice", lambda b: b.tuner.fit_one_cycle(1, epochs=2), "got epochs twice, 1 and 2$"),  # type: ignore[misc]
    ("min_lr= in one_cycle", lambda b: schedules.one_cycle(9, min_lr=0.1),  # type: ignore[call-arg]
     "'min_lr'; did you mean final_div_factor?"),
    # Former names, and those of fastai, torch-lr-finder, Lightning and Accelerate.
    *((f"{name}= in lr_find", lambda b, name=name: find(b, **{name: 5}), f"'{name}'; .* {own}?")
      for own, names in {
          "train_loader": "data dataloader",
          "val_loader": "valid",
          "diverge_threshold": "stop stop_div diverge_th early_stop_threshold",
          "gradient_accumulation_steps": "accumulate accumulation_steps accumulate_grad_batches",
          "num_iter": "num_it",
      }.items() for name in names.split()),
    *((f"{name}= in FineTuner", lambda b, name=name: b.tuned(**{name: 5}), f"'{name}'; .* {own}?")
      for own, names in {
          "train_loader": "train dls",
          "val_loader": "valid",
          "gradient_accumulation_steps": "accumulate",
      }.items() for name in names.split()),
    ("stop= in a tuner's", lambda b: b.tuner.lr_find(stop=2.0), "did you mean diverge_threshold?"),
    ("loader=", lambda b: lrfast.Retest(b.model, b.optimizer, loader=BATCHES),  # type: ignore[call-arg]
     "'loader'; did you mean train_loader?"),
    ("stop= in Retest", lambda b: lrfast.Retest(b.model, b.optimizer, BATCHES, stop=2.0),
     "'stop'; did you mean diverge_threshold?"),
    ("stop= of a curve", lambda b: lrfast.LossCurve(9, stop=2.0),  # type: ignore[call-arg]
     "'stop'; did you mean diverge_threshold?"),
    ("final_div=", lambda b: schedules.one_cycle(9, final_div=5),  # type: ignore[call-arg]
     "'final_div'; did you mean final_div_factor?"),
    ("div= in fit", lambda b: b.tuner.fit_one_cycle(1, 0.1, div=5), "'div'; .* div_factor?"),
    # Kinds.
    ("swapped", lambda b: find(b, b.optimizer, b.model),
     r"model must be a torch.nn.Module, got an AdamW; are model and optimizer swapped\? .*find\(m"),
    ("data and loss", lambda b: find(b, b.model, b.optimizer, cross_entropy, b.batches),
     "train_loader must be a loader .* cross_entropy; are train_loader and loss_fn swapped"),
    ("a class of losses", lambda b: find(b, b.model, b.optimizer, b.batches, nn.CrossEntropyLoss),
     r"loss_fn must be .*, got the class CrossEntropyLoss; .* CrossEntropyLoss\(\)"),
    ("a class of models", lambda b: lrfast.layer_groups(nn.ReLU),  # type: ignore[arg-type]
     r"model must be .*, got the class ReLU; pass an instance, such as ReLU\(\)"),
    ("several optimizers", lambda b: find(b, b.model, [b.optimizer]),
     "optimizer must be .*, got a list of AdamW; .*step_fn= .* others="),
    ("a dict of optimizers", lambda b: find(b, b.model, {"a": b.optimizer}), "got a dict of AdamW"),
    ("a wrapped optimizer", lambda b: find(b, b.model, wrapped(b)), "optimizer .*pass its .opt"),
    ("torch's optimizer", lambda b: lrfast.capture(b.find, torch.optim.SGD([nn.Parameter(X)]), X),
     "optimizer must be an lrfast.optim.FusedOptimizer, got a SGD; lrfast.wrap"),
    ("a dict of loaders", lambda b: find(b, b.model, b.optimizer, {"train": b.batches}),
     "train_loader must be a loader or a list, got a dict of list; pass one of its values"),
    ("no model", lambda b: find(b, None), "model must be a torch.nn.Module, got None"),
    ("a model without weights", lambda b: find(b, meta(), adamw(b, meta().parameters())),
     "model must hold its weights, .* meta device; call model.to_empty"),
    ("a stage without weights",
     lambda b: b.tuned(model=meta()).fit_one_cycle(1, 0.1), "model must hold its weights"),
    ("model.parameters", lambda b: adamw(b, b.model.parameters),
     r"params must be a list, got the function parameters; call it, model.parameters\(\)"),
    ("the model as params", lambda b: adamw(b, b.model), r"params .*; pass model.parameters\(\)"),
    ("lr as text", lambda b: adamw(b, lr="1e-3"), "lr must be .*'1e-3'; pass 0.001"),
    ("max_lr as text", lambda b: b.tuner.fit_one_cycle(1, "1e-3"), "max_lr must .*; pass 0.001"),
    ("an optimizer's schedule", lambda b: schedules.cosine(b.optimizer, 9),  # type: ignore[arg-type]
     r"T_max must be a whole number, .*AdamW\(params, lr=..., schedule=cosine\(...\)\)"),
    ("torch's scheduler", lambda b: adamw(b, schedule=torch_scheduler(b)),
     "schedule must be an lrfast.schedules.Schedule.* got a CosineAnnealingLR; .*from_torch"),
    ("a function as schedule", lambda b: b.tuner.fit(1, lambda step: 1.0), "schedule .*from_func"),
    ("text as schedule", lambda b: b.optimizer.set_schedule("cosine"), r"schedule .*get\('cosine"),
    ("texts as schedules", lambda b: b.tuner.fit(1, ["cosine"] * 3), r"schedule\[0\] must be an l"),
    ("an optimizer as maker", lambda b: b.tuned(optimizer=b.optimizer), "optimizer .*its class"),
    ("a maker of nothing", lambda b: b.tuned(optimizer=lambda groups: None), "optimizer must re"),
    ("a tensor as a number", lambda b: b.tuner.fit_one_cycle(1, torch.tensor(0.1)),
     r"max_lr must .*got a tensor .*; pass its .item\(\)"),
    ("one callback", lambda b: b.tuned(callbacks=lrfast.finetune.EarlyStop()), "callbacks must be"),
    ("no callback", lambda b: b.tuned(callbacks=[print]), r"callbacks\[0\] must be .*Callback, g"),
    ("metrics as a list", lambda b: b.tuned(metrics=[lrfast.accuracy]), "metrics must be a dict o"),
]  # fmt: skip


@pytest.mark.parametrize("slip", SLIPS, ids=[slip[0] for slip in SLIPS])
def test_slips(slip: Slip) -> None:
    bench = Bench()
    before = trace(bench.model, bench.optimizer)
    with pytest.raises((TypeError, ValueError)) as caught:
        slip[1](bench)
    text = str(caught.value)
    assert re.search(slip[2], text) and "\n" not in text, text
    assert trace(bench.model, bench.optimizer) == before


def test_numbers_of_numpy_are_numbers() -> None:
    """Whole ones, learning rates, pairs, slices, lists: all as Python's, and none overflows."""
    one, rate = np.int64(1), np.float32(1e-2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in (np.float16, np.float32, np.float64):
            for lr in (kind(1e-3), np.array(1e-3, kind)):
                optimizer = lrfast.AdamW(
                    make_model().parameters(), lr=lr, betas=(kind(0.5), kind(0.75)), eps=kind(1e-3)
                )
                group = optimizer.param_groups[0]
                assert type(group["lr"]) is float and group["lr"] == float(kind(1e-3))
                assert group["betas"] == (0.5, 0.75) and type(group["betas"][0]) is float
        params = [{"params": make_model().parameters(), "lr": rate}]
        optimizer = lrfast.SGD(params, lr=0.5)
        optimizer.step()
        assert optimizer.get_last_lr() == [float(rate)]
        bench = Bench()
        result = bench.find(num_iter=np.int32(3), start_lr=rate, end_lr=np.float64(0.5))
        assert len(result.lrs) == 3 and result.lrs[0] == float(rate)
        per_group = bench.find(start_lr=np.full(3, 1e-4, np.float32), end_lr=np.full(3, 1.0))
        assert per_group.sweep.ranges[0] == (float(np.float32(1e-4)), 1.0)
        bench.tuner.fit_one_cycle(one, slice(rate, np.float16(0.25)), momentum=(rate * 50, rate))
        assert bench.optimizer.param_groups[0]["lr"] == float(rate)
        bench.tuner.fit(one, schedules.cosine(np.uint8(9)), np.array([0.1, 0.2, 0.3], np.float32))
        assert bench.optimizer.param_groups[1]["lr"] == float(np.float32(0.2))
        assert schedules.one_cycle(np.int64(20), np.float32(0.5)) == schedules.one_cycle(20, 0.5)
        assert schedules.multistep(np.array([2, 3])) == schedules.multistep([2, 3])
        assert schedules.cosine(20).at(np.int64(10)) == schedules.cosine(20).at(10)
        lrfast.Retest(
            bench.model, bench.optimizer, BATCHES, every=one, budget=rate, num_iter=one * 3
        )


def test_signatures_stay() -> None:
    """What is checked at the door looks as it is written."""
    import inspect

    names = list(inspect.signature(lrfast.lr_find).parameters)
    assert names[:3] == ["model", "optimizer", "train_loader"]
    assert list(inspect.signature(lrfast.AdamW).parameters)[:2] == ["params", "lr"]
    assert inspect.signature(schedules.cosine).parameters["eta_min"].default == 0.0
    assert partial(schedules.cosine, 9)() == schedules.cosine(T_max=9)
