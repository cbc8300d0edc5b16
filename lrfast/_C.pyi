"""Types of the compiled module; csrc/bindings/module.cpp is its definition."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from lrfast._shards import Shards

_Segment = tuple[int, float, float, float, float, str, float, Sequence[float]]
_Table = tuple[int, int, float, float, float, Sequence[_Segment]]
_Track = Sequence[_Table]
_Schedule = tuple[Sequence[_Track], _Track | None, _Track | None]

torch_version: str
has_cuda: bool
cuda_toolkit: int
cuda_architectures: list[int]
compiler: str
instruction_set: str
has_dict_versions: bool
rules: list[str]
rule_states: dict[str, list[list[str]]]
curve_state_size: int

def evaluate_schedule(
    schedule: _Schedule, steps: npt.NDArray[np.int64]
) -> tuple[
    npt.NDArray[np.float64], npt.NDArray[np.float64] | None, npt.NDArray[np.float64] | None
]: ...
def record_loss(
    state: Tensor,
    losses: Tensor,
    rates: Tensor,
    loss: Tensor,
    lr: Tensor | None,
    skip: Tensor | None,
    beta: float,
    stop: float,
    grace: int,
) -> None: ...
def smooth_ema(values: Tensor, beta: float) -> Tensor: ...
def moving_average(values: Tensor, window: int) -> Tensor: ...
def running_median(values: Tensor, window: int) -> Tensor: ...
def savitzky_golay(values: Tensor, window: int, order: int) -> Tensor: ...
def derivative(values: Tensor, x: Tensor, reach: int) -> Tensor: ...
def layout_strides(param: Tensor) -> list[int]: ...

class EngineOptions:
    def __init__(
        self,
        max_grad_norm: float,
        skip_nonfinite: bool,
        zero_grads: bool,
        ema_decay: float,
        stochastic_rounding: bool,
        seed: int,
        telemetry: int,
    ) -> None: ...

class Engine:
    def __init__(
        self, rule: str, find_shards: Callable[[list[dict[str, Any]]], Shards | None]
    ) -> None: ...
    def step(
        self,
        param_groups: list[dict[str, Any]],
        state: dict[Tensor, Any],
        grad_scale: Tensor | None,
        found_inf: Tensor | None,
    ) -> list[tuple[int, Tensor]] | None: ...
    def set_schedules(
        self, schedules: Sequence[_Schedule], group_schedules: Sequence[int]
    ) -> None: ...
    def set_options(self, options: EngineOptions) -> None: ...
    def watch(self, flag: Tensor | None) -> None: ...
    def scale_rates(self, scale: Tensor | None) -> None: ...
    def state_names(self, group: int) -> dict[str, Any]: ...
    def clocks(self) -> list[Tensor]: ...
    def set_clock(self, applied: int, steps: int) -> None: ...
    def rates(self) -> list[Tensor]: ...
    def norms(self) -> list[Tensor]: ...
    def records(self) -> list[Tensor]: ...
    def private_counts(self) -> list[tuple[Tensor, Tensor]]: ...
    @property
    def rebuilds(self) -> int: ...
