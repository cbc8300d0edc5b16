"""EMA of a module's buffers, beside that of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lrfast._utils.async_copy import note_use
from lrfast._utils.validation import check_dict, check_tensor, short_repr
from lrfast.optim._options import Options

# By a buffer's name, its module's buffers, which may be exchanged, and its key there.
Owners = dict[str, tuple[dict[str, Tensor | None], str]]


@dataclass
class _Part:
    """The buffers on one device, and their averages one after another in one tensor."""

    owners: Owners
    shapes: list[torch.Size]
    average: Tensor

    def buffers(self) -> list[Tensor]:
        found = [_local(owner[key]) for owner, key in self.owners.values()]
        shapes = [None if buffer is None else buffer.shape for buffer in found]
        for name, shape, wanted in zip(self.owners, shapes, self.shapes, strict=True):
            if shape != wanted:
                got = "None" if shape is None else list(shape)
                raise ValueError(
                    f"buffer {name!r} must keep its shape {list(wanted)}, got {got}; call "
                    "average_buffers(model) again"
                )
        return [buffer for buffer in found if buffer is not None]

    def gathered(self) -> Tensor:
        flat = _flat(self.buffers(), self.average.dtype)
        if flat.device != self.average.device:  # the model was moved
            self.average = self.average.to(flat.device)
        return flat

    def averages(self) -> list[Tensor]:
        pieces = self.average.split([shape.numel() for shape in self.shapes])
        return [each.view(shape) for each, shape in zip(pieces, self.shapes, strict=True)]


class BufferAverages:
    """The EMA of a module's persistent floating-point buffers, which starts at them as they are.

    Others, such as counters, caches and masks, have no average.

    Args:
        buffers: From :func:`buffers_of`.
    """

    def __init__(self, buffers: Owners) -> None:
        by_device: dict[torch.device, Owners] = {}
        for name, (owner, key) in buffers.items():
            if (buffer := _local(owner[key])) is not None:
                by_device.setdefault(buffer.device, {})[name] = owner, key
        self._parts: list[_Part] = []
        for owners in by_device.values():
            places = owners.values()
            found = [each for owner, key in places if (each := _local(owner[key])) is not None]
            # Half types would lose most of its steps.
            dtype = reduce(torch.promote_types, (each.dtype for each in found), torch.float32)
            shapes = [each.shape for each in found]
            self._parts.append(_Part(owners, shapes, _flat(found, dtype)))

    def __len__(self) -> int:
        return len(self._parts)

    @property
    def tensors(self) -> list[Tensor]:
        """The memory of the averages."""
        return [part.average for part in self._parts]

    def gather(self) -> list[Tensor]:
        """Return copies of the buffers for :meth:`update`; raises if their shapes have changed."""
        return [part.gathered() for part in self._parts]

    @torch.no_grad()
    def update(
        self, gathered: list[Tensor], options: Options, before: Tensor | int, after: Tensor
    ) -> None:
        """Move the averages towards the buffers if a step was applied; does not synchronise.

        Args:
            gathered: From :meth:`gather`.
            options: With the decay.
            before: Number of steps applied before this one.
            after: Number of steps applied now, on the device.
        """
        assert options.ema_decay is not None
        # As average_weight() of csrc/core/step.h.
        averaged = after - 1 - options.ema_start
        weight = torch.full_like(averaged, 1.0 - options.ema_decay, dtype=torch.float64)
        if options.ema_warmup:
            weight = weight.maximum(9.0 / (10.0 + averaged.double()))
        weight = weight.masked_fill(averaged < 0, 1.0)
        for part, values in zip(self._parts, gathered, strict=True):
            average = part.average
            # Not by a weight of 0: the buffers of a skipped step may be NaN, and some are infinite.
            moves = (after != before).to(average.device) & (values != average)
            moved = average.lerp(values, weight.to(average.device, average.dtype))
            average.copy_(torch.where(moves, moved, average))

    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """Return each buffer and its average."""
        return [
            pair
            for each in self._parts
            for pair in zip(each.buffers(), each.averages(), strict=True)
        ]

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies of the averages by the buffers' names."""
        return {
            name: average.clone()
            for part in self._parts
            for name, average in zip(part.owners, part.averages(), strict=True)
        }

    def loaded(self, saved: Mapping[str, Tensor]) -> BufferAverages:
        """Return the same buffers' averages with saved values; without any, they start anew."""
        made = BufferAverages({})
        for part in self._parts:
            if saved:
                values = [saved[name] for name in part.owners]
                for value in values:
                    note_use(value)
                flat = _flat([v.to(part.average.device) for v in values], part.average.dtype)
            else:
                flat = part.gathered()
            made._parts.append(replace(part, average=flat))
        return made

    def check(self, saved: Mapping[str, Tensor]) -> None:
        """Refuse saved averages of other buffers."""
        own = {n: s for part in self._parts for n, s in zip(part.owners, part.shapes, strict=True)}
        lacking, foreign = sorted(own.keys() - saved.keys()), sorted(saved.keys() - own.keys())
        if saved and (lacking or foreign):
            raise ValueError(
                f"{_ENTRY} must be those of the model's {len(own)} buffers, got {len(saved)}, "
                f"which lack {short_repr(lacking)} and have {short_repr(foreign)}"
            )
        for name, value in saved.items():
            if value.shape != own[name]:
                raise ValueError(
                    f"{_ENTRY}[{name!r}] must have its buffer's shape {list(own[name])}, got "
                    f"{short_repr(value)}"
                )


_ENTRY = "ema_buffers"


def buffers_of(model: nn.Module) -> Owners:
    """Return which buffers of a model are averaged, as :class:`BufferAverages` takes them."""
    return {
        f"{prefix}.{key}" if prefix else key: (module._buffers, key)
        for prefix, module in model.named_modules()
        for key, buffer in module._buffers.items()
        if buffer is not None and key not in module._non_persistent_buffers_set
        if buffer.is_floating_point() and buffer.layout is torch.strided and not buffer.is_meta
        if not is_lazy(buffer)
    }


def saved_averages(entry: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the averages of buffers in lrfast's entry of a state dict, checked."""
    saved = check_dict(_ENTRY, entry.get(_ENTRY, {}))
    for name, value in saved.items():
        where = f"{_ENTRY}[{short_repr(name)}]"
        if not check_tensor(where, value).is_floating_point():
            raise ValueError(f"{where} must be of a floating-point dtype, got {short_repr(value)}")
    return saved


def _local(buffer: Tensor | None) -> Tensor | None:
    """Return this process's part of a buffer, detached."""
    return None if buffer is None else getattr(buffer, "_local_tensor", buffer).detach()


def _flat(buffers: list[Tensor], dtype: torch.dtype) -> Tensor:
    """Return a copy of the values of buffers on one device."""
    return torch.cat([buffer.reshape(-1).to(dtype) for buffer in buffers])
