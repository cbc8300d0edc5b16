"""lrfast under Hugging Face Accelerate; needs ``accelerate``.

``accelerator.prepare(model, optimizer, loader)`` takes lrfast's optimizers as they are, and
:class:`lrfast.integrations.scheduler.DeviceScheduler` as a scheduler; with several processes leave
the latter out of ``prepare``, which would step it once for each of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from lrfast import range_test
from lrfast._utils.arguments import checked
from lrfast._utils.optional import importing
from lrfast._utils.wrapped_optimizers import inner_optimizer
from lrfast.integrations._shared import StepClipper, fused_optimizer
from lrfast.range_test import RangeTest
from lrfast.training._data import (
    ComputeLoss,
    LossFunction,
    device_of,
    make_compute_loss,
    to_device,
)
from lrfast.training._step import StepSkipped, TrainerUpdate

with importing("lrfast.integrations.accelerate needs accelerate", "accelerate", extra="accelerate"):
    from accelerate import Accelerator, DistributedType

__all__ = ["clip_in_step", "in_parallel", "lr_find", "step_can_clip", "undisturbed"]


@checked
def clip_in_step(accelerator: Accelerator, optimizer: Optimizer) -> None:
    """Let ``accelerator.clip_grad_norm_`` clip within the optimizer's step, in the same pass.

    It then changes no gradient, and returns one float32 on the device that the step fills with the
    norm. Parameters that the optimizer does not hold are clipped by Accelerate itself. Under FSDP 2
    the norm is over all shards, with one collective.

    Args:
        accelerator: Its method is replaced, on this object only.
        optimizer: An lrfast optimizer, prepared or not.

    Raises:
        TypeError: If ``optimizer`` is not an lrfast optimizer.
        ValueError: Under FSDP 1 and DeepSpeed, see :func:`step_can_clip`.

    Example:
        >>> import torch, lrfast
        >>> from accelerate import Accelerator
        >>> accelerator = Accelerator(cpu=True)
        >>> layer = torch.nn.Linear(2, 1)
        >>> layer, optimizer = accelerator.prepare(layer, lrfast.SGD(layer.parameters(), lr=0.5))
        >>> clip_in_step(accelerator, optimizer)
        >>> accelerator.backward(layer(torch.ones(1, 2)).sum())
        >>> norm = accelerator.clip_grad_norm_(layer.parameters(), 1.0)
        >>> optimizer.step()
        >>> round(norm.item(), 4)
        1.7321
    """
    fused = fused_optimizer(optimizer)
    if not step_can_clip(accelerator):
        raise ValueError(
            "accelerator must not use FSDP 1 or DeepSpeed, whose shards are known to them alone, "
            f"got {accelerator.distributed_type.value}; leave clipping to it"
        )
    clipper = StepClipper(fused)
    plain = accelerator.clip_grad_norm_
    covered: dict[int | None, bool] = {}  # by the first parameter: walking over a model takes long

    def clip_grad_norm_(
        parameters: Iterable[Tensor] | Tensor, max_norm: float, norm_type: float = 2
    ) -> Any:
        rest = iter([parameters] if isinstance(parameters, Tensor) else parameters)
        listed = list(islice(rest, 1))
        first = id(listed[0]) if listed else None
        if first not in covered:
            listed += rest
            covered[first] = bool(listed) and clipper.covers(listed)
        if norm_type != 2 or not covered[first]:
            return plain([*listed, *rest], max_norm, norm_type)
        return clipper.clip(max_norm)

    accelerator.clip_grad_norm_ = clip_grad_norm_


@checked
def lr_find(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Optimizer,
    train_loader: Iterable[Any],
    loss_fn: LossFunction | None = None,
    *,
    compute_loss: ComputeLoss | None = None,
    max_grad_norm: float | None = None,
    **options: Any,
) -> RangeTest:
    """Run a range test of what an Accelerator has prepared; see :func:`lrfast.lr_find`.

    An update is that of Accelerate's loop, bit for bit: ``accelerator.accumulate(model)``,
    ``accelerator.backward(loss)``, at the last micro-batch ``accelerator.clip_grad_norm_``, then
    ``optimizer.step()`` and ``optimizer.zero_grad()``. A point's loss is the micro-batches' mean.
    Nothing has changed afterwards, the accelerator's counts included.

    Args:
        accelerator: Counts micro-batches, scales, clips.
        model: The model that it has prepared.
        optimizer: The optimizer that it has prepared.
        train_loader: The loader that it has prepared.
        loss_fn: As for :func:`lrfast.lr_find`.
        compute_loss: As for :func:`lrfast.lr_find`.
        max_grad_norm: Norm that the training loop clips to, above 0; None, the default: it clips
            nothing.
        **options: Other arguments of :func:`lrfast.lr_find`, but ``step_fn``,
            ``gradient_accumulation_steps`` and ``capture``.

    Returns:
        Curve, suggestions and outcome.

    Raises:
        ValueError: If an option above is given, under DeepSpeed, or ``optimizer`` is not prepared.

    Example:
        >>> import torch, lrfast
        >>> from accelerate import Accelerator
        >>> accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
        >>> layer = torch.nn.Linear(2, 1)
        >>> prepared = accelerator.prepare(layer, lrfast.SGD(layer.parameters(), lr=0.5))
        >>> batches = [(torch.ones(4, 2), torch.ones(4, 1))]
        >>> mse = torch.nn.functional.mse_loss
        >>> result = lr_find(accelerator, *prepared, batches, mse, max_grad_norm=1.0, num_iter=20)
        >>> len(result.losses)
        20
    """
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        raise ValueError(
            "accelerator must not use DeepSpeed, whose engine has the optimizer's step"
        )
    for name in options.keys() & {"step_fn", "gradient_accumulation_steps", "capture"}:
        raise ValueError(f"{name} must be left out: the updates are the accelerator's own")
    inner = inner_optimizer(optimizer)
    if inner is optimizer:
        raise ValueError(
            f"optimizer must be one that accelerator.prepare returned, got {type(inner).__name__}"
        )
    if max_grad_norm is not None and not max_grad_norm > 0:
        raise ValueError(f"max_grad_norm must be above 0, or None, got {max_grad_norm!r}")
    loss_of, device = make_compute_loss(loss_fn, compute_loss), device_of(model)
    losses: list[Tensor] = []

    def begin() -> None:
        losses.clear()
        inner.zero_grad()
        accelerator.step = 0

    def update(batches: list[Any]) -> Tensor:
        with accelerator.accumulate(model):
            loss = loss_of(model, to_device(batches[0], device))
            accelerator.backward(loss)
            if accelerator.sync_gradients and max_grad_norm is not None:
                accelerator.clip_grad_norm_(model.parameters(), max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.detach())
        if not accelerator.sync_gradients:
            raise StepSkipped
        mean = losses[0] if len(losses) == 1 else torch.stack(losses).mean()
        losses.clear()
        return mean

    step = TrainerUpdate(begin, update, calls=accelerator.gradient_accumulation_steps)
    given: dict[str, Any] = {"compute_loss": loss_of, "step_fn": step}
    with undisturbed(accelerator):
        return range_test.lr_find(model, optimizer, train_loader, **given, **options)


@checked
def step_can_clip(accelerator: Accelerator) -> bool:
    """Return whether an optimizer's step finds the norm of all gradients.

    Not under FSDP 1 and DeepSpeed, whose shards do not tell which elements other processes hold.
    """
    kind = accelerator.distributed_type
    if kind == DistributedType.FSDP:
        return bool(accelerator.is_fsdp2)
    return kind not in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


@checked
def in_parallel(accelerator: Accelerator, model: nn.Module) -> nn.Module:
    """Return a model in DDP if there are several processes, as ``prepare`` wraps it.

    The accelerator does not keep it.

    Args:
        accelerator: Its settings are used.
        model: The model, not prepared; it gets the first process's weights.
    """
    if accelerator.num_processes == 1 or isinstance(model, DistributedDataParallel):
        return model
    handler = accelerator.ddp_handler
    devices = None if accelerator.device.type == "cpu" else [accelerator.device]
    given = {} if handler is None else handler.to_kwargs()
    return DistributedDataParallel(model, device_ids=devices, **given)


@contextmanager
def undisturbed(accelerator: Accelerator) -> Iterator[None]:
    """Restore an accelerator's counts and lists after the ``with`` block.

    Yields:
        None.
    """
    # A loader registers there as in use until its end, which a range test seldom reaches.
    state, step = accelerator.gradient_state, accelerator.step
    references, syncs = list(state.dataloader_references), state.sync_gradients
    names = ("_models", "_optimizers", "_schedulers", "_dataloaders")
    prepared = [(held, list(held)) for held in (getattr(accelerator, name) for name in names)]
    try:
        yield
    finally:
        state.dataloader_references = references
        state._set_sync_gradients(syncs)
        accelerator.step = step
        for held, before in prepared:
            held[:] = before
