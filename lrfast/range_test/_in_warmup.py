"""Range test of zero extra steps: the sweep is the warm-up of the training itself."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from lrfast._utils.arguments import checked, checked_methods
from lrfast._utils.async_copy import HostCopy, queue_copy
from lrfast._utils.decode import Check, decode, decode_fields, list_of, optional
from lrfast._utils.public import public_in
from lrfast._utils.validation import (
    check_count,
    check_dict,
    check_finite,
    check_int,
    check_list,
    check_tensor,
    short_repr,
)
from lrfast._utils.wrapped_optimizers import inner_optimizer
from lrfast.curve import CurveStatus, LossCurve, _check_state, _read_status
from lrfast.optim._optimizer import FusedOptimizer
from lrfast.optim._scheduling import set_rate
from lrfast.range_test import _analysis, _serialize
from lrfast.range_test._priors import WeightStats, rate_prior, weight_stats
from lrfast.range_test._result import Outcome, RangeTest
from lrfast.range_test._sweep import Sweep, make_sweep
from lrfast.schedules import Schedule
from lrfast.schedules import sweep as sweep_schedule
from lrfast.schedules._schedule import first_cycle
from lrfast.training._data import DataSize, check_loss, device_of
from lrfast.training._ranks import ranks_of
from lrfast.training._rollback import RollbackPoint

# Steps until the host reads a status, on every device: it has arrived by then, and all ranks and a
# resumed run decide at the same step.
_LATE = 2
_BETA = 0.9  # of the EMA that ends the sweep, which has a third of the points of lr_find's
# Divergence is looked for in the last two thirds of the sweep, where the learning rate can be too
# high at all, and beyond four standard deviations of a loss: of sweeps over white noise 2 % end
# early, 7 % with five losses of grace and three standard deviations.
_JUDGED = 2 / 3
_DEVIATIONS = 4.0
_BELOW, _ABOVE = 1e3, 300.0  # factors from the typical learning rate to the ends of the sweep
_WIDEST = (1e-7, 10.0)  # if no learning rate is typical, as in lr_find
FEWEST = 20  # points of the sweep
_SHARE, _MOST = 10, 100  # total steps per point of the sweep, and the most points
_FORMAT = 1


@public_in("lrfast.range_test")
@checked_methods("observe")
class WarmupSearch:
    """A range test under way in the first steps of a training, from :func:`find_in_warmup`.

    Args:
        model: Module with trainable parameters.
        optimizer: Of lrfast, with parameters of the model.
        schedules: Planned for the whole training, one per param group, of one length.
        sweep: The learning rates of the sweep, as long as it lasts.
        data_size: Amounts that the suggestion takes into account.
        group: The ranks that train together; None, the default: those of the model.

    Attributes:
        result: The range test once the sweep has ended; None before.
        spent: Steps that the sweep has taken so far.

    Example:
        >>> import torch, lrfast
        >>> layer, batch = torch.nn.Linear(2, 1), (torch.ones(4, 2), torch.full((4, 1), 5.0))
        >>> optimizer = lrfast.SGD(layer.parameters(), lr=0.1)
        >>> search = lrfast.find_in_warmup(layer, optimizer, lrfast.schedules.cosine(100))
        >>> for step in range(100):
        ...     loss = torch.nn.functional.mse_loss(layer(batch[0]), batch[1])
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     optimizer.step()
        ...     ended = search.observe(loss)
        >>> search.spent < 100, optimizer.schedule_step
        (True, 100)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: FusedOptimizer,
        schedules: Sequence[Schedule],
        sweep: Sweep,
        data_size: DataSize,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        self.result: RangeTest | None = None
        self.spent = 0
        self.data_size = data_size
        self._model, self._optimizer = model, optimizer
        self._schedules, self._sweep = tuple(schedules), sweep
        self._ranks = ranks_of(model, group)
        self._weights = weight_stats(optimizer)
        self._own_rate = float(optimizer.param_groups[sweep.reference]["lr"])
        self._curve = self._new_curve()
        self._late: deque[HostCopy] = deque()
        self._point: RollbackPoint | None = None
        self._began = time.perf_counter()

    @classmethod
    def _resumed(cls, model: nn.Module, optimizer: FusedOptimizer, state_dict: Any) -> WarmupSearch:
        """Return the search that another one's state dict describes."""
        saved = _decoded(state_dict, optimizer)
        search = cls(model, optimizer, saved["schedules"], saved["sweep"], DataSize())
        search.load_state_dict(state_dict)
        return search

    @property
    def schedules(self) -> list[Schedule]:
        """One schedule for each param group, at first of the sweep, then of the whole training."""
        return [schedule for schedule in self._optimizer.schedules if schedule is not None]

    def _begin(self) -> None:
        """Attach the sweep to the optimizer, from its next step on."""
        for group, (own, _) in zip(self._optimizer.param_groups, self._sweep.parts(), strict=True):
            set_rate(group, own)
        self._optimizer.set_schedule([schedule for _, schedule in self._sweep.parts()], step=0)

    def observe(self, loss: Tensor) -> RangeTest | None:
        """Take note of a step that was made; after the sweep there is nothing to note.

        It does not synchronise but in the step that ends the sweep. While that lasts, the host runs
        two steps ahead of the device at most.

        Args:
            loss: Loss whose gradients the last ``optimizer.step()`` has used, one element.

        Returns:
            The range test in the step that ends the sweep, else None.

        Raises:
            TypeError, ValueError: If the loss is no scalar, or no step has been made.
        """
        if self.result is not None:
            return None
        if self.spent == self._sweep.num_iter:  # no step came before the last loss
            return self._conclude("completed")
        curve, place = self._curve, self._sweep.reference
        loss = check_loss(loss, needs_grad=False).detach().to(curve.device)
        curve.record(self._ranks.mean(loss), self._optimizer.last_rates[place : place + 1])
        self.spent += 1
        self._late.append(queue_copy(curve._state))
        if self._point is None:  # the first step has made the states, and changed next to nothing
            self._point = RollbackPoint.take(self._model, self._optimizer)
        status = None
        if len(self._late) > _LATE:
            status = _read_status(self._late.popleft().wait())
        if status is not None and self._has_ended(status):
            return self._conclude("diverged")
        return self._conclude("completed") if self.spent == self._sweep.num_iter else None

    def _has_ended(self, status: CurveStatus) -> bool:
        """Whether the loss is not finite, or has lost half of its fall, by more than its noise."""
        if status.outcome != "running":
            return True
        fall, rise = status.first - status.best, status.smoothed - status.best
        is_judged = status.count > (1 - _JUDGED) * self._sweep.num_iter
        return is_judged and rise > max(fall / 2, _DEVIATIONS * status.noise)

    def _conclude(self, outcome: Outcome) -> RangeTest:
        """Restore the rollback point, and go on at the suggestion. Synchronises the device."""
        optimizer, sweep, point = self._optimizer, self._sweep, self._point
        assert point is not None
        if optimizer.schedule_step == 0:
            raise ValueError(
                "observe must be called after optimizer.step(), got "
                f"{self.spent} losses and no step of this optimizer"
            )
        recording = _analysis.read(self._curve, 0)
        prior = rate_prior(optimizer, sweep.reference, self.data_size, self._weights)
        result = _analysis.summarise(sweep, [recording], _BETA, prior)
        lr, notes = result.suggestion.lr, list(result.notes)
        if lr is None:
            lr = self._own_rate if prior.usual is None else prior.usual
            source = "the optimizer's own" if prior.usual is None else "usual for such a training"
            notes.append(f"no suggestion: trains at {lr:.1e}, which is {source}")
        point.restore(self._model, optimizer)
        for group, rate in zip(optimizer.param_groups, sweep.rates_at(lr), strict=True):
            set_rate(group, rate)
        optimizer.set_schedule(self._rest(lr), step=self.spent)
        total = self._schedules[0].total_steps
        notes.append(
            f"{self.spent} of {total} steps were the sweep, and are undone but for the first one"
        )
        self.result = replace(
            result,
            outcome=outcome if result.outcome == "completed" else result.outcome,
            notes=tuple(notes),
            seconds=time.perf_counter() - self._began,
            snapshot_bytes=point.nbytes,
        )
        self._point, self._curve = None, self._new_curve()
        self._late.clear()
        return self.result

    def _rest(self, lr: float) -> list[Schedule]:
        """Return one schedule per group: the sweep so far, and the planned one in what is left."""
        start, end = self._sweep.ranges[self._sweep.reference]
        past = sweep_schedule(start / lr, end / lr, self._sweep.num_iter).lasting(self.spent)
        most = self._sweep.num_iter
        return [past.then(_shortened(each, self.spent, most)) for each in self._schedules]

    def _new_curve(self) -> LossCurve:
        return LossCurve(self._sweep.num_iter, device_of(self._model), beta=_BETA)

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed run needs, as plain values and tensors. Synchronises.

        During the sweep that includes the curve and the rollback point, which is as large as
        weights and optimizer states together.
        """
        point, size, weights = self._point, self.data_size, self._weights
        return {
            "format": _FORMAT,
            "sweep": _serialize.plain(asdict(self._sweep)),
            "schedules": [schedule.to_dict() for schedule in self._schedules],
            "spent": self.spent,
            "own_rate": self._own_rate,
            "weights": [weights.count, float(weights.norm)],
            "data": [size.batch_size, size.targets],
            "curve": self._curve._packed(),
            "late": [copy.wait().clone() for copy in self._late],
            "point": None if point is None else dict(point.tensors),
            "result": None if self.result is None else _serialize.packed(self.result),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the state dict was taken, bit for bit.

        Load the optimizer first: ``optimizer.load_state_dict(saved, schedule="saved")``.

        Args:
            state_dict: Of :meth:`state_dict`, of a search for the same model and optimizer.

        Raises:
            ValueError: If it is not such a state dict; nothing is changed then.
        """
        saved = _decoded(state_dict, self._optimizer)
        sweep = saved["sweep"]
        curve = LossCurve(sweep.num_iter, self._curve.device, beta=_BETA)
        curve._unpack(saved["curve"])
        late = [
            HostCopy(_check_state("late", each, sweep.num_iter).to("cpu", copy=True))
            for each in saved["late"]
        ]
        if saved["result"] is None and len(curve) != saved["spent"]:
            raise ValueError(f"curve must hold {saved['spent']} losses, got {len(curve)}")
        point = saved["point"]
        if point is not None:
            point = RollbackPoint.from_dict("point", point, self._model, self._optimizer)
        elif saved["result"] is None and saved["spent"]:
            raise ValueError("point must be there during the sweep, got None")
        self._sweep, self._schedules, self._curve = sweep, tuple(saved["schedules"]), curve
        self.spent, self.result, self._point = saved["spent"], saved["result"], point
        self._own_rate, self.data_size = saved["own_rate"], saved["data"]
        self._weights = saved["weights"]
        self._late = deque(late)


def _decoded(state_dict: Any, optimizer: FusedOptimizer) -> dict[str, Any]:
    """Return the checked entries of a state dict, for an optimizer with as many groups."""
    try:
        saved = decode_fields("state_dict", state_dict, _STATE)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            "state_dict must be what state_dict() of a WarmupSearch returned, got one that is "
            f"broken: {error!r}"
        ) from error
    sweep, groups = saved["sweep"], len(optimizer.param_groups)
    _serialize.check_sweep(sweep, points=0)
    if len(sweep.ranges) != groups or len(saved["schedules"]) != groups:
        raise ValueError(f"state_dict must be of {groups} param groups, got {len(sweep.ranges)}")
    spent, late, room = saved["spent"], len(saved["late"]), len(saved["curve"]["losses"])
    if sweep.num_iter >= min(schedule.total_steps for schedule in saved["schedules"]):
        raise ValueError(f"num_iter must be below the schedule's steps, got {sweep.num_iter}")
    if spent > sweep.num_iter or room != sweep.num_iter:
        raise ValueError(
            f"spent must be {sweep.num_iter} at most, and the curve as long, got {spent} and {room}"
        )
    if late != (min(spent, _LATE) if saved["result"] is None else 0):
        raise ValueError(f"late must be of the last {_LATE} of {spent} losses, got {late}")
    return saved


def _checked_format(name: str, value: Any) -> int:
    if check_int(name, value) != _FORMAT:
        raise ValueError(f"{name} must be {_FORMAT}, got {short_repr(value)}")
    return _FORMAT


def _weights(name: str, value: Any) -> WeightStats:
    count, norm = _pair(name, value)
    return WeightStats(check_int(name, count), torch.tensor(check_finite(name, norm)))


def _data_size(name: str, value: Any) -> DataSize:
    rows, targets = (optional(check_int)(name, each) for each in _pair(name, value))
    return DataSize(rows, targets)


def _pair(name: str, value: Any) -> list[Any]:
    if len(check_list(name, value)) != 2:
        raise ValueError(f"{name} must be a list of two, got {short_repr(value)}")
    return list(value)


def _curve(name: str, value: Any) -> dict[str, Any]:
    curve = check_dict(name, value, ("losses",))
    return curve | {"losses": check_tensor("losses", curve["losses"], torch.float64, dims=1)}


def _schedule(name: str, value: Any) -> Schedule:
    return Schedule.from_dict(value)


_STATE: Final[dict[str, Check]] = {
    "format": _checked_format,
    "sweep": lambda name, value: decode(Sweep, value, name),
    "schedules": list_of(_schedule, least=1),
    "spent": check_int,
    "own_rate": check_finite,
    "weights": _weights,
    "data": _data_size,
    "curve": _curve,
    "late": check_list,
    "point": lambda name, value: value,
    "result": optional(lambda name, value: _serialize.unpacked(value, RangeTest)),
}


def _shortened(schedule: Schedule, spent: int, num_iter: int) -> Schedule:
    """Return the plan without the steps of a sweep; of cycles, the first one makes up for them.

    If it is no longer than a sweep may be, all of them do.
    """
    total, first = schedule.total_steps, first_cycle(schedule)
    return schedule.extend_to(total - spent, until=first if num_iter < first < total else None)


def plan_search(
    model: nn.Module,
    optimizer: FusedOptimizer,
    schedules: Sequence[Schedule],
    num_iter: int | None = None,
    start_lr: float | None = None,
    end_lr: float | None = None,
    data_size: DataSize | None = None,
    group: dist.ProcessGroup | None = None,
) -> WarmupSearch:
    """Return the search that the arguments of `find_in_warmup` describe, once they are checked."""
    if optimizer.loss_schedule is not None:
        got = type(optimizer.loss_schedule).__name__
        raise ValueError(f"optimizer must have no loss schedule before the sweep, got a {got}")
    total = min(schedule.total_steps for schedule in schedules)
    if num_iter is None:
        if total <= FEWEST:
            raise ValueError(
                f"schedule must have more than {FEWEST} steps for a range test within them, got "
                f"{total}; run lr_find before"
            )
        halves = [first // 2 for first in map(first_cycle, schedules) if first > FEWEST]
        num_iter = max(min(total // _SHARE, _MOST, *halves), FEWEST)
    num_iter = check_count("num_iter", num_iter, least=2)
    if num_iter >= total:
        raise ValueError(
            f"num_iter must be below the {total} steps of the schedule, got {num_iter}"
        )
    for schedule in schedules:
        if schedule.total_steps != total:
            raise ValueError(
                f"schedule must have one length for all groups, got {total} and "
                f"{schedule.total_steps} steps"
            )
        _shortened(schedule, num_iter, num_iter)  # raises if it cannot be shortened
    size = data_size or DataSize()
    low, high = _WIDEST
    sweep = make_sweep(model, optimizer, low, high, num_iter, "exp", "ratio")
    if (typical := rate_prior(optimizer, sweep.reference, size).typical) is not None:
        low, high = typical / _BELOW, typical * _ABOVE
    low, high = low if start_lr is None else start_lr, high if end_lr is None else end_lr
    sweep = make_sweep(model, optimizer, low, high, num_iter, "exp", "ratio")
    return WarmupSearch(model, optimizer, schedules, sweep, size, group)


@checked
def find_in_warmup(
    model: nn.Module,
    optimizer: Optimizer,
    schedule: Schedule | Sequence[Schedule],
    *,
    num_iter: int | None = None,
    start_lr: float | None = None,
    end_lr: float | None = None,
    batch_size: int | None = None,
    targets: int | None = None,
    process_group: dist.ProcessGroup | None = None,
) -> WarmupSearch:
    """Run the range test within the first steps of a training, which costs none beyond the plan.

    The first ``num_iter`` steps, or fewer, sweep the learning rate; call ``observe(loss)`` after
    each ``optimizer.step()``. As soon as the loss has lost half of its fall, or is not finite, the
    weights, optimizer states and buffers return to those after the first step, and the training
    goes on with ``schedule``, shortened to the steps that are left, up to the suggested learning
    rate. Of cycles, as of :func:`lrfast.schedules.sgdr`, only the first one is shortened, if it is
    longer than the sweep. So ``schedule.total_steps`` steps are made in all. The sweep's batches
    are not seen again, and random numbers go on.

    During the sweep a copy of weights, optimizer states and buffers takes device memory. In
    DistributedDataParallel, or sharded by FSDP, every rank calls alike: losses are averaged, and
    all ranks go on at the same step. A step captured by :func:`lrfast.capture` stays valid.

    Args:
        model: Module with trainable parameters.
        optimizer: Of lrfast, without a schedule; its learning rates count by their ratios.
        schedule: Planned for the whole training: a schedule, or one per param group.
        num_iter: Longest sweep, in steps, 2 or more and below ``schedule.total_steps``. None, the
            default: a tenth of the total or half of the first cycle, whichever is less, but 20 at
            least and 100 at most.
        start_lr: First learning rate of the trained group with the highest one, above 0. None, the
            default: a thousandth of what is typical for optimizer and weights.
        end_lr: Its last learning rate, above ``start_lr``. None, the default: 300 times the typical
            one.
        batch_size: Rows of an update over all processes, 1 or more, which the suggestion takes into
            account; None, the default: unknown.
        targets: Class labels in one pass over the data, likewise.
        process_group: The ranks that train together, if the model is neither in
            DistributedDataParallel nor sharded.

    Returns:
        The search: ``observe(loss)``, ``result``, ``state_dict()`` and ``load_state_dict()``.

    Raises:
        TypeError: If the optimizer is not one of lrfast.
        ValueError: If an argument is out of range, or the optimizer has a schedule already; nothing
            has changed then.

    Example:
        >>> import torch, lrfast
        >>> layer = torch.nn.Linear(2, 1)
        >>> optimizer = lrfast.SGD(layer.parameters(), lr=0.1)
        >>> search = lrfast.find_in_warmup(layer, optimizer, lrfast.schedules.one_cycle(1000))
        >>> search.result is None, optimizer.schedules[0].name
        (True, 'sweep')
    """
    optimizer = inner_optimizer(optimizer)
    if not isinstance(optimizer, FusedOptimizer):
        raise TypeError(
            f"optimizer must be one of lrfast's, got {type(optimizer).__name__}; "
            "lrfast.wrap takes one of torch.optim over"
        )
    if any(optimizer.schedules):
        names = ", ".join(dict.fromkeys(each.name for each in optimizer.schedules if each))
        raise ValueError(
            f"optimizer must have no schedule before the sweep, got {names}; pass it as schedule, "
            "or detach it with optimizer.set_schedule(None)"
        )
    if any("initial_lr" in group for group in optimizer.param_groups):
        raise ValueError(
            "optimizer must have no scheduler of torch, which would change the sweep's learning "
            "rates, got one; leave it out, or delete 'initial_lr' from the param groups"
        )
    for name, value in (("batch_size", batch_size), ("targets", targets)):
        if value is not None:
            check_count(name, value)
    per_group = [each for each in optimizer._one_per_group(schedule) if each is not None]
    size = DataSize(batch_size, targets)
    given = (num_iter, start_lr, end_lr, size, process_group)
    search = plan_search(model, optimizer, per_group, *given)
    search._begin()
    return search
