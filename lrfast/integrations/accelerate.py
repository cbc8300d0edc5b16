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

from accelerate import Accelerator, DistributedType
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from lrfast._utils.arguments import checked
from lrfast.integrations._shared import StepClipper, fused_optimizer

__all__ = ["clip_in_step", "in_parallel", "step_can_clip", "undisturbed"]


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
    """Restore an accelerator's gradient state after the ``with`` block.

    Yields:
        None.
    """
    # A loader registers there as in use until its end, which a range test seldom reaches.
    state = accelerator.gradient_state
    references, syncs = list(state.dataloader_references), state.sync_gradients
    try:
        yield
    finally:
        state.dataloader_references = references
        state._set_sync_gradients(syncs)
