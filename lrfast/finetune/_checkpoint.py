"""Checkpoints: plain tensors, numbers and strings in one file that is whole or not there."""

from __future__ import annotations

import os
import tempfile
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lrfast._fused import FusedOptimizer
from lrfast.finetune._loop import own_groups
from lrfast.finetune._random import RandomStates
from lrfast.finetune._run import Moment, Run
from lrfast.history import History

if TYPE_CHECKING:
    from lrfast._drive import Driver
    from lrfast.finetune._tuner import FineTuner

_FORMAT = 1


def write(path: str | Path, data: dict[str, Any]) -> None:
    """Write the data; a file that is there already stays as it is until the new one is whole."""
    path = Path(path)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(data, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def read(path: str | Path) -> dict[str, Any]:
    """Return what was written; nothing in the file is trusted, or executed.

    Raises:
        ValueError: If the file is no checkpoint of a fine-tuner.
    """
    data = torch.load(path, map_location="cpu", weights_only=True)
    found = data.get("format") if isinstance(data, dict) else None
    if found != _FORMAT:
        raise ValueError(f"path must be a checkpoint of format {_FORMAT}, got {found!r} in {path}")
    return dict(data)


def pack(tuner: FineTuner, run: Run | None, driver: Driver | None) -> dict[str, Any]:
    """Return all that a tuner of the same kind needs to go on. Waits for the device.

    Args:
        tuner: Whose state it is.
        run: The stage under way, or interrupted; None between stages.
        driver: What drives the optimizer now, if something does.
    """
    optimizer = tuner.optimizer.state_dict()
    if driver is not None:
        own_groups(driver, optimizer["param_groups"])
    model = tuner.model.state_dict()
    moment = Moment.take(tuner.model, tuner.loaders)
    return {
        "format": _FORMAT,
        "kind": _kind(tuner),
        "model": model,
        "buffers": {n: t for n, t in tuner.model.named_buffers() if n not in model},
        "requires_grad": {n: p.requires_grad for n, p in tuner.model.named_parameters()},
        "optimizer": optimizer,
        "scaler": None if tuner.scaler is None else tuner.scaler.state_dict(),
        "best": None if tuner.best is None else tuner.best.state_dict(),
        "callbacks": [callback.state_dict() for callback in tuner.callbacks],
        "history": History(tuner.finished_stages()).to_dict(),
        "random": moment.random.to_dict(),
        "modes": moment.modes,
        "run": None if run is None else run.to_dict(),
    }


def unpack(tuner: FineTuner, data: dict[str, Any]) -> Run | None:
    """Bring a tuner to the saved state, and return the stage that was under way.

    Raises:
        ValueError: If the tuner is of another kind; nothing has changed then.
    """
    _check_kind(_kind(tuner), data["kind"])
    run = None if data["run"] is None else Run.from_dict(data["run"])
    moment = Moment(RandomStates.from_dict(data["random"]), list(data["modes"]))
    tuner.model.load_state_dict(data["model"])
    own = dict(chain(tuner.model.named_parameters(), tuner.model.named_buffers()))
    with torch.no_grad():
        for name, values in data["buffers"].items():
            own[name].copy_(values)
    for name, parameter in tuner.model.named_parameters():
        parameter.requires_grad_(data["requires_grad"][name])
        parameter.grad = None
    tuner.optimizer.load_state_dict(data["optimizer"])
    if isinstance(tuner.optimizer, FusedOptimizer):
        # The stage that goes on attaches its schedule; until then the rates are the groups' own.
        tuner.optimizer._attach([None] * len(tuner.optimizer.param_groups))
    if tuner.scaler is not None:
        tuner.scaler.load_state_dict(data["scaler"])
    if tuner.best is not None:
        tuner.best.load_state_dict(data["best"], tuner.model)
    for callback, state in zip(tuner.callbacks, data["callbacks"], strict=True):
        callback.load_state_dict(state)
    tuner.history.stages[:] = History.from_dict(data["history"]).stages
    moment.put_back(tuner.model, tuner.loaders)
    return run


def _kind(tuner: FineTuner) -> dict[str, Any]:
    """What must be the same in a tuner that goes on."""
    names = {parameter: name for name, parameter in tuner.model.named_parameters()}
    optimizer = type(tuner.optimizer)
    return {
        "optimizer": f"{optimizer.__module__.split('.')[0]}.{optimizer.__qualname__}",
        "groups": [_names(group["params"], names) for group in tuner.optimizer.param_groups],
        "shapes": {n: list(p.shape) for n, p in _state(tuner.model).items()},
        "loss schedule": _loss_schedule(tuner),
        "steps per epoch": tuner.epoch_steps,
        "norm_mode": tuner.norm_mode,
        "accumulate": tuner.accumulate,
        "amp": str(tuner.amp),
        "max_grad_norm": tuner.max_grad_norm,
        "ema_decay": tuner.ema_decay,
        "keep_best": None if tuner.best is None else [tuner.best.monitor, tuner.best.mode],
        "callbacks": [type(callback).__qualname__ for callback in tuner.callbacks],
    }


def _loss_schedule(tuner: FineTuner) -> dict[str, Any] | None:
    optimizer = tuner.optimizer
    schedule = optimizer.loss_schedule if isinstance(optimizer, FusedOptimizer) else None
    return None if schedule is None else schedule.identity


def _names(parameters: list[Tensor], names: dict[Any, str]) -> list[str]:
    return [names[parameter] for parameter in parameters]


def _state(model: nn.Module) -> dict[str, Tensor]:
    return dict(chain(model.named_parameters(), model.named_buffers()))


def _check_kind(own: dict[str, Any], saved: dict[str, Any]) -> None:
    for name, value in own.items():
        if saved.get(name) != value:
            raise ValueError(
                f"the checkpoint must be of a tuner with the same {name}: "
                f"wanted {_short(value)}, got {_short(saved.get(name))}"
            )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 300 else text[:297] + "..."
