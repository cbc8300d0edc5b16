"""Undo warm-up steps.

Every module that a step calls is found by a forward hook and copied before its first call.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim import Optimizer

from lrfast.training._snapshot import Snapshot, TensorStore


class Rollback:
    """A snapshot of an optimizer with its parameters, and of every module that is called.

    Args:
        optimizer: The optimizer; parameters that it holds are copied now.
        others: Tensors, and objects with ``state_dict`` and ``load_state_dict``.
        generators: Generators of random numbers, besides torch's own.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        others: Sequence[object],
        generators: Sequence[torch.Generator],
    ) -> None:
        stateful = [other for other in others if not isinstance(other, Tensor)]
        self._snapshot = Snapshot(nn.Module(), optimizer, others=stateful)
        self._store = TensorStore(on_host=False)
        with torch.no_grad():
            for kept in (*(each for each in others if isinstance(each, Tensor)), *generators):
                self._store.save(kept)
        self._held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        self._gradients: list[tuple[Tensor, Tensor | None]] = []
        self._modules: list[nn.Module] = []
        self._modes: list[bool] = []
        self._known: set[int] = set()

    @contextmanager
    def track_modules(self) -> Iterator[None]:
        """Copy modules when they are called for the first time, before they run."""
        handle = register_module_forward_pre_hook(self._see)
        try:
            yield
        finally:
            handle.remove()

    def restore(self) -> None:
        """Restore everything."""
        with torch.no_grad():
            self._store.restore()
        for param, grad in self._gradients:
            param.grad = grad
        for module, mode in zip(self._modules, self._modes, strict=True):
            module.training = mode
        self._snapshot.restore()

    @property
    def modules(self) -> list[nn.Module]:
        """The modules that were called, and all within them."""
        return list(self._modules)

    def _see(self, module: nn.Module, inputs: Any) -> None:
        if id(module) in self._known:
            return
        with torch.no_grad():
            for each in module.modules():
                if id(each) not in self._known:
                    self._known.add(id(each))
                    self._modules.append(each)
                    self._modes.append(each.training)
                    self._keep(each)

    def _keep(self, module: nn.Module) -> None:
        self._store.save(module._buffers)  # the table, too: a forward pass may rebind a buffer
        for param in module._parameters.values():
            if param is None or id(param) in self._held:
                continue
            self._held.add(id(param))
            self._store.save(param)
            self._store.save(param.grad)
            self._gradients.append((param, param.grad))
