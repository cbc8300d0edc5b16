"""Range tests repeated during training, within a budget of time."""

from __future__ import annotations

import csv
import inspect
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from numbers import Real
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lrfast import suggest
from lrfast._utils.arguments import checked_methods, described, unknown_argument
from lrfast._utils.atomic_write import replacing
from lrfast._utils.decode import Check, decode, decode_fields
from lrfast._utils.former_names import renamed
from lrfast._utils.public import public_in
from lrfast._utils.tables import Table, short_time
from lrfast._utils.validation import (
    check_choice,
    check_dict,
    check_finite,
    check_float,
    check_int,
    check_list,
    is_int,
    short_repr,
)
from lrfast._utils.wrapped_optimizers import inner_optimizer
from lrfast.curve import LossCurve
from lrfast.range_test._estimate import estimate
from lrfast.range_test._lr_find import lr_find
from lrfast.range_test._peak_rates import PeakRates
from lrfast.range_test._priors import rate_prior, weight_stats
from lrfast.range_test._result import RangeTest
from lrfast.range_test._sweep import trained_groups
from lrfast.suggest import Suggestion
from lrfast.training._data import DataSize, LossFunction, device_of
from lrfast.training._ranks import ranks_of

_COUNTERS: Final[dict[str, Check]] = {
    "epoch": check_int,
    "best": check_float,
    "stale": check_int,
    "spent": check_finite,
    "last_cost": check_finite,
}

Trigger = Literal["every", "plateau", "unfreeze"]
RetestOutcome = Literal["applied", "kept", "declined", "over budget"]


@public_in("lrfast.range_test")
@dataclass(frozen=True)
class RetestEntry:
    """One re-test and its outcome.

    Args:
        epoch: Epochs that had ended.
        trigger: "every", "plateau" or "unfreeze".
        outcome: "applied" (the learning rates have changed), "kept" (the suggestion is too near to
            them), "declined" (there is no suggestion) or "over budget" (no test has run, and there
            is no estimate from a ``curve`` either).
        reason: One sentence that says why.
        old: Peak learning rate of each param group before, [groups].
        new: Peak learning rate of each param group since, [groups].
        seconds: Wall time of the range test, in seconds; 0 if none has run.
        confidence: Confidence of the suggestion, in [0, 1]; None if there is none.
    """

    epoch: int
    trigger: Trigger
    outcome: RetestOutcome
    reason: str
    old: tuple[float, ...]
    new: tuple[float, ...]
    seconds: float
    confidence: float | None

    @classmethod
    def from_dict(cls, data: Any) -> RetestEntry:
        """Return the entry that a checkpoint holds.

        Args:
            data: The entry as plain data.

        Raises:
            ValueError: If it is none.
        """
        names = [field.name for field in fields(cls)]
        if check_dict("an entry of the log", data, names).keys() != set(names):
            raise ValueError(f"an entry of the log must hold {names}, got {short_repr(data)}")
        entry: RetestEntry = decode(cls, data, "an entry of the log")
        return entry


@checked_methods("epoch_end")
class Retest:
    """Range tests during training that move the whole schedule to their suggestion.

    A suggestion is a group's new peak: the learning rate that an lrfast schedule multiplies, or the
    ``max_lr`` or ``initial_lr`` of a scheduler of torch. New peak over old multiplies every
    learning rate that a scheduler reads except ``eta_min``, so the schedule goes on at the same
    place of its curve. Frozen groups, held groups and groups at learning rate 0 keep theirs.

    Unless learning rates are applied, training goes on bit for bit as without the test. In
    DistributedDataParallel all ranks call alike and decide alike.

    Args:
        model: Module with trainable parameters.
        optimizer: One of lrfast or torch.optim, with parameters of the model.
        train_loader: Batches, as for :func:`lrfast.lr_find`; it must be iterable more than once.
        loss_fn: As for :func:`lrfast.lr_find`.
        every: Epochs from one test to the next, 1 or more; None: never on schedule.
        patience: Epochs without a lower validation loss until a test, 1 or more; None: never.
        budget: Largest share of the training time, from construction on, that range tests may
            take, above 0; the first is always allowed. None: any.
        curve: The training's own losses and learning rates, of one group or of all, recorded with
            ``curve.record(loss, lr)``. If the budget allows no test, or it ends without a
            suggestion, :meth:`estimate` takes its place, which goes by the weights at construction.
            None, the default: nothing does.
        max_change: Largest factor, either way, of one test; above 1 and ``tolerance`` or more.
        tolerance: Factor, either way, 1 or more, within which learning rates stay as they are.
        rule: Suggestion method; None: that of :attr:`lrfast.RangeTest.rule`.
        schedulers: All schedulers of torch that are attached to the optimizer.
        clock: Returns the time in seconds.
        **options: Keyword arguments of :func:`lrfast.lr_find`.

    Raises:
        TypeError, ValueError: If an argument is of another type or out of range.

    Example:
        >>> import torch, lrfast
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = lrfast.SGD(model.parameters(), lr=1e-5)
        >>> batches = [(torch.ones(4, 2), torch.full((4, 1), 5.0))]
        >>> mse = torch.nn.functional.mse_loss
        >>> retest = lrfast.Retest(model, optimizer, batches, mse, every=2, progress=False)
        >>> for epoch in range(2):
        ...     for inputs, targets in batches:
        ...         mse(model(inputs), targets).backward()
        ...         optimizer.step()
        ...         optimizer.zero_grad()
        ...     entry = retest.epoch_end()
        >>> entry.epoch, entry.trigger, entry.outcome
        (2, 'every', 'applied')
        >>> optimizer.param_groups[0]["lr"] == entry.new[0] > entry.old[0]
        True
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        train_loader: Iterable[Any],
        loss_fn: LossFunction | None = None,
        *,
        every: int | None = 5,
        patience: int | None = None,
        budget: float | None = 0.1,
        max_change: float = 10.0,
        tolerance: float = 1.5,
        rule: str | None = None,
        curve: LossCurve | None = None,
        schedulers: Sequence[LRScheduler] = (),
        clock: Callable[[], float] = time.perf_counter,
        **options: Any,
    ) -> None:
        _check_epochs("every", every)
        _check_epochs("patience", patience)
        _check_factors(budget, max_change, tolerance)
        _check_options(train_loader, rule, options)
        if curve is not None and curve.width not in (1, len(optimizer.param_groups)):
            raise ValueError(
                "curve must hold one learning rate per loss, or one per param group, got "
                f"{curve.width} for {len(optimizer.param_groups)} groups"
            )
        self._curve = curve
        self._weights = None if curve is None else weight_stats(inner_optimizer(optimizer))
        self._rates = PeakRates(inner_optimizer(optimizer), schedulers)
        self._model = model
        self._optimizer = optimizer
        self._loader = train_loader
        self._loss_fn = loss_fn
        self._every = every
        self._patience = patience
        self._budget = budget
        self._max_change = max_change
        self._tolerance = tolerance
        self._rule = rule
        self._clock = clock
        self._options = options
        self._ranks = ranks_of(model, options.get("process_group"))
        self._log: tuple[RetestEntry, ...] = ()
        self._epoch = 0
        self._best = math.inf
        self._stale = 0  # epochs since the best validation loss, or since the last plateau's test
        self._spent = 0.0
        self._last_cost = 0.0
        self._began = clock()

    def __setstate__(self, state: dict[str, Any]) -> None:
        names = inspect.signature(lr_find).parameters
        vars(self).update(
            {"_curve": None, "_weights": None} | state, _options=renamed(state["_options"], names)
        )

    @property
    def log(self) -> tuple[RetestEntry, ...]:
        """All re-tests, in order."""
        return self._log

    def epoch_end(self, valid_loss: float | Tensor | None = None) -> RetestEntry | None:
        """Count an epoch, and run a range test if one is due.

        Args:
            valid_loss: Validation loss of the epoch, one number; read only with ``patience``, and
                a tensor on a device is synchronised with.

        Returns:
            The entry of the log, or None if no test was due.

        Raises:
            TypeError, ValueError: If ``patience`` gets no loss, or the range test cannot run.
        """
        is_stale = self._patience is not None and self._count_stale(valid_loss) >= self._patience
        self._epoch += 1
        if is_stale:
            entry = self._test("plateau")
            if entry.outcome != "over budget":
                self._stale = 0
            return entry
        if self._every is not None and self._epoch % self._every == 0:
            return self._test("every")
        return None

    def unfrozen(self) -> RetestEntry:
        """Return the entry of a test made at once, if the budget allows: other parameters train.

        Raises:
            TypeError, ValueError: If the range test cannot run.
        """
        return self._test("unfreeze")

    def estimate(self) -> Suggestion:
        """Suggest a lower learning rate if the training's own warm-up shows that it is too high.

        It makes no step, changes nothing and synchronises with the device. It reads the last
        stretch of ``curve`` over which the learning rate has risen. A fall of the loss says
        nothing, because it falls as the training goes on; a rise says that the learning rate is too
        high, and from where on. So nothing is seen of a learning rate that is too low, or without a
        warm-up. After a change by a range test only a new warm-up counts.

        Returns:
            A suggestion for the group with the highest learning rate, or none, and the reason.

        Raises:
            ValueError: If there is no ``curve``.
        """
        if self._curve is None:
            raise ValueError("curve must be given to Retest for an estimate, got None")
        peaks = self._rates.peaks()
        place = self._reference(peaks)
        lrs, losses = self._curve.lrs, self._curve.losses
        column = lrs if lrs.dim() == 1 else lrs[:, place]
        rows = getattr(self._loader, "batch_size", None)
        if is_int(rows):
            rows *= self._ranks.count * self._options.get("gradient_accumulation_steps", 1)
        size = DataSize(rows if is_int(rows) else None)
        prior = rate_prior(self._optimizer, place, size, self._weights)
        together = torch.stack([column, self._ranks.mean(losses)]).cpu().numpy()
        has_changed = any(entry.outcome == "applied" for entry in self._log)
        return estimate(together[0], together[1], peaks[place], prior, has_changed)

    def table(self) -> str:
        """Return the log as lines of text."""
        header = ("epoch", "trigger", "outcome", "old", "new", "seconds", "confidence", "reason")
        rows = []
        for entry in self._log:
            old, new = (" ".join(f"{lr:.1e}" for lr in rates) for rates in (entry.old, entry.new))
            confidence = "" if entry.confidence is None else f"{entry.confidence:.2f}"
            facts = (str(entry.epoch), entry.trigger, entry.outcome, old, new)
            rows.append((*facts, f"{entry.seconds:.1f}", confidence, entry.reason))
        return Table(header, rows).text()

    def to_csv(self, path: str | Path) -> None:
        """Write one row per entry of the log; learning rates are in old_0, old_1, new_0 and so on.

        Args:
            path: File to write.
        """
        width = max((len(entry.old) for entry in self._log), default=0)
        header = ["epoch", "trigger", "outcome", "reason", "seconds", "confidence"]
        rates = [f"{name}_{group}" for name in ("old", "new") for group in range(width)]
        with replacing(path, newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(header + rates)
            for entry in self._log:
                # A group added later has no learning rate in the rows before.
                missing = [""] * (width - len(entry.old))
                facts = [getattr(entry, name) for name in header]
                writer.writerow([*facts, *entry.old, *missing, *entry.new, *missing])

    def state_dict(self) -> dict[str, Any]:
        """Return the log, the counters and the time so far, as plain Python values."""
        state: dict[str, Any] = {name: getattr(self, f"_{name}") for name in _COUNTERS}
        log = [asdict(entry) for entry in self._log]
        return {"log": log, "elapsed": self._clock() - self._began, **state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the state dict was taken; time in between does not count as training.

        Args:
            state_dict: Of :meth:`state_dict`; learning rates are in those of the optimizer and the
                schedulers.

        Raises:
            ValueError: If it is not such a state dict; nothing is changed then.
        """
        wanted = {"log", "elapsed", *_COUNTERS}
        if set(check_dict("state_dict", state_dict)) != wanted:
            raise ValueError(
                f"state_dict must hold {', '.join(sorted(wanted))}, got "
                f"{', '.join(sorted(map(str, state_dict))) or 'nothing'}"
            )
        log = tuple(RetestEntry.from_dict(each) for each in check_list("log", state_dict["log"]))
        elapsed = check_finite("elapsed", state_dict["elapsed"])
        counters = decode_fields("state_dict", state_dict, _COUNTERS)
        self._log = log
        for name, value in counters.items():
            setattr(self, f"_{name}", value)
        self._began = self._clock() - elapsed

    def _count_stale(self, valid_loss: float | Tensor | None) -> int:
        """Return the epochs without a lower validation loss, this one included."""
        if valid_loss is None:
            raise ValueError(
                "valid_loss must be the epoch's validation loss, for patience is "
                f"{self._patience}; got None"
            )
        if not isinstance(valid_loss, Tensor | Real):
            raise TypeError(f"valid_loss must be a number or a tensor, got {described(valid_loss)}")
        if isinstance(valid_loss, Tensor) and valid_loss.numel() != 1:
            raise ValueError(
                f"valid_loss must be one number, got a tensor of shape {tuple(valid_loss.shape)}"
            )
        loss = self._mean_over_ranks(float(valid_loss))
        self._stale += 1
        if loss < self._best:
            self._best, self._stale = loss, 0
        return self._stale

    def _test(self, trigger: Trigger) -> RetestEntry:
        old = self._rates.peaks()
        outcome: RetestOutcome = "over budget"
        reason, seconds, found = self._over_budget(), 0.0, None
        factors: list[float] = []
        if reason is None:
            result = self._range_test()
            seconds, rule = self._last_cost, self._rule or result.rule
            found = result.suggestions[rule]
            wanted = None if found.lr is None else result.suggested_lrs(rule)
            outcome, reason, factors = self._judge(found, wanted, old)
        if self._curve is not None and outcome in ("over budget", "declined"):
            estimated, highest = self.estimate(), old[self._reference(old)]
            if estimated.lr is None:
                reason += f"; no estimate: {estimated.reason}"
            else:
                found, wanted = estimated, [peak * (estimated.lr / highest) for peak in old]
                outcome, reason, factors = self._judge(found, wanted, old)
        if outcome == "applied":
            self._rates.scale(factors)
        confidence, new = None if found is None else found.confidence, self._rates.peaks()
        entry = RetestEntry(self._epoch, trigger, outcome, reason, old, new, seconds, confidence)
        self._log += (entry,)
        return entry

    def _over_budget(self) -> str | None:
        """Return why the budget does not allow a test, or None."""
        if self._budget is None:
            return None
        training = self._clock() - self._began - self._spent
        needed = self._last_cost + self._spent
        # Clocks differ, and a test that some ranks skip never ends on the others.
        if self._mean_over_ranks(float(needed > self._budget * training)) == 0:
            return None
        return (
            f"range tests would have taken {short_time(needed)}, and {self._budget:g} of "
            f"{short_time(training)} of training is less"
        )

    def _range_test(self) -> RangeTest:
        began = self._clock()
        arguments = (self._model, self._optimizer, self._loader, self._loss_fn)
        try:
            with self._rates.used_now():
                return lr_find(*arguments, **self._options)
        finally:
            self._last_cost = self._clock() - began
            self._spent += self._last_cost

    def _reference(self, peaks: Sequence[float]) -> int:
        """Return the trained group with the highest learning rate, which a suggestion is for."""
        return max(trained_groups(self._model, self._optimizer), key=lambda index: peaks[index])

    def _judge(
        self, suggestion: Suggestion, wanted: Sequence[float] | None, peaks: Sequence[float]
    ) -> tuple[RetestOutcome, str, list[float]]:
        """Return outcome, reason, and the factor of each group's learning rates."""
        # What is usual for new weights is no reason to change a training that runs.
        if wanted is None or suggestion.next_range is not None:
            return "declined", suggestion.reason, []
        factors = []
        groups = self._optimizer.param_groups
        for group, old, new in zip(groups, peaks, wanted, strict=True):
            trains = not group.get("frozen") and any(p.requires_grad for p in group["params"])
            factors.append(new / old if trains and old > 0 else 1.0)
        widest = max(factors, key=lambda f: max(f, 1 / f) if f > 0 else math.inf)
        if 1 / self._tolerance <= widest <= self._tolerance:
            reason = f"the suggestion is {widest:.2g} times the present lr"
            return "kept", f"{reason}, within {self._tolerance:g}", []
        limited = [min(max(each, 1 / self._max_change), self._max_change) for each in factors]
        reason = suggestion.reason
        if limited != factors:
            reason += f"; limited to a factor of {self._max_change:g}, not of {widest:.2g}"
        return "applied", reason, limited

    def _mean_over_ranks(self, value: float) -> float:
        if self._ranks.is_alone:
            return value
        where = device_of(self._model)
        return float(self._ranks.mean(torch.tensor(value, dtype=torch.float64, device=where)))


def _check_epochs(name: str, value: int | None) -> None:
    if value is not None and not (is_int(value) and value >= 1):
        raise ValueError(
            f"{name} must be None or a whole number of epochs, 1 or more, got {value!r}"
        )


def _check_factors(budget: float | None, max_change: float, tolerance: float) -> None:
    if budget is not None and not (math.isfinite(budget) and budget > 0):
        raise ValueError(f"budget must be None, or finite and above 0, got {budget}")
    if not (math.isfinite(tolerance) and tolerance >= 1):
        raise ValueError(f"tolerance must be finite and 1 or more, got {tolerance}")
    if not (math.isfinite(max_change) and max_change >= tolerance and max_change > 1):
        raise ValueError(
            f"max_change must be finite, above 1 and at least tolerance, got {max_change} with "
            f"tolerance {tolerance}"
        )


def _check_options(train_loader: Iterable[Any], rule: str | None, options: dict[str, Any]) -> None:
    if isinstance(train_loader, Iterator):
        raise TypeError(
            "train_loader must be iterable more than once, got an iterator, whose batches a range "
            "test would use up"
        )
    known = inspect.signature(lr_find).parameters
    for name in options:
        if name not in known or known[name].kind is not inspect.Parameter.KEYWORD_ONLY:
            raise TypeError(unknown_argument(lr_find, name))
    if rule == "verified" and not options.get("verify"):
        raise ValueError("rule 'verified' needs verify, the steps of the race, got none")
    if rule is not None and rule != "verified":
        check_choice("rule", rule, suggest.names())
