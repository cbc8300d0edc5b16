"""FineTuner: layer groups, an optimizer, schedules, validation and checkpoints in one object."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import Unpack

from lrfast import schedules
from lrfast._utils.arguments import checked_methods, described
from lrfast._utils.former_names import renamed
from lrfast._utils.validation import (
    check_at_least_1,
    check_choice,
    check_count,
    check_fraction,
    check_key,
    check_positive,
    is_int,
)
from lrfast._utils.wrapped_optimizers import inner_optimizer
from lrfast.finetune import _checkpoint
from lrfast.finetune._best_model import Best
from lrfast.finetune._callbacks import Callback
from lrfast.finetune._features import StageData, autocast, check_precompute, precompute
from lrfast.finetune._history import History, Stage
from lrfast.finetune._loop import Interrupts, Loop
from lrfast.finetune._metrics import Metric, evaluate
from lrfast.finetune._recipe._plan import RecipeConfig, TopRateSource
from lrfast.finetune._recipe._recipe import Recipe
from lrfast.finetune._stage_state import (
    OneCycleOptions,
    Run,
    StageOptions,
    epoch_batches,
    group_rates,
)
from lrfast.finetune._statistics import refresh_statistics
from lrfast.groups import (
    Groups,
    NormPolicy,
    Rates,
    discriminative,
    freeze_to,
    layer_groups,
    set_norm_mode,
)
from lrfast.optim import AdamW
from lrfast.optim._optimizer import FusedOptimizer
from lrfast.optim._scheduling import set_rate
from lrfast.range_test import RangeTest, WarmupSearch, lr_find
from lrfast.range_test._in_warmup import FEWEST, plan_search
from lrfast.schedules import Schedule
from lrfast.training._captured import check_optimizer
from lrfast.training._data import (
    ComputeLoss,
    LossFunction,
    check_weights,
    device_of,
    is_schedule_free,
    make_compute_loss,
    set_training,
    weights_of_use,
)
from lrfast.training._step import Training

Auto = Literal["auto"]
MakeOptimizer = Callable[[list[dict[str, Any]]], Optimizer]

_RANGE_TEST_OPTIONS = ("scaler", "gradient_accumulation_steps", "capture", "progress")

# fastai states the last learning rate as a fraction of the peak, one_cycle of the first one.
_FASTAI_PEAK_OVER_LAST = 1e5


@checked_methods()
class FineTuner:
    """Fine-tunes a pretrained model, layer group by layer group.

    Args:
        model: The model, on the device that trains.
        train_loader: Sized loader of batches ``(inputs, targets)``; of more entries than two all
            but the last are inputs.
        loss_fn: ``loss_fn(outputs, targets)``, a mean over the batch.
        compute_loss: Instead of it: ``compute_loss(model, batch)`` returns the loss. With neither,
            the model returns its loss: as it is, as ``.loss``, as ``["loss"]`` or first.

    Common args:
        val_loader: Loader of validation batches, or None (default).
        metrics: Functions ``(outputs, targets) -> scalar tensor``, means over the batch, by name
            (default: none); they need ``loss_fn``.
        optimizer: Called with param groups: an optimizer class of lrfast (default
            :class:`lrfast.AdamW`) or torch.optim, or a function such as
            ``functools.partial(lrfast.SGD, momentum=0.9)``.
        groups: Layer groups as :func:`lrfast.layer_groups` takes them, or param groups, such as
            those of :func:`lrfast.lora_groups`, which keep their learning rates until a stage sets
            others; None (default): automatic.
        weight_decay: Of all groups, 0 or more; None (default): the optimizer's.
        amp: dtype of forward passes under autocast, torch.bfloat16 or torch.float16; None
            (default): no autocast. float16 scales losses, and skips steps whose gradients are not
            finite, which count neither in the schedule nor in the history.
        gradient_accumulation_steps: Batches per update, 1 (default) or more. The last update of an
            epoch takes what is left; an update's loss is the mean over its batches.
        max_grad_norm: Norm that gradients are clipped to, above 0; None (default): the optimizer's.
        keep_best: "valid_loss" or the name of a metric: a copy of the model with its best value is
            kept on the device, for :meth:`restore_best`. None (default): no copy.
        progress: Whether to show a bar, and a table row per epoch, in a terminal or a notebook
            (default True).

    Advanced args:
        no_decay: Parameters without weight decay, as :func:`lrfast.discriminative` takes them: True
            for those of normalisation layers, biases and vectors, or a list of patterns; None
            (default): none. A layer group may then make several param groups, each with a column
            in the history.
        norm_mode: What normalisation layers with running statistics do in frozen layer groups, see
            :func:`lrfast.set_norm_mode`: "train" (default) updates the statistics, "keep" keeps
            and uses them, "adapt" trains the layers too.
        ema_decay: Decay, in [0, 1), of an EMA of the weights, kept by an lrfast optimizer; None
            (default): the optimizer's.
        validate_ema: Whether validation, and the best model, use the EMA of the weights if there
            is one (default True), and of buffers, such as the statistics of batch norm.
        best_mode: Whether the lowest ("min") or the highest ("max") value is the best; None
            (default): the lowest loss, the highest metric.
        callbacks: Called on the way, in this order, see :class:`Callback` (default: none).
        capture: Whether updates, and those of range tests, run as a CUDA graph, see
            :func:`lrfast.capture` (default False); needs an lrfast optimizer. An epoch's smaller
            last batch runs eagerly.

    Attributes:
        history: All stages so far, a :class:`lrfast.History`.
        optimizer: The optimizer, whose param groups are the layer groups or parts of them.
        groups: The :class:`lrfast.groups.LayerGroups`, from body to head.
        range_test: That of the last stage at learning rates "auto", a :class:`lrfast.RangeTest`.
        callbacks: The callbacks, a list that may be changed.

    Raises:
        ValueError: If an argument is out of range, or model or ``train_loader`` are empty.
        TypeError: If ``train_loader`` has no length.

    Example:
        >>> import torch, lrfast
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.ReLU(),
        ...                             torch.nn.Linear(4, 2))
        >>> batch = (torch.randn(8, 2), torch.randint(2, (8,)))
        >>> tuner = lrfast.FineTuner(model, [batch] * 10, [batch], progress=False,
        ...                          loss_fn=torch.nn.functional.cross_entropy)
        >>> tuner.freeze()
        >>> stage = tuner.fit_one_cycle(1, max_lr=1e-2)
        >>> tuner.unfreeze()
        >>> stage = tuner.fit_one_cycle(2, max_lr=slice(1e-4, 1e-2))
        >>> [stage.name for stage in tuner.history.stages]
        ['one-cycle', 'one-cycle']
    """

    def __init__(
        self,
        model: nn.Module,
        train_loader: Iterable[Any],
        val_loader: Iterable[Any] | None = None,
        *,
        loss_fn: LossFunction | None = None,
        compute_loss: ComputeLoss | None = None,
        optimizer: MakeOptimizer = AdamW,
        metrics: Mapping[str, Metric] | None = None,
        groups: Groups | None = None,
        weight_decay: float | None = None,
        no_decay: Sequence[str] | Literal[True] | None = None,
        norm_mode: NormPolicy = "train",
        amp: torch.dtype | None = None,
        gradient_accumulation_steps: int = 1,
        max_grad_norm: float | None = None,
        ema_decay: float | None = None,
        validate_ema: bool = True,
        keep_best: str | None = None,
        best_mode: Literal["min", "max"] | None = None,
        callbacks: Sequence[Callback] = (),
        capture: bool = False,
        progress: bool = True,
    ) -> None:
        self.model = model
        self.train_loader = train_loader
        self.val_loader = val_loader
        self.loss_fn = loss_fn
        self.compute_loss = compute_loss
        self.metrics = dict(metrics or {})
        self.gradient_accumulation_steps = check_count(
            "gradient_accumulation_steps", gradient_accumulation_steps
        )
        self.amp = amp
        self.max_grad_norm = max_grad_norm
        self.ema_decay = ema_decay
        self.validate_ema = validate_ema
        self.callbacks = list(callbacks)
        self.capture = capture
        self.progress = progress
        self.norm_mode: NormPolicy = norm_mode
        if isinstance(groups, Iterator):
            groups = list(groups)
        self.groups, adapts = layer_groups(model, groups), norm_mode == "adapt"
        rates = (0.0, weight_decay, None)
        param_groups = discriminative(model, *rates, self.groups, no_decay, split_norms=adapts)
        for group in param_groups:  # else the optimizer's own, until a stage sets them
            own = self.groups[group["layer"]].options
            del group["lr"]
            group |= {"lr": own["lr"]} if "lr" in own else {}
        self.optimizer = _make_optimizer(optimizer, param_groups, max_grad_norm, ema_decay)
        if amp not in (None, torch.bfloat16, torch.float16):
            raise ValueError(f"amp must be torch.bfloat16, torch.float16 or None, got {amp!r}")
        is_scaled = amp is torch.float16  # or its gradients would underflow
        self.scaler = torch.amp.GradScaler(device_of(model).type) if is_scaled else None
        self.best = None if keep_best is None else Best(keep_best, best_mode)
        self.history = History()
        self.range_test: RangeTest | None = None
        self._loop: Loop | None = None
        self._has_statistics = False  # of batch norm, at the averaged weights as they are
        self._interrupted: Run | None = None
        self._partial: Stage | None = None  # the interrupted stage's record in the history
        self._check()
        self._average_buffers()

    def __setstate__(self, state: dict[str, Any]) -> None:
        names = ("train_loader", "val_loader", "gradient_accumulation_steps")
        vars(self).update(renamed(state, names))

    def _check(self) -> None:
        check_choice("norm_mode", self.norm_mode, get_args(NormPolicy))
        if self.metrics and self.loss_fn is None:
            raise ValueError("metrics need loss_fn(outputs, targets), got none")
        if self.best is not None:
            if self.val_loader is None:
                raise ValueError("keep_best needs a val_loader, got None")
            check_key("keep_best", self.best.monitor, {"valid_loss": None, **self.metrics})
        if self.capture:
            check_optimizer(self.optimizer)
        make_compute_loss(self.loss_fn, self.compute_loss)
        epoch_batches(self.train_loader)

    @property
    def running(self) -> Run | None:
        """The stage that trains now; None between stages."""
        return None if self._loop is None else self._loop.run

    @property
    def epoch_steps(self) -> int:
        """Updates per epoch."""
        return -(-epoch_batches(self.train_loader) // self.gradient_accumulation_steps)

    @property
    def loaders(self) -> list[Any]:
        """The training and validation data, whose generators checkpoints hold."""
        return (
            [self.train_loader] if self.val_loader is None else [self.train_loader, self.val_loader]
        )

    def finished_stages(self) -> list[Stage]:
        """Return the stages of the history without one that can still be resumed."""
        return [stage for stage in self.history.stages if stage is not self._partial]

    def freeze(self) -> None:
        """Freeze all layer groups but the last, the head.

        Raises:
            ValueError: If there is one layer group only.
        """
        if len(self.groups) < 2:
            raise ValueError("freeze needs a body before the head, got one layer group")
        self.freeze_to(-1)

    def unfreeze(self) -> None:
        """Train all layer groups."""
        self.freeze_to(0)

    def freeze_to(self, n: int) -> None:
        """Freeze the layer groups before group ``n``, and train the others.

        Args:
            n: Index of the first layer group that trains; negative counts from the head.
        """
        freeze_to(self.optimizer, n, train_norms=self.norm_mode == "adapt")

    def lr_find(self, **options: Any) -> RangeTest:
        """Return a range test on the training data with what is frozen now; leaves no trace.

        Args:
            **options: Those of :func:`lrfast.lr_find`, such as ``num_iter``.
        """
        given = {name: getattr(self, name) for name in _RANGE_TEST_OPTIONS}
        loss_fn = self.loss_fn if self.amp is None else None
        if loss_fn is None:
            given["compute_loss"] = self._compute_loss()
        try:
            return lr_find(
                self.model, self.optimizer, self.train_loader, loss_fn, **given | options
            )
        finally:
            if self._loop is not None:
                self._loop.driver.rearm_stop_flag()

    def fit(
        self,
        epochs: int,
        schedule: Schedule | Sequence[Schedule],
        lr: Rates | Auto | None = None,
        *,
        timetable: Mapping[int, int] | None = None,
        precompute: bool = False,
    ) -> Stage:
        """Train with any schedule.

        A loss that is not finite ends training at that step. After Ctrl-C, or an exception between
        two steps, as in a callback, :meth:`resume` continues as if there had been no interruption.
        An exception within a step does not undo its random draws and running statistics, and the
        step is made again.

        Args:
            epochs: Passes over the training data, 1 or more.
            schedule: Multiplies the learning rates from this call's first step on. One for all
                layer groups, or a list with one for each; the history shows the last one's
                momentum.
            lr: Learning rates, as ``max_lr`` of :meth:`fit_one_cycle`; None (default) keeps them.
                "auto": the first steps are a range test, see :func:`lrfast.find_in_warmup`, and
                the schedule goes on at its suggestion in those that are left; the layer groups
                keep their ratios, and :attr:`range_test` tells. For an optimizer of lrfast.
            timetable: Unfreezing schedule: the first layer group that trains from the start of an
                epoch on, by the epoch's index, such as ``{0: -1, 1: -2, 2: 0}``. None (default):
                what is frozen stays frozen.
            precompute: Whether to train only the head, on features that the frozen body computes
                once, in evaluation mode (default False). The model must be an nn.Sequential of body
                and head, the data a DataLoader over a dataset that does not augment, or a list.

        Returns:
            The stage's record, as in :attr:`history`.

        Raises:
            ValueError: If an argument is out of range, or nothing trains.
            TypeError: If ``schedule`` is no schedule, or ``precompute`` does not fit the model.
        """
        epochs, per_group = check_count("epochs", epochs), self._group_schedules(schedule)
        plan = _checked_timetable(timetable or {}, epochs, len(self.groups))
        if 0 not in plan:
            self._check_trains()
        if precompute:
            check_precompute(self.model, self.loss_fn, plan)
        name = ", ".join(dict.fromkeys(each.name for each in per_group))
        run = Run(name, per_group, epochs, self.epoch_steps, plan, precompute)
        if lr is not None:
            _check_rates("lr", lr)
        if isinstance(lr, str):
            return self._train(run, searches=True)
        if lr is not None:
            rates = group_rates(self.optimizer, lr, len(self.groups))
            for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                set_rate(group, rate)
        return self._train(run)

    def fit_one_cycle(
        self,
        epochs: int,
        max_lr: Rates | Auto,
        *,
        pct_start: float = 0.3,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        momentum: tuple[float, float] | None = (0.95, 0.85),
        **options: Unpack[StageOptions],
    ) -> Stage:
        """Train with :func:`lrfast.schedules.one_cycle`, each group up to its peak learning rate.

        Args:
            epochs: As for :meth:`fit`.
            max_lr: Peak learning rate: a float for all groups, ``slice(first, last)`` for a
                geometric spread, ``slice(last)`` for a tenth of it in all but the last group, or a
                list; or "auto", as for :meth:`fit`.
            pct_start: Fraction of the steps spent going up, in [0, 1] (default 0.3).
            div_factor: Peak over first learning rate, 1 or more (default 25).
            final_div_factor: First over last learning rate, 1 or more (default 10,000).
            momentum: (highest, lowest) momentum or beta1 (default (0.95, 0.85)); None keeps it.
            **options: ``timetable`` and ``precompute``, as for :meth:`fit`.

        Returns:
            The stage's record, as in :attr:`history`.

        Raises:
            ValueError: If an argument is out of range.
        """
        _check_rates("max_lr", max_lr)
        total_steps = check_count("epochs", epochs) * self.epoch_steps
        schedule = schedules.one_cycle(
            total_steps, pct_start, div_factor, final_div_factor, momentum
        )
        return self.fit(epochs, schedule, max_lr, **options)

    def fit_flat_cos(
        self,
        epochs: int,
        lr: Rates | Auto,
        *,
        pct_start: float = 0.75,
        final_div_factor: float = 1e5,
        **options: Unpack[StageOptions],
    ) -> Stage:
        """Train with :func:`lrfast.schedules.flat_cosine`, the last step at the last learning rate.

        Args:
            epochs: As for :meth:`fit`.
            lr: Learning rates, as ``max_lr`` of :meth:`fit_one_cycle`.
            pct_start: Fraction of the steps at constant learning rates, in [0, 1] (default 0.75).
            final_div_factor: First over last learning rate, 1 or more (default 100,000).
            **options: ``timetable`` and ``precompute``, as for :meth:`fit`.

        Returns:
            The stage's record, as in :attr:`history`.

        Raises:
            ValueError: If an argument is out of range.
        """
        _check_rates("lr", lr)
        total_steps = check_count("epochs", epochs) * self.epoch_steps
        check_at_least_1("final_div_factor", final_div_factor)
        schedule = schedules.flat_cosine(total_steps, pct_start, 1 / final_div_factor)
        return self.fit(epochs, schedule, lr, **options)

    def fit_sgdr(
        self,
        cycles: int,
        cycle_len: int,
        max_lr: Rates | Auto,
        *,
        cycle_mult: float = 2.0,
        eta_min: float = 0.0,
        **options: Unpack[StageOptions],
    ) -> Stage:
        """Train with warm restarts: :func:`lrfast.schedules.sgdr`, in cycles of whole epochs.

        With an :class:`EarlyStop` ``(patience=1, at="cycle")`` among the callbacks it trains until
        the end of a cycle is no better than that of the one before.

        Args:
            cycles: Cycles, 1 or more.
            cycle_len: Epochs of the first cycle, 1 or more.
            max_lr: Learning rates at each cycle's start, as for :meth:`fit_one_cycle`; "auto": the
                range test is part of the first cycle, of more than 20 steps, and later cycles are
                those planned.
            cycle_mult: Length of a cycle over that of the one before, 1 or more (default 2);
                lengths are rounded to whole epochs.
            eta_min: Last over first learning rate of a cycle, in [0, 1] (default 0).
            **options: ``timetable`` and ``precompute``, as for :meth:`fit`.

        Returns:
            The stage's record, as in :attr:`history`.

        Raises:
            ValueError: If an argument is out of range.
        """
        cycles, steps = check_count("cycles", cycles), self.epoch_steps
        _check_rates("max_lr", max_lr)
        length = check_count("cycle_len", cycle_len) * steps
        if isinstance(max_lr, str) and length <= FEWEST:
            raise ValueError(
                f'cycle_len must make more than {FEWEST} steps with max_lr="auto", got '
                f"{cycle_len}, which makes {length}; run lr_find before"
            )
        schedule = schedules.sgdr(length, cycle_mult, cycles, eta_min, unit=steps)
        return self.fit(schedule.total_steps // steps, schedule, max_lr, **options)

    def fine_tune(
        self,
        epochs: int,
        base_lr: float = 2e-3,
        freeze_epochs: int = 1,
        lr_mult: float = 100.0,
        pct_start: float = 0.3,
        div_factor: float = 5.0,
        **options: Unpack[OneCycleOptions],
    ) -> tuple[Stage, Stage]:
        """Train the head only, then everything: fastai's two stages, with its defaults.

        The first stage freezes the body and goes up to ``slice(base_lr)`` for 99 % of its steps,
        the second one to ``slice(base_lr / 2 / lr_mult, base_lr / 2)``. Both end at a 100000th of
        the peak.

        Args:
            epochs: Epochs of the second stage, 1 or more.
            base_lr: Peak learning rate of the head in the first stage, above 0 (default 0.002).
            freeze_epochs: Epochs of the first stage, 1 (default) or more.
            lr_mult: Head's over body's peak in the second stage, above 0 (default 100).
            pct_start: As for :meth:`fit_one_cycle`, of the second stage.
            div_factor: Peak over first learning rate of the second stage, in [1, 100000] (default
                5).
            **options: Those of :meth:`fit_one_cycle`, for both stages.

        Returns:
            The two stages' records, as in :attr:`history`.

        Raises:
            ValueError: If an argument is out of range, or there is one layer group only.

        Reference:
            fastai 2.8, ``fastai/callback/schedule.py``, ``Learner.fine_tune``.
        """
        check_count("epochs", epochs)
        check_count("freeze_epochs", freeze_epochs)
        check_positive("base_lr", base_lr)
        check_positive("lr_mult", lr_mult)
        if not 1 <= div_factor <= _FASTAI_PEAK_OVER_LAST:
            raise ValueError(
                f"div_factor must lie within 1 and {_FASTAI_PEAK_OVER_LAST:g}, got {div_factor}"
            )
        check_fraction("pct_start", pct_start)
        self.freeze()
        first: OneCycleOptions = {"final_div_factor": _FASTAI_PEAK_OVER_LAST / 25.0, **options}
        head = self.fit_one_cycle(freeze_epochs, slice(base_lr), pct_start=0.99, **first)
        self.unfreeze()
        top = slice(base_lr / 2 / lr_mult, base_lr / 2)
        second: OneCycleOptions = {
            "final_div_factor": _FASTAI_PEAK_OVER_LAST / div_factor,
            **options,
        }
        return head, self.fit_one_cycle(
            epochs, top, pct_start=pct_start, div_factor=div_factor, **second
        )

    def recipe(
        self,
        epochs: tuple[int, int] = (2, 4),
        *,
        top: TopRateSource = "before",
        head_drop: float = 10.0,
        spread: float = 3.0,
        feature_epochs: int = 0,
        plain: Iterable[Any] | None = None,
        cycle_mult: float | None = None,
    ) -> Recipe:
        """Return a plan: the head, then all layers, at learning rates that range tests suggest.

        Nothing runs before the plan does.

        Args:
            epochs: Epochs of the head's stage and of all layers', 1 or more each (default (2, 4)).
            top: Source of the head's learning rate in the second stage: "before" (default), a
                range test on all layers before anything trains; "head", the first stage's over
                ``head_drop``, limited by a range test on all layers after that stage.
            head_drop: For ``top="head"``, 1 or more (default 10).
            spread: Head's over first layer group's learning rate in the second stage, 1 or more
                (default 3).
            feature_epochs: Epochs of the head, before all others, as with ``precompute`` of
                :meth:`fit`, 0 (default) or more.
            plain: Training data without augmentation for them; None (default): the tuner's.
            cycle_mult: None (default): each stage is one cycle. 1 or more: warm restarts until
                validation gets worse, each ``cycle_mult`` times as long as the one before;
                ``epochs[1]`` holds whole cycles, such as 7 = 1 + 2 + 4. The head's last one epoch.

        Returns:
            The plan.

        Raises:
            TypeError, ValueError: If an argument is out of range or does not fit, or there is one
                layer group only.

        Example:
            >>> import torch, lrfast
            >>> model = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.ReLU(),
            ...                             torch.nn.Linear(4, 2))
            >>> batch = (torch.randn(8, 2), torch.randint(2, (8,)))
            >>> tuner = lrfast.FineTuner(model, [batch] * 10, [batch], progress=False,
            ...                          loss_fn=torch.nn.functional.cross_entropy)
            >>> plan = tuner.recipe(epochs=(1, 3))
            >>> [(stage.name, stage.steps) for stage in plan.stages]
            [('head', 10), ('all layers', 30)]

        Reference:
            Howard & Ruder, arXiv:1801.06146.
        """
        numbers = RecipeConfig(epochs, top, head_drop, spread, feature_epochs, plain, cycle_mult)
        return Recipe(self, numbers)

    def resume(
        self, epochs: int | None = None, schedule: Schedule | Sequence[Schedule] | None = None
    ) -> Stage:
        """Continue the stage that was interrupted, or that :meth:`load` read.

        The whole stage is then, bit for bit, what it would have been without the interruption, if
        the device is deterministic and data are drawn from torch's generators or Python's and
        numpy's global ones; random numbers within workers that persist over epochs start anew.

        Args:
            epochs: Epochs of the whole stage, at least as many as have begun; None (default): as
                planned.
            schedule: Schedule of the whole stage, used from the interrupted step on; needed with
                another number of ``epochs``. None (default): the planned one.

        Returns:
            The record of the whole stage; in :attr:`history` it replaces the interrupted one.

        Raises:
            ValueError: If there is no interrupted stage, or an argument does not fit it.
        """
        if (run := self._interrupted) is None:
            raise ValueError("resume needs an interrupted stage, got none; call load(path) first")
        if run.epoch_steps != self.epoch_steps:
            raise ValueError(
                f"train_loader must have {run.epoch_steps} steps per epoch as when the stage "
                f"began, got {self.epoch_steps}"
            )
        per_group = run.schedules if schedule is None else self._group_schedules(schedule)
        if epochs is not None:
            done = run.epoch + (run.used > 0)
            epochs = check_count("epochs", epochs)
            if epochs < done:
                raise ValueError(f"epochs must be {done} or more, which have begun, got {epochs}")
            if schedule is None and epochs != run.epochs:
                raise ValueError(
                    f"schedule must be given for {epochs} epochs instead of {run.epochs}, got None"
                )
        elif per_group != run.schedules:
            raise ValueError(
                "schedule must be the interrupted stage's, or come with epochs=, got another: "
                f"{', '.join(each.name for each in per_group)}"
            )
        if run.search is not None and not (epochs is None and schedule is None):
            raise ValueError(
                "epochs and schedule must be left out until the range test in the stage's first "
                f"steps has ended, got {epochs} and {schedule}"
            )
        assert run.moment is not None
        self._check_trains()
        run.moment.restore(self.model, self.loaders)
        self.history.stages[:] = self.finished_stages()
        return self._train(replace(run.resumed(), epochs=epochs or run.epochs, schedules=per_group))

    def stop(self) -> None:
        """End the stage that runs after the current event, as "stopped"; for callbacks."""
        if self._loop is not None:
            self._loop.should_stop = True

    def validate(self) -> dict[str, float]:
        """Return loss and metrics, means over the validation data; synchronises once.

        Raises:
            ValueError: If there are no validation data.
        """
        if self.val_loader is None:
            raise ValueError("val_loader must be given to the FineTuner to validate, got None")
        with self._ema_weights():
            return self._validate(self.model, self.val_loader)

    def restore_best(self) -> None:
        """Restore parameters and buffers of the best epoch so far; the optimizer stays as it is.

        Raises:
            ValueError: If the tuner keeps none, or none has been validated.
        """
        if self.best is None:
            raise ValueError('keep_best must be given to the FineTuner, as "valid_loss", got None')
        self.best.restore(self.model)

    def save(self, path: str | Path) -> None:
        """Write a checkpoint from which a tuner made alike can continue; synchronises.

        It works between stages, from a callback and after an interruption. The file holds model,
        optimizer with schedule, scaler, EMA of the weights, best model, what is frozen, history,
        callbacks, random states and the place in the data.

        Args:
            path: The file, replaced atomically. A process that is killed while it writes leaves a
                ``.name.*.tmp`` beside it.
        """
        run, driver = self._interrupted, None
        if self._loop is not None:
            run, driver = self._loop.now(self.model), self._loop.driver
        _checkpoint.write(path, _checkpoint.pack(self, run, driver))

    def load(self, path: str | Path) -> None:
        """Read a checkpoint that :meth:`save` wrote; :meth:`resume` then continues its stage.

        Args:
            path: The file. Nothing in it is executed.

        Raises:
            ValueError: If it was saved by a tuner with other groups, optimizer or options, or is
                broken; nothing has changed then.
            MemoryError: If the host has no memory for a copy of the present state.
        """
        if self._loop is not None:
            raise ValueError("load must wait until the stage has ended, got a call while it runs")
        self._interrupted = _checkpoint.unpack(self, _checkpoint.read(path))
        self._partial = None

    def _train(self, run: Run, searches: bool = False) -> Stage:
        """Train a run to its end, and keep it for resume() if it does not get there.

        If it ``searches``, its first steps are a range test.
        """
        if self._loop is not None:
            raise ValueError("fit must wait until the stage has ended, got a call while one runs")
        data = StageData(self.model, self.train_loader, self.val_loader)
        if run.precompute:
            data = precompute(self.model, self.train_loader, self.val_loader, self.amp)
        training = Training(
            *(data.model, self.optimizer, data.train_loader, self._compute_loss()),
            gradient_accumulation_steps=self.gradient_accumulation_steps,
            scaler=self.scaler,
            captures=self.capture,
        )
        search = self._search(data.model, run, searches)
        max_grad_norm = None if isinstance(self.optimizer, FusedOptimizer) else self.max_grad_norm
        self._interrupted = self._partial = None
        if not self.history.stages and run.step == 0:
            self._average_buffers()  # from the weights that the training starts with
        with Interrupts() as interrupts:
            self._loop = loop = Loop(
                *(training, run, self.loaders),
                search=search,
                max_grad_norm=max_grad_norm,
                progress=self.progress,
            )
            outcome = "interrupted"
            try:
                set_training(self.optimizer, True)
                self._has_statistics = False
                self._callback("on_fit_begin")
                with loop:
                    outcome = self._train_epochs(loop, data, interrupts)
            finally:
                run = loop.now(self.model)
                loop.driver.detach()
                if search is not None and search.result is not None:
                    self.range_test = search.result
                self._loop = None
                stage = run.stage(loop.own_rates, outcome, loop.group_names)
                self.history.stages.append(stage)
                if outcome == "interrupted":
                    self._interrupted, self._partial = run, stage
                else:
                    self._end_with_average(data)
                self._callback("on_fit_end")
        return stage

    def _search(self, model: nn.Module, run: Run, searches: bool) -> WarmupSearch | None:
        """Return the range test that a run begins with, or goes on with, if there is one."""
        optimizer = self.optimizer
        if not searches and run.search is None:
            return None
        if not isinstance(optimizer, FusedOptimizer):
            raise TypeError(
                'lr must be learning rates for an optimizer of torch.optim, got "auto" with '
                f"{type(optimizer).__name__}; use an optimizer of lrfast"
            )
        if run.search is not None:
            return WarmupSearch._resumed(model, optimizer, dict(run.search))
        search = plan_search(model, optimizer, run.of_groups(len(optimizer.param_groups)))
        search._begin()
        run.schedules = tuple(search.schedules)
        return search

    def _train_epochs(self, loop: Loop, data: StageData, interrupts: Interrupts) -> str:
        """Train the epochs that are left, and return how the stage ended."""
        run = loop.run
        while run.epoch < run.epochs:
            if run.order is None:
                self._begin_epoch(run)
            for loss in loop.updates():
                self._callback("on_step_end", run.step, loss)
                if loop.should_stop:
                    break
                interrupts.check()
            row, outcome = loop.end_epoch(self._validate_epoch(data))
            self._callback("on_epoch_end", run.epoch - 1, row)
            if outcome != "running":
                return outcome
            if loop.should_stop:
                return "stopped"
            interrupts.check()
        return "completed"

    def _begin_epoch(self, run: Run) -> None:
        if run.epoch in run.timetable:
            self.freeze_to(run.timetable[run.epoch])
            self._check_trains()
        set_norm_mode(self.model.train(), self.optimizer, self.norm_mode)
        self._has_statistics = False
        self._callback("on_epoch_begin", run.epoch)

    def _validate_epoch(self, data: StageData) -> dict[str, float]:
        """Return the validation measures, if there are validation data; keep the best model."""
        if data.val_loader is None:
            return {}
        with self._ema_weights():
            if not (self._averaging() and self.validate_ema):
                self._refresh_statistics(data)
            found = self._validate(data.model, data.val_loader)
            if self.best is not None:
                self.best.consider(self.model, found)
        return found

    def _end_with_average(self, data: StageData) -> None:
        """Leave the averaged weights of a schedule-free optimizer in the model."""
        set_training(self.optimizer, False)
        if not self._has_statistics:  # of the last validation
            self._refresh_statistics(data)

    def _refresh_statistics(self, data: StageData) -> None:
        """Give averaged weights of a schedule-free optimizer statistics of batch norm."""
        if is_schedule_free(self.optimizer):
            refresh_statistics(data.model, data.train_loader, self._compute_loss())
            self._has_statistics = True

    def _validate(self, model: nn.Module, val_loader: Iterable[Any]) -> dict[str, float]:
        compute_loss = make_compute_loss(self.loss_fn, self.compute_loss)
        with autocast(model, self.amp):
            return evaluate(model, val_loader, compute_loss, self.loss_fn, self.metrics)

    def _average_buffers(self) -> None:
        """Start an EMA of the buffers, if there is one of the weights."""
        if (optimizer := self._averaging()) is not None:
            optimizer.average_buffers(self.model)

    def _averaging(self) -> FusedOptimizer | None:
        """Return the optimizer if it keeps an EMA."""
        optimizer = self.optimizer
        if isinstance(optimizer, FusedOptimizer) and optimizer._options.ema_decay is not None:
            return optimizer
        return None

    def _ema_weights(self) -> AbstractContextManager[None]:
        """Return the context of validation, in which the model may have averaged weights."""
        optimizer = self._averaging() if self.validate_ema else None
        if optimizer is None:
            return weights_of_use(self.optimizer)
        return optimizer.ema_parameters()

    def _callback(self, event: str, *details: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, event)(self, *details)

    def _compute_loss(self) -> ComputeLoss:
        """Return the loss function, with its forward pass under autocast."""
        compute_loss = make_compute_loss(self.loss_fn, self.compute_loss)

        def cast_loss(model: nn.Module, batch: Any) -> Tensor:
            with autocast(model, self.amp):
                return compute_loss(model, batch)

        return cast_loss

    def _group_schedules(self, schedule: Schedule | Sequence[Schedule]) -> tuple[Schedule, ...]:
        """Return one schedule for all param groups, or one for each of them."""
        if isinstance(schedule, Schedule):
            return (schedule,)
        if len(schedule) != len(self.groups):
            raise ValueError(
                f"schedule must be one schedule or one per layer group: there are "
                f"{len(self.groups)} groups, got {len(schedule)} schedules"
            )
        groups = enumerate(self.optimizer.param_groups)
        return tuple(schedule[group.get("layer", i)] for i, group in groups)

    def _check_trains(self) -> None:
        check_weights(self.model)
        groups = [group for group in self.optimizer.param_groups if not group.get("frozen")]
        if not any(p.requires_grad for group in groups for p in group["params"]):
            raise ValueError(
                "fit needs a layer group that trains, got a model that is frozen throughout; call "
                "unfreeze(), or freeze_to(-1) for the head alone"
            )


def _check_rates(name: str, lr: object) -> None:
    """Refuse None and any text but "auto" for learning rates."""
    if lr is None:
        raise TypeError(f'{name} must be learning rates, or "auto", got None')
    if isinstance(lr, str) and lr != "auto":
        try:
            hint = f"; pass {float(lr):g}"
        except ValueError:
            hint = ""
        raise TypeError(f'{name} must be learning rates, or "auto", got {lr!r}{hint}')


def _make_optimizer(
    make: MakeOptimizer,
    param_groups: list[dict[str, Any]],
    max_grad_norm: float | None,
    ema_decay: float | None,
) -> Optimizer:
    """Return the optimizer of the param groups, with clipping and EMA if it has them built in."""
    made = make(param_groups)
    optimizer = inner_optimizer(made)
    asked = {"max_grad_norm": max_grad_norm, "ema_decay": ema_decay}
    given = {name: value for name, value in asked.items() if value is not None}
    if not isinstance(optimizer, Optimizer):
        got = described(optimizer)
        raise TypeError(f"optimizer must return an optimizer of param groups, got {got}")
    if isinstance(optimizer, FusedOptimizer):
        if given:
            optimizer._set_options(replace(optimizer._options, **given))  # type: ignore[arg-type]
    elif ema_decay is not None:
        raise ValueError(
            f"ema_decay must be None with {type(optimizer).__name__} of torch.optim, which keeps "
            f"no average, got {ema_decay}; use an optimizer of lrfast"
        )
    elif max_grad_norm is not None and not 0 < max_grad_norm < float("inf"):
        raise ValueError(f"max_grad_norm must be finite and above 0, or None, got {max_grad_norm}")
    return optimizer


def _checked_timetable(timetable: Mapping[int, int], epochs: int, count: int) -> dict[int, int]:
    """Return an unfreezing schedule whose epochs and layer groups exist."""
    for epoch, first in timetable.items():
        if not is_int(epoch) or not 0 <= epoch < epochs:
            raise ValueError(f"timetable must name epochs from 0 to {epochs - 1}, got {epoch!r}")
        if not is_int(first) or not -count <= first < count:
            raise ValueError(
                f"timetable must name layer groups from {-count} to {count - 1}, got {first!r}"
            )
    return {int(epoch): int(first) for epoch, first in timetable.items()}
