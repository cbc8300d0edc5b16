"""Contenders of a timing: copies of the user's model and optimizer, updated by torch or lrfast."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.optim.swa_utils import get_ema_multi_avg_fn

from lrfast import optim, schedules
from lrfast.optim import FusedOptimizer
from lrfast.optim._memory import Memory, combinations
from lrfast.optim._options import UPDATE
from lrfast.optim._state import NOT_MOMENTS
from lrfast.optim._wrap import OF_TORCH

# torch is as the user set it up; its fused step is timed as well, unless that is the same.
TORCH, FUSED, LRFAST = "torch", "torch, fused=True", "lrfast"
# Steps of a schedule that are evaluated; later ones use the last one's values.
SCHEDULE_STEPS = 64
_HAVE_FUSED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad)

Part = Callable[[], Any]


def bytes_moved(
    param: int, states: int, average: int = 0, *, takes_norm: bool = False, zeroes: bool = False
) -> int:
    """Return the bytes that one step of the engine reads and writes: the lower limit of its time.

    Parameters, states and EMA are read and written, gradients are read. A norm reads the gradients
    once more, before the first update; zeroing writes them. Arguments are bytes, of all elements or
    of one: AdamW in float32 moves ``bytes_moved(4, 8)``, 28 per element.
    """
    return (3 + takes_norm + zeroes) * param + 2 * states + 2 * average


@dataclass(frozen=True)
class Extras:
    """Parts of an update besides the step."""

    max_grad_norm: float | None = None
    ema_decay: float | None = None
    zero_grads: bool = False  # in lrfast's step; torch always needs zero_grad()


@dataclass
class Contender:
    """One way of updating a copy of the model."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    parts: dict[str, Part]  # of an update, in order
    set_schedule: Part = lambda: None  # before it the learning rates stay
    averages: list[Tensor] = field(default_factory=list)

    @property
    def params(self) -> list[Tensor]:
        """The parameters that the optimizer updates."""
        groups = self.optimizer.param_groups
        return [p for group in groups for p in group["params"] if p.requires_grad]

    def memory(self) -> dict[tuple[str, str], Memory]:
        """Return the bytes of lrfast's optimizer, which has gradients, in other dtypes."""
        fused = self.optimizer
        assert isinstance(fused, FusedOptimizer)
        return combinations(fused._rule, fused._options, fused.param_groups, fused.state)

    def traffic(self, clips: bool, zeroes: bool) -> tuple[int, int]:
        """Return the bytes that lrfast's update moves, and those of its tensors."""
        moved = held = 0
        for param in self.params:
            state = self.optimizer.state[param].items()
            sizes = {name: value.nbytes for name, value in state if isinstance(value, Tensor)}
            moments = sum(size for name, size in sizes.items() if name not in NOT_MOMENTS)
            average = sizes.get("ema", 0)
            moved += bytes_moved(param.nbytes, moments, average, takes_norm=clips, zeroes=zeroes)
            held += 2 * param.nbytes + moments + average
        return moved, held


@dataclass(frozen=True)
class Subject:
    """The user's objects, to be copied, with an optimizer of torch."""

    model: nn.Module
    optimizer: torch.optim.Optimizer  # of torch.optim
    scheduler: LRScheduler | None
    extras: Extras
    own_schedules: list[schedules.Schedule | None]  # of an lrfast optimizer
    applied: int = 0  # steps of them

    @classmethod
    def of(
        cls,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: LRScheduler | None,
        extras: Extras,
    ) -> Subject:
        """Return the subject, with torch's counterpart of an lrfast optimizer."""
        if not isinstance(optimizer, FusedOptimizer):
            return cls(model, optimizer, scheduler, extras, [])
        if scheduler is not None or extras != Extras():
            raise ValueError(
                "scheduler, max_grad_norm and ema_decay must be None for an optimizer of lrfast, "
                "which has its own; got some"
            )
        twins = {fused: plain for plain, fused in OF_TORCH.items()}
        if type(optimizer) not in twins:
            raise TypeError(
                f"optimizer must have a counterpart in torch.optim, got {type(optimizer).__name__}"
            )
        options = optimizer._options
        groups = optimizer.param_groups
        keeps = {options.master, *map(options._asked_of, groups)}
        is_changed = any(getattr(options, name) != plain for name, plain in UPDATE.items())
        if options.stochastic_rounding or is_changed or keeps != {None}:
            raise ValueError(
                "optimizer must do what torch can do, got one with stochastic_rounding, "
                f"state_dtype, master, {', '.join(UPDATE)}"
            )
        if rules := {group.get("rule", "muon") for group in groups} - {"muon"}:
            raise ValueError(
                "param_groups must be of rule 'muon', for which torch has an optimizer, got some "
                f"of {', '.join(map(repr, rules))}; give them to lrfast.bench as an optimizer of "
                "their own"
            )
        base = twins[type(optimizer)]
        twin = base.__new__(base)
        kept = ("defaults", "state", "param_groups")
        twin.__setstate__({name: getattr(optimizer, name) for name in kept})
        extras = Extras(options.max_grad_norm, options.ema_decay, options.zero_grads)
        own = list(optimizer._schedules)
        return cls(model, twin, None, extras, own, optimizer._clock()[0])

    def copies(self) -> tuple[nn.Module, torch.optim.Optimizer, LRScheduler | None]:
        """Return copies that belong to each other and share nothing with the user's."""
        model, optimizer, scheduler = copy.deepcopy((self.model, self.optimizer, self.scheduler))
        optimizer._opt_called = True  # type: ignore[attr-defined]
        return model, optimizer, scheduler


def make_contenders(subject: Subject) -> dict[str, Contender]:
    """Return all contenders; torch's fused step, too, if the user does not use it yet."""
    contenders = {TORCH: _by_torch(subject, fused=False)}
    groups = subject.optimizer.param_groups
    is_fused = all(group.get("fused") for group in groups)
    if type(subject.optimizer) in _HAVE_FUSED and not is_fused and _takes_fused(groups):
        contenders[FUSED] = _by_torch(subject, fused=True)
    contenders[LRFAST] = _by_lrfast(subject)
    return contenders


def _takes_fused(groups: list[dict[str, Any]]) -> bool:
    params = [param for group in groups for param in group["params"]]
    plain = all(param.is_floating_point() and param.layout == torch.strided for param in params)
    return plain and not any(group.get("differentiable") for group in groups)


def _by_torch(subject: Subject, fused: bool) -> Contender:
    model, optimizer, scheduler = subject.copies()
    if fused:
        for group in optimizer.param_groups:
            group.update(fused=True, foreach=False)
        for param, state in optimizer.state.items():
            if "step" in state:  # fused steps count on the device
                state["step"] = torch.as_tensor(state["step"]).to(param.device, torch.float32)
    contender = Contender(model, optimizer, {})
    params, norm, decay = contender.params, subject.extras.max_grad_norm, subject.extras.ema_decay
    if norm is not None:
        contender.parts["clip"] = partial(torch.nn.utils.clip_grad_norm_, params, norm)
    contender.parts["step"] = optimizer.step
    if decay is not None:
        contender.averages = [param.detach().clone() for param in params]
        average = partial(get_ema_multi_avg_fn(decay), contender.averages, params, 0)
        contender.parts["average"] = average
    if any(subject.own_schedules):
        scheduler = _lambda_scheduler(optimizer, subject)
    if scheduler is not None:
        _start_over(contender, scheduler)
    contender.parts["zero_grad"] = optimizer.zero_grad
    return contender


def _lambda_scheduler(optimizer: torch.optim.Optimizer, subject: Subject) -> LRScheduler:
    """Return lrfast's schedules as torch has them: looked up in Python for each group."""

    def lookup(schedule: schedules.Schedule | None) -> Callable[[int], float]:
        steps = range(subject.applied, subject.applied + SCHEDULE_STEPS)
        table = schedule.values(steps).tolist() if schedule else [1.0]
        return lambda step: float(table[min(step, len(table) - 1)])

    rates = [group["lr"] for group in optimizer.param_groups]
    scheduler = LambdaLR(optimizer, [lookup(schedule) for schedule in subject.own_schedules])
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate  # until it begins
    return scheduler


def _start_over(contender: Contender, scheduler: LRScheduler) -> None:
    """Add the scheduler to the parts; before its end, at which some raise, it starts over.

    The param groups are restored with it, because many compute a learning rate from the last one.
    """
    groups = contender.optimizer.param_groups
    start = copy.deepcopy(scheduler.state_dict())
    values = [{k: v for k, v in group.items() if k != "params"} for group in groups]
    left = steps_left(scheduler)
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        if done >= left:
            done = 0
            scheduler.load_state_dict(copy.deepcopy(start))
            for group, value in zip(groups, values, strict=True):
                group.update(value)
        else:
            scheduler.step()

    contender.parts["scheduler"] = step


def steps_left(scheduler: LRScheduler) -> int:
    """Return how many steps of a scheduler can be timed, ``SCHEDULE_STEPS`` at most."""
    total = getattr(scheduler, "total_steps", None)
    left = SCHEDULE_STEPS if total is None else int(total) - scheduler.last_epoch - 1
    if left < 2:
        raise ValueError(f"scheduler must have 3 steps left, got one at {scheduler.last_epoch}")
    return min(left, SCHEDULE_STEPS)


def _by_lrfast(subject: Subject) -> Contender:
    model, optimizer, scheduler = subject.copies()
    fused = optim.wrap(optimizer, **asdict(subject.extras))
    contender = Contender(model, fused, {"step": fused.step})
    if not subject.extras.zero_grads:
        contender.parts["zero_grad"] = fused.zero_grad
    if any(subject.own_schedules):
        contender.set_schedule = partial(fused.set_schedule, subject.own_schedules)
    elif scheduler is not None:
        taken = schedules.from_torch(scheduler, steps_left(scheduler))

        def set_schedule() -> None:
            for group in fused.param_groups:
                group["lr"] = group["initial_lr"]
            fused.set_schedule(taken)

        contender.set_schedule = set_schedule
    return contender
