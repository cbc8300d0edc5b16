"""Rollback to an earlier step: weights, optimizer states and buffers, in place, without a sync.

Unlike a `Snapshot`, which hides that anything has run, it leaves the rest as training has it:
random numbers, the place in the data, gradients and what a GradScaler has learned. Its copies have
names, so that a checkpoint can hold them; a snapshot knows objects of its process only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lrfast._utils.async_copy import note_use
from lrfast._utils.validation import check_dict, check_tensor, short_repr
from lrfast.optim._checkpoint import without_wrappers
from lrfast.optim._optimizer import FusedOptimizer


@dataclass(frozen=True)
class RollbackPoint:
    """Copies of all that the updates of an lrfast optimizer change, by their places.

    Those are the optimizer's parameters, their states, EMA and counters, and the model's buffers,
    each once and on its device. They are restored in place, so that a captured graph stays valid.
    """

    tensors: dict[str, Tensor]

    @classmethod
    def take(cls, model: nn.Module, optimizer: FusedOptimizer) -> RollbackPoint:
        """Copy the values of now."""
        return cls({place: each.detach().clone() for place, each in _places(model, optimizer)})

    @classmethod
    def from_dict(
        cls, name: str, saved: object, model: nn.Module, optimizer: FusedOptimizer
    ) -> RollbackPoint:
        """Return the point whose tensors a checkpoint holds, on the devices that train."""
        live, tensors = dict(_places(model, optimizer)), {}
        for place, value in check_dict(name, saved).items():
            tensor, present = check_tensor(f"{name}[{place!r}]", value), live.get(place)
            if present is not None and present.shape != tensor.shape:
                raise ValueError(
                    f"{name} must hold {place} of shape {list(present.shape)}, got "
                    f"{list(tensor.shape)}"
                )
            tensors[place] = tensor.to(
                tensor.device if present is None else present.device, copy=True
            )
        if missing := {place for place in live if not place.startswith("state")} - tensors.keys():
            raise ValueError(f"{name} must hold {min(missing)}, got {short_repr(sorted(tensors))}")
        return cls(tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of all copies."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @torch.no_grad()
    def restore(self, model: nn.Module, optimizer: FusedOptimizer) -> None:
        """Restore the values; a state that was made since is made anew by the next step."""
        for place, live in list(_places(model, optimizer)):
            if (copied := self.tensors.get(place)) is not None:
                note_use(copied)  # it may come from another stream, and is dropped afterwards
                live.copy_(copied, non_blocking=live.is_cuda)
            elif place.startswith("state/"):
                _, group, index, key = place.split("/", 3)
                del optimizer.state[optimizer.param_groups[int(group)]["params"][int(index)]][key]


def _places(model: nn.Module, optimizer: FusedOptimizer) -> Iterator[tuple[str, Tensor]]:
    """Yield what updates change, with names that another process gives to the same tensors."""
    numbers = {}
    for g, group in enumerate(optimizer.param_groups):
        for i, param in enumerate(group["params"]):
            numbers[param] = f"{g}/{i}"
            yield f"param/{g}/{i}", param
            for key, value in optimizer.state.get(param, {}).items():
                yield f"state/{g}/{i}/{key}", value
    for name, buffer in model.named_buffers():
        yield f"buffer/{without_wrappers(name)}", buffer
    averages = optimizer._buffer_averages
    for k, average in enumerate([] if averages is None else averages.tensors):
        yield f"average/{k}", average
    if (engine := optimizer._engine) is not None:
        for k, clock in enumerate(engine.clocks()):
            yield f"state clock/{k}", clock
        for param, count in engine.private_counts():
            yield f"state count/{numbers[param]}", count
