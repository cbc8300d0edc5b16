"""Options of the fused step that all update rules share; checks of param groups."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict

import numpy as np
import torch

from lrfast._utils.extension import extension
from lrfast._utils.public import public_in
from lrfast._utils.validation import MAX_STEPS, check_bool, check_count, short_repr
from lrfast.schedules import Schedule

if TYPE_CHECKING:
    import lrfast._C as _C

# Hyperparameters that tell update rules apart: those that every checkpoint of a rule has had in any
# version, and those that no other rule's checkpoint has.
_ALWAYS_SAVED = {
    *("betas", "eps", "alpha", "lr_decay", "momentum_decay", "rho", "weight_lr_power", "d_coef"),
    "layer_scale",
}
_TELLING = _ALWAYS_SAVED | {"momentum", "dampening", "nesterov", "centered", "amsgrad"}
# Since torch's groups have "differentiable", Adam's have had these: RAdam's are the same without.
_ADAMS = {"amsgrad", "fused"}
_STATE_DTYPES = (None, torch.float32, torch.bfloat16, "8bit")
_HALF = (torch.bfloat16, torch.float16)
# What is kept beside each element of a half parameter.
MASTERS = {"24bit": torch.int8, "32bit": torch.int16}
# Options that change the update itself, and their defaults.
UPDATE = {
    "cautious": False,
    "cautious_weight_decay": False,
    "scheduled_weight_decay": True,
    "clipping_threshold": None,
}

# "8bit" stands for codes.
StateDtype: TypeAlias = torch.dtype | Literal["8bit"] | None
# One for all groups; one, or None, per group; or none at all.
Schedules = Schedule | Sequence[Schedule | None] | None


class StepOptions(TypedDict, total=False):
    """Keyword arguments of all fused optimizers, for type checkers; see :class:`Options`."""

    max_grad_norm: float | None
    skip_nonfinite: bool
    zero_grads: bool
    ema_decay: float | None
    state_dtype: StateDtype
    stochastic_rounding: bool
    seed: int
    telemetry: int
    ema_start: int
    ema_warmup: bool
    master: Literal["24bit", "32bit"] | None
    cautious: bool
    cautious_weight_decay: bool
    scheduled_weight_decay: bool
    clipping_threshold: float | None


@public_in("lrfast.optim")
@dataclass(frozen=True)
class Options:
    """Options of a step besides its rule, done in the same pass over memory.

    The last four change the update itself; two of them go without ``master``.

    Args:
        max_grad_norm: Norm, above 0, to which gradients are scaled down if their norm over all
            parameters is larger, as ``torch.nn.utils.clip_grad_norm_`` does; the gradients
            themselves stay as they are. A param group with a ``max_grad_norm`` of its own is
            clipped by its own norm instead, and does not count in the others'. None, the default:
            no clipping.
        skip_nonfinite: Whether to skip a step with an infinite or NaN gradient; default False.
        zero_grads: Whether to set gradients to zero in the pass that reads them, also if a step is
            skipped; default False.
        ema_decay: Decay, in [0, 1), of an EMA of the weights, which starts at the weights before a
            parameter's first update; float32 for half parameters. None, the default: no EMA.
        state_dtype: Dtype of the states: float32 (for half parameters), bfloat16 (for float32
            parameters), "8bit" or None, the default, for the parameter's own. "8bit" keeps them in
            one byte per element and one per 256 elements, rounded at random with ``seed``; tensors
            below 4096 elements keep float32, float64 and complex ones their own dtype. A param
            group with a ``state_dtype`` of its own that is not None keeps that, as those of
            :func:`lrfast.state_groups` do.
        stochastic_rounding: Whether to round bfloat16 parameters and their bfloat16 states up or
            down at random, so that small updates count on average; default False.
        seed: Seed of these random numbers, in [0, 2**63); default 0. They depend on the seed, the
            step and the element only, so that a resumed run and a replayed CUDA graph get the same.
        telemetry: Number of last steps, in [0, 2**63), whose norms and learning rates are kept on
            the device, see :meth:`FusedOptimizer.telemetry`; default 0.
        ema_start: Number of first steps, in [0, 2**53], during which the EMA is the weights
            themselves; default 0.
        ema_warmup: Whether the decay warms up: it is ``min(ema_decay, (1 + n) / (10 + n))`` after
            ``n`` averaged steps, as in TensorFlow and diffusers; default False.
        master: Precision of the weights behind half parameters, whose lost bits are kept beside
            them as a state: "24bit" (one byte per element), "32bit" (two; behind bfloat16 the
            weights are exact float32) or None, the default, for the parameters' own 16. Updates
            that a half would lose then count. float16 limits its weights: 65,536 and more are
            infinite, 32 bits are exact from 2**-17 on, and digits below 2**-40 (2**-32 with 24
            bits) are lost; states that are not in 8 bits are float32. Parameters of other dtypes
            stay as they are; ``stochastic_rounding`` is refused.
        cautious: Whether to leave out the steps whose sign is against their gradient's, and to
            divide those of a tensor that are left by their share, 0.001 at least (C-AdamW,
            C-Lion); a second pass over memory counts them. For rules with momentum; default False.
        cautious_weight_decay: Whether decoupled weight decay spares the elements that the step
            moves away from 0; default False.
        scheduled_weight_decay: Whether decoupled weight decay follows the schedule of the learning
            rate. If not, a step shrinks weights by ``group["lr"] * weight_decay``, whatever the
            schedule or a loss schedule makes of the learning rate, 0 included; a schedule of the
            weight decay still counts. Default True.
        clipping_threshold: Threshold, above 0, of StableAdamW's update clipping: the root mean
            square of ``gradient / max(sqrt(exp_avg_sq), eps)`` of a tensor, bias-corrected, divides
            the tensor's learning rate if it is larger, in units of the threshold. A second pass
            over memory takes it. For rules with a mean of squares; 1 is the paper's. None, the
            default: no clipping.

    Raises:
        ValueError: If an argument is out of range.

    Reference:
        Liang et al., "Cautious Optimizers", arXiv:2411.16085. Chen et al., "Cautious Weight Decay",
        arXiv:2510.12402. Wortsman et al., "Stable and low-precision training for large-scale
        vision-language models", arXiv:2304.13013.
    """

    max_grad_norm: float | None = None
    skip_nonfinite: bool = False
    zero_grads: bool = False
    ema_decay: float | None = None
    state_dtype: StateDtype = None
    stochastic_rounding: bool = False
    seed: int = 0
    telemetry: int = 0
    ema_start: int = 0
    ema_warmup: bool = False
    master: Literal["24bit", "32bit"] | None = None
    cautious: bool = False
    cautious_weight_decay: bool = False
    scheduled_weight_decay: bool = True
    clipping_threshold: float | None = None

    def __post_init__(self) -> None:
        decay = self.ema_decay
        for name in ("max_grad_norm", "clipping_threshold"):
            limit = getattr(self, name)
            if limit is not None and not (math.isfinite(limit) and limit > 0):
                raise ValueError(f"{name} must be finite and above 0, or None, got {limit}")
        if decay is not None and not 0 <= decay < 1:
            raise ValueError(f"ema_decay must be within [0, 1), or None, got {decay}")
        _check_state_dtype("state_dtype", self.state_dtype)
        if self.master not in (None, *MASTERS):
            raise ValueError(
                f'master must be "24bit", "32bit" or None, got {short_repr(self.master)}'
            )
        if self.master is not None and self.stochastic_rounding:
            raise ValueError(
                f"stochastic_rounding must be False with master={self.master!r}, which keeps what "
                "rounding loses, got True"
            )
        for name in ("seed", "telemetry"):
            object.__setattr__(self, name, check_count(name, getattr(self, name), 0, 2**63 - 1))
        object.__setattr__(
            self, "ema_start", check_count("ema_start", self.ema_start, 0, MAX_STEPS)
        )
        for name in ("ema_warmup", "cautious", "cautious_weight_decay", "scheduled_weight_decay"):
            check_bool(name, getattr(self, name))
        if self.master is not None and (self.cautious or self.clipping_threshold is not None):
            name = "cautious" if self.cautious else "clipping_threshold"
            raise ValueError(
                f"master must be None with {name}, whose first pass does not know it, got "
                f"{self.master!r}"
            )
        if decay is None and (self.ema_start or self.ema_warmup):
            raise ValueError("ema_decay must be set for ema_start and ema_warmup, got None")

    def encode(self, has_codes: bool | None = None) -> _C.EngineOptions:
        """Return the options in the engine's form.

        Args:
            has_codes: Whether any states may be in 8 bits; None, the default: as ``state_dtype``.
        """
        has_codes = self.state_dtype == "8bit" if has_codes is None else has_codes
        decay = -1.0 if self.ema_decay is None else self.ema_decay
        average = (decay, self.ema_start, self.ema_warmup)
        flags = (self.skip_nonfinite, self.zero_grads, *average, self.stochastic_rounding)
        master_bytes = 0 if self.master is None else MASTERS[self.master].itemsize
        update = extension().UpdateOptions(
            self.clipping_threshold or 0.0,
            self.cautious,
            self.cautious_weight_decay,
            not self.scheduled_weight_decay,
        )
        kept = (has_codes, master_bytes, self.telemetry, update)
        options: _C.EngineOptions = extension().EngineOptions(
            self.max_grad_norm or 0.0, *flags, self.seed, *kept
        )
        return options

    def _master_dtype_of(self, param: torch.Tensor) -> torch.dtype | None:
        """Return the dtype of a parameter's master bits, None for none."""
        if self.master is None or param.dtype not in _HALF:
            return None
        return MASTERS[self.master]

    def _asked_of(self, group: dict[str, Any], param: torch.Tensor | None = None) -> StateDtype:
        """Return what a param group asks of its states: its own ``state_dtype``, or this one."""
        own: StateDtype = group.get("state_dtype")
        asked = self.state_dtype if own is None else own
        if self.master is None or param is None or param.dtype is not torch.float16:
            return asked
        return asked if asked == "8bit" else torch.float32  # of squares float16 loses most

    def _has_codes(self, param_groups: list[dict[str, Any]]) -> bool:
        """Return whether any state may be in 8 bits."""
        return "8bit" in (self.state_dtype, *(group.get("state_dtype") for group in param_groups))


def check_update(rule: str, options: Options, param_groups: list[dict[str, Any]]) -> None:
    """Check that an update rule can have the options of its update."""
    for name, default in UPDATE.items():
        if (value := getattr(options, name)) == default:
            continue
        known = extension().update_options
        if name not in known[rule]:
            others = ", ".join(other for other, names in known.items() if name in names)
            raise ValueError(
                f"{name} must be {default} for the rule {rule!r}, got {value}: it is for {others}"
            )
        for index, group in enumerate(param_groups):
            is_decoupled = group.get("decoupled_weight_decay", group.get("decouple", True))
            if name.endswith("weight_decay") and not is_decoupled:
                raise ValueError(
                    f"{name} must be {default} if weight decay is not decoupled, as in "
                    f"param_groups[{index}], got {value}: use AdamW or decoupled_weight_decay=True"
                )
            if not name.endswith("weight_decay") and any(map(_is_sharded, group["params"])):
                raise ValueError(
                    f"{name} must be {default} for sharded parameters, as in param_groups[{index}],"
                    f" got {value}: its sums are over whole tensors"
                )


def _is_sharded(param: Any) -> bool:
    return any(placement.is_shard() for placement in getattr(param, "placements", ()))


def state_dtype_of(asked: StateDtype, param: torch.Tensor, states: list[Any]) -> torch.dtype:
    """Return the dtype of a parameter's states: as asked for, as they are, or its own.

    uint8 stands for codes of 8 bits.
    """
    if asked == "8bit":
        if param.dtype in (torch.float32, *_HALF) and param.numel() >= extension().min_coded:
            return torch.uint8
        return torch.float32 if param.dtype in _HALF else param.dtype
    wanted = {asked, *(state.dtype for state in states if isinstance(state, torch.Tensor))}
    if param.dtype in _HALF and wanted & {torch.float32, torch.uint8}:
        return torch.float32
    if param.dtype == torch.float32 and torch.bfloat16 in wanted:
        return torch.bfloat16
    return param.dtype


def check_state_dtypes(rule: str, options: Options, param_groups: list[dict[str, Any]]) -> None:
    """Check that an update rule can keep these parameters' states as they are asked for."""
    for index, group in enumerate(param_groups):
        _check_state_dtype(f"state_dtype of param_groups[{index}]", group.get("state_dtype"))
    if not options._has_codes(param_groups):  # and no need of the compiled engine
        return
    known = extension().coded_states
    if rule not in known:
        raise ValueError(
            f'state_dtype must be a dtype or None for the rule {rule!r}, got "8bit", which is for '
            f"{', '.join(known)}"
        )
    for index, group in enumerate(param_groups):
        for param in group["params"] if options._asked_of(group) == "8bit" else ():
            if param.is_cuda and rule not in extension().cuda_codes:
                raise ValueError(
                    f"state_dtype must be a dtype or None for the rule {rule!r} on cuda, as in "
                    f'param_groups[{index}], got "8bit"'
                )
            if param.is_cuda and group.get("amsgrad"):
                raise ValueError(
                    "state_dtype must be a dtype or None on cuda, as amsgrad is in "
                    f'param_groups[{index}], got "8bit"'
                )


def _check_state_dtype(name: str, value: Any) -> None:
    if not isinstance(value, str | torch.dtype | None) or value not in _STATE_DTYPES:
        raise ValueError(
            f'{name} must be torch.float32, torch.bfloat16, "8bit" or None, got {short_repr(value)}'
        )


def check_master(rule: str, master: str | None) -> None:
    """Check that an update rule can keep master bits, if they are wanted."""
    known = extension().master_rules if master else ()
    if master and rule not in known:
        raise ValueError(
            f"master must be None for the rule {rule!r}, got {master!r}, which is for "
            f"{', '.join(known)}"
        )


def check_group(index: int, group: dict[str, Any]) -> None:
    """Refuse what torch's constructors let pass: NaN and infinite lr, differentiable steps."""
    if group.get("differentiable"):
        raise ValueError(
            "differentiable must be False: the fused step is not part of the autograd graph; use "
            "torch.optim for differentiable updates"
        )
    rate = group["lr"]
    if isinstance(rate, torch.Tensor) and rate.is_cuda:
        return  # reading it would synchronise
    if isinstance(rate, torch.Tensor) and not rate.is_cpu:
        raise ValueError(
            f"lr of param_groups[{index}] must be a number or a tensor on cpu or cuda, got one on "
            f"{rate.device}"
        )
    if isinstance(rate, np.number):
        group["lr"] = rate = rate.item()  # which neither overflows nor warns
    if not isinstance(rate, torch.Tensor | int | float):
        raise TypeError(f"lr of param_groups[{index}] must be a number, got {short_repr(rate)}")
    if not 0 <= rate <= sys.float_info.max:  # NaN fails, too
        shown = rate.item() if isinstance(rate, torch.Tensor) else rate
        raise ValueError(
            f"lr of param_groups[{index}] must be finite and not negative, got {short_repr(shown)}"
        )


def check_saved_groups(
    names_of: Callable[[dict[str, Any]], set[str]], state_dict: dict[str, Any]
) -> None:
    """Check that a state dict was saved by an optimizer with the same hyperparameters."""
    for index, group in enumerate(state_dict["param_groups"]):
        own = names_of(group)
        is_adams = "differentiable" not in group or bool(group.keys() & _ADAMS)
        expected = _ALWAYS_SAVED if is_adams else _ALWAYS_SAVED | {"amsgrad"}
        missing = sorted((own & expected) - group.keys())
        foreign = sorted((group.keys() & _TELLING) - own)
        if missing or foreign:
            raise ValueError(
                f"state_dict must be of the same rule: its param_groups[{index}] lacks {missing} "
                f"and has {foreign}, which this optimizer does not know"
            )
