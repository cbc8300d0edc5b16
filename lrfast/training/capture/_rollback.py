"""Undo warm-up steps.

Every module that a step calls is found by a forward hook and copied before its first call.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim import Optimizer

from lrfast.training._data import tensors_in
from lrfast.training._snapshot import Snapshot


class Rollback(Snapshot):
    """A snapshot of an optimizer, of tensors and other state, and of every module called."""

    def __init__(
        self,
        optimizer: Optimizer,
        others: Sequence[object],
        generators: Sequence[torch.Generator],
    ) -> None:
        stateful = [other for other in others if not isinstance(other, Tensor)]
        super().__init__(nn.Module(), optimizer, others=stateful)
        with torch.no_grad():
            for tensor in (other for other in others if isinstance(other, Tensor)):
                self._store.save(tensor)
        for generator in generators:
            self._store.save(generator)

    @contextmanager
    def track_modules(self) -> Iterator[None]:
        """Copy modules when they are called for the first time, before they run."""
        seen: set[int] = set()

        def see(module: nn.Module, inputs: Any) -> None:
            if id(module) not in seen:
                with torch.no_grad():
                    self._store.save_modules(module)
                seen.update(map(id, module.modules()))

        handle = register_module_forward_pre_hook(see)
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def undo_recording(self) -> Iterator[None]:
        """Restore the host's part afterwards: on the device a recording runs nothing.

        Not what lies on a GPU in others, which might be made anew and which the graph knows, nor
        the optimizer's gradients.
        """
        parameters = (param for group in self._tables[2] for param in group["params"])
        host = self._store.on_host(apart=parameters)
        yield
        host.restore()
        for other, state in self._others:
            if not any(tensor.is_cuda for tensor in tensors_in(state)):
                other.load_state_dict(copy.deepcopy(state))

    @property
    def modules(self) -> list[nn.Module]:
        """The modules that were called, and all within them."""
        return self._store.modules
