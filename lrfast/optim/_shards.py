"""Gradient norms over parameters that are sharded across processes.

A DTensor's shard is updated like any tensor. The norm needs the other shards: every process sums
the squares of the elements that it owns, and one all-reduce adds the sums.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh


class Shards:
    """Ownership of an optimizer's parameters among the processes of one device mesh."""

    def __init__(self, mesh: DeviceMesh) -> None:
        self._coordinate = mesh.get_coordinate() or [0] * mesh.ndim
        # Their all-reduces, one after another, cover the mesh; None is all processes.
        self._groups: list[ProcessGroup | None] = [None]
        if mesh.ndim == 1 or mesh.size() != torch.distributed.get_world_size():
            self._groups = [mesh.get_group(dim) for dim in range(mesh.ndim)]

    def counts(self, param: Tensor) -> bool:
        """Return whether this process is the first of those that hold the same elements."""
        placements = getattr(param, "placements", None)
        if placements is None:  # an ordinary tensor, the same everywhere
            return not any(self._coordinate)
        places = zip(self._coordinate, placements, strict=True)
        return all(place == 0 or placement.is_shard() for place, placement in places)

    def add(self, squares: Tensor) -> None:
        """All-reduce the sums, float64 [groups], without a synchronisation of host and GPU."""
        for group in self._groups:
            torch.distributed.all_reduce(squares, group=group)


def find_shards(param_groups: list[dict[str, Any]]) -> Shards | None:
    """Return the ownership of sharded parameters; None if every process holds all of them.

    Parameters that cannot train do not count.
    """
    params = chain.from_iterable(group["params"] for group in param_groups)
    trained = [param for param in params if param.requires_grad or param.grad is not None]
    shared = [param for param in trained if hasattr(param, "_local_tensor")]
    if not any(placement.is_shard() for param in shared for placement in param.placements):
        return None
    meshes = list(dict.fromkeys(param.device_mesh for param in shared))
    if len(meshes) > 1:
        got = ", ".join(map(str, meshes))
        raise ValueError(
            f"the DTensors of one optimizer must lie on one mesh, got parameters on {got}"
        )
    return Shards(meshes[0]) if meshes[0].size() > 1 else None
