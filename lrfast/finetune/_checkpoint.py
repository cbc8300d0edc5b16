"""Checkpoints of a fine-tuner: tensors, numbers and strings in one file, written atomically."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from copy import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lrfast._utils.atomic_write import replacing
from lrfast._utils.former_names import renamed
from lrfast._utils.param_groups import set_momentum
from lrfast._utils.validation import (
    check_bool,
    check_dict,
    check_finite,
    check_list,
    load_untrusted,
    short_repr,
)
from lrfast.finetune._best_model import check_like, named_tensors, shape_of
from lrfast.finetune._callbacks import Tuner
from lrfast.finetune._history import History
from lrfast.finetune._stage_state import ResumePoint, Run
from lrfast.optim._checkpoint import rollback_on_error
from lrfast.optim._optimizer import FusedOptimizer
from lrfast.optim._schedule_driver import ScheduleDriver
from lrfast.training._snapshot import Snapshot, is_out_of_memory

_FORMAT = 1


def write(path: str | Path, data: dict[str, Any]) -> None:
    """Write the data in place of a file that may be there."""
    with replacing(path, "wb") as file:
        torch.save(data, file)


def read(path: str | Path) -> dict[str, Any]:
    """Return the data of a file, in which nothing is trusted or executed."""
    with open(path, "rb") as file:
        data = load_untrusted(f"path {path}", file)
    found = data.get("format") if isinstance(data, dict) else None
    if found != _FORMAT:
        raise ValueError(f"path must be a checkpoint of format {_FORMAT}, got {found!r} in {path}")
    return dict(data)


def pack(tuner: Tuner, run: Run | None, driver: ScheduleDriver | None) -> dict[str, Any]:
    """Return the state of a tuner, and of its running or interrupted stage; synchronises."""
    optimizer = tuner.optimizer.state_dict()
    if driver is not None:
        _write_base_rates(driver, optimizer["param_groups"])
    model = tuner.model.state_dict()
    return {
        "format": _FORMAT,
        "kind": _kind(tuner),
        **ResumePoint.take(tuner.model, tuner.loaders).to_dict(),
        "model": model,
        "buffers": {n: t for n, t in tuner.model.named_buffers() if n not in model},
        "requires_grad": {n: p.requires_grad for n, p in tuner.model.named_parameters()},
        "optimizer": optimizer,
        "scaler": None if tuner.scaler is None else tuner.scaler.state_dict(),
        "best": None if tuner.best is None else tuner.best.state_dict(),
        "callbacks": [callback.state_dict() for callback in tuner.callbacks],
        "history": History(tuner.finished_stages()).to_dict(),
        "run": None if run is None else run.to_dict(),
    }


@contextmanager
def _rollback_on_error(tuner: Tuner) -> Iterator[None]:
    """Restore the tuner from a copy in the host's memory if the block raises, and say why."""
    others = [*tuner.callbacks, *([] if tuner.scaler is None else [tuner.scaler])]
    before = Snapshot(
        *(tuner.model, tuner.optimizer), others=others, loaders=tuner.loaders, on_host=True
    )
    stages, best, optimizer = list(tuner.history.stages), copy(tuner.best), tuner.optimizer
    try:
        with (
            rollback_on_error(optimizer) if isinstance(optimizer, FusedOptimizer) else nullcontext()
        ):
            yield
    except BaseException as error:
        before.restore()
        tuner.history.stages[:] = stages
        tuner.best = best
        kinds = (AttributeError, IndexError, KeyError, RuntimeError, TypeError)
        if not isinstance(error, kinds) or is_out_of_memory(error):
            raise
        raise ValueError(
            "path must be a checkpoint that FineTuner.save wrote, got one that is broken: "
            f"{type(error).__name__}: {str(error)[:500]}"
        ) from error


def unpack(tuner: Tuner, data: dict[str, Any]) -> Run | None:
    """Bring a tuner to the saved state and return the stage under way; if it fails, roll back."""
    with _rollback_on_error(tuner):
        return _unpack(tuner, data)


def _unpack(tuner: Tuner, data: dict[str, Any]) -> Run | None:
    wanted = _kind(tuner)
    kind = renamed(check_dict("kind", check_dict("path", data)["kind"]), wanted)
    for name, own in wanted.items():
        if kind.get(name) != own:
            raise ValueError(
                f"the checkpoint must be of a tuner with the same {name}: "
                f"wanted {short_repr(own, 300)}, got {short_repr(kind.get(name), 300)}"
            )
    run = None if data["run"] is None else _check_run(tuner, Run.from_dict(data["run"]))
    resume_point = ResumePoint.from_dict(data)
    tensors = tuner.model.state_dict()
    for name, values in check_dict("model", data["model"], tensors).items():
        if isinstance(tensors.get(name), Tensor):  # all shapes, before torch loads those that fit
            check_like(name, values, tensors[name])
    tuner.model.load_state_dict(data["model"])
    tensors = named_tensors(tuner.model)
    with torch.no_grad():
        for name, values in data["buffers"].items():
            tensors[name].copy_(check_like(name, values, tensors[name]))
    for name, parameter in tuner.model.named_parameters():
        parameter.requires_grad_(check_bool("requires_grad", data["requires_grad"][name]))
        parameter.grad = None
    tuner.optimizer.load_state_dict(data["optimizer"])
    if isinstance(tuner.optimizer, FusedOptimizer):
        # The stage that goes on attaches its schedule; until then each group keeps its own lr.
        tuner.optimizer._attach([None] * len(tuner.optimizer.param_groups))
    if tuner.scaler is not None:
        for name, value in check_dict("scaler", data["scaler"]).items():
            check_finite(f"the scaler's {name}", value, least=0.0)
        tuner.scaler.load_state_dict(data["scaler"])
    if tuner.best is not None:
        tuner.best.load_state_dict(data["best"], tuner.model)
    states = check_list("callbacks", data["callbacks"])
    for callback, state in zip(tuner.callbacks, states, strict=True):
        callback.load_state_dict(state)
    tuner.history.stages[:] = History.from_dict(data["history"]).stages
    resume_point.restore(tuner.model, tuner.loaders)
    return run


def _check_run(tuner: Tuner, run: Run) -> Run:
    """Check that the tuner can go on with a run."""
    groups, modules = len(tuner.optimizer.param_groups), len(list(tuner.model.modules()))
    assert run.moment is not None
    if len(run.schedules) not in (1, groups):
        raise ValueError(f"schedules must be 1 or {groups}, got {len(run.schedules)}")
    if any(len(flags) != groups for _, flags in run.frozen):
        raise ValueError(
            f"frozen must say so of {groups} param groups, got {short_repr(run.frozen)}"
        )
    if (modes := len(run.moment.modes)) != modules:
        raise ValueError(f"modes must be of {modules} modules, got {modes}")
    return run


def _kind(tuner: Tuner) -> dict[str, Any]:
    """Return what must be the same in the tuner that loads."""
    names = {parameter: name for name, parameter in tuner.model.named_parameters()}
    optimizer, made = tuner.optimizer, type(tuner.optimizer)
    schedule = optimizer.loss_schedule if isinstance(optimizer, FusedOptimizer) else None
    return {
        "optimizer": f"{made.__module__.split('.')[0]}.{made.__qualname__}",
        "groups": [[names[p] for p in group["params"]] for group in optimizer.param_groups],
        "shapes": {n: shape_of(p) for n, p in named_tensors(tuner.model).items()},
        "loss schedule": None if schedule is None else schedule.identity,
        "steps per epoch": tuner.epoch_steps,
        "norm_mode": tuner.norm_mode,
        "gradient_accumulation_steps": tuner.gradient_accumulation_steps,
        "amp": str(tuner.amp),
        "max_grad_norm": tuner.max_grad_norm,
        "ema_decay": tuner.ema_decay,
        "keep_best": None if tuner.best is None else [tuner.best.monitor, tuner.best.mode],
        "callbacks": [type(callback).__qualname__ for callback in tuner.callbacks],
    }


def _write_base_rates(driver: ScheduleDriver, packed: Iterable[dict[str, Any]]) -> None:
    """Write the values without the schedule into a state dict's param groups."""
    for index, group in enumerate(packed):
        rate, momentum = driver.base_hyperparameters(index)
        lr = group["lr"]
        group["lr"] = torch.full_like(lr, rate) if isinstance(lr, Tensor) else rate
        if momentum is not None:
            set_momentum(group, momentum)
