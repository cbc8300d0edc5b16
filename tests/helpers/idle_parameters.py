"""Parameters of every kind that torch trains beside, because they never get a gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class WithoutStorage(Tensor):
    """A wrapper subclass, as quantised weights are: it has a shape, and no memory of its own."""

    _inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> WithoutStorage:
        """Wrap a tensor."""
        made: Any = Tensor._make_wrapper_subclass(cls, inner.shape, dtype=torch.float32)
        made._inner = inner
        return made  # type: ignore[no-any-return]

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Detach, and refuse everything else."""
        if function is torch.ops.aten.detach.default:
            return WithoutStorage(args[0]._inner)
        raise NotImplementedError(f"{function} of a packed weight")

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        """Say what it is, without its elements."""
        return "WithoutStorage()"


KINDS: dict[str, Callable[[], Tensor]] = {
    "bool": lambda: torch.tensor([True, False, True]),
    "int64": lambda: torch.arange(3),
    "packed uint8": lambda: torch.arange(6, dtype=torch.uint8),
    "float8": lambda: torch.ones(3).to(torch.float8_e4m3fn),
    "quantised": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    "meta": lambda: torch.ones(3, 2, device="meta"),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "sparse rows": lambda: torch.eye(3).to_sparse_csr(),
    "mkldnn": lambda: torch.ones(3, 3).to_mkldnn(),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "expanded": lambda: torch.ones(1).expand(4),
    "with gaps": lambda: torch.ones(4, 4)[:, ::2],
    "conjugated": lambda: torch.ones(3, dtype=torch.complex64).conj(),
    "negated": lambda: torch._neg_view(torch.ones(3)),
    "without storage": lambda: WithoutStorage(torch.ones(3)),
    "empty": lambda: torch.empty(0, 4),
    "empty int32": lambda: torch.empty(0, 4, dtype=torch.int32),
}
TRAINABLE = ("meta", "sparse", "sparse rows", "mkldnn", "nested", "expanded", "with gaps",
             "conjugated", "negated", "without storage", "empty", "float8")  # fmt: skip


def idle(kind: str, requires_grad: bool = False) -> nn.Parameter:
    """A parameter of that kind."""
    if kind == "lazy":
        return nn.UninitializedParameter(requires_grad=requires_grad)
    return nn.Parameter(KINDS[kind](), requires_grad=requires_grad)


ALL = [(kind, False) for kind in (*KINDS, "lazy")] + [(kind, True) for kind in (*TRAINABLE, "lazy")]
