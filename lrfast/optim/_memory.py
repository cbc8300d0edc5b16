"""Bytes of an optimizer's parameters, gradients and states."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lrfast._utils.public import public_in
from lrfast._utils.tables import Table
from lrfast.optim._state import CODES, SCALES, base_name

OWN = ("parameters", "gradients")


@public_in("lrfast.optim")
@dataclass(frozen=True)
class Memory:
    """Bytes that an optimizer's tensors take on this process; ``str()`` is a table of them.

    Args:
        numel: Elements of all parameters.
        sizes: Bytes by what they are for ("parameters", "gradients", then each state) and by
            dtype, which is "8bit" for codes and their scales.
    """

    numel: int
    sizes: dict[tuple[str, str], int]

    @property
    def states(self) -> int:
        """Bytes of all states."""
        return sum(size for (name, _), size in self.sizes.items() if name not in OWN)

    @property
    def total(self) -> int:
        """Bytes in all."""
        return sum(self.sizes.values())

    def __str__(self) -> str:
        named = [*self.sizes.items(), (("states", ""), self.states), (("total", ""), self.total)]
        rows = [
            (name, dtype, f"{size:,}", f"{size / max(self.numel, 1):.3g}")
            for (name, dtype), size in named
        ]
        return Table(("", "dtype", "bytes", "per parameter"), rows, right=(2, 3)).text(width=0)


def memory_of(param_groups: list[dict[str, Any]], states: dict[Any, dict[str, Any]]) -> Memory:
    """Return the bytes of all parameters in groups, of their gradients and of their states."""
    sizes: Counter[tuple[str, str]] = Counter()
    numel = 0

    def add(name: str, tensor: Tensor) -> int:
        local: Tensor = getattr(tensor, "_local_tensor", tensor)
        dtype = str(tensor.dtype).removeprefix("torch.")
        is_coded = name.endswith((CODES, SCALES))
        sizes[base_name(name), "8bit" if is_coded else dtype] += local.nbytes
        return local.numel()

    params = [param for group in param_groups for param in group["params"]]
    for param in params:
        numel += add("parameters", param)
    for param in params:
        if param.grad is not None:
            add("gradients", param.grad)
    for param in params:
        for name, value in states.get(param, {}).items():
            if isinstance(value, Tensor):
                add(name, value)
    names = list(dict.fromkeys(name for name, _ in sizes))  # a state's dtypes stand together
    return Memory(numel, dict(sorted(sizes.items(), key=lambda item: names.index(item[0][0]))))
