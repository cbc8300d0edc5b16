"""What trains a stage: the parts that a fine-tuner was given, put to work together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, get_args

import torch
from torch import nn

from lrfast.finetune._best_model import Best
from lrfast.finetune._callbacks import Callback
from lrfast.finetune._features import Task, precompute
from lrfast.finetune._history import History, Stage
from lrfast.finetune._interrupts import Interrupts
from lrfast.finetune._loop import Hooks, Loop
from lrfast.finetune._metrics import Metric, evaluate
from lrfast.finetune._setup import (
    MakeOptimizer,
    autocast,
    cast_loss,
    check_trains,
    check_whole,
    epoch_batches,
    make_optimizer,
    make_scaler,
)
from lrfast.finetune._stage_state import Run
from lrfast.groups import (
    Groups,
    NormPolicy,
    discriminative,
    freeze_to,
    layer_groups,
    set_norm_mode,
)
from lrfast.optim import AdamW
from lrfast.optim._optimizer import FusedOptimizer
from lrfast.range_test import RangeTest, lr_find
from lrfast.training._captured import check_optimizer
from lrfast.training._data import ComputeLoss, LossFunction, make_compute_loss
from lrfast.training._step import Training


class Trainer:
    """Model, data, optimizer and options, and the stage that they train; see FineTuner."""

    def __init__(
        self,
        model: nn.Module,
        train: Iterable[Any],
        valid: Iterable[Any] | None = None,
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
        accumulate: int = 1,
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
        self.train = train
        self.valid = valid
        self.loss_fn = loss_fn
        self.compute_loss = compute_loss
        self.metrics = dict(metrics or {})
        self.accumulate = check_whole("accumulate", accumulate)
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
        self.groups = layer_groups(model, groups)
        param_groups = discriminative(
            *(model, 0.0, weight_decay, None, groups, no_decay),
            split_norms=norm_mode == "adapt",
        )
        self.optimizer = make_optimizer(optimizer, param_groups, max_grad_norm, ema_decay)
        self.scaler = make_scaler(model, amp)
        self.best = None if keep_best is None else Best(keep_best, best_mode)
        self.history = History()
        self._loop: Loop | None = None
        self._interrupted: Run | None = None
        self._partial: Stage | None = None  # what the history says of the interrupted stage
        self._stop_asked = False
        self._check()

    def freeze(self) -> None:
        """Freeze all layer groups but the last, the head."""
        if len(self.groups) < 2:
            raise ValueError("freeze needs a body before the head, got one layer group")
        self.freeze_to(-1)

    def unfreeze(self) -> None:
        """Train all layer groups."""
        self.freeze_to(0)

    def freeze_to(self, n: int) -> None:
        """Freeze the layer groups before group ``n``; negative counts from the head."""
        freeze_to(self.optimizer, n, train_norms=self.norm_mode == "adapt")

    def lr_find(self, **options: Any) -> RangeTest:
        """Run a range test on the training data with what is frozen now; leaves no trace.

        May be called at any moment, also by a callback.

        Args:
            **options: Those of :func:`lrfast.lr_find`, such as ``num_iter``.
        """
        given: dict[str, Any] = {
            "scaler": self.scaler,
            "accumulate": self.accumulate,
            "capture": self.capture,
            "progress": self.progress,
        }
        loss_fn = self.loss_fn if self.amp is None else None
        if loss_fn is None:
            given["compute_loss"] = self._loss_of()
        try:
            return lr_find(self.model, self.optimizer, self.train, loss_fn, **given | options)
        finally:
            if self._loop is not None:
                self._loop.driver.watch()

    def stop(self) -> None:
        """Let the stage that runs end here, as "stopped"; for callbacks."""
        self._stop_asked = True

    @property
    def running(self) -> Run | None:
        """The stage that trains now; None between stages."""
        return None if self._loop is None else self._loop.run

    @property
    def epoch_steps(self) -> int:
        """Updates per epoch."""
        return -(-epoch_batches(self.train) // self.accumulate)

    @property
    def loaders(self) -> list[Any]:
        """The data whose generators training draws from."""
        return [self.train] if self.valid is None else [self.train, self.valid]

    def validate(self) -> dict[str, float]:
        """Return loss and metrics over the validation data; waits for the device once.

        Raises:
            ValueError: If there are no validation data.
        """
        with self._averaged():
            return self._found(self.model, self.valid)

    def restore_best(self) -> None:
        """Bring back parameters and buffers of the best epoch so far; the optimizer stays.

        Raises:
            ValueError: If the tuner keeps none, or none has been validated.
        """
        if self.best is None:
            raise ValueError('keep_best must be given to the FineTuner, as "valid_loss", got None')
        self.best.restore(self.model)

    def _check(self) -> None:
        if self.norm_mode not in get_args(NormPolicy):
            raise ValueError(
                f"norm_mode must be 'train', 'keep' or 'adapt', got {self.norm_mode!r}"
            )
        if self.metrics and self.loss_fn is None:
            raise ValueError("metrics need loss_fn(outputs, targets), got none")
        if self.best is not None and self.valid is None:
            raise ValueError("keep_best needs validation data, got valid=None")
        if self.best is not None and self.best.monitor not in ("valid_loss", *self.metrics):
            known = ", ".join(["valid_loss", *self.metrics])
            raise ValueError(f"keep_best must be one of {known}, got {self.best.monitor!r}")
        if self.capture:
            check_optimizer(self.optimizer)
        make_compute_loss(self.loss_fn, self.compute_loss)
        epoch_batches(self.train)

    def _loss_of(self) -> ComputeLoss:
        return cast_loss(make_compute_loss(self.loss_fn, self.compute_loss), self.amp)

    def _train(self, run: Run) -> Stage:
        """Train a run to its end, and keep what is needed to go on if it does not get there."""
        if self._loop is not None:
            raise ValueError("fit must wait until the stage has ended, got a call while one runs")
        task = Task(self.model, self.train, self.valid)
        if run.precompute:
            task = precompute(self.model, self.train, self.valid, self.amp)
        training = Training(
            task.model,
            self.optimizer,
            task.train,
            self._loss_of(),
            accumulate=self.accumulate,
            scaler=self.scaler,
            captures=self.capture,
        )
        is_clipped = isinstance(self.optimizer, FusedOptimizer)
        self._interrupted = self._partial = None
        self._stop_asked = False
        with Interrupts() as interrupts:
            loop = Loop(
                training,
                run,
                self._hooks(task),
                self.loaders,
                max_grad_norm=None if is_clipped else self.max_grad_norm,
                progress=self.progress,
            )
            self._loop = loop
            outcome = "interrupted"
            try:
                self._tell("on_fit_begin")
                outcome = loop.train(interrupts)
            finally:
                stage = self._finish(loop, outcome)
                self._tell("on_fit_end")
        return stage

    def _finish(self, loop: Loop, outcome: str) -> Stage:
        run = loop.now(self.model)
        loop.driver.detach()
        self._loop = None
        stage = run.stage(loop.own_rates, outcome)
        self.history.stages.append(stage)
        if outcome == "interrupted":
            self._interrupted, self._partial = run, stage
        return stage

    def _hooks(self, task: Task) -> Hooks:
        def begin_epoch(epoch: int) -> None:
            assert self._loop is not None
            if epoch in (timetable := self._loop.run.timetable):
                self.freeze_to(timetable[epoch])
                check_trains(self.optimizer)
            set_norm_mode(self.model.train(), self.optimizer, self.norm_mode)
            self._tell("on_epoch_begin", epoch)

        def end_step(step: int, loss: torch.Tensor) -> None:
            self._tell("on_step_end", step, loss)

        def validate() -> dict[str, float]:
            if self.valid is None:
                return {}
            with self._averaged():
                found = self._found(task.model, task.valid)
                if self.best is not None:
                    self.best.consider(self.model, found)
            return found

        def end_epoch(epoch: int, row: dict[str, float]) -> None:
            self._tell("on_epoch_end", epoch, row)

        return Hooks(begin_epoch, end_step, validate, end_epoch, lambda: self._stop_asked)

    def _tell(self, moment: str, *details: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, moment)(self, *details)

    def _averaged(self) -> AbstractContextManager[None]:
        optimizer = self.optimizer
        if not self.validate_ema or not isinstance(optimizer, FusedOptimizer):
            return nullcontext()
        return nullcontext() if optimizer._options.ema_decay is None else optimizer.ema_parameters()

    def _found(self, model: nn.Module, valid: Iterable[Any] | None) -> dict[str, float]:
        if valid is None:
            raise ValueError("valid must be given to the FineTuner to validate, got None")
        loss_of = make_compute_loss(self.loss_fn, self.compute_loss)
        with autocast(model, self.amp):
            return evaluate(model, valid, loss_of, self.loss_fn, self.metrics)
