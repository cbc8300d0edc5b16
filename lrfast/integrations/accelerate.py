"""lrfast under Hugging Face Accelerate; needs ``accelerate``.

``accelerator.prepare(model, optimizer, loader)`` takes lrfast's optimizers as they are, and
:class:`lrfast.integrations.scheduler.DeviceScheduler` where a scheduler is wanted; with several
processes leave that out of ``prepare``, which would have it stepped once for each of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator, DistributedType
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from lrfast.integrations._norms import NormOfStep
from lrfast.integrations._shared import fused_optimizer


def clip_in_step(accelerator: Accelerator, optimizer: Optimizer) -> None:
    """Let ``accelerator.clip_grad_norm_`` have the optimizer's step clip, in the same pass.

    From then on it touches no gradient. What it returns, one float32 on the device, is filled in by
    the step: read it afterwards. It falls back on Accelerate's own clipping for parameters that
    the optimizer does not hold. Under FSDP 2 the norm is that over all shards, with one collective.

    Args:
        accelerator: Its method is replaced, on this object alone.
        optimizer: One of lrfast, prepared or not.

    Raises:
        TypeError: If there is no optimizer of lrfast in ``optimizer``.
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
    norm = NormOfStep(fused)
    plain = accelerator.clip_grad_norm_
    covered: dict[int, bool] = {}  # by the first parameter: walking over a model takes long

    def clip_grad_norm_(
        parameters: Iterable[Tensor] | Tensor, max_norm: float, norm_type: float = 2
    ) -> Any:
        rest = iter([parameters] if isinstance(parameters, Tensor) else parameters)
        first = next(rest, None)
        if first is not None and id(first) not in covered:
            listed = list(rest)
            covered[id(first)] = norm.covers([first, *listed])
            rest = iter(listed)
        if first is None or norm_type != 2 or not covered[id(first)]:
            return plain([*([] if first is None else [first]), *rest], max_norm, norm_type)
        return norm.clip(max_norm)

    accelerator.clip_grad_norm_ = clip_grad_norm_


def step_can_clip(accelerator: Accelerator) -> bool:
    """Whether an optimizer's step finds the norm of all gradients.

    FSDP 1 and DeepSpeed give each process pieces that do not say which of them others hold too.
    """
    kind = accelerator.distributed_type
    if kind == DistributedType.FSDP:
        return bool(accelerator.is_fsdp2)
    return kind not in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


def in_parallel(accelerator: Accelerator, model: nn.Module) -> nn.Module:
    """Return a model for several processes, as ``prepare`` wraps it, without preparing it.

    The wrapper leaves nothing on the model once it is forgotten, but the first process's weights.
    """
    if accelerator.num_processes == 1 or isinstance(model, DistributedDataParallel):
        return model
    handler = accelerator.ddp_handler
    devices = None if accelerator.device.type == "cpu" else [accelerator.device]
    given = {} if handler is None else handler.to_kwargs()
    return DistributedDataParallel(model, device_ids=devices, **given)


@contextmanager
def undisturbed(accelerator: Accelerator) -> Iterator[None]:
    """Keep an accelerator from noticing that loaders are left in the middle.

    A prepared loader notes in the accelerator that it is in use, and takes that back only at its
    end, which a range test seldom reaches.
    """
    state = accelerator.gradient_state
    references, syncs = list(state.dataloader_references), state.sync_gradients
    try:
        yield
    finally:
        state.dataloader_references = references
        state._set_sync_gradients(syncs)
