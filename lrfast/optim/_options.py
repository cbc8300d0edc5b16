"""What every fused optimizer can do besides its rule: the keyword arguments they share."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import torch

from lrfast._utils.extension import extension
from lrfast._utils.validation import short_repr

if TYPE_CHECKING:
    from lrfast import _C

# Hyperparameters that tell rules apart: those that every checkpoint of their rule has ever had, and
# those that no other rule's has.
_ALWAYS_SAVED = {"betas", "eps", "alpha", "lr_decay", "momentum_decay"}
_TELLING = _ALWAYS_SAVED | {"momentum", "dampening", "nesterov", "centered", "amsgrad"}
_STATE_DTYPES = (None, torch.float32, torch.bfloat16)


class StepOptions(TypedDict, total=False):
    """Keyword arguments of all fused optimizers, for type checkers; see :class:`Options`."""

    max_grad_norm: float | None
    skip_nonfinite: bool
    zero_grads: bool
    ema_decay: float | None
    state_dtype: torch.dtype | None
    stochastic_rounding: bool
    seed: int
    telemetry: int


@dataclass(frozen=True)
class Options:
    """What a step does besides the update, in the same pass over memory.

    Args:
        max_grad_norm: Scales gradients down where their norm, over all parameters, is above this,
            as ``torch.nn.utils.clip_grad_norm_`` does; gradients themselves stay as they are. A
            param group with a ``max_grad_norm`` of its own is clipped by its own norm instead, and
            does not count in the others'. None: no clipping.
        skip_nonfinite: Skip a step whose gradients hold an infinity or NaN.
        zero_grads: Set gradients to zero in the pass that reads them, also when a step is skipped.
        ema_decay: Decay, in [0, 1), of an exponential moving average of the weights, which starts
            at the weights before a parameter's first update; float32 for half parameters. None:
            none is kept.
        state_dtype: Dtype of new states: float32 (for half parameters), bfloat16 (for float32
            parameters) or None for the parameter's own.
        stochastic_rounding: Round bfloat16 parameters, and their bfloat16 states, up or down at
            random, so that small updates count on average.
        seed: Of the random numbers for that. They depend on nothing but the seed, the step and the
            element, so a resumed run, or a replayed CUDA graph, gets the right ones.
        telemetry: Steps whose norms and rates are kept on the device, see
            :meth:`FusedOptimizer.telemetry`. 0: none.

    Raises:
        ValueError: If an argument is out of range.
    """

    max_grad_norm: float | None = None
    skip_nonfinite: bool = False
    zero_grads: bool = False
    ema_decay: float | None = None
    state_dtype: torch.dtype | None = None
    stochastic_rounding: bool = False
    seed: int = 0
    telemetry: int = 0

    def __post_init__(self) -> None:
        norm, decay = self.max_grad_norm, self.ema_decay
        if norm is not None and not (math.isfinite(norm) and norm > 0):
            raise ValueError(f"max_grad_norm must be finite and above 0, or None, got {norm}")
        if decay is not None and not 0 <= decay < 1:
            raise ValueError(f"ema_decay must be within [0, 1), or None, got {decay}")
        if self.state_dtype not in _STATE_DTYPES:
            raise ValueError(
                f"state_dtype must be torch.float32, torch.bfloat16 or None, got {self.state_dtype}"
            )
        _check_whole("seed", self.seed)
        _check_whole("telemetry", self.telemetry)

    def encode(self) -> _C.EngineOptions:
        """Return what the engine takes."""
        options: _C.EngineOptions = extension().EngineOptions(
            self.max_grad_norm or 0.0,
            self.skip_nonfinite,
            self.zero_grads,
            -1.0 if self.ema_decay is None else self.ema_decay,
            self.stochastic_rounding,
            self.seed,
            self.telemetry,
        )
        return options

    def state_dtype_of(self, param: torch.Tensor, states: list[Any]) -> torch.dtype:
        """Return the dtype of a parameter's states: as asked for, as found, or its own.

        Args:
            param: The parameter.
            states: States that it has already.
        """
        found = {s.dtype for s in states if isinstance(s, torch.Tensor)}
        if param.dtype in (torch.bfloat16, torch.float16):
            is_other = self.state_dtype == torch.float32 or torch.float32 in found
            return torch.float32 if is_other else param.dtype
        if param.dtype == torch.float32:
            is_other = self.state_dtype == torch.bfloat16 or torch.bfloat16 in found
            return torch.bfloat16 if is_other else param.dtype
        return param.dtype


def check_group(index: int, group: dict[str, Any]) -> None:
    """Check what the constructors of torch let pass: NaN and infinite rates, differentiable steps.

    Raises:
        ValueError: For either.
    """
    if group["differentiable"]:
        raise ValueError(
            "differentiable must be False: the fused step is not part of the autograd graph; use "
            "torch.optim for differentiable updates"
        )
    rate = group["lr"]
    if isinstance(rate, torch.Tensor) and rate.is_cuda:
        return  # asking a device for its value would wait for it
    if isinstance(rate, torch.Tensor) and not rate.is_cpu:
        raise ValueError(
            f"lr of param_groups[{index}] must be a number or a tensor on cpu or cuda, got one on "
            f"{rate.device}"
        )
    if not isinstance(rate, torch.Tensor | int | float | np.number):
        raise TypeError(f"lr of param_groups[{index}] must be a number, got {short_repr(rate)}")
    if not 0 <= rate <= sys.float_info.max:  # NaN fails, too
        shown = rate.item() if isinstance(rate, torch.Tensor) else rate
        raise ValueError(
            f"lr of param_groups[{index}] must be finite and not negative, got {short_repr(shown)}"
        )


def check_saved_groups(own: set[str], state_dict: dict[str, Any]) -> None:
    """Check that a state dict was saved by an optimizer with the same hyperparameters.

    Raises:
        ValueError: If it lacks some, or has some of another rule.
    """
    for index, group in enumerate(state_dict["param_groups"]):
        missing = sorted((own & _ALWAYS_SAVED) - group.keys())
        foreign = sorted((group.keys() & _TELLING) - own)
        if missing or foreign:
            raise ValueError(
                f"state_dict must be of the same rule: its param_groups[{index}] lacks {missing} "
                f"and has {foreign}, which this optimizer does not know"
            )


def _check_whole(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise ValueError(f"{name} must be a whole number, 0 or more, got {value!r}")
