"""lrfast inside Lightning's Trainer; needs ``lightning`` or ``pytorch_lightning``.

``configure_optimizers`` returns an lrfast optimizer with its schedule; if a scheduler is needed,
:class:`lrfast.integrations.scheduler.DeviceScheduler` is one. The callbacks here belong to the
library that was imported first.
"""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import Metric

from lrfast import range_test
from lrfast._utils.async_copy import AsyncHostQueue
from lrfast._utils.wrapped_optimizers import inner_optimizer
from lrfast.groups import NormPolicy, Timetable, set_norm_mode
from lrfast.integrations._shared import LRFinderBase, fused_optimizer
from lrfast.integrations.scheduler import DeviceScheduler

if "pytorch_lightning" in sys.modules and "lightning" not in sys.modules:
    from pytorch_lightning import Callback, LightningModule, Trainer, strategies
else:
    try:
        from lightning.pytorch import Callback, LightningModule, Trainer, strategies
    except ImportError:
        from pytorch_lightning import Callback, LightningModule, Trainer, strategies

__all__ = ["ClipInStep", "GradualUnfreezing", "LRFindCallback", "StepMonitor"]

# Their shards do not tell which elements other processes hold.
_KEEP_THEIR_SHARDS = (strategies.FSDPStrategy, strategies.DeepSpeedStrategy)


class ClipInStep(Callback):  # type: ignore[misc]
    """Clips to ``Trainer(gradient_clip_val=...)`` within the optimizer's step.

    That saves Lightning's pass over the gradients, and works under "16-mixed", for which Lightning
    refuses to clip if an optimizer unscales in its step. Over the shards of
    ``ModelParallelStrategy`` the norm costs one collective.

    Example:
        >>> trainer = Trainer(
        ...     gradient_clip_val=1.0, callbacks=[ClipInStep()], accelerator="cpu", logger=False,
        ...     enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        ... )
        >>> trainer.gradient_clip_val
        1.0
    """

    def __init__(self) -> None:
        self._asked: float | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
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

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the trainer's value."""
        if self._asked is not None:
            self._asked, trainer.gradient_clip_val = None, self._asked

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Restore the trainer's value."""
        self.teardown(trainer, pl_module, "fit")


class LRFindCallback(LRFinderBase, Callback):  # type: ignore[misc]
    """Runs a range test at the start of some epochs, and trains on at the suggested learning rates.

    A suggestion becomes the highest learning rate of the schedule, and ratios between param groups
    stay. Without a suggestion the learning rates stay. Nothing else changes: weights, states, order
    of data and random numbers are restored. Logs of the module meanwhile are dropped, and its
    torchmetrics are reset. ``results`` holds all range tests.

    Args:
        epochs: Epochs, from 0, at whose start to test; default (0,).
        rule: Name of the suggestion method; None, the default: that of :attr:`RangeTest.rule`.
        data: Batches; None, the default: the trainer's, if it has one loader.
        **options: Other arguments of :func:`lrfast.lr_find`. ``accumulate`` is by default the
            trainer's ``accumulate_grad_batches``.

    Example:
        >>> finder = LRFindCallback(num_iter=50)
        >>> finder.results
        []
    """

    def __init__(
        self,
        epochs: Iterable[int] = (0,),
        rule: str | None = None,
        data: Iterable[Any] | None = None,
        **options: Any,
    ) -> None:
        LRFinderBase.__init__(self, rule)
        self._epochs, self._data, self._options = frozenset(epochs), data, options

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run and apply a range test, if the epoch is one of those asked for.

        Raises:
            TypeError: If there are several training loaders and no ``data``.
            ValueError: Under manual optimization, and if a scheduler on the host would overwrite
                the learning rate.
        """
        if trainer.current_epoch not in self._epochs:
            return
        _check_setup(trainer, pl_module)
        optimizer = inner_optimizer(trainer.optimizers[0])
        options: dict[str, Any] = {
            "compute_loss": _loss_of(trainer, pl_module),
            "accumulate": trainer.accumulate_grad_batches,
            "scaler": getattr(trainer.precision_plugin, "scaler", None),
            "progress": trainer.progress_bar_callback is not None,
        } | self._options
        data = _loader_of(trainer) if self._data is None else self._data
        with _silent(pl_module):
            result = range_test.lr_find(trainer.strategy.model, optimizer, data, **options)
        self._take(result, optimizer)


class GradualUnfreezing(Callback):  # type: ignore[misc]
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

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Freeze this epoch's layer groups, also if a checkpoint is resumed within the epoch."""
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Freeze this epoch's layer groups."""
        for inner in map(inner_optimizer, trainer.optimizers):
            self.timetable.apply(inner, trainer.current_epoch)
            if self._norm_mode != "train":
                set_norm_mode(pl_module, inner, self._norm_mode)


class StepMonitor(Callback):  # type: ignore[misc]
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
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Queue copies at logging steps, and log those that have arrived."""
        step = trainer.global_step
        if step != self._seen and step % trainer.log_every_n_steps == 0:
            self._seen = step
            optimizer = fused_optimizer(trainer.optimizers[0])
            norms = [] if optimizer.grad_norm is None else [optimizer.grad_norm]
            self._reader.put(step, [*optimizer.last_rates, *norms])
        self._log(trainer, wait=False)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the last ones, with a synchronisation."""
        self._log(trainer, wait=True)

    def _log(self, trainer: Trainer, wait: bool) -> None:
        groups = trainer.optimizers[0].param_groups
        names = [f"lr-{group.get('name', index)}" for index, group in enumerate(groups)]
        for step, numbers in self._reader.ready(wait):
            metrics = dict(zip([*names, "grad_norm"], numbers, strict=False))
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=step)


def _check_setup(trainer: Trainer, module: LightningModule) -> None:
    if not module.automatic_optimization:
        raise ValueError(
            "automatic_optimization must be on for a range test; else call lrfast.lr_find with a "
            "step_fn"
        )
    for config in trainer.lr_scheduler_configs:
        if not isinstance(config.scheduler, DeviceScheduler):
            raise ValueError(
                "the scheduler must be a DeviceScheduler, or none, for a range test: "
                f"{type(config.scheduler).__name__} would overwrite the rate"
            )


def _loss_of(trainer: Trainer, module: LightningModule) -> Any:
    takes_index = len(inspect.signature(module.training_step).parameters) > 1

    def compute_loss(model: nn.Module, batch: Any) -> Tensor:
        batch = trainer.precision_plugin.convert_input(batch)
        batch = module._on_before_batch_transfer(batch, dataloader_idx=0)
        batch = trainer.strategy.batch_to_device(batch, dataloader_idx=0)
        output: Any = trainer.strategy.training_step(batch, *([0] if takes_index else []))
        loss: Tensor = output["loss"] if isinstance(output, Mapping) else output
        return loss

    return compute_loss


def _loader_of(trainer: Trainer) -> DataLoader[Any]:
    loader = trainer.train_dataloader
    if not isinstance(loader, DataLoader):
        got = type(loader).__name__
        raise TypeError(f"data must be given where the trainer has not one DataLoader, got {got}")
    # With persistent workers a loader has one iterator, which is the trainer's.
    own = copy.copy(loader)
    own._iterator = None
    return own


@contextmanager
def _silent(module: LightningModule) -> Iterator[None]:
    """Drop a module's logs, and reset its metrics."""
    names = ("log", "log_dict")
    for name in names:
        object.__setattr__(module, name, lambda *args, **kwargs: None)
    try:
        yield
    finally:
        for name in names:
            object.__delattr__(module, name)
        for each in module.modules():
            if isinstance(each, Metric):
                each.reset()
