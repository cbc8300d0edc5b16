"""Timing of a user's optimizer and model against lrfast, on equal work."""

from __future__ import annotations

import statistics
import warnings
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from lrfast._utils.arguments import checked
from lrfast._utils.validation import check_positive
from lrfast.tools.bench._contenders import LRFAST, TORCH, Extras, Subject, make_contenders
from lrfast.tools.bench._result import UPDATE, BenchResult, Quartiles
from lrfast.tools.bench._timing import FORWARD, Gradients, Samples, assert_same, make_loss, measure
from lrfast.training._data import ComputeLoss, LossFunction, make_compute_loss

__all__ = ["BenchResult", "bench"]


@checked
def bench(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Any = None,
    loss_fn: LossFunction | None = None,
    *,
    compute_loss: ComputeLoss | None = None,
    scheduler: LRScheduler | None = None,
    max_grad_norm: float | None = None,
    ema_decay: float | None = None,
    seconds: float = 3.0,
) -> BenchResult:
    """Time an optimizer's update of a model in torch and in lrfast.

    Copies of model and optimizer are timed; the originals stay as they are. First all are checked
    to make the same steps. They take turns; a GPU is timed by events, without a synchronisation.

    Args:
        model: The module that is trained.
        optimizer: Of torch.optim, or of lrfast, which is timed against its counterpart in torch;
            with its states and settings.
        batch: One batch, as :func:`lrfast.lr_find` takes many, to time forward and backward too,
            with real gradients. None, the default: gradients are random.
        loss_fn: ``loss_fn(outputs, targets)``, for batches (inputs, targets); default None.
        compute_loss: ``compute_loss(model, batch)``, for all other batches; default None.
        scheduler: The optimizer's, whose step is part of the update; default None.
        max_grad_norm: Norm to clip to, above 0, by ``clip_grad_norm_`` in torch; default None.
        ema_decay: Decay of an EMA of the weights, in [0, 1), by ``swa_utils`` in torch; default
            None.
        seconds: Approximate time to spend on timing, above 0; default 3.

    Returns:
        All times, and the bytes in other dtypes; ``table()`` and ``memory_table()`` render them.

    Raises:
        TypeError, ValueError: If lrfast or torch has no counterpart of the optimizer, or an
            argument is out of range.
        RuntimeError: If the two do not make the same steps.

    Example:
        >>> import torch, lrfast
        >>> model = torch.nn.Linear(8, 2)
        >>> optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        >>> result = lrfast.bench(model, optimizer, max_grad_norm=1.0, seconds=0.01)
        >>> sorted(result.times["torch"])
        ['clip', 'step', 'update', 'zero_grad']
    """
    check_positive("seconds", seconds)
    if batch is None and (loss_fn is not None or compute_loss is not None):
        raise ValueError("batch must be given where a loss is, got None")
    loss = None if batch is None else make_loss(batch, make_compute_loss(loss_fn, compute_loss))
    subject = Subject.of(model, optimizer, scheduler, Extras(max_grad_norm, ema_decay))
    params = [p for g in optimizer.param_groups for p in g["params"] if p.requires_grad]
    devices = {param.device for param in params}
    if len(devices) != 1:
        raise ValueError(f"all parameters must be on one device, got {sorted(map(str, devices))}")
    (device,) = devices
    gpus = [device] if device.type == "cuda" else []
    # Schedulers warn of copies that have never stepped.
    with torch.random.fork_rng(gpus), warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        contenders = make_contenders(subject)
        clips, zeroes = subject.extras.max_grad_norm is not None, subject.extras.zero_grads
        gradients = Gradients(contenders, loss, refills=clips or zeroes)
        difference = assert_same(contenders, gradients)
        moved, held = contenders[LRFAST].traffic(clips, zeroes)
        gradients.give(LRFAST, contenders[LRFAST])
        memory = contenders[LRFAST].memory()
        for contender in contenders.values():
            contender.set_schedule()
        measured = measure(contenders, gradients, seconds, moved, held)
    return BenchResult(
        optimizer=f"{type(optimizer).__module__.split('.')[0]}'s {type(optimizer).__name__}",
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        parameters=sum(param.numel() for param in params),
        tensors=len(params),
        groups=len(optimizer.param_groups),
        times={name: _quartiles(parts) for name, parts in measured.device.items()},
        host_times={name: _quartiles(parts) for name, parts in measured.host.items()},
        bytes_moved=moved,
        bandwidth=measured.bandwidth,
        difference=difference,
        rounds=len(measured.host[TORCH]["step"]),
        memory=memory,
    )


def _quartiles(samples: Samples) -> dict[str, Quartiles]:
    """Return the quartiles of each part and of the whole update, in microseconds."""
    parts = [values for part, values in samples.items() if part != FORWARD]
    update = [sum(values) for values in zip(*parts, strict=True)]
    found = {}
    for part, values in (samples | {UPDATE: update}).items():
        low, median, high = statistics.quantiles([1e6 * value for value in values], n=4)
        found[part] = (low, median, high)
    return found
