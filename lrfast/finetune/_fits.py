"""Ready-made stages: the policies that a fine-tuner offers by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lrfast import schedules
from lrfast.finetune._features import check_precompute
from lrfast.finetune._history import Stage
from lrfast.finetune._setup import check_trains, check_whole, group_rates, group_schedules
from lrfast.finetune._stage_state import Run
from lrfast.finetune._trainer import Trainer
from lrfast.groups import Rates
from lrfast.optim._scheduling import set_rate
from lrfast.schedules import Schedule

# fastai states the last rate as a fraction of the peak, we as one of the first rate.
_FASTAI_PEAK_OVER_LAST = 1e5


class Fits(Trainer):
    """The stages by name: :meth:`fit` with a schedule, and the policies that choose one."""

    def fit(
        self,
        epochs: int,
        schedule: Schedule | Sequence[Schedule],
        lr: Rates | None = None,
        *,
        timetable: Mapping[int, int] | None = None,
        precompute: bool = False,
    ) -> Stage:
        """Train with any schedule.

        A loss that is not finite ends training at that step. Ctrl-C ends it behind the step that
        runs; :meth:`resume` then goes on as if it had never been. So it does after any exception
        between two steps, as in a callback; one within a step leaves behind what the step has drawn
        from random numbers and added to statistics, and the step is made again.

        Args:
            epochs: Passes over the training data, 1 or more.
            schedule: Multiplies the groups' rates; its step 0 is the first step of this call. One
                for all layer groups, or a list with one for each; the history then shows the
                momentum of the last one.
            lr: Rates of the layer groups, as for :meth:`fit_one_cycle`; None keeps them.
            timetable: Gradual unfreezing: the first layer group to train from the start of an epoch
                on, by the epoch's index, such as ``{0: -1, 1: -2, 2: 0}``. None: what is frozen
                stays so.
            precompute: Whether to train the head alone, on features that the frozen body computes
                once, in evaluation mode, without the randomness of training. The model must be an
                nn.Sequential of body and head, the data a DataLoader over a dataset that does not
                augment, or a list of batches.

        Returns:
            What happened; it is in :attr:`history` too.

        Raises:
            ValueError: If an argument is out of range, or nothing trains.
            TypeError: If ``schedule`` is no schedule, or ``precompute`` is asked of another model.
        """
        check_whole("epochs", epochs)
        schedules = group_schedules(self.optimizer, schedule, len(self.groups))
        plan = _checked(timetable or {}, epochs, len(self.groups))
        if 0 not in plan:
            check_trains(self.optimizer)
        if precompute:
            check_precompute(self.model, self.loss_fn, plan)
        if lr is not None:
            rates = group_rates(self.optimizer, lr, len(self.groups))
            for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                set_rate(group, rate)
        name = ", ".join(dict.fromkeys(each.name for each in schedules))
        return self._train(Run(name, schedules, epochs, self.epoch_steps, plan, precompute))

    def fit_one_cycle(
        self,
        epochs: int,
        max_lr: Rates,
        *,
        pct_start: float = 0.3,
        div: float = 25.0,
        final_div: float = 1e4,
        momentum: tuple[float, float] | None = (0.95, 0.85),
        **options: Any,
    ) -> Stage:
        """Train with the one-cycle policy, each layer group up to its own peak rate.

        Args:
            epochs: Passes over the training data, 1 or more.
            max_lr: Peak rate: a float for all groups, ``slice(first, last)`` for a geometric
                spread, ``slice(last)`` for a tenth of it in all but the last group, or a list.
            pct_start: Fraction of the steps spent going up, as all that follows an argument of
                :func:`lrfast.schedules.one_cycle`.
            div: Peak over first rate.
            final_div: First over last rate.
            momentum: (highest, lowest) momentum or beta1; None leaves it alone.
            **options: ``timetable`` and ``precompute``, as for :meth:`fit`.

        Returns:
            What happened; it is in :attr:`history` too.

        Raises:
            ValueError: If an argument is out of range.

        Reference:
            Smith & Topin, arXiv:1708.07120; Howard & Ruder, arXiv:1801.06146.
        """
        total_steps = check_whole("epochs", epochs) * self.epoch_steps
        schedule = schedules.one_cycle(total_steps, pct_start, div, final_div, momentum)
        return self.fit(epochs, schedule, max_lr, **options)

    def fit_flat_cos(
        self,
        epochs: int,
        lr: Rates,
        *,
        pct_start: float = 0.75,
        final_div: float = 1e5,
        **options: Any,
    ) -> Stage:
        """Train at constant rates, then let them fall along half a cosine.

        The schedule is :func:`lrfast.schedules.flat_cosine`: the last step is made at the last
        rate.

        Args:
            epochs: Passes over the training data, 1 or more.
            lr: Rates of the layer groups, as for :meth:`fit_one_cycle`.
            pct_start: Fraction of the steps at constant rates, in [0, 1].
            final_div: First over last rate, 1 or more.
            **options: ``timetable`` and ``precompute``, as for :meth:`fit`.

        Returns:
            What happened; it is in :attr:`history` too.

        Raises:
            ValueError: If an argument is out of range.
        """
        total_steps = check_whole("epochs", epochs) * self.epoch_steps
        if not 1 <= final_div < float("inf"):
            raise ValueError(f"final_div must be finite and 1 or more, got {final_div}")
        schedule = schedules.flat_cosine(total_steps, pct_start, 1 / final_div)
        return self.fit(epochs, schedule, lr, **options)

    def fit_sgdr(
        self,
        cycles: int,
        cycle_len: int,
        max_lr: Rates,
        *,
        cycle_mult: float = 2.0,
        eta_min: float = 0.0,
        **options: Any,
    ) -> Stage:
        """Train with warm restarts: cosines from the peak rates down, one after another.

        With an :class:`EarlyStop` ``(patience=1, at="cycle")`` among the callbacks it trains until
        the end of a cycle is no better than that of the one before. The schedule is
        :func:`lrfast.schedules.sgdr` with whole epochs as its unit: the last step is made at the
        lowest rate.

        Args:
            cycles: Cycles, 1 or more.
            cycle_len: Epochs of the first cycle, 1 or more.
            max_lr: Rates at the start of each cycle, as for :meth:`fit_one_cycle`.
            cycle_mult: Length of a cycle over that of the one before, 1 or more; lengths are
                rounded to whole epochs.
            eta_min: Where a cycle ends, as a fraction of the peak rate.
            **options: ``timetable`` and ``precompute``, as for :meth:`fit`.

        Returns:
            What happened; it is in :attr:`history` too.

        Raises:
            ValueError: If an argument is out of range.

        Reference:
            Loshchilov & Hutter, arXiv:1608.03983.
        """
        check_whole("cycles", cycles)
        steps = self.epoch_steps
        length = check_whole("cycle_len", cycle_len) * steps
        schedule = schedules.sgdr(length, cycle_mult, cycles, eta_min, unit=steps)
        return self.fit(schedule.total_steps // steps, schedule, max_lr, **options)

    def fine_tune(
        self,
        epochs: int,
        base_lr: float = 2e-3,
        freeze_epochs: int = 1,
        lr_mult: float = 100.0,
        pct_start: float = 0.3,
        div: float = 5.0,
        **options: Any,
    ) -> tuple[Stage, Stage]:
        """Train the head alone, then everything: fastai's two stages, with its defaults.

        The first stage freezes the body and goes up to ``slice(base_lr)`` for 99 % of its steps.
        The second one goes up to ``slice(base_lr / 2 / lr_mult, base_lr / 2)``. Both end at a
        100000th of the peak, which ours reach.

        Args:
            epochs: Epochs of the second stage, 1 or more.
            base_lr: Peak rate of the head in the first stage, above 0.
            freeze_epochs: Epochs of the first stage, 1 or more.
            lr_mult: Head's over body's peak rate in the second stage, above 0.
            pct_start: Fraction of the second stage's steps spent going up.
            div: Peak over first rate of the second stage.
            **options: Those of :meth:`fit_one_cycle`, for both stages.

        Returns:
            What happened in the two stages; it is in :attr:`history` too.

        Raises:
            ValueError: If an argument is out of range, or there is one layer group only.

        Reference:
            fastai 2.8, ``fastai/callback/schedule.py``, ``Learner.fine_tune``.
        """
        check_whole("epochs", epochs)
        check_whole("freeze_epochs", freeze_epochs)
        _check_fine_tune(base_lr, lr_mult, pct_start, div)
        self.freeze()
        head = self.fit_one_cycle(
            freeze_epochs,
            slice(base_lr),
            pct_start=0.99,
            **{"final_div": _FASTAI_PEAK_OVER_LAST / 25.0} | options,
        )
        self.unfreeze()
        top = base_lr / 2
        whole = self.fit_one_cycle(
            epochs,
            slice(top / lr_mult, top),
            pct_start=pct_start,
            div=div,
            **{"final_div": _FASTAI_PEAK_OVER_LAST / div} | options,
        )
        return head, whole


def _checked(timetable: Mapping[int, int], epochs: int, count: int) -> dict[int, int]:
    for epoch, first in timetable.items():
        if isinstance(epoch, bool) or not isinstance(epoch, int) or not 0 <= epoch < epochs:
            raise ValueError(f"timetable must name epochs from 0 to {epochs - 1}, got {epoch!r}")
        if isinstance(first, bool) or not isinstance(first, int) or not -count <= first < count:
            raise ValueError(
                f"timetable must name layer groups from {-count} to {count - 1}, got {first!r}"
            )
    return dict(timetable)


def _check_fine_tune(base_lr: float, lr_mult: float, pct_start: float, div: float) -> None:
    for name, value in (("base_lr", base_lr), ("lr_mult", lr_mult)):
        if not 0 < value < float("inf"):
            raise ValueError(f"{name} must be finite and above 0, got {value}")
    if not 1 <= div <= _FASTAI_PEAK_OVER_LAST:
        raise ValueError(f"div must lie within 1 and {_FASTAI_PEAK_OVER_LAST:g}, got {div}")
    if not 0 <= pct_start <= 1:
        raise ValueError(f"pct_start must lie in [0, 1], got {pct_start}")
