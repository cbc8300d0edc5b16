"""Adam at an estimated learning rate; the rules are csrc/core/rules/{prodigy,dadapt_adam}.h."""

from __future__ import annotations

import math
import warnings
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from lrfast._utils.arguments import checked_methods
from lrfast._utils.validation import (
    check_dict,
    check_finite,
    check_nonnegative,
    check_positive,
    is_int,
    short_repr,
)
from lrfast.optim._optimizer import FusedOptimizer
from lrfast.optim._options import Schedules, StepOptions

# States that prodigyopt keeps flat.
_FLAT = ("s", "p0")
# Learning rates that scale the estimate; others come from an optimizer that has none.
_USUAL = (0.1, 10.0)


class _EstimatedRate(FusedOptimizer, torch.optim.Optimizer):
    """Base of the rules with an estimate for all groups, which their packages keep in groups."""

    # The package's names of the engine's distances(); "" for what it does not keep.
    _names: ClassVar[tuple[str, ...]]

    def _start(
        self, params: ParamsT, schedule: Schedules, options: StepOptions, d0: float, **defaults: Any
    ) -> None:
        """Check the arguments that the rules share and set up."""
        for index, beta in enumerate(defaults["betas"]):
            if not 0 <= beta < 1:
                raise ValueError(f"betas must lie in [0, 1), got {beta} as number {index}")
        for name, value in (("eps", defaults["eps"]), ("d0", d0)):
            check_positive(name, value)
        check_nonnegative("weight_decay", defaults["weight_decay"])
        if not defaults["growth_rate"] >= 1:
            raise ValueError(f"growth_rate must be 1 or more, got {defaults['growth_rate']}")
        if not isinstance(lr := defaults["lr"], Tensor):
            check_positive("lr", lr)
            if not _USUAL[0] <= lr <= _USUAL[1]:
                advice = ", and use d_coef to scale the estimate" if "d_coef" in defaults else ""
                warnings.warn(
                    f"lr should be about 1, because {type(self).__name__} estimates the learning "
                    f"rate and lr multiplies it, got {lr}; leave lr out{advice}",
                    stacklevel=4,
                )
        kept = {"d0": d0} if "d_coef" in defaults else {}  # in groups: Prodigy's rule reads it
        super().__init__(params, {**defaults, **kept, "differentiable": False})
        self._distance_at_start = (d0, d0, d0, 0.0, 0.0, 0.0)
        self._set_up(schedule, options)

    @property
    def d(self) -> Tensor:
        """The estimate, by which each step multiplies ``lr``; a float64 [] on the device.

        It is the package's ``param_groups[0]["d"]``.
        """
        distances = [] if self._engine is None else self._engine.distances()
        if distances:
            return distances[0][0]
        return torch.tensor(self._distance_at_start[0], dtype=torch.float64)

    def _as_saved(self, state: dict[str, Any]) -> None:
        """Give a state dict what the package keeps in groups. Synchronises the device."""
        numbers = dict(zip(self._names, self._distance(), strict=True))
        numbers.pop("", None)
        for group in state["param_groups"]:
            group.update(numbers, k=int(numbers["k"]))

    def _as_own(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return a state dict of the package's form, with states in their parameters' shapes."""
        groups, states = [], dict(check_dict("state", state["state"]))
        for index, group in enumerate(state["param_groups"]):
            self._check_numbers(group, f"param_groups[{index}]")
            groups.append({"differentiable": False, **group})
        saved = chain.from_iterable(group["params"] for group in groups)
        params = chain.from_iterable(group["params"] for group in self.param_groups)
        for place, param in zip(saved, params, strict=False):
            own = states.get(place)
            if isinstance(own, dict):
                states[place] = own | _in_shape(own, param)
        return state | {"state": states, "param_groups": groups}

    def _load_entry(self, entry: dict[str, Any], keeps_own: bool = False) -> None:
        current = self._distance()
        super()._load_entry(entry, keeps_own)
        self._take_numbers(current)

    def _adopt(self) -> None:
        for index, group in enumerate(self.param_groups):
            self._check_numbers(group, f"param_groups[{index}]")
        for param in chain.from_iterable(group["params"] for group in self.param_groups):
            if param in self.state:
                self.state[param].update(_in_shape(self.state[param], param))
        self._take_numbers((0.0,) * len(self._names))
        defaults = {"differentiable": False, **self.defaults}  # the old one keeps its own
        self.defaults = {name: v for name, v in defaults.items() if name not in self._names}
        for group in self.param_groups:
            group.setdefault("differentiable", False)

    def _take_numbers(self, current: tuple[float, ...]) -> None:
        """Move what the package keeps in groups to the device; what they lack stays as current."""
        groups = self.param_groups
        pairs = zip(self._names, current, strict=True)
        found = [float(groups[0].get(name, value)) for name, value in pairs]
        found[1] = found[0]  # the last step's was the same
        for group in groups:
            for name in self._names:
                group.pop(name, None)
        self._distance_at_start = tuple(found)

    def _check_numbers(self, group: dict[str, Any], where: str) -> None:
        """Check a group's part of the estimate, and that all elements count in it."""
        if not is_int(sliced := group.get("slice_p", 1)) or sliced != 1:
            raise ValueError(f"slice_p of {where} must be 1, got {short_repr(sliced)}")
        for name in self._names:
            if name in group:
                check_finite(f"{name} of {where}", group[name])


@checked_methods()
class Prodigy(_EstimatedRate):
    """Adam that estimates its learning rate as it trains; leave ``lr`` at 1.

    Arguments and state dicts are those of prodigyopt.Prodigy. The estimate :attr:`d` is shared by
    all param groups and stays on the device; ``d_coef`` scales it. A ``schedule``, such as a
    cosine, multiplies ``lr`` as for every optimizer. Reported learning rates are ``lr`` times the
    schedule, without the estimate.

    Args:
        params: Parameters or param groups. ``beta3``, ``d_coef`` and ``growth_rate`` of the first
            group count for the estimate.
        lr: Factor of the estimated learning rate, above 0; default 1. A param group at 0 stays as
            it is. Values outside [0.1, 10] warn.
        betas: Decays of the average gradient and its square, in [0, 1); default (0.9, 0.999).
        beta3: Decay of the sums that the estimate is made of, in [0, 1); None, the default: the
            root of the second of ``betas``.
        eps: Times the estimate, added to the root of the average square, above 0; default 1e-8.
        weight_decay: Weight decay, 0 or more; default 0.
        decouple: Whether the decay is decoupled, as AdamW's; default True. False: an L2 penalty.
        use_bias_correction: Whether to correct the bias of both averages as Adam does; default
            False.
        safeguard_warmup: Whether to leave ``lr`` out of the estimate's denominator, for warm-ups;
            default False.
        d0: First estimate, above 0; default 1e-6.
        d_coef: Factor of each new estimate, above 0; default 1. Values of 0.5 to 2 are usual.
        growth_rate: Largest factor by which the estimate grows in a step, 1 or more; default
            infinity, no limit. Values like 1.02 warm up.
        fsdp_in_use: Ignored; accepted for compatibility with prodigyopt.
        slice_p: Must be 1: every element counts in the estimate.
        schedule: Multiplies the learning rates, see :meth:`set_schedule`; default None.
        **options: Options of the step, see :class:`lrfast.optim.Options`; ``state_dtype`` may not
            be bfloat16, because the estimate needs the first weights as they were.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> import torch, lrfast
        >>> layer, cosine = torch.nn.Linear(2, 1), lrfast.schedules.cosine(100)
        >>> optimizer = lrfast.Prodigy(layer.parameters(), weight_decay=0.01, schedule=cosine)

    Reference:
        Mishchenko & Defazio, "Prodigy: An Expeditiously Adaptive Parameter-Free Learner",
        arXiv:2306.06101.
    """

    _rule = "prodigy"
    _names = ("d", "", "d_max", "d_numerator", "d_denom", "k")

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
        beta3: float | None = None,
        eps: float = 1e-8,
        weight_decay: float = 0,
        decouple: bool = True,
        use_bias_correction: bool = False,
        safeguard_warmup: bool = False,
        d0: float = 1e-6,
        d_coef: float = 1.0,
        growth_rate: float = float("inf"),
        fsdp_in_use: bool = False,
        slice_p: int = 1,
        *,
        schedule: Schedules = None,
        **options: Unpack[StepOptions],
    ) -> None:
        if beta3 is not None and not 0 <= beta3 < 1:
            raise ValueError(f"beta3 must lie in [0, 1), got {beta3}")
        check_positive("d_coef", d_coef)
        if slice_p != 1:
            raise ValueError(f"slice_p must be 1, because every element counts, got {slice_p}")
        self._start(
            params, schedule, options, lr=lr, betas=betas, beta3=beta3, eps=eps,
            weight_decay=weight_decay, d0=d0, d_coef=d_coef, growth_rate=growth_rate,
            use_bias_correction=use_bias_correction, decouple=decouple,
            safeguard_warmup=safeguard_warmup, fsdp_in_use=fsdp_in_use, slice_p=slice_p,
        )  # fmt: skip

    def _check_state_dtypes(self) -> None:
        super()._check_state_dtypes()
        if torch.bfloat16 in map(self._options._asked_of, self.param_groups):
            raise ValueError(
                "state_dtype must be None or torch.float32, because the estimate needs the first "
                "weights as they were, got torch.bfloat16"
            )

    def _new_state(self, name: str, param: Tensor, dtype: torch.dtype) -> Tensor:
        state = super()._new_state(name, param, dtype)
        return state.copy_(param.detach()) if name == "p0" else state

    def _as_saved(self, state: dict[str, Any]) -> None:
        super()._as_saved(state)
        if self._keeps_shapes:
            return
        for place, own in state["state"].items():
            if isinstance(own, dict):
                held = {name: own.get(name) for name in _FLAT}
                flat = {name: _flat(s) for name, s in held.items() if isinstance(s, Tensor)}
                state["state"][place] = own | flat


@checked_methods()
class DAdaptAdam(_EstimatedRate):
    """Adam by D-Adaptation: it estimates its learning rate as it trains; leave ``lr`` at 1.

    Arguments and state dicts are those of dadaptation.DAdaptAdam. :class:`Prodigy` says what the
    estimate :attr:`d` is and what schedules do; this one never shrinks and grows more slowly.

    Args:
        params: Parameters or param groups. ``growth_rate`` and the second of ``betas`` of the first
            group count for the estimate. A group's ``layer_scale``, default 1, multiplies its
            learning rate and its part of the estimate.
        lr: Factor of the estimated learning rate, above 0; default 1. A param group at 0 stays as
            it is. Values outside [0.1, 10] warn.
        betas: Decays of the average gradient and its square, in [0, 1); default (0.9, 0.999).
        eps: Added to the root of the average square, above 0; default 1e-8.
        weight_decay: Weight decay, 0 or more; default 0.
        log_every: Ignored; accepted for compatibility with dadaptation.
        decouple: Whether the decay is decoupled, as AdamW's. False, the default: an L2 penalty.
        use_bias_correction: Whether to correct the bias of both averages as Adam does; default
            False.
        d0: First estimate, above 0; default 1e-6.
        growth_rate: Largest factor by which the estimate grows in a step, 1 or more; default
            infinity, no limit. Values like 1.02 warm up.
        fsdp_in_use: Ignored; accepted for compatibility with dadaptation.
        schedule: Multiplies the learning rates, see :meth:`set_schedule`; default None.
        **options: Options of the step, see :class:`lrfast.optim.Options`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> import torch, lrfast
        >>> layer, cosine = torch.nn.Linear(2, 1), lrfast.schedules.cosine(100)
        >>> optimizer = lrfast.DAdaptAdam(layer.parameters(), schedule=cosine)

    Reference:
        Defazio & Mishchenko, "Learning-Rate-Free Learning by D-Adaptation", arXiv:2301.07733.
    """

    _rule = "dadapt_adam"
    _names = ("d", "", "", "numerator_weighted", "", "k")

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        log_every: int = 0,
        decouple: bool = False,
        use_bias_correction: bool = False,
        d0: float = 1e-6,
        growth_rate: float = float("inf"),
        fsdp_in_use: bool = False,
        *,
        schedule: Schedules = None,
        **options: Unpack[StepOptions],
    ) -> None:
        self._start(
            params, schedule, options, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay,
            log_every=log_every, decouple=decouple, use_bias_correction=use_bias_correction, d0=d0,
            layer_scale=1.0, growth_rate=growth_rate, fsdp_in_use=fsdp_in_use,
        )  # fmt: skip


def _flat(state: Tensor) -> Tensor:
    """Return a state as prodigyopt keeps it; a DTensor, which it does not know, as it is."""
    return state if hasattr(state, "_local_tensor") else state.flatten()


def _in_shape(states: dict[str, Any], param: Tensor) -> dict[str, Tensor]:
    """Return flat states in a parameter's shape; of weights of zeros prodigyopt keeps one zero."""
    shaped = {}
    for name in _FLAT:
        state = states.get(name)
        if not isinstance(state, Tensor) or state.shape == param.shape:
            continue
        if state.numel() == math.prod(param.shape):
            shaped[name] = state.reshape(param.shape)
        elif state.dim() == 0:
            shaped[name] = state.expand(param.shape).clone()
    return shaped
