"""Processes that train one model together: their mean loss, and one decision for all."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import cast

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Ranks:
    """The processes of a distributed training; by default only this one."""

    group: dist.ProcessGroup | None = None  # averages the gradients

    @property
    def count(self) -> int:
        """The number of processes."""
        return 1 if self.group is None else dist.get_world_size(self.group)

    @property
    def is_alone(self) -> bool:
        """Whether there is one process."""
        return self.count == 1

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that shows progress."""
        return self.is_alone or dist.get_rank(self.group) == 0

    def mean(self, loss: Tensor) -> Tensor:
        """Return the mean of a tensor over all processes, the same bits on each of them."""
        if self.is_alone:
            return loss
        total = loss.detach().double().clone()
        dist.all_reduce(total, group=self.group)
        return total / self.count

    def no_sync_unless_last(self, model: nn.Module, is_last: bool) -> AbstractContextManager[None]:
        """Leave out the all-reduce of a micro-batch's gradients, unless it is the last."""
        if is_last or not isinstance(model, DistributedDataParallel):
            return nullcontext()
        return model.no_sync()


def ranks_of(model: nn.Module, group: dist.ProcessGroup | None) -> Ranks:
    """Return the processes that train a model: ``group``, or those of its copies or shards."""
    # Importing FSDP takes a second; a model can be of its class only if it has been imported.
    fsdp = sys.modules.get("torch.distributed.fsdp")
    copied = (DistributedDataParallel, *([fsdp.FullyShardedDataParallel] if fsdp else []))
    if group is None and isinstance(model, copied):
        group = cast("dist.ProcessGroup", model.process_group)
    if group is None:
        meshes = (getattr(param, "device_mesh", None) for param in model.parameters())
        mesh = next((each for each in meshes if each is not None), None)
        if mesh is not None:
            # A mesh of several dimensions is taken to be all processes.
            group = mesh.get_group() if mesh.ndim == 1 else dist.group.WORLD
    return Ranks(group)
