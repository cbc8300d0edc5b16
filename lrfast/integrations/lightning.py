"""lrfast inside Lightning's Trainer; needs ``lightning`` or ``pytorch_lightning``.

``configure_optimizers`` returns an lrfast optimizer with its schedule; if a scheduler is needed,
:class:`lrfast.integrations.scheduler.DeviceScheduler` is one. The callbacks here belong to the
library that was imported first.
"""

from __future__ import annotations

import copy
import inspect
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lrfast import range_test
from lrfast._utils.async_copy import AsyncHostQueue
from lrfast._utils.optional import importing
from lrfast._utils.wrapped_optimizers import inner_optimizer
from lrfast.groups import NormPolicy, Timetable, set_norm_mode
from lrfast.integrations._shared import (
    KeptObjects,
    LRFinderBase,
    check_measures_nothing,
    check_own_updates,
    fused_optimizer,
    mean_loss,
)
from lrfast.integrations.scheduler import DeviceScheduler
from lrfast.training._data import (
    PlacedBatch,
    PlacedBatches,
    check_loss,
    end_workers,
    num_batches,
)
from lrfast.training._snapshot import Stateful
from lrfast.training._step import TrainerUpdate

with importing(
    "lrfast.integrations.lightning needs lightning",
    "lightning",
    "pytorch_lightning",
    extra="lightning",
):
    if "pytorch_lightning" in sys.modules and "lightning" not in sys.modules:
        import pytorch_lightning as pl
    else:
        try:
            import lightning.pytorch as pl
        except ImportError:
            import pytorch_lightning as pl

__all__ = ["ClipInStep", "GradualUnfreezing", "LRFindCallback", "StepMonitor"]

# Their shards do not tell which elements other processes hold.
_KEEP_THEIR_SHARDS = (pl.strategies.FSDPStrategy, pl.strategies.DeepSpeedStrategy)


class ClipInStep(pl.Callback):  # type: ignore[misc]
    """Clips to ``Trainer(gradient_clip_val=...)`` within the optimizer's step.

    That saves Lightning's pass over the gradients, and works under "16-mixed", for which Lightning
    refuses to clip if an optimizer unscales in its step. Over the shards of
    ``ModelParallelStrategy`` the norm costs one collective.

    Example:
        >>> trainer = pl.Trainer(
        ...     gradient_clip_val=1.0, callbacks=[ClipInStep()], accelerator="cpu", logger=False,
        ...     enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        ... )
        >>> trainer.gradient_clip_val
        1.0
    """

    def __init__(self) -> None:
        self._asked: float | None = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Move the value from the trainer to the optimizers.

        Raises:
            TypeError: If an optimizer is not an lrfast optimizer.
            ValueError: If the trainer clips by value, and under ``FSDPStrategy`` and
                ``DeepSpeedStrategy``.
        """
        algorithm = trainer.gradient_clip_algorithm
        if algorithm not in (None, "norm"):
            raise ValueError(f"gradient_clip_algorithm must be 'norm', got {str(algorithm)!r}")
        optimizers = [fused_optimizer(each) for each in trainer.optimizers]
        if not trainer.gradient_clip_val:
            return
        if isinstance(trainer.strategy, _KEEP_THEIR_SHARDS):
            raise ValueError(
                "strategy must not be FSDPStrategy or DeepSpeedStrategy, whose shards are known to "
                f"them alone, got {type(trainer.strategy).__name__}; leave ClipInStep out, or use "
                "ModelParallelStrategy"
            )
        self._asked, trainer.gradient_clip_val = trainer.gradient_clip_val, None
        for optimizer in optimizers:
            optimizer.max_grad_norm = float(self._asked)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Restore the trainer's value."""
        if self._asked is not None:
            self._asked, trainer.gradient_clip_val = None, self._asked

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Restore the trainer's value."""
        self.teardown(trainer, pl_module, "fit")


class LRFindCallback(LRFinderBase, pl.Callback):  # type: ignore[misc]
    """Runs a range test at the start of some epochs, and trains on at the suggested learning rates.

    The trainer makes the updates itself: with its hooks and its closure, its clipping, precision
    and accumulation, in automatic and in manual optimization. Loggers record nothing meanwhile, and
    Lightning's callbacks that only watch or save do not run. A batch for which ``training_step``
    returns None adds no point.

    A suggestion becomes the highest learning rate of the schedule, and ratios between param groups
    stay. Without a suggestion the learning rates stay. Either is announced in Lightning's log.
    Nothing else changes: weights, states, counters, metrics, callbacks, order of data and random
    numbers are restored. ``results`` holds all range tests.

    Args:
        epochs: Epochs, from 0, at whose start to test; default (0,).
        rule: Name of the suggestion method; None, the default: that of :attr:`RangeTest.rule`.
        train_loader: Batches, or loaders as for ``Trainer.fit``; None, the default: the trainer's.
        **options: Other arguments of :func:`lrfast.lr_find`. ``gradient_accumulation_steps`` is by
            default the trainer's ``accumulate_grad_batches``; in manual optimization, batches per
            update.

    Example:
        >>> finder = LRFindCallback(num_iter=50)
        >>> finder.results
        []
    """

    def __init__(
        self,
        epochs: Iterable[int] = (0,),
        rule: str | None = None,
        train_loader: Iterable[Any] | None = None,
        **options: Any,
    ) -> None:
        LRFinderBase.__init__(self, rule)
        check_own_updates(options)
        self._epochs, self._data, self._options = frozenset(epochs), train_loader, options
        self._is_due = False

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note whether the epoch is one of those asked for.

        Raises:
            TypeError: If ``training_step`` takes an iterator.
            ValueError: If a scheduler on the host would overwrite the learning rate, and for
                ``val_loader``, ``verify`` and ``lag`` in manual optimization.
        """
        self._is_due = trainer.current_epoch in self._epochs
        if self._is_due:
            _check_setup(trainer, pl_module, self._options)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Run and apply a range test before such an epoch's first batch, after its other hooks.

        Raises:
            TypeError: If the trainer's data can be iterated only once and there is no
                ``train_loader``.
            ValueError: If a step sets a learning rate, or backpropagates no loss.
        """
        if not self._is_due:
            return
        self._is_due = False
        data, kept, notes = _data_of(trainer, self._data)
        optimizers = [inner_optimizer(each) for each in trainer.optimizers]
        if len(optimizers) > 1:
            notes.append(
                f"the range test moved the learning rate of the first of {len(optimizers)} "
                "optimizers; the others stepped at their own"
            )
        shows_bar = trainer.progress_bar_callback is not None
        with _observed(trainer, pl_module, data) as observer:
            step = _TrainerStep(trainer, observer, data)
            kept = [*kept, *optimizers[1:], _trainer_state(trainer)]
            options: dict[str, Any] = {
                "compute_loss": _loss_of(trainer, pl_module),
                "step_fn": TrainerUpdate(step.begin, step.update),
                "gradient_accumulation_steps": trainer.accumulate_grad_batches,
                "scaler": getattr(trainer.precision_plugin, "scaler", None),
                "progress": shows_bar,
            } | self._options
            options["others"] = [*options.get("others", ()), *kept]
            result = range_test.lr_find(trainer.strategy.model, optimizers[0], data, **options)
        self._take(replace(result, notes=(*result.notes, *notes)), optimizers[0])

    def _announce(self, text: str) -> None:
        pl.utilities.rank_zero_info(f"LRFindCallback: {text}")


class GradualUnfreezing(pl.Callback):  # type: ignore[misc]
    """Freezes and unfreezes layer groups by a schedule, without changing the optimizer's groups.

    Unlike with ``BackboneFinetuning``, which adds a param group at unfreezing, states, schedulers
    and checkpoints stay valid at any epoch.

    Args:
        timetable: First layer group that trains from an epoch on, by epoch, as in
            :class:`lrfast.Timetable`; ``lrfast.gradual(n)`` is ULMFiT's.
        norm_mode: Mode of normalisation layers in frozen groups, as in
            :func:`lrfast.set_norm_mode`; default "train".

    Example:
        >>> GradualUnfreezing({0: -1, 2: 0}).timetable.at(3)
        0
    """

    def __init__(self, timetable: Mapping[int, int], norm_mode: NormPolicy = "train") -> None:
        self.timetable = timetable if isinstance(timetable, Timetable) else Timetable(timetable)
        self._norm_mode: NormPolicy = norm_mode

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Freeze this epoch's layer groups, also if a checkpoint is resumed within the epoch."""
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Freeze this epoch's layer groups."""
        for inner in map(inner_optimizer, trainer.optimizers):
            self.timetable.apply(inner, trainer.current_epoch)
            if self._norm_mode != "train":
                set_norm_mode(pl_module, inner, self._norm_mode)


class StepMonitor(pl.Callback):  # type: ignore[misc]
    """Logs each group's learning rate and the gradient norm, without a synchronisation.

    Lightning's ``LearningRateMonitor`` reads ``param_groups``, which hold what the schedule
    multiplies. "lr-name" or "lr-0" and, if the step finds the norm, "grad_norm" of every
    ``trainer.log_every_n_steps``-th step are logged once they have arrived on the host.

    Example:
        >>> StepMonitor().state_key
        'StepMonitor'
    """

    def __init__(self) -> None:
        self._reader = AsyncHostQueue()
        self._seen = -1

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Queue copies at logging steps, and log those that have arrived."""
        step = trainer.global_step
        if step != self._seen and step % trainer.log_every_n_steps == 0:
            self._seen = step
            optimizer = fused_optimizer(trainer.optimizers[0])
            norms = [] if optimizer.grad_norm is None else [optimizer.grad_norm]
            self._reader.put(step, [*optimizer.last_rates, *norms])
        self._log(trainer, wait=False)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the last ones, with a synchronisation."""
        self._log(trainer, wait=True)

    def _log(self, trainer: pl.Trainer, wait: bool) -> None:
        groups = trainer.optimizers[0].param_groups
        names = [f"lr-{group.get('name', index)}" for index, group in enumerate(groups)]
        for step, numbers in self._reader.ready(wait):
            metrics = dict(zip([*names, "grad_norm"], numbers, strict=False))
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=step)


def _check_setup(
    trainer: pl.Trainer, module: pl.LightningModule, options: Mapping[str, Any]
) -> None:
    if not module.automatic_optimization:
        check_measures_nothing(options, "in manual optimization")
    if "dataloader_iter" in inspect.signature(module.training_step).parameters:
        raise TypeError(
            "training_step must take a batch for a range test, got one that takes dataloader_iter; "
            "call lrfast.lr_find with a step_fn"
        )
    for config in trainer.lr_scheduler_configs:
        if not isinstance(config.scheduler, DeviceScheduler):
            raise ValueError(
                "the scheduler must be a DeviceScheduler, or none, for a range test: "
                f"{type(config.scheduler).__name__} would overwrite the rate"
            )


class _Observer(pl.Callback):  # type: ignore[misc]
    """Keeps what the trainer's step returns, and the first loss that it backpropagates."""

    def __init__(self) -> None:
        self.outputs: Any = None
        self.loss: Tensor | None = None

    def on_before_backward(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor
    ) -> None:
        if self.loss is None and not pl_module.automatic_optimization:
            scale = getattr(getattr(trainer.precision_plugin, "scaler", None), "_scale", None)
            self.loss = loss.detach() if scale is None else loss.detach() / scale

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, idx: int
    ) -> None:
        self.outputs = outputs


class _OneBatch:
    """The data fetcher of a single batch, as the trainer's loop asks for one."""

    def __init__(self, placed: PlacedBatch) -> None:
        self._placed, self.done = placed, placed.is_last

    def __next__(self) -> tuple[Any, int, int]:
        return self._placed.batch, self._placed.place, 0


class _TrainerStep:
    """The trainer's own steps, batch by batch, of which only the loss is read."""

    def __init__(self, trainer: pl.Trainer, observer: _Observer, data: PlacedBatches) -> None:
        self._trainer, self._observer, self._data = trainer, observer, data
        self._loop = trainer.fit_loop.epoch_loop

    def begin(self) -> None:
        """Start a pass, as the loop does at an epoch's start."""
        loop = self._loop
        loop._restarting = False
        loop.batch_progress.reset_on_run()
        loop.scheduler_progress.reset_on_run()
        loop.automatic_optimization.optim_progress.reset_on_run()
        self._trainer._logger_connector.reset_results()

    def update(self, micro_batches: Sequence[PlacedBatch]) -> Tensor:
        """Have the trainer step through batches, and return the mean of their losses."""
        return mean_loss(map(self._loss_of, micro_batches))

    def _loss_of(self, placed: PlacedBatch) -> Any:
        """Step through one batch; None if there is no loss, because the batch is left out."""
        if self._data.is_ended:
            return None
        if placed.place == 0:
            self.begin()
        observer, trainer = self._observer, self._trainer
        observer.outputs = observer.loss = None
        try:
            self._loop.advance(_OneBatch(placed))
        except StopIteration:  # on_train_batch_start has returned -1
            self._data.is_ended = True
            return None
        is_automatic = trainer.lightning_module.automatic_optimization
        loss = (observer.outputs or {}).get("loss")
        if loss is None:
            if observer.loss is None and not is_automatic:
                raise ValueError(
                    "training_step must return the loss for a range test, or pass it to "
                    "manual_backward, got neither"
                )
            return observer.loss
        return loss * trainer.accumulate_grad_batches if is_automatic else loss


# Lightning's callbacks that watch, save or stop a training, and change no update.
_WATCHING = (
    *("BasePredictionWriter", "BatchSizeFinder", "Checkpoint", "DeviceStatsMonitor"),
    *("EarlyStopping", "LearningRateFinder", "LearningRateMonitor", "ModelSummary", "ProgressBar"),
    *("SpikeDetection", "ThroughputMonitor", "Timer"),
)


@contextmanager
def _observed(
    trainer: pl.Trainer, module: pl.LightningModule, data: PlacedBatches
) -> Iterator[_Observer]:
    """Let the trainer step for an observer: without loggers, and callbacks that only watch."""
    observer, loop = _Observer(), trainer.fit_loop
    named = tuple(getattr(pl.callbacks, name, LRFindCallback) for name in _WATCHING)
    watching = (*named, LRFindCallback, StepMonitor)
    running = [each for each in trainer.callbacks if not isinstance(each, watching)]
    loop_results = loop.epoch_loop._results
    before = trainer.callbacks, trainer.loggers, loop.max_batches
    trainer.callbacks = [observer, *running]
    trainer.loggers = [pl.loggers.logger.DummyLogger() for _ in trainer.loggers]
    length = num_batches(data)
    loop.max_batches = math.inf if length is None else length
    loop.epoch_loop._results = type(loop_results)(training=True)
    # The numbers of a progress bar would be read at every step.
    object.__setattr__(module, "log", partial(_log_off_the_bar, module.log))
    try:
        yield observer
    finally:
        object.__delattr__(module, "log")
        loop.epoch_loop._results = loop_results
        trainer.callbacks, trainer.loggers, loop.max_batches = before


def _log_off_the_bar(
    log: Any, name: str, value: Any, prog_bar: bool = False, *args: Any, **kwargs: Any
) -> None:
    log(name, value, False, *args, **kwargs)


def _trainer_state(trainer: pl.Trainer) -> KeptObjects:
    """The state that the trainer's steps change outside model and optimizer."""
    own = {id(module) for module in trainer.lightning_module.modules()}
    library = pl.__name__

    def package_of(value: object) -> str:
        return type(value).__module__.partition(".")[0]

    def is_part(owner: object, value: object) -> bool:
        if isinstance(value, nn.Module):
            return id(value) not in own
        if package_of(value) == library.partition(".")[0]:
            return type(value).__module__.startswith((f"{library}.loops", f"{library}.callbacks"))
        is_data = isinstance(value, Dataset | pl.LightningDataModule)
        return package_of(value) == package_of(owner) and not is_data

    schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
    roots = [trainer, trainer.fit_loop, trainer._logger_connector, *trainer.callbacks]
    return KeptObjects([*roots, *schedulers], is_part)


def _loss_of(trainer: pl.Trainer, module: pl.LightningModule) -> Any:
    takes_index = len(inspect.signature(module.training_step).parameters) > 1

    def compute_loss(model: nn.Module, batch: Any) -> Tensor:
        index = 0
        if isinstance(batch, PlacedBatch):
            batch, index, _ = batch
        batch = trainer.precision_plugin.convert_input(batch)
        batch = module._on_before_batch_transfer(batch, dataloader_idx=0)
        batch = trainer.strategy.batch_to_device(batch, dataloader_idx=0)
        output: Any = trainer.strategy.training_step(batch, *([index] if takes_index else []))
        return check_loss(output["loss"] if isinstance(output, Mapping) else output, False)

    return compute_loss


class _Combined:
    """The batches of combined loaders, pass by pass."""

    def __init__(self, loader: Any, length: float | None) -> None:
        self._loader, self._length = loader, length

    def __len__(self) -> int:
        if not isinstance(self._length, int):
            raise TypeError("the loaders have no length")
        return self._length

    def __iter__(self) -> Iterator[Any]:
        iter(self._loader)
        try:
            for batch, _, _ in self._loader:
                yield batch
        finally:
            for iterator in self._loader._iterator.iterators:
                end_workers(iterator)


def _data_of(trainer: pl.Trainer, given: Any) -> tuple[PlacedBatches, list[object], list[str]]:
    """Return the batches of a range test, what else of their loaders to restore, and notes."""
    combined_loader = pl.utilities.CombinedLoader
    source, length = given, None
    if given is None:
        source, length = trainer.fit_loop._combined_loader, trainer.fit_loop.max_batches
    elif isinstance(given, dict | list | tuple) and _are_loaders(given):
        source = combined_loader(given, "max_size_cycle")
    elif not isinstance(given, combined_loader):
        own = _own_loader(given)
        return PlacedBatches(own, [own]), [], []
    kept: list[object] = []
    notes: list[str] = []
    for each in source.flattened:
        if isinstance(each, Iterator) and given is None:
            raise TypeError(
                "train_loader must be given where the trainer's can be iterated only once, got "
                f"{type(each).__name__}"
            )
        if isinstance(each, DataLoader | Sequence):
            continue
        if isinstance(each, Stateful):
            kept.append(each)
        else:
            notes.append(f"{type(each).__name__} was iterated, and cannot be restored")
    own = copy.copy(source)
    own._iterator, own.flattened = None, [_own_loader(each) for each in source.flattened]
    return PlacedBatches(_Combined(own, length), own.flattened), kept, notes


def _are_loaders(given: Any) -> bool:
    items = list(given.values() if isinstance(given, dict) else given)
    return bool(items) and all(isinstance(each, DataLoader) for each in items)


def _own_loader(loader: Any) -> Any:
    """A DataLoader whose workers, which end with a pass, are not the trainer's."""
    if not isinstance(loader, DataLoader):
        return loader
    own = copy.copy(loader)
    vars(own).update(_iterator=None, persistent_workers=False)
    return own
