"""Counts of what a training step reads back from the device."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lrfast import FineTuner
from lrfast.finetune import Callback

# What .item(), bool(tensor), torch.equal, nonzero and boolean masks come down to. A copy to the
# host waits, too; on the CPU it cannot be told from any other copy.
READS = {
    "_local_scalar_dense",
    "is_nonzero",
    "equal",
    "item",
    "nonzero",
    "masked_select",
    "allclose",
}


class NoDeviceReads(TorchDispatchMode):
    """Raises on every operator that reads a device's value on the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in READS:
            raise AssertionError(f"{func} reads a value from the device")
        return func(*args, **(kwargs or {}))


class ReadsOfSteps(Callback):
    """Lets reads pass from the end of an epoch's steps to the start of the next one's."""

    def __init__(self) -> None:
        self.mode = Strict()
        self.steps = 0

    def on_fit_begin(self, tuner: FineTuner) -> None:
        self.mode.is_strict = True

    def on_epoch_begin(self, tuner: FineTuner, epoch: int) -> None:
        self.mode.is_strict = True

    def on_step_end(self, tuner: FineTuner, step: int, loss: Tensor) -> None:
        self.steps += 1
        self.mode.is_strict = step % tuner.epoch_steps != 0


class Strict(NoDeviceReads):
    is_strict = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.is_strict:
            return super().__torch_dispatch__(func, types, args, kwargs)
        return func(*args, **(kwargs or {}))
