"""Running statistics of batch norm for averaged weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import closing
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lrfast.training._data import device_of, eval_mode, iterate_once, to_device
from lrfast.training._random import RandomStates

# As many as momentum 0.1, which is the default, remembers 99.5 % of; one pass has often fewer.
_MOST_BATCHES = 50


def refresh_statistics(
    model: nn.Module, batches: Iterable[Any], forward: Callable[[nn.Module, Any], object]
) -> None:
    """Replace the statistics of batch norm by means over training batches at these weights.

    Layers in evaluation mode keep theirs. All others than batch norm are in evaluation mode
    meanwhile, and random generators are as before. If a batch fails, nothing has changed.
    """
    layers = [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.training and module.track_running_stats
    ]
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    buffers = [buffer for layer in layers for buffer in layer.buffers(recurse=False)]
    kept = [buffer.clone() for buffer in buffers]
    device, before = device_of(model), RandomStates.take([batches])
    try:
        with eval_mode(model), torch.no_grad(), closing(iterate_once(batches)) as present:
            for layer in layers:
                layer.train()
                layer.reset_running_stats()
                layer.momentum = None  # the mean over all batches since the reset
            for batch in islice(present, _MOST_BATCHES):
                forward(model, to_device(batch, device))
    except BaseException:
        for buffer, value in zip(buffers, kept, strict=True):
            buffer.copy_(value)
        raise
    finally:
        before.restore([batches])
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
