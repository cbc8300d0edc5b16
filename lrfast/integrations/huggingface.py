"""lrfast inside Hugging Face's Trainer; needs ``transformers`` and ``accelerate``.

:func:`use` is all that most need. What it is made of works by itself too:
``Trainer(optimizer_cls_and_kwargs=optimizer_cls_and_kwargs(args))``,
``Trainer(optimizers=(optimizer, DeviceScheduler(optimizer, schedule)))``, :func:`lr_find`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.optimization import get_scheduler

from lrfast import range_test, schedules
from lrfast._utils.async_copy import AsyncHostQueue
from lrfast.groups import Rates, discriminative
from lrfast.integrations._found import Finder
from lrfast.integrations._shared import fused_optimizer, inner_optimizer
from lrfast.integrations.accelerate import clip_in_step, in_parallel, step_can_clip, undisturbed
from lrfast.integrations.scheduler import DeviceScheduler
from lrfast.optim import Adam, AdamW, NAdam
from lrfast.optim._optimizer import FusedOptimizer
from lrfast.range_test import RangeTest
from lrfast.schedules import Schedule
from lrfast.training._snapshot import GlobalRandom

_FOLLOWS_A_METRIC = ("reduce_lr_on_plateau", "greedy")


def use(
    trainer: Trainer,
    optimizer: type[FusedOptimizer] = AdamW,
    *,
    lr: Rates | None = None,
    decay: float | None = None,
    schedule: Schedule | Callable[[int], Schedule] | None = None,
    clip: bool = True,
    **options: Any,
) -> Trainer:
    """Let a Trainer train with lrfast: optimizer, schedule and clipping on the device.

    Everything is taken from its TrainingArguments: rate, betas, epsilon, weight decay and which
    parameters have none, type of schedule and warm-up, ``max_grad_norm``. The steps are those of
    Trainer's own AdamW and scheduler. Call it before ``Trainer.train``.

    Args:
        trainer: One that has no optimizer yet, or one of lrfast.
        optimizer: Class of the optimizer, where the trainer has none.
        lr: Rate or rates of the layer groups, as :func:`lrfast.discriminative` takes them; None:
            ``args.learning_rate`` for all.
        decay: Factor from one layer group to the one before it, with ``lr`` for the last.
        schedule: Multiplies the rates; a function is called with the number of updates, such as
            ``lrfast.schedules.one_cycle``. None: ``args.lr_scheduler_type``; types that follow a
            metric stay Trainer's own.
        clip: Whether the step clips to ``args.max_grad_norm``, and finds the norm that Trainer
            logs, instead of a pass of its own; over all shards under FSDP 2. Under FSDP 1 Trainer
            does so itself.
        **options: More arguments of the optimizer, such as ``ema_decay``, but ``max_grad_norm``.

    Returns:
        The trainer.

    Raises:
        TypeError: If it already has an optimizer of another kind.
        ValueError: Under DeepSpeed, which brings its own optimizer; for ``max_grad_norm``, which is
            the arguments'; and for ``lr`` or ``decay`` for a trainer with an optimizer or a
            ``model_init``.
    """
    if trainer.is_deepspeed_enabled:
        raise ValueError("trainer must not use DeepSpeed, whose engine has the optimizer's step")
    if "max_grad_norm" in options:
        raise ValueError("max_grad_norm must be set in the trainer's arguments, got it beside them")
    has_own_groups = lr is not None or decay is not None
    if trainer.optimizer is not None:
        fused_optimizer(trainer.optimizer)
        if has_own_groups or options:
            given = ", ".join(["lr, decay"] * has_own_groups + list(options))
            raise ValueError(f"{given} must be left out where the trainer has its optimizer")
    clips = clip and step_can_clip(trainer.accelerator)
    maker = _Maker(trainer, schedule, clips)
    trainer.create_scheduler = maker.create_scheduler
    if trainer.optimizer is None:
        groups = None
        if has_own_groups:
            rate = trainer.args.learning_rate if lr is None else lr
            groups = _layer_groups(trainer, rate, decay)
        trainer.create_optimizer = partial(maker.create_optimizer, optimizer, groups, options)
    return trainer


def optimizer_cls_and_kwargs(
    args: TrainingArguments, optimizer: type[FusedOptimizer] = AdamW, **options: Any
) -> tuple[type[FusedOptimizer], dict[str, Any]]:
    """Return what ``Trainer(optimizer_cls_and_kwargs=...)`` takes.

    Args:
        args: Where rate, betas and epsilon come from; the last two only for Adam, AdamW and NAdam.
        optimizer: Class of the optimizer.
        **options: More of its arguments.
    """
    found: dict[str, Any] = {"lr": args.learning_rate}
    if optimizer in (Adam, AdamW, NAdam):
        found |= {"betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}
    return optimizer, found | options


def schedule_of(args: TrainingArguments, total_steps: int) -> Schedule:
    """Return the schedule that TrainingArguments describe.

    Args:
        args: ``lr_scheduler_type``, ``lr_scheduler_kwargs`` and warm-up are read.
        total_steps: Updates of the whole training.

    Returns:
        The schedule: in segments for "linear", "cosine", "constant" and "constant_with_warmup", by
        value, 8 bytes per update, for the others.

    Raises:
        ValueError: For a type that follows a metric.
    """
    kind = _kind_of(args)
    if kind in _FOLLOWS_A_METRIC:
        raise ValueError(f"lr_scheduler_type must follow the step alone, got {kind!r}")
    warmup = 0 if kind == "constant" else args.get_warmup_steps(total_steps)
    fall = total_steps - warmup
    makers: dict[str, Callable[[], Schedule]] = {
        "linear": lambda: schedules.linear(1.0, 0.0, fall),
        "cosine": lambda: schedules.cosine(fall),
        "constant": schedules.constant,
        "constant_with_warmup": schedules.constant,
    }
    if kind in makers and fall > 0 and not args.lr_scheduler_kwargs:
        after = makers[kind]()
        return schedules.warmup(warmup).then(after) if warmup else after
    stand_in = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=args.learning_rate)
    theirs = get_scheduler(kind, stand_in, warmup, total_steps, args.lr_scheduler_kwargs)
    recorded = schedules.from_torch(theirs, total_steps + 1)
    assert isinstance(recorded, Schedule)  # a list were one per group
    return recorded


def lr_find(trainer: Trainer, **options: Any) -> RangeTest:
    """Run a range test of a Trainer's model, data, loss and optimizer; see :func:`lrfast.lr_find`.

    Nothing has changed afterwards: training then is training without it. To use what it found:
    ``result.apply(trainer.optimizer)``. Of several processes all call it.

    Args:
        trainer: Its optimizer is made if there is none yet; it may be any of torch's.
        **options: Those of :func:`lrfast.lr_find` but for the loss. ``accumulate`` is by default
            ``args.gradient_accumulation_steps``.

    Returns:
        Curve, suggestions and outcome.

    Raises:
        ValueError: Under FSDP before training has sharded the model; :class:`LRFindCallback` comes
            later.
    """
    trainer.create_optimizer()
    accelerator = trainer.accelerator
    model: nn.Module = trainer.model_wrapped
    if not trainer.is_fsdp_enabled:
        model = in_parallel(accelerator, model)
    elif not isinstance(model, FSDPModule | FullyShardedDataParallel):
        raise ValueError(
            "trainer must be training for a range test under FSDP, which then shards the model: "
            "use LRFindCallback"
        )

    def compute_loss(model: nn.Module, batch: Any) -> Tensor:
        with trainer.compute_loss_context_manager(), accelerator.autocast():
            loss: Tensor = trainer.compute_loss(
                model, dict(batch)
            )  # label smoothing takes some out
        return loss

    settings = {
        "compute_loss": compute_loss,
        "accumulate": trainer.args.gradient_accumulation_steps,
        "scaler": accelerator.scaler,
        "progress": not trainer.args.disable_tqdm,
    }
    inner = inner_optimizer(trainer.optimizer)
    with undisturbed(accelerator):
        loader = _unused_loader(trainer)
        return range_test.lr_find(model, inner, loader, **(settings | options))


class LRFindCallback(Finder, TrainerCallback):  # type: ignore[misc]
    """Runs a range test at the beginning of some epochs, and trains on at the rates it suggests.

    A suggested rate becomes the highest rate of the schedule. Where the rule declines, rates stay.
    ``results`` holds what was found.

    Args:
        trainer: Trains with an optimizer of lrfast, see :func:`use`.
        epochs: Epochs, from 0, at whose beginning to test.
        rule: Name of the rule whose rate is taken; None: that of :attr:`RangeTest.rule`.
        **options: Those of :func:`lr_find`.

    Example:
        ``trainer.add_callback(LRFindCallback(trainer, num_iter=50))``
    """

    def __init__(
        self,
        trainer: Trainer,
        epochs: Iterable[int] = (0,),
        rule: str | None = None,
        **options: Any,
    ) -> None:
        Finder.__init__(self, rule)
        self._trainer = trainer
        self._epochs = frozenset(epochs)
        self._options = options

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Test, and apply, where it is time; not in the middle of an epoch that is resumed."""
        if (state.epoch or 0) not in self._epochs:
            return
        optimizer = fused_optimizer(self._trainer.optimizer)
        self._take(lr_find(self._trainer, **self._options), optimizer)


class LateLogs(TrainerCallback):  # type: ignore[misc]
    """Logs what Trainer logs, but late: without its waits for the device.

    At a logging step, Trainer reads the loss and the gradient's norm, and waits for both. This puts
    its log off (``control.should_log``), asks for copies, and logs them at the first step that
    finds them arrived; "measured_at" is the step that they belong to. The rate is the device's own;
    of several processes each logs its own loss.

    Args:
        trainer: Trains with an optimizer of lrfast, see :func:`use`. Its ``training_step`` is
            wrapped on this object.

    Example:
        ``trainer.add_callback(LateLogs(trainer))``
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._reader = AsyncHostQueue()
        self._sum: Tensor | None = None
        self._since = 0
        plain = trainer.training_step

        def training_step(*args: Any, **kwargs: Any) -> Tensor:
            loss: Tensor = plain(*args, **kwargs)
            self._sum = loss.clone() if self._sum is None else self._sum.add_(loss)
            return loss

        trainer.training_step = training_step

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> TrainerControl:
        """Ask for copies where it is time to log, and log what has arrived."""
        self._since += 1
        if control.should_log and self._sum is not None:
            control.should_log = False
            optimizer = fused_optimizer(self._trainer.optimizer)
            norm = optimizer.grad_norm
            values = [self._sum / self._since, optimizer.last_rates[0]]
            self._reader.put(state.global_step, values + ([] if norm is None else [norm]))
            self._sum, self._since = None, 0
        self._log(wait=False)
        return control

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Wait for the last ones."""
        self._log(wait=True)

    def _log(self, wait: bool) -> None:
        for step, numbers in self._reader.ready(wait):
            named = zip(("loss", "learning_rate", "grad_norm"), numbers, strict=False)
            self._trainer.log({**dict(named), "measured_at": step})


class _Maker:
    """Trainer's ``create_optimizer`` and ``create_scheduler``: it calls them when it knows enough.

    For each training: by then arguments may have changed, and a ``model_init`` made a new model.
    """

    def __init__(
        self, trainer: Trainer, schedule: Schedule | Callable[[int], Schedule] | None, clips: bool
    ) -> None:
        self._trainer = trainer
        self._schedule = schedule
        self._clips = clips
        self._clipping: FusedOptimizer | None = None
        self._make_optimizer: Callable[..., Optimizer] = trainer.create_optimizer
        self._make_scheduler: Callable[..., LRScheduler] = trainer.create_scheduler

    def create_optimizer(
        self,
        cls: type[FusedOptimizer],
        groups: list[dict[str, Any]] | None,
        options: dict[str, Any],
        model: nn.Module | None = None,
    ) -> Optimizer:
        trainer = self._trainer
        if trainer.optimizer is None:
            norm = trainer.args.max_grad_norm
            clipped = {"max_grad_norm": norm} if self._clips and norm > 0 else {}
            made = optimizer_cls_and_kwargs(trainer.args, cls, **options, **clipped)
            if groups is not None:
                made[1]["params"] = groups
            trainer.optimizer_cls_and_kwargs = made
        return self._make_optimizer(model)

    def create_scheduler(
        self, num_training_steps: int, optimizer: Optimizer | None = None
    ) -> LRScheduler:
        trainer, args = self._trainer, self._trainer.args
        given = fused_optimizer(trainer.optimizer if optimizer is None else optimizer)
        if self._clips and self._clipping is not given:
            clip_in_step(trainer.accelerator, given)
            self._clipping = given
        follows_steps = _kind_of(args) not in _FOLLOWS_A_METRIC
        if trainer.lr_scheduler is None and (self._schedule is not None or follows_steps):
            made = self._schedule
            if made is None:
                made = schedule_of(args, num_training_steps)
            elif not isinstance(made, Schedule):
                made = made(num_training_steps)
            trainer.lr_scheduler = DeviceScheduler(given, made)
            trainer._created_lr_scheduler = True  # the next train() starts a new one
        return self._make_scheduler(num_training_steps, optimizer)


def _kind_of(args: TrainingArguments) -> str:
    return str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))


def _layer_groups(trainer: Trainer, lr: Rates, decay: float | None) -> list[dict[str, Any]]:
    """One param group per layer group, and Trainer's own choice of what has no weight decay."""
    if trainer.model_init is not None:
        raise ValueError("lr and decay must be left out with model_init: its models come later")
    model: nn.Module = trainer.model
    decayed = set(trainer.get_decay_parameter_names(model))
    spared = [name for name, _ in model.named_parameters() if name not in decayed]
    return discriminative(model, lr, trainer.args.weight_decay, decay, no_decay=spared)


def _unused_loader(trainer: Trainer) -> Any:
    """A loader of its own, in Trainer's order of data; the accelerator forgets it again."""
    prepared = trainer.accelerator._dataloaders
    known, random = list(prepared), GlobalRandom.take()
    loader = trainer.get_train_dataloader()
    random.put_back()
    prepared[:] = known
    return loader
