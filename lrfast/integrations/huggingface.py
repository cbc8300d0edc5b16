"""lrfast inside Hugging Face's Trainer; needs ``transformers`` and ``accelerate``.

:func:`use` does all of it. Its parts work by themselves, too:
``Trainer(optimizer_cls_and_kwargs=optimizer_cls_and_kwargs(args))``,
``Trainer(optimizers=(optimizer, DeviceScheduler(optimizer, schedule)))``, :func:`lr_find`.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lrfast import range_test, schedules
from lrfast._utils.arguments import checked
from lrfast._utils.async_copy import AsyncHostQueue
from lrfast._utils.optional import importing
from lrfast._utils.wrapped_optimizers import inner_optimizer
from lrfast.groups import Rates, discriminative
from lrfast.integrations._shared import KeptObjects, LRFinderBase, fused_optimizer
from lrfast.integrations.accelerate import clip_in_step, step_can_clip, undisturbed
from lrfast.integrations.scheduler import DeviceScheduler
from lrfast.optim import AdamW, FusedOptimizer
from lrfast.range_test import RangeTest
from lrfast.schedules import Schedule
from lrfast.training._data import num_batches
from lrfast.training._snapshot import GlobalRandom
from lrfast.training._step import TrainerUpdate

with importing(
    "lrfast.integrations.huggingface needs transformers",
    "transformers",
    "accelerate",
    extra="huggingface",
):
    from accelerate.optimizer import AcceleratedOptimizer
    from transformers import (
        Trainer,
        TrainerCallback,
        TrainerControl,
        TrainerState,
        TrainingArguments,
    )
    from transformers.optimization import get_scheduler

__all__ = [
    *("LRFindCallback", "LateLogs", "lr_find", "optimizer_cls_and_kwargs", "schedule_of", "use")
]

_FOLLOWS_A_METRIC = ("reduce_lr_on_plateau", "greedy")
_DATA_SETS = ("train_dataset", "eval_dataset")  # attributes of a Trainer that a step only reads


@checked
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

    All settings come from its TrainingArguments: learning rate, betas, epsilon, weight decay and
    the parameters without it, type of schedule and warm-up, ``max_grad_norm``. The steps are those
    of Trainer's own AdamW and scheduler. ``trainer.get_learning_rates()`` is scheduled; "lr" in the
    param groups stays what the schedule multiplies. Call it before ``Trainer.train``.

    Args:
        trainer: A Trainer without an optimizer, or with one of lrfast.
        optimizer: Class of the optimizer, if the trainer has none; default AdamW.
        lr: Learning rate or rates of the layer groups, as in :func:`lrfast.discriminative`; None,
            the default: ``args.learning_rate`` for all.
        decay: Factor from a layer group to the one before, ``lr`` for the last; default None.
        schedule: Multiplies the learning rates, or a function of the number of updates, such as
            ``lrfast.schedules.one_cycle``. None, the default: ``args.lr_scheduler_type``; types
            that follow a metric stay Trainer's own.
        clip: Whether the step clips to ``args.max_grad_norm`` and finds the norm that Trainer logs,
            over all shards under FSDP 2; default True. Under FSDP 1 Trainer clips itself.
        **options: Other arguments of the optimizer, such as ``ema_decay``, but ``max_grad_norm``.

    Returns:
        The trainer.

    Raises:
        TypeError: If it already has an optimizer of another kind.
        ValueError: Under DeepSpeed, which has its own optimizer; if ``max_grad_norm`` is given; and
            if ``lr`` or ``decay`` is given for a trainer with an optimizer or a ``model_init``.
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
    maker = _Maker(trainer, schedule, clip and step_can_clip(trainer.accelerator))
    trainer.create_scheduler = maker.create_scheduler
    if type(trainer).get_learning_rates is Trainer.get_learning_rates:  # else the user's stays
        trainer.get_learning_rates = maker.learning_rates
    if trainer.optimizer is None:
        rate = trainer.args.learning_rate if lr is None else lr
        groups = _layer_groups(trainer, rate, decay) if has_own_groups else None
        trainer.create_optimizer = partial(maker.create_optimizer, optimizer, groups, options)
    return trainer


def optimizer_cls_and_kwargs(
    args: TrainingArguments, optimizer: type[FusedOptimizer] = AdamW, **options: Any
) -> tuple[type[FusedOptimizer], dict[str, Any]]:
    """Return an argument for ``Trainer(optimizer_cls_and_kwargs=...)``.

    Args:
        args: Its learning rate is used, and its betas and epsilon if the optimizer has both.
        optimizer: Class of the optimizer; default AdamW.
        **options: Other arguments of it.
    """
    found: dict[str, Any] = {"lr": args.learning_rate}
    if {"betas", "eps"} <= inspect.signature(optimizer).parameters.keys():
        found |= {"betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}
    return optimizer, found | options


def schedule_of(args: TrainingArguments, total_steps: int) -> Schedule:
    """Return the schedule of TrainingArguments.

    Args:
        args: Its ``lr_scheduler_type``, ``lr_scheduler_kwargs`` and warm-up are used.
        total_steps: Updates of the whole training, 1 or more.

    Returns:
        The schedule: in segments for "linear", "cosine", "constant" and "constant_with_warmup", by
        value, 8 bytes per update, for the others.

    Raises:
        ValueError: If the type follows a metric.
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
    dummy = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=args.learning_rate)
    scheduler = get_scheduler(kind, dummy, warmup, total_steps, args.lr_scheduler_kwargs)
    recorded = schedules.from_torch(scheduler, total_steps + 1)
    assert isinstance(recorded, Schedule)  # a list has one per group
    return recorded


@checked
def lr_find(trainer: Trainer, **options: Any) -> RangeTest:
    """Run a range test of a Trainer's model, data, loss and optimizer; see :func:`lrfast.lr_find`.

    Each update is Trainer's own, bit for bit: ``get_batch_samples``, ``training_step``, clipping,
    the callbacks' events up to ``on_optimizer_step``, the optimizer's step. Nothing has changed
    afterwards; ``result.apply(trainer.optimizer)`` uses the suggestion. ``result.notes`` names the
    events that are left out. If there are several processes, all of them call it.

    Args:
        trainer: Its optimizer, of lrfast or torch, is made if there is none yet.
        **options: Other arguments of :func:`lrfast.lr_find`. ``gradient_accumulation_steps`` is by
            default that of ``args``.

    Returns:
        Curve, suggestions and outcome.

    Raises:
        ValueError: Under FSDP, before training has sharded the model; use :class:`LRFindCallback`.
            Under DeepSpeed, for an optimizer without a step of its own (LOMO), and if the loss or
            the step is given: they are the trainer's.
    """
    if trainer.is_deepspeed_enabled:
        raise ValueError("trainer must not use DeepSpeed, whose engine has the optimizer's step")
    if "lomo" in str(trainer.args.optim).lower():
        raise ValueError(f"optim must step after the backward pass, got {trainer.args.optim}")
    sharded = FSDPModule | FullyShardedDataParallel
    if trainer.is_fsdp_enabled and not isinstance(trainer.model_wrapped, sharded):
        raise ValueError(
            "trainer must be training for a range test under FSDP, which then shards the model: "
            "use LRFindCallback"
        )
    for name in options.keys() & {"loss_fn", "compute_loss", "step_fn", "scaler", "capture"}:
        raise ValueError(
            f"{name} must be left out: the updates are the trainer's own training_step"
        )
    trainer.create_optimizer()
    maker = getattr(trainer.create_scheduler, "__self__", None)
    if isinstance(maker, _Maker):
        maker.clip_in_step(fused_optimizer(trainer.optimizer))
    with undisturbed(trainer.accelerator):
        loader = _unused_loader(trainer)
        with _ready_to_train(trainer, loader) as notes:
            step = _OwnStep(trainer, loader)
            options = {
                "compute_loss": step.loss,
                "step_fn": TrainerUpdate(trainer.model_wrapped.zero_grad, step.update),
                "gradient_accumulation_steps": trainer.args.gradient_accumulation_steps,
                "scaler": trainer.accelerator.scaler,
                "progress": not trainer.args.disable_tqdm,
            } | options
            options["others"] = [_trainer_state(trainer), *options.get("others", ())]
            optimizer = inner_optimizer(trainer.optimizer)
            result = range_test.lr_find(trainer.model_wrapped, optimizer, loader, **options)
    return replace(result, notes=(*notes, *result.notes))


class LRFindCallback(LRFinderBase, TrainerCallback):  # type: ignore[misc]
    """Runs a range test at the start of some epochs, and trains on at the suggested learning rates.

    A suggestion becomes the highest learning rate of the schedule. Without a suggestion the
    learning rates stay. ``results`` holds all range tests.

    Args:
        trainer: Trains with an lrfast optimizer, see :func:`use`.
        epochs: Epochs, from 0, at whose start to test; default (0,).
        rule: Name of the suggestion method; None, the default: that of :attr:`RangeTest.rule`.
        **options: Arguments of :func:`lr_find`.

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
        LRFinderBase.__init__(self, rule)
        self._trainer, self._epochs, self._options = trainer, frozenset(epochs), options

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Run and apply a range test, unless the epoch is resumed within."""
        if (state.epoch or 0) in self._epochs:
            optimizer = fused_optimizer(self._trainer.optimizer)
            result = lr_find(self._trainer, **self._options)
            self._take(result, optimizer, [self._trainer.lr_scheduler])


class LateLogs(TrainerCallback):  # type: ignore[misc]
    """Logs what Trainer logs, late and without a synchronisation.

    Trainer reads loss and gradient norm at a logging step, and synchronises for both. This queues
    copies (``control.should_log`` becomes False) and logs them at the first step that finds them
    arrived; "measured_at" is the step that they belong to. The learning rate is the device's own;
    each of several processes logs its own loss.

    Args:
        trainer: Trains with an lrfast optimizer, see :func:`use`. Its ``training_step`` is wrapped
            on this object.

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
        """Queue copies at logging steps, and log those that have arrived."""
        self._since += 1
        if control.should_log and self._sum is not None:
            control.should_log = False
            optimizer = fused_optimizer(self._trainer.optimizer)
            norms = [] if optimizer.grad_norm is None else [optimizer.grad_norm]
            values = [self._sum / self._since, optimizer.last_rates[0], *norms]
            self._reader.put(state.global_step, values)
            self._sum, self._since = None, 0
        self._log(wait=False)
        return control

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Log the last ones, with a synchronisation."""
        self._log(wait=True)

    def _log(self, wait: bool) -> None:
        for step, numbers in self._reader.ready(wait):
            named = zip(("loss", "learning_rate", "grad_norm"), numbers, strict=False)
            self._trainer.log({**dict(named), "measured_at": step})


class _Maker:
    """Trainer's ``create_optimizer`` and ``create_scheduler``, called at each training.

    By then arguments may have changed, and a ``model_init`` may have made a new model.
    """

    def __init__(
        self, trainer: Trainer, schedule: Schedule | Callable[[int], Schedule] | None, clips: bool
    ) -> None:
        self._trainer, self._schedule, self._clips = trainer, schedule, clips
        self._clipping: FusedOptimizer | None = None
        self._make_optimizer: Callable[..., Optimizer] = trainer.create_optimizer
        self._make_scheduler: Callable[..., LRScheduler] = trainer.create_scheduler
        self._group_rates: Callable[[], list[float]] = trainer.get_learning_rates

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
        self.clip_in_step(given)
        follows_steps = _kind_of(args) not in _FOLLOWS_A_METRIC
        if trainer.lr_scheduler is None and (self._schedule is not None or follows_steps):
            made = self._schedule or partial(schedule_of, args)
            if not isinstance(made, Schedule):
                made = made(num_training_steps)
            trainer.lr_scheduler = DeviceScheduler(given, made)
            trainer._created_lr_scheduler = True  # the next train() starts a new one
        return self._make_scheduler(num_training_steps, optimizer)

    def learning_rates(self) -> list[float]:
        """Return the learning rate of each group under the schedule, as Trainer's own does."""
        scheduler = self._trainer.lr_scheduler
        on_device = isinstance(scheduler, DeviceScheduler)
        return scheduler.get_last_lr() if on_device else self._group_rates()

    def clip_in_step(self, optimizer: FusedOptimizer) -> None:
        """Let the optimizer's step clip, if it does not yet."""
        if self._clips and self._clipping is not optimizer:
            clip_in_step(self._trainer.accelerator, optimizer)
            self._clipping = optimizer


class _OwnStep:
    """A Trainer's own update, as its loop makes it, and its loss."""

    def __init__(self, trainer: Trainer, loader: Iterable[Any]) -> None:
        self._trainer, self._model = trainer, trainer.model_wrapped
        self._batches = num_batches(loader)
        self._handler = copy.copy(trainer.callback_handler)
        self._handler.callbacks = _users_callbacks(trainer)
        for name in ("optimizer", "lr_scheduler"):
            setattr(self._handler, name, getattr(trainer, name))
        self._handler.train_dataloader = loader

    def update(self, micro_batches: list[Any]) -> Tensor:
        """Make the update of the micro-batches, and return the loss that Trainer logs for it."""
        trainer, model = self._trainer, self._model
        args, gradients = trainer.args, trainer.accelerator.gradient_state
        batches, items = trainer.get_batch_samples(
            iter(micro_batches), len(micro_batches), args.device
        )
        trainer.current_gradient_accumulation_steps = len(batches)
        self._call("on_step_begin")
        losses = []
        for place, batch in enumerate(batches, 1):
            is_last = place == len(batches)
            gradients._set_sync_gradients(is_last)
            syncs = is_last or gradients.plugin_kwargs.get("sync_each_batch", False)
            # A copy, because a step may pop entries, and a sweep meets the batch again.
            inputs = copy.copy(batch) if isinstance(batch, Mapping | list) else batch
            with nullcontext() if syncs else trainer.accelerator.no_sync(model=model):
                losses.append(trainer.training_step(model, inputs, items))
            if not is_last:
                self._call("on_substep_end")
        norm = trainer._clip_grad_norm(model) if args.max_grad_norm > 0 else None
        trainer._get_grad_norm(model, grad_norm=norm)
        self._call("on_pre_optimizer_step")
        trainer.optimizer.step()
        self._call("on_optimizer_step")
        model.zero_grad()
        trainer.state.global_step += 1
        if self._batches:
            trainer.state.epoch += len(batches) / self._batches
        total: Tensor = sum(losses[1:], start=losses[0])
        return total

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the loss of a batch, as Trainer's evaluation finds it."""
        trainer = self._trainer
        items = trainer._get_num_items_in_batch([batch], trainer.args.device)
        inputs = trainer._prepare_inputs(batch)
        with trainer.compute_loss_context_manager():
            loss: Tensor = trainer.compute_loss(model, inputs, num_items_in_batch=items)
        return loss.mean()

    def _call(self, event: str) -> None:
        trainer = self._trainer
        on_event = getattr(self._handler, event)
        trainer.control = on_event(trainer.args, trainer.state, trainer.control)


def _trainer_state(trainer: Trainer) -> KeptObjects:
    """The attributes of a Trainer, its state and its callbacks."""
    owners = [trainer, trainer.state, trainer.control, *trainer.callback_handler.callbacks]
    return KeptObjects(owners, apart=_DATA_SETS)


@contextmanager
def _ready_to_train(trainer: Trainer, loader: Iterable[Any]) -> Iterator[list[str]]:
    """Prepare a Trainer for a while as its training does; yields notes on what is left out."""
    callbacks, in_training = _users_callbacks(trainer), trainer.is_in_train
    missing = ["on_step_end"] + ([] if in_training else ["on_train_begin", "on_epoch_begin"])
    notes = [
        f"{name} of {type(each).__name__} is left out of the sweep"
        for name in missing
        for each in callbacks
        if getattr(type(each), name) is not getattr(TrainerCallback, name)
    ]
    if in_training:
        yield notes
        return
    if getattr(trainer.args, "activation_checkpointing", False):
        notes.append("a sweep before training stores all activations; LRFindCallback's does not")
    kept = _trainer_state(trainer)
    undo: list[Callable[[], None]] = []
    trainer.is_in_train = True
    try:
        if trainer.neftune_noise_alpha is not None:
            undo.append(_with_neftune(trainer))
        if not isinstance(trainer.optimizer, AcceleratedOptimizer):
            undo.append(_prepare(trainer))
        state, args, batches = trainer.state, trainer.args, num_batches(loader)
        state.global_step, state.epoch = 0, 0.0
        state.num_train_epochs = math.ceil(args.num_train_epochs)
        updates = math.ceil((batches or 0) / args.gradient_accumulation_steps)
        whole = math.ceil(args.num_train_epochs * updates)
        state.max_steps = args.max_steps if args.max_steps > 0 else whole
        yield notes
    finally:
        for each in reversed(undo):
            each()
        kept.load_state_dict({})


def _prepare(trainer: Trainer) -> Callable[[], None]:
    """Prepare model and optimizer as training does, and return what undoes it."""
    accelerator = trainer.accelerator
    # In mixed precision the forward pass is replaced, and with a scaler the step.
    marks = ("forward", "_original_forward", "_is_accelerate_prepared")
    places = [*((trainer.model, name) for name in marks), (trainer.optimizer, "step")]
    before = [(vars(owner), name, vars(owner).get(name)) for owner, name in places]
    # Without placement, which would load the state anew: Trainer's models are in place.
    trainer.optimizer = accelerator.prepare_optimizer(trainer.optimizer, device_placement=False)
    wrapped = trainer._wrap_model(trainer.model_wrapped)
    is_whole = wrapped is trainer.model  # else in DataParallel, which Accelerate does not prepare
    trainer.model_wrapped = accelerator.prepare_model(wrapped) if is_whole else wrapped

    def undo() -> None:
        for table, name, value in before:
            table.pop(name, None)
            if value is not None:
                table[name] = value

    return undo


def _with_neftune(trainer: Trainer) -> Callable[[], None]:
    """Add NEFTune's noise as training does, and return what removes it."""
    from transformers.integrations.neftune import activate_neftune, deactivate_neftune

    accelerator = trainer.accelerator
    handle = activate_neftune(trainer.model, trainer.neftune_noise_alpha, accelerator)
    return partial(deactivate_neftune, trainer.model, handle, accelerator)


def _users_callbacks(trainer: Trainer) -> list[TrainerCallback]:
    """Return the callbacks that are neither of transformers nor of lrfast: those log and save."""
    known = ("transformers", "lrfast")
    callbacks = trainer.callback_handler.callbacks
    return [c for c in callbacks if type(c).__module__.partition(".")[0] not in known]


def _kind_of(args: TrainingArguments) -> str:
    return str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))


def _layer_groups(trainer: Trainer, lr: Rates, decay: float | None) -> list[dict[str, Any]]:
    """Return one param group per layer group, with Trainer's choice of weight decay."""
    if trainer.model_init is not None:
        raise ValueError("lr and decay must be left out with model_init: its models come later")
    model: nn.Module = trainer.model
    decayed = set(trainer.get_decay_parameter_names(model))
    spared = [name for name, _ in model.named_parameters() if name not in decayed]
    return discriminative(model, lr, trainer.args.weight_decay, decay, no_decay=spared)


def _unused_loader(trainer: Trainer) -> Any:
    """Return a new loader in Trainer's order of data."""
    random = GlobalRandom.take()
    loader = trainer.get_train_dataloader()
    random.put_back()
    return loader
