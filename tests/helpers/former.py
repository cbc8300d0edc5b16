"""Files and pickles that a former version wrote: how each was made, and what goes on from it.

A `Record` is one file. `make` returns what is stored and, with `write`, is used once, by
`data/make.py` at the former version. `read` and `outcome` are used by every later version: what
was stored is loaded, training goes on, and the outcome must be the former version's.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lrfast
from lrfast import FineTuner, accuracy, finetune, groups, optim, range_test, schedules
from lrfast.range_test import Candidate, Race, Sweep
from lrfast.suggest import Suggestion

DATA = Path(__file__).parents[1] / "data"
OUTCOMES = "outcomes.json"  # of all files of an archive, by their names
EXACT = 0.0
STEPS = 4  # updates before something is stored, and after it is loaded
Params = list[Tensor]


@dataclass(frozen=True)
class Record:
    """One file of a former version.

    Args:
        name: Its name in the version's folder.
        make: Returns what is stored, an object for `write`.
        write: Stores it at a path.
        read: Loads it from there.
        outcome: What follows from it, as plain data; it may change what was loaded.
        tolerance: By how much numbers may differ, relative to 1 or to themselves: 0 where lrfast
            computes all of them, more where torch's matrix products do, which differ from CPU to
            CPU.
    """

    name: str
    make: Callable[[], Any]
    write: Callable[[Any, Path], None]
    read: Callable[[Path], Any]
    outcome: Callable[[Any], Any]
    tolerance: float = EXACT


def plain(value: Any) -> Any:
    """Return a value as JSON holds it, bit for bit."""
    if isinstance(value, Tensor):
        return [str(value.dtype), list(value.shape), value.detach().double().flatten().tolist()]
    if isinstance(value, np.ndarray):
        return [str(value.dtype), list(value.shape), value.flatten().tolist()]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def difference(found: Any, wanted: Any, tolerance: float, place: str = "outcome") -> str | None:
    """Return where two outcomes differ first, in words, or None. New entries are no difference."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        pairs = [(f"{place}[{name!r}]", found.get(name), wanted[name]) for name in wanted]
    elif isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        pairs = [(f"{place}[{i}]", *pair) for i, pair in enumerate(zip(found, wanted, strict=True))]
    else:
        return None if _same(found, wanted, tolerance) else f"{place}: {found!r}, not {wanted!r}"
    return next((text for p, f, w in pairs if (text := difference(f, w, tolerance, p))), None)


def _same(found: Any, wanted: Any, tolerance: float) -> bool:
    if not isinstance(found, float) or not isinstance(wanted, float):
        return type(found) is type(wanted) and found == wanted
    if tolerance and math.isfinite(wanted):
        return abs(found - wanted) <= tolerance * max(1.0, abs(wanted))
    return repr(found) == repr(wanted)  # the sign of a zero, and NaN


# Optimizers


def parameters() -> Params:
    """Parameters of every dtype, one of them transposed, one without dimensions."""
    return [
        nn.Parameter(torch.tensor([0.5, -1.25, 2.0], dtype=torch.float64)),
        nn.Parameter(torch.tensor([[1.0, -0.5, 0.25], [0.75, 2.0, -1.5]]).t()),
        nn.Parameter(torch.tensor([1.0, -2.0, 0.5, 0.125], dtype=torch.bfloat16)),
        nn.Parameter(torch.tensor(-0.75)),
    ]


def gradient(param: Tensor, step: int, index: int) -> Tensor:
    """A gradient that every dtype holds exactly."""
    values = (torch.arange(param.numel()) * 7 + step * 5 + index * 3) % 11 - 5
    return (values / 4).to(param.dtype).reshape(param.shape)


@dataclass(frozen=True)
class Training:
    """An optimizer with all that its state dict can hold.

    Args:
        name: What its files are called.
        make: Makes the optimizer of param groups.
        schedule: Attached before the first step; a list has one per param group.
        loss_schedule: Makes what drives the rates by the loss.
        skips: Whether the second gradient is infinite.
        steps: Updates before it is stored.
        tolerance: By how much what follows may differ, see `Record`.
    """

    name: str
    make: Callable[[list[dict[str, Any]]], Any]
    schedule: Any = None
    loss_schedule: Callable[[Any], Any] | None = None
    skips: bool = False
    steps: int = STEPS
    tolerance: float = EXACT

    def optimizer(self, params: Params) -> Any:
        """Return it as it is before anything is attached or loaded."""
        first = {"params": params[:2]}
        second = {"params": params[2:], "lr": 0.02, "weight_decay": 0.3}
        return self.make([first, second])

    def trained(self) -> Any:
        """Return it after its first steps."""
        optimizer = self.optimizer(parameters())
        if self.schedule is not None:
            optimizer.set_schedule(self.schedule)
        if self.loss_schedule is not None:
            self.loss_schedule(optimizer)
        self.train(optimizer, 0, self.steps)
        return optimizer

    def train(self, optimizer: Any, first: int, steps: int) -> list[Any]:
        """Make updates, and return the parameters and learning rates of each."""
        params = [param for group in optimizer.param_groups for param in group["params"]]
        seen = []
        for step in range(first, first + steps):
            for index, param in enumerate(params):
                param.grad = gradient(param, step, index)
                if self.skips and step == 1:
                    param.grad.fill_(math.inf)
            optimizer.step()
            if self.loss_schedule is not None:
                optimizer.loss_schedule.observe(1.0 + 0.1 * (step % 3))
            seen.append([plain(params), plain(optimizer.last_rates)])
        return seen

    def outcome(self, optimizer: Any) -> Any:
        """Go on, and return all that can be seen."""
        seen = self.train(optimizer, self.steps, STEPS)
        found = {
            "steps": seen,
            "state": plain(optimizer.state_dict()["state"]),
            "current_rates": plain(optimizer.get_last_lr()),
            "norm": plain(optimizer.grad_norm),
        }
        if self.schedule is not None:
            found["schedule_step"] = optimizer.schedule_step
        if self.loss_schedule is not None:
            found["loss schedule"] = plain(optimizer.loss_schedule.state_dict())
        with suppress(ValueError):  # where none was asked for
            found["telemetry"] = plain(optimizer.telemetry())
        return found

    def store(self, optimizer: Any, path: Path) -> None:
        """Write parameters and state dict."""
        params = [param.detach() for group in optimizer.param_groups for param in group["params"]]
        torch.save({"params": params, "optimizer": optimizer.state_dict()}, path)

    def load(self, path: Path) -> Any:
        """Read them into an optimizer that has no schedule but the one that is loaded."""
        stored = torch.load(path)
        optimizer = self.optimizer([nn.Parameter(param) for param in stored["params"]])
        optimizer.load_state_dict(stored["optimizer"])
        if self.loss_schedule is not None:
            self.loss_schedule(optimizer)  # takes the loaded state over
        return optimizer


def _cycle(momentum: tuple[float, float] | None = (0.95, 0.85)) -> schedules.Schedule:
    return schedules.one_cycle(
        12, pct_start=0.25, div_factor=4.0, momentum=momentum, anneal="linear"
    )


def _frozen(param_groups: list[dict[str, Any]]) -> Any:
    param_groups[0]["frozen"] = True
    return lrfast.AdamW(param_groups, lr=0.05, betas=(0.8, 0.95), eps=1e-3)


_ALL = {"max_grad_norm": 0.75, "ema_decay": 0.9, "telemetry": 3, "zero_grads": True}
_BETAS = {"lr": 0.05, "betas": (0.8, 0.95), "eps": 1e-3}
_PLATEAU = partial(lrfast.Plateau, factor=0.5, patience=0, cooldown=1, window=2)
_KERAS = partial(
    lrfast.Plateau, mode="max", factor=0.5, patience=1, counting="keras", min_factor=0.1
)
_GREEDY = partial(lrfast.Greedy, factor=0.7, patience=0, warmup=1, window=2)
_TWO = (schedules.linear(0.5, 1.0, 6), schedules.linear(1.0, 0.25, 8).repeat())

TRAININGS = (
    Training("sgd-plain", partial(lrfast.SGD, lr=0.05), schedules.staircase(8, 2, 0.5)),
    Training(
        "sgd-unbegun",
        partial(lrfast.SGD, lr=0.05, momentum=0.9, dampening=0.3, nesterov=False),
        _cycle(),
        steps=0,
    ),
    Training(
        "sgd-all",
        partial(lrfast.SGD, lr=0.05, momentum=0.9, dampening=0.3, skip_nonfinite=True, **_ALL),
        _cycle(),
        skips=True,
    ),
    Training("sgd-nesterov", partial(lrfast.SGD, lr=0.05, momentum=0.9, nesterov=True)),
    Training(
        "sgd-greedy", partial(lrfast.SGD, lr=0.05, momentum=0.9), _cycle(), loss_schedule=_GREEDY
    ),
    Training("adam-amsgrad", partial(lrfast.Adam, amsgrad=True, weight_decay=0.1, **_BETAS)),
    Training("adam-cycled", partial(lrfast.Adam, amsgrad=True, **_BETAS), _cycle()),
    Training("adamw-all", partial(lrfast.AdamW, **_ALL, **_BETAS), _TWO),
    Training("adamw-frozen", _frozen, _cycle(None)),
    Training(
        "adamw-decay",
        partial(lrfast.AdamW, **_BETAS),
        _cycle().with_weight_decay(schedules.linear(1.0, 10.0, 6)),
    ),
    Training(
        "adamw-float32-moments",
        partial(lrfast.AdamW, state_dtype=torch.float32, **_BETAS),
        _cycle(),
    ),
    Training(
        "adamw-bfloat16-moments",
        partial(
            lrfast.AdamW, state_dtype=torch.bfloat16, stochastic_rounding=True, seed=7, **_BETAS
        ),
        # Other random numbers since: a few times the distance of bfloat16 numbers around 1.
        tolerance=2**-6,
    ),
    Training("adamw-plateau", partial(lrfast.AdamW, **_BETAS), _TWO, loss_schedule=_PLATEAU),
    Training("adam-keras-plateau", partial(lrfast.Adam, **_BETAS), loss_schedule=_KERAS),
    Training("nadam", partial(lrfast.NAdam, momentum_decay=0.3, **_BETAS)),
    Training(
        "nadam-cycled",
        partial(lrfast.NAdam, decoupled_weight_decay=True, ema_decay=0.8, **_BETAS),
        _cycle(),
    ),
    Training("rmsprop", partial(lrfast.RMSprop, lr=0.05, alpha=0.9), _cycle(None)),
    Training(
        "rmsprop-all",
        partial(lrfast.RMSprop, lr=0.05, alpha=0.9, momentum=0.8, centered=True, **_ALL),
        _cycle(),
    ),
    Training(
        "adagrad",
        partial(lrfast.Adagrad, lr=0.05, lr_decay=0.2, initial_accumulator_value=0.25),
        _cycle(None),
    ),
    Training("lion", partial(lrfast.Lion, lr=0.05, betas=(0.8731, 0.9377), **_ALL), _cycle()),
)


# Pickles and JSON


def dump(value: Any, path: Path) -> None:
    """Write a pickle, by the protocol that every Python knows."""
    path.write_bytes(pickle.dumps(value, protocol=4))


def load(path: Path) -> Any:
    """Read a pickle."""
    return pickle.loads(path.read_bytes())


def _write_json(value: Any, path: Path) -> None:
    path.write_text(json.dumps(value) + "\n")


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text())


# Schedules


def all_schedules() -> dict[str, schedules.Schedule]:
    """One of every maker, and of every way to combine them."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    torchs = torch.optim.lr_scheduler.CyclicLR(optimizer, 0.01, 0.1, step_size_up=3)
    imported = schedules.from_torch(torchs, 12)
    assert isinstance(imported, schedules.Schedule)
    rise, fall = schedules.warmup(4, 0.1), schedules.cosine(9, eta_min=0.05)
    wave = schedules.linear(1.0, 0.5, 3)
    return {
        "constant": schedules.constant(0.5),
        "cosine": schedules.cosine(17, eta_min=0.1),
        "cyclic": schedules.cyclic(4, 6, base=0.2, momentum=(0.95, 0.8)),
        "cyclic triangular2": schedules.cyclic(4, mode="triangular2"),
        "cyclic exp_range": schedules.cyclic(4, mode="exp_range", gamma=0.97),
        "exponential": schedules.exponential(20, 0.9),
        "flat_cosine": schedules.flat_cosine(20, end=0.1),
        "flat_cosine fastai": schedules.flat_cosine(20, compat="fastai"),
        "from_function": schedules.from_function(lambda step: 1.0 / (1 + step), 9),
        "from_torch": imported,
        "inverse_sqrt": schedules.inverse_sqrt(4, 20),
        "linear": schedules.linear(0.25, 1.0, 7),
        "multistep": schedules.multistep([3, 5, 11], 0.5),
        "one_cycle": schedules.one_cycle(20),
        "one_cycle torch": schedules.one_cycle(20, compat="torch", three_phase=True),
        "one_cycle fastai": schedules.one_cycle(20, compat="fastai"),
        "one_cycle linear": schedules.one_cycle(20, 0.4, 10.0, 1e3, None, "linear"),
        "polynomial": schedules.polynomial(15, power=2.0, end=0.1),
        "rex": schedules.rex(15, end=0.1),
        "sgdr": schedules.sgdr(5, cycle_mult=2.0, cycles=3, eta_min=0.01, warmup=2),
        "sgdr forever": schedules.sgdr(5),
        "sgdr unit": schedules.sgdr(4, cycle_mult=1.5, cycles=3, unit=4),
        "slanted_triangular": schedules.slanted_triangular(20),
        "staircase": schedules.staircase(20, 6, 1.5),
        "step": schedules.step(6, 0.5),
        "sweep": schedules.sweep(1e-4, 1.0, 12),
        "warmup": rise,
        "wsd": schedules.wsd(30, 5, 8, warmup="cosine", decay="sqrt", start=0.1, end=0.05),
        "then": rise.then(fall).then(schedules.one_cycle(8)),
        "product": rise * schedules.step(5, 0.5) * schedules.one_cycle(16),
        "nested product": (rise * wave).then(fall * schedules.step(3, 0.5)),
        "repeat": wave.repeat(3),
        "repeat forever": schedules.one_cycle(6).repeat(),
        "weight decay": fall.with_weight_decay(schedules.linear(1.0, 3.0, 12)),
        "per_epoch": schedules.per_epoch(schedules.sgdr(2, cycles=3), 4),
        "per_epoch stepwise": schedules.per_epoch(schedules.cosine(5), 4, stepwise=True),
        "extend_to": schedules.one_cycle(10).extend_to(16, step=4),
        "lasting": wave.lasting(10),
    }


def _schedule_values(found: Mapping[str, schedules.Schedule]) -> Any:
    steps = range(45)
    return {
        name: {
            "name": each.name,
            "total_steps": each.total_steps,
            "values": plain(each.values(steps)),
            "momentum": plain(each.momentum(steps)),
            "weight_decay": plain(each.weight_decay(steps)),
            "dict": plain(each.to_dict()),
        }
        for name, each in found.items()
    }


def _write_schedules(found: Mapping[str, schedules.Schedule], path: Path) -> None:
    _write_json({name: each.to_dict() for name, each in found.items()}, path)


def _read_schedules(path: Path) -> dict[str, schedules.Schedule]:
    stored = _read_json(path)
    return {name: schedules.Schedule.from_dict(each) for name, each in stored.items()}


# Range tests


def make_model(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """Three layer groups whose values no generator has made."""
    model = nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)
    ).to(dtype)
    with torch.no_grad():
        for index, param in enumerate(model.parameters()):
            values = (torch.arange(param.numel()) * 5 + index) % 7 - 3
            param.copy_((values / 8).reshape(param.shape))
    return model


def make_rows(dtype: torch.dtype = torch.float64) -> TensorDataset:
    """Twelve rows of inputs and classes."""
    inputs = ((torch.arange(36) * 7) % 13 - 6).to(dtype).reshape(12, 3) / 4
    return TensorDataset(inputs, (inputs.sum(1) > 0).long())


def make_batches(size: int = 4, dtype: torch.dtype = torch.float64) -> list[Any]:
    """The rows as a list of batches."""
    inputs, classes = make_rows(dtype).tensors
    return list(zip(inputs.split(size), classes.split(size), strict=True))


def swept() -> lrfast.RangeTest:
    """A range test of two param groups, with repeats and a race."""
    model = make_model()
    body, head = model[:3].parameters(), model[3:].parameters()
    optimizer = lrfast.AdamW([{"params": body, "lr": 1e-4}, {"params": head}], lr=1e-3)
    return lrfast.lr_find(
        *(model, optimizer, make_batches(), nn.functional.cross_entropy),
        num_iter=30,
        repeats=2,
        verify=3,
        progress=False,
    )


def written() -> lrfast.RangeTest:
    """A range test with no field at its default, and every number that JSON has no word for."""
    losses = np.array([3.0, math.nan, math.inf, -math.inf, -0.0, 1 / 3])
    race = Race(
        (
            Candidate(1e-3, "steep", (2.0, 1.0), True),
            Candidate(0.1, "minimum", (2.0, math.nan), False),
        ),
        *(50, "validation", 0.25),
    )
    found = [
        Suggestion(1e-3, "auto", "a reason", 0.9),
        Suggestion(0.1, "cyclic", "a span", 0.5, 3, 0.01, (1e-9, 1 / 3)),
        Suggestion(None, "slide", 'a "quoted" η', 0.0),
        Suggestion(2e-3, "verified", "it won", 1.0, 2),
    ]
    return lrfast.RangeTest(
        lrs=np.array([1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1]),
        losses=losses,
        smoothed=losses[::-1].copy(),
        derivative=np.full(6, math.nan),
        sweep=Sweep("exp", 6, ((1e-7, 0.01), (1 / 3, 1 / 3), (1e-6, 0.1)), 2),
        suggestions={each.rule: each for each in found},  # type: ignore[arg-type]
        outcome="non-finite",
        seconds=0.1 + 0.2,
        notes=("a note", "another"),
        repeats=np.stack([losses, losses[::-1]]),
        snapshot_bytes=2**40,
        race=race,
    )


def _range_outcome(result: lrfast.RangeTest) -> Any:
    groups = [{"params": [nn.Parameter(torch.zeros(1))]} for _ in result.sweep.ranges]
    optimizer = torch.optim.SGD(groups, lr=0.5)
    applied = result.apply(optimizer)
    return {
        "fields": plain(result),
        "rule": result.rule,
        "suggestion": plain(result.suggestion),
        "ratios": plain(result.ratios),
        "rates": plain(result.suggested_lrs("auto")),
        "band": plain(result.band),
        "applied": [plain(list(applied)), plain(applied.old)],
        "used": [group["lr"] for group in optimizer.param_groups],
    }


def make_retest() -> lrfast.Retest:
    """A re-test of a model that does not train."""
    model = make_model()
    optimizer = lrfast.SGD(model.parameters(), lr=1e-4)
    return lrfast.Retest(
        *(model, optimizer, make_batches(), nn.functional.cross_entropy),
        every=3,
        patience=2,
        budget=None,
        clock=partial(float, 100),  # which stands
        num_iter=30,
        progress=False,
    )


def tested() -> lrfast.Retest:
    """A re-test that has run for two reasons."""
    retest = make_retest()
    for loss in (1.0, 0.5, 0.75):
        retest.epoch_end(loss)
    retest.unfrozen()
    return retest


def _load_retest(path: Path) -> lrfast.Retest:
    retest = make_retest()
    retest.load_state_dict(_read_json(path))
    return retest


def _retest_outcome(retest: lrfast.Retest) -> Any:
    entry = retest.epoch_end(0.25)
    state = retest.state_dict()
    del state["elapsed"]  # the time between
    return {"log": plain(retest.log), "entry": plain(entry), "state": plain(state)}


# Fine-tuners


class Interrupted(Exception):
    """Where a file is made within a stage."""


class Interrupt(finetune.Callback):
    """Ends a stage with an exception after an update."""

    def __init__(self, at: int | None = None) -> None:
        self.at = at

    def on_step_end(self, tuner: FineTuner, step: int, loss: Tensor) -> None:
        if step == self.at:
            self.at = None
            raise Interrupted


@dataclass(frozen=True)
class Tuning:
    """A fine-tuner, saved between two stages or within the second one.

    Args:
        name: What its file is called.
        optimizer: As a FineTuner takes it.
        at: The update of the second stage that it is saved after; None: between the stages.
        options: More arguments of the FineTuner.
        dtype: Of model and data.
        shuffles: Whether the data come from a DataLoader with a generator, not from a list.
        plateau: Whether a Plateau drives the rates.
        fit: Arguments of the second stage.
    """

    name: str
    optimizer: Any
    at: int | None
    options: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float64
    shuffles: bool = False
    plateau: bool = False
    fit: dict[str, Any] = field(default_factory=dict)

    def make(self) -> FineTuner:
        """Return it as a new process makes it."""
        batches = make_batches(dtype=self.dtype)
        train: Any = batches
        if self.shuffles:
            generator = torch.Generator().manual_seed(5)
            rows = make_rows(self.dtype)
            train = DataLoader(rows, batch_size=2, shuffle=True, generator=generator)
        tuner = FineTuner(
            *(make_model(self.dtype), train, batches),
            loss_fn=nn.functional.cross_entropy,
            metrics={"accuracy": accuracy},
            optimizer=self.optimizer,
            progress=False,
            callbacks=[finetune.EarlyStop(patience=9), Interrupt()],
            **self.options,
        )
        if self.plateau:
            schedule = lrfast.Plateau(tuner.optimizer, factor=0.5, patience=0, threshold=0.9)
            tuner.callbacks.append(finetune.Observe(schedule, every=2))
        return tuner

    def trained(self) -> FineTuner:
        """Return it where it is saved."""
        torch.manual_seed(3)
        tuner = self.make()
        if tuner.scaler is not None:  # it soon finds an overflow, and soon grows
            tuner.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=3)
        tuner.freeze()
        tuner.fit(1, schedules.linear(0.5, 1.0, 3), lr=0.01)
        tuner.model[-1].bias.requires_grad_(False)
        if self.at is not None:
            tuner.unfreeze()
            interrupt = tuner.callbacks[1]
            assert isinstance(interrupt, Interrupt)
            interrupt.at = self.at
            with suppress(Interrupted):
                self.second(tuner)
        return tuner

    def second(self, tuner: FineTuner) -> None:
        """Train the second stage."""
        tuner.fit_one_cycle(3, [0.005, 0.01, 0.02], momentum=(0.9, 0.7), **self.fit)

    def load(self, path: Path) -> FineTuner:
        """Read it into a new one."""
        tuner = self.make()
        tuner.load(path)
        return tuner

    def outcome(self, tuner: FineTuner) -> Any:
        """Go on, and return what all stages did."""
        if self.at is None:
            self.second(tuner)
        else:
            tuner.resume()
        found = {
            "stages": _stages(tuner.history),
            "model": plain(tuner.model.state_dict()),
            "callbacks": plain([each.state_dict() for each in tuner.callbacks]),
        }
        if tuner.best is not None:
            tuner.restore_best()
            found["best"] = plain(tuner.model.state_dict())
        if tuner.scaler is not None:
            found["scale"] = tuner.scaler.get_scale()
        return found


def _stages(history: lrfast.History) -> Any:
    stages = [plain(stage) for stage in history.stages]
    for stage in stages:
        del stage["seconds"]
    return stages


_KEPT = {"keep_best": "accuracy", "ema_decay": 0.8, "max_grad_norm": 0.5, "norm_mode": "keep"}
# A matrix product's last bit is the CPU's.
TUNINGS = (
    Tuning("between", partial(lrfast.AdamW, weight_decay=0.1), None, _KEPT),
    Tuning(
        *("interrupted", partial(lrfast.SGD, momentum=0.9), 8),
        {"gradient_accumulation_steps": 2, "keep_best": "valid_loss"},
        shuffles=True,
        plateau=True,
        fit={"timetable": {0: -1, 1: 1, 2: 0}},
    ),
    Tuning(
        *("scaler", partial(lrfast.AdamW, eps=1e-3), 4),
        {"amp": torch.float16, "no_decay": True, "weight_decay": 0.1, "ema_decay": 0.8},
        dtype=torch.float32,
    ),
    Tuning("torch", partial(torch.optim.SGD, momentum=0.9), 5, {"max_grad_norm": 0.5}),
)


def _loss_curve() -> lrfast.LossCurve:
    curve = lrfast.LossCurve(20, width=2, diverge_threshold=4.0, beta=0.9)
    for step in range(12):
        curve.record(torch.tensor(3.0 - 0.25 * step), lr=[0.01 * step, 0.5])
    return curve


def _curve_outcome(curve: lrfast.LossCurve) -> Any:
    curve.record(torch.tensor(99.0), lr=[1.0, 2.0])
    return plain([curve.losses, curve.lrs, curve.smoothed(), curve.status()])


def _small_tuner() -> FineTuner:
    """A fine-tuner that can be pickled."""
    return FineTuner(
        *(make_model(), make_batches(), make_batches()),
        loss_fn=nn.functional.cross_entropy,
        metrics={"accuracy": accuracy},
        keep_best="accuracy",
        callbacks=[finetune.EarlyStop(patience=9)],
        progress=False,
    )


def _recipe() -> finetune.Recipe:
    """A recipe before it runs, with the fine-tuner that it holds."""
    return _small_tuner().recipe(epochs=(1, 2))


def _fitted() -> FineTuner:
    """A fine-tuner between two stages."""
    tuner = _small_tuner()
    tuner.fit_one_cycle(1, 0.01)
    return tuner


def _fit_on(tuner: FineTuner) -> Any:
    tuner.fit_one_cycle(1, 0.005)
    return _stages(tuner.history)


def _applied_stage() -> finetune.AppliedStage:
    recipe = _recipe()
    recipe.run_next()
    return recipe.applied[0]


def _applied_rates() -> tuple[torch.optim.Optimizer, range_test.AppliedRates]:
    params = [{"params": [nn.Parameter(torch.zeros(1))]} for _ in range(3)]
    optimizer = lrfast.SGD(params, lr=0.1)
    return optimizer, written().apply(optimizer)


def _undo(pair: tuple[torch.optim.Optimizer, range_test.AppliedRates]) -> Any:
    optimizer, applied = pair
    applied.undo()
    return [list(applied), applied.old, [group["lr"] for group in optimizer.param_groups]]


def _sharded() -> tuple[nn.Module, Any]:
    """A model and its optimizer after some steps."""
    model = make_model()
    optimizer = lrfast.AdamW(
        model.parameters(), schedule=_cycle(), ema_decay=0.9, telemetry=4, lr=0.05, eps=1e-3
    )
    _step(model, optimizer, 0)
    return model, optimizer


def _step(model: nn.Module, optimizer: Any, first: int) -> None:
    for step in range(first, first + STEPS):
        for index, param in enumerate(model.parameters()):
            param.grad = gradient(param, step, index)
        optimizer.step()


def _write_sharded(pair: tuple[nn.Module, Any], path: Path) -> None:
    torch.save(lrfast.ShardedState(*pair).state_dict(), path)


def _read_sharded(path: Path) -> tuple[nn.Module, Any]:
    model = make_model()
    optimizer = lrfast.AdamW(model.parameters(), ema_decay=0.9, telemetry=4, lr=0.5, eps=1e-3)
    lrfast.ShardedState(model, optimizer).load_state_dict(torch.load(path))
    return model, optimizer


def _sharded_outcome(pair: tuple[nn.Module, Any]) -> Any:
    model, optimizer = pair
    _step(model, optimizer, STEPS)
    return plain([list(model.parameters()), optimizer.state_dict()["state"], optimizer.telemetry()])


def _sharded_states(state: lrfast.ShardedState) -> Any:
    saved = state.state_dict()
    del saved["lrfast"]  # bytes
    return plain(saved)


def _layer_groups() -> groups.LayerGroups:
    return groups.layer_groups(make_model())


def _groups_outcome(found: groups.LayerGroups) -> Any:
    names = [[group.name, list(group.names), plain(group.parameters)] for group in found]
    return [names, found.unassigned, found.frozen, found.duplicates, plain(found.tied)]


def _telemetry() -> lrfast.Telemetry:
    return next(each for each in TRAININGS if each.name == "lion").trained().telemetry()


def _observe(schedule: Any) -> Any:
    for value in (1.0, 1.5, math.nan, 2.0):
        schedule.observe(value)
    return plain(schedule.state_dict())


def _loss_schedule(make: Callable[[Any], Any]) -> Any:
    schedule = make(lrfast.SGD(parameters(), lr=0.05))
    schedule.observe(1.0)
    schedule.observe(1.25)
    return schedule


def _observing() -> finetune.Observe:
    callback = finetune.Observe(_loss_schedule(_PLATEAU), every=3)
    callback.on_step_end(_small_tuner(), 1, torch.tensor(2.5))
    return callback


def _bench_result() -> lrfast.BenchResult:
    times = {"step": (1.0, 2.0, 3.0), "update": (2.0, 4.0, 8.0)}
    halved = {part: (low / 2, mid / 2, high / 2) for part, (low, mid, high) in times.items()}
    both = {"torch": times, "lrfast": halved}
    return lrfast.BenchResult("torch's AdamW", "cpu", 10, 2, 1, both, both, 480, 1e9, 0.5, 7)


def _bench_outcome(result: lrfast.BenchResult) -> Any:
    return [plain(result), result.ratio, result.median("torch", "step"), result.median("lrfast")]


def _stage() -> lrfast.Stage:
    losses, rates = np.array([2.0, 1.5, math.nan]), np.array([[0.1, math.nan]] * 3)
    rows = ({"step": 2.0, "valid_loss": 1.25}, {"step": 3.0, "valid_loss": math.nan})
    return lrfast.Stage("one-cycle", losses, rates, np.array([0.9, 0.8, 0.9]), rows, "stopped", 1.5)


def _history() -> lrfast.History:
    return lrfast.History([_stage(), dataclasses.replace(_stage(), name="fit", momentum=None)])


def _history_outcome(history: lrfast.History) -> Any:
    return [plain(history), plain(history.losses), plain(history.epochs)]


def _write_history(history: lrfast.History, path: Path) -> None:
    torch.save(history.to_dict(), path)


def _read_history(path: Path) -> lrfast.History:
    return lrfast.History.from_dict(torch.load(path))


def _timetable_outcome(timetable: groups.Timetable) -> Any:
    return [[timetable.at(epoch) for epoch in range(8)], dict(timetable) == {0: -1, 2: -2, 4: 0}]


def _sweep_outcome(sweep: Sweep) -> Any:
    return [plain(sweep), plain(sweep.ratios), plain(sweep.table()), plain(sweep.rates_at(1e-3))]


def _fields(value: Any) -> Any:
    return [type(value).__name__, plain(value)]


def _segments() -> Sequence[schedules.Table]:
    return [table for each in all_schedules().values() for track in each.factors for table in track]


OPTIONS = optim.Options(1.5, True, True, 0.9, torch.float32, True, 7, 10)
# What is pickled of each public class: how it is made, and what follows from it.
PICKLES: dict[str, tuple[Callable[[], Any], Callable[[Any], Any], float]] = {
    "applied-rates": (_applied_rates, _undo, EXACT),
    "applied-stage": (_applied_stage, _fields, 1e-9),
    "bench-result": (_bench_result, _bench_outcome, EXACT),
    "candidate": (lambda: Candidate(1e-3, "steep", (2.0, math.nan), True), _fields, EXACT),
    "curve-status": (lambda: _loss_curve().status(), _fields, EXACT),
    "early-stop": (
        lambda: finetune.EarlyStop(2, "accuracy", min_delta=0.1, at="cycle"),
        lambda stop: [stop.patience, stop.monitor, stop.mode, plain(stop.state_dict())],
        EXACT,
    ),
    "fine-tuner": (_fitted, _fit_on, 1e-9),
    "greedy": (lambda: _loss_schedule(_GREEDY), _observe, EXACT),
    "history": (_history, _history_outcome, EXACT),
    "layer-group": (lambda: _layer_groups()[0], _fields, EXACT),
    "layer-groups": (_layer_groups, _groups_outcome, EXACT),
    "loss-curve": (_loss_curve, _curve_outcome, EXACT),
    "observe": (_observing, lambda found: [found.every, plain(found.state_dict())], EXACT),
    "options": (lambda: OPTIONS, lambda found: [_fields(found), found == OPTIONS], EXACT),
    "planned": (
        lambda: lrfast.SGD(parameters(), lr=0.1, momentum=0.9, schedule=_cycle()).planned(6),
        _fields,
        EXACT,
    ),
    "planned-stage": (lambda: _recipe().stages[1], _fields, EXACT),
    "plateau": (lambda: _loss_schedule(_PLATEAU), _observe, EXACT),
    "race": (lambda: written().race, _fields, EXACT),
    "recipe": (_recipe, lambda recipe: [stage.stage.outcome for stage in recipe.run()], EXACT),
    "retest": (tested, _retest_outcome, 1e-9),
    "retest-entry": (
        lambda: lrfast.RetestEntry(3, "every", "kept", "near", (0.1,), (0.1,), 2.5, None),
        _fields,
        EXACT,
    ),
    "run": (
        lambda: finetune.Run("one-cycle", (_cycle(),), 3, 4, {0: -1}, epoch=1, step=5),
        lambda run: [_fields(run), run.total_steps, run.is_cycle_end],
        EXACT,
    ),
    "schedules": (all_schedules, _schedule_values, 1e-13),
    "sharded-state": (lambda: lrfast.ShardedState(*_sharded()), _sharded_states, EXACT),
    "stage": (_stage, _fields, EXACT),
    "suggestion": (lambda: written().suggestions["cyclic"], _fields, EXACT),
    "sweep": (lambda: written().sweep, _sweep_outcome, EXACT),
    "tables": (
        _segments,
        lambda tables: [plain([each.encode(), each.start]) for each in tables],
        1e-13,
    ),
    "telemetry": (
        _telemetry,
        lambda found: [_fields(found), plain(found.update_ratios)],
        EXACT,
    ),
    "timetable": (
        lambda: groups.Timetable({0: -1, 2: -2, 4: 0}),
        _timetable_outcome,
        EXACT,
    ),
}
# The optimizers that are pickled whole, by their training: one of each class, and with loss
# schedules; and those that torch.save writes.
PICKLED = (
    *("sgd-all", "sgd-greedy", "adam-cycled", "adamw-all", "adamw-plateau", "nadam-cycled"),
    *("rmsprop-all", "adagrad", "lion"),
)
SAVED_WHOLE = ("sgd-greedy", "adamw-all")


def _records() -> list[Record]:
    by_name = {training.name: training for training in TRAININGS}
    whole = partial(torch.load, weights_only=False)
    return [
        *(
            Record(f"{t.name}.pt", t.trained, t.store, t.load, t.outcome, t.tolerance)
            for t in TRAININGS
        ),
        *(
            Record(f"{name}.pickle", by_name[name].trained, dump, load, by_name[name].outcome)
            for name in PICKLED
        ),
        *(
            Record(
                f"{name}-whole.pt", by_name[name].trained, torch.save, whole, by_name[name].outcome
            )
            for name in SAVED_WHOLE
        ),
        *(
            Record(
                *(f"tuner-{each.name}.pt", each.trained, FineTuner.save, each.load, each.outcome),
                1e-9 if each.dtype == torch.float64 else 1e-2,
            )
            for each in TUNINGS
        ),
        *(
            Record(f"{name}.pickle", make, dump, load, outcome, tolerance)
            for name, (make, outcome, tolerance) in PICKLES.items()
        ),
        *(
            Record(
                *(f"range-test-{make.__name__}.json", make, lrfast.RangeTest.to_json),
                *(lrfast.RangeTest.from_json, _range_outcome),
            )
            for make in (swept, written)
        ),
        Record(
            "schedules.json",
            all_schedules,
            _write_schedules,
            _read_schedules,
            _schedule_values,
            1e-13,
        ),
        Record("history.pt", _history, _write_history, _read_history, _history_outcome),
        Record(
            "retest.json",
            tested,
            lambda retest, path: _write_json(retest.state_dict(), path),
            _load_retest,
            _retest_outcome,
            1e-9,
        ),
        Record("sharded.pt", _sharded, _write_sharded, _read_sharded, _sharded_outcome),
    ]


RECORDS = _records()
