"""Bytes of an optimizer's parameters, gradients and states, as they are or in other dtypes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal

import torch
from torch import Tensor

from lrfast._utils.public import public_in
from lrfast._utils.tables import Table
from lrfast.optim._options import (
    Options,
    StateDtype,
    check_master,
    check_state_dtypes,
    state_dtype_of,
)
from lrfast.optim._state import (
    CODES,
    MASTER,
    SCALARS,
    SCALES,
    average_dtype,
    base_name,
    count_scales,
)

# Dtypes of parameters, if they are in one of these or in half, with master bits; and of states.
_WIDTHS: tuple[tuple[torch.dtype, Literal["24bit", "32bit"] | None], ...] = (
    (torch.float32, None),
    (torch.bfloat16, None),
    (torch.bfloat16, "24bit"),
    (torch.bfloat16, "32bit"),
)
_STATE_WIDTHS: tuple[StateDtype, ...] = (torch.float32, torch.bfloat16, "8bit")
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


def combinations(
    rule: str,
    options: Options,
    param_groups: list[dict[str, Any]],
    states: dict[Any, dict[str, Any]],
) -> dict[tuple[str, str], Memory]:
    """Return the bytes that an optimizer would take, by dtype of parameters and of states.

    Its gradients and states have to be there. What its rule refuses is left out, and so are masters
    if it has no parameter that could be bfloat16.
    """
    found: dict[tuple[str, str], Memory] = {}
    for (width, master), asked in product(_WIDTHS, _STATE_WIDTHS):
        try:
            chosen = replace(options, state_dtype=asked, master=master)
            check_state_dtypes(rule, chosen, param_groups)
            check_master(rule, master)
        except ValueError:
            continue
        params: list[Tensor] = []
        planned: dict[Tensor, dict[str, Tensor]] = {}
        for group in param_groups:
            kept = chosen._asked_of(group)
            for param in group["params"]:
                twin, state = _in_other_dtypes(param, states.get(param, {}), width, kept)
                bits = chosen._master_dtype_of(twin)
                if bits is not None and twin.grad is not None:
                    state[MASTER] = torch.empty(twin.shape, dtype=bits, device="meta")
                params.append(twin)
                planned[twin] = state
        if master is None or any(MASTER in state for state in planned.values()):
            weights, moments = (str(dtype).removeprefix("torch.") for dtype in (width, asked))
            weights += "" if master is None else f", {master} master"
            found[weights, moments] = memory_of([{"params": params}], planned)
    return found


def _in_other_dtypes(
    param: Tensor, state: dict[str, Any], width: torch.dtype, asked: StateDtype
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return a parameter with its gradient, and its states, without memory."""

    def like(value: Tensor, dtype: torch.dtype) -> Tensor:
        return torch.empty(value.shape, dtype=dtype, device="meta")

    is_plain = param.dtype in (torch.float32, torch.bfloat16, torch.float16)
    twin = like(param, width if is_plain else param.dtype)
    twin.grad = None if param.grad is None else like(twin, twin.dtype)
    dtype = state_dtype_of(asked, twin, [])
    found = {}
    for name, value in state.items():
        if not isinstance(value, Tensor):
            continue
        if name in SCALARS:
            found[name] = like(value, value.dtype)
        elif name == "ema":
            found[name] = like(twin, average_dtype(twin))
        elif dtype is torch.uint8:
            found[name + CODES] = like(twin, dtype)
            found[name + SCALES] = torch.empty(count_scales(twin), dtype=dtype, device="meta")
        else:
            found[name] = like(twin, dtype)
    return twin, found
