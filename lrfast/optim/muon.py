"""Muon for hidden matrices and AdamW for all else; the rule is csrc/core/rules/muon.h."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, Final, Literal

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from lrfast._utils.arguments import checked_methods
from lrfast._utils.validation import (
    check_bool,
    check_choice,
    check_dict,
    check_finite,
    check_int,
    check_key,
    check_list,
    check_str,
    check_tensor,
    short_repr,
)
from lrfast.optim._newton_schulz import NewtonSchulz, make_rows
from lrfast.optim._optimizer import FusedOptimizer
from lrfast.optim._options import Schedules, StepOptions
from lrfast.optim._state import ROWS

_LARGEST: Final = sys.float_info.max
_MOST: Final = 1e6  # of numbers that enter the products, which half types can hold
_DTYPES: Final = (torch.bfloat16, torch.float32, torch.float64)
# Entries of a group by its rule, and the defaults of those that no argument sets.
_OF_ALL: Final = ("lr", "weight_decay", "eps", "rule", "differentiable")
_OF_MUON: Final = ("momentum", "nesterov", "ns_coefficients", "ns_steps", "adjust_lr_fn")
_BEYOND_TORCH: Final = {
    "differentiable": False, "rule": "muon", "ns_dtype": torch.bfloat16, "beta2": None,
}  # fmt: skip
_OF_ADAMW: Final = {"betas": (0.9, 0.999), "eps": 1e-8, "amsgrad": False, "maximize": False}
_NAMES: Final = {
    "muon": {*_OF_ALL, *_OF_MUON, "ns_dtype", "beta2"},
    "adamw": {*_OF_ALL, *_OF_ADAMW},
}


@checked_methods()
class Muon(FusedOptimizer, torch.optim.Optimizer):
    """Muon for the matrices of hidden layers, and AdamW for all other parameters, in one step.

    A param group chooses its update rule: ``{"params": ..., "rule": "muon"}``, the default, or
    ``{"params": ..., "rule": "adamw"}``, with "betas", "eps", "amsgrad" and "maximize" as in
    :class:`AdamW` and its defaults. :func:`lrfast.muon_groups` makes such groups of a model. All
    groups share the step, the schedule, the norm for clipping, the EMA and the state dict.

    Muon's arguments and results are torch.optim.Muon's. Matrices of one shape go through one
    batched product. Parameters with more than two dimensions, such as the weights of convolutions,
    are matrices of their first dimension and all others.

    Args:
        params: Parameters or param groups.
        lr: Learning rate of groups without their own, 0 or more; default 1e-3.
        weight_decay: Decoupled weight decay of groups without their own, 0 or more; default 0.1.
        momentum: Decay of the average of gradients, in [0, 1]; default 0.95.
        nesterov: Whether to look ahead by one gradient; default True.
        ns_coefficients: Of the polynomial of the Newton-Schulz iteration, three finite numbers;
            default (3.4445, -4.775, 2.0315).
        eps: Least norm by which a matrix is divided before it, 0 or more; default 1e-7.
        ns_steps: Number of its steps, in [0, 99]; default 5.
        adjust_lr_fn: Factor of the learning rate for a matrix with A outputs and B inputs:
            "original", ``sqrt(max(1, A / B))``, or "match_rms_adamw", ``0.2 * sqrt(max(A, B))``,
            with which AdamW's learning rates fit. None, the default: "original".
        ns_dtype: Dtype of the products, torch.bfloat16, float32 or float64; default bfloat16, as in
            torch.optim.Muon.
        beta2: Decay of the averages by which NorMuon evens out the rows of a direction, one row for
            each output, in [0, 1): the mean square of a row. The direction's norm stays. None, the
            default: no such averages; NorMuon's authors take 0.95.
        schedule: Multiplies the learning rates, see :meth:`set_schedule`; default None.
        **options: Options of the step, see :class:`lrfast.optim.Options`.

    Raises:
        ValueError: If an argument or an entry of a group is out of range, a group has an entry of
            the other rule, or a parameter of a group of rule "muon" has less than two dimensions,
            is complex or is a shard of a DTensor.

    Example:
        >>> import torch, lrfast
        >>> layer = torch.nn.Linear(4, 3)
        >>> groups = [{"params": [layer.weight]},
        ...           {"params": [layer.bias], "rule": "adamw", "lr": 3e-4}]
        >>> optimizer = lrfast.Muon(groups, lr=0.02, max_grad_norm=1.0)
        >>> layer(torch.ones(1, 4)).sum().backward()
        >>> optimizer.step()

    Reference:
        Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024; Liu et al.,
        "Muon is Scalable for LLM Training", arXiv:2502.16982; Li et al., "NorMuon: Making Muon more
        efficient and scalable", arXiv:2510.05491.
    """

    _rule = "muon"
    _products = NewtonSchulz()

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: Literal["original", "match_rms_adamw"] | None = None,
        *,
        ns_dtype: torch.dtype = torch.bfloat16,
        beta2: float | None = None,
        schedule: Schedules = None,
        **options: Unpack[StepOptions],
    ) -> None:
        defaults = {
            "lr": lr, "weight_decay": weight_decay, "momentum": momentum, "nesterov": nesterov,
            "ns_coefficients": ns_coefficients, "eps": eps, "ns_steps": ns_steps,
            "adjust_lr_fn": adjust_lr_fn, **_BEYOND_TORCH, "ns_dtype": ns_dtype, "beta2": beta2,
        }  # fmt: skip
        _check_values("", defaults)
        super().__init__(params, defaults)
        self._set_up(schedule, options)

    def _set_up(self, schedule: Schedules, options: StepOptions) -> None:
        for each in (self.defaults, *self.param_groups):
            if each.get("rule", "muon") == "muon":  # one of torch.optim.Muon's lacks some
                each |= {**_BEYOND_TORCH, **each}
        super()._set_up(schedule, options)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a param group, with the defaults of its rule.

        Args:
            param_group: "params" and, if they are not the defaults, "rule" and its hyperparameters.

        Raises:
            TypeError, ValueError: If it does not fit, see :class:`Muon`. Nothing has changed then.
        """
        check_dict("param_group", param_group, ["params"])
        where = f" of param_groups[{len(self.param_groups)}]"
        rule = param_group.get("rule", "muon")
        own = check_key(f"rule{where}", rule, _NAMES)
        if foreign := sorted(param_group.keys() & (set().union(*_NAMES.values()) - own)):
            raise ValueError(
                f"entries{where} must be of its rule {rule!r}, got {', '.join(map(repr, foreign))}"
            )
        params = param_group["params"]
        params = [params] if isinstance(params, Tensor) else params
        if not isinstance(params, set):  # which torch refuses
            params = list(params)
        group = (_OF_ADAMW if rule == "adamw" else {}) | param_group | {"params": params}
        own_defaults = {name: self.defaults[name] for name in own & self.defaults.keys()}
        _check_values(where, {**own_defaults, "rule": rule} | group)
        if rule == "muon":
            named = (each[1] if isinstance(each, tuple) else each for each in params)
            _check_matrices(where, [each for each in named if isinstance(each, Tensor)])
        super().add_param_group(group)
        for name in self.defaults.keys() - own:
            del group[name]

    def _check_steps(self) -> None:
        super()._check_steps()
        for index, group in enumerate(self.param_groups):
            if group.get("rule") == "muon":  # others are the engine's to refuse
                _check_products(f" of param_groups[{index}]", group)

    def _prepare_state(self, engine: Any, names: Any) -> None:
        super()._prepare_state(engine, names)
        state = self.state[names.param]
        if self.param_groups[names.group].get("beta2") is not None and state.get(ROWS) is None:
            state[ROWS] = make_rows(names.param)

    def _hyper_names(self, group: Mapping[str, Any]) -> set[str]:
        return _NAMES.get(_rule_of(group), set())

    def _as_own(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return a state dict of torch.optim.Muon or AdamW as that of groups of their rule."""
        groups = []
        for index, (group, own) in enumerate(
            zip(state["param_groups"], self.param_groups, strict=False)
        ):
            where, rule = f" of param_groups[{index}]", _rule_of(group)
            check_choice(f"rule{where}", rule, (own["rule"],))
            if not group.get("decoupled_weight_decay", True):
                raise ValueError(f"decoupled_weight_decay{where} must be True, got False")
            beyond = _BEYOND_TORCH if rule == "muon" else {"differentiable": False, "rule": rule}
            filled = beyond | group
            _check_values(where, filled)
            groups.append(filled)
            for place, param in zip(group["params"], own["params"], strict=False):
                _check_rows(place, state["state"].get(place), param)
        return state | {"param_groups": groups + state["param_groups"][len(groups) :]}


def _rule_of(group: Mapping[str, Any]) -> str:
    """Return the rule of a group, which one of torch.optim does not name."""
    return str(group.get("rule", "adamw" if "betas" in group else "muon"))


def _check_values(where: str, group: Mapping[str, Any]) -> None:
    """Check the hyperparameters of a group's own rule."""
    is_muon = group["rule"] == "muon"
    if missing := sorted(_NAMES[group["rule"]] - group.keys()):
        raise ValueError(f"entries{where} must be those of its rule, got none for {missing[0]!r}")
    for name in ("lr", "weight_decay", "eps", *(("momentum",) if is_muon else ())):
        value = group[name]
        if not isinstance(value, Tensor):
            check_finite(name + where, value, 0.0, 1.0 if name == "momentum" else _LARGEST)
        elif value.numel() != 1:
            got = f"a tensor of shape {list(value.shape)}"
            raise ValueError(f"{name}{where} must be one number, got {got}")
    if is_muon:
        check_bool(f"nesterov{where}", group["nesterov"])
        _check_products(where, group)
        return
    for name in ("amsgrad", "maximize"):
        check_bool(name + where, group[name])
    for index, beta in enumerate(check_list(f"betas{where}", group["betas"], 2)):
        if not isinstance(beta, Tensor) and check_finite(f"betas{where}", beta, 0.0) >= 1:
            raise ValueError(f"betas{where} must lie in [0, 1), got {beta} as number {index}")


def _check_products(where: str, group: Mapping[str, Any]) -> None:
    """Check what the products of a group need: an error among them would leave half a step."""
    check_int(f"ns_steps{where}", group.get("ns_steps"), 0, 99)
    check_finite(f"eps{where}", group.get("eps"), 0.0, _MOST)
    if (beta2 := group.get("beta2")) is not None and check_finite(f"beta2{where}", beta2, 0.0) >= 1:
        raise ValueError(f"beta2{where} must be None or lie in [0, 1), got {beta2}")
    coefficients = check_list(f"ns_coefficients{where}", group.get("ns_coefficients"))
    if len(coefficients) != 3:
        got = short_repr(group.get("ns_coefficients"))
        raise ValueError(f"ns_coefficients{where} must be three numbers, got {got}")
    for each in coefficients:
        check_finite(f"ns_coefficients{where}", each, -_MOST, _MOST)
    if (adjust := group.get("adjust_lr_fn")) is not None:
        check_str(f"adjust_lr_fn{where}", adjust, ("original", "match_rms_adamw"))
    if (dtype := group.get("ns_dtype")) not in _DTYPES:
        wanted = "torch.bfloat16, torch.float32 or torch.float64"
        raise ValueError(f"ns_dtype{where} must be {wanted}, got {short_repr(dtype)}")


def _check_rows(place: Any, state: Any, param: Tensor) -> None:
    """Check the averages of a matrix's rows in a state dict."""
    rows = state.get(ROWS) if isinstance(state, Mapping) else None
    if rows is None:
        return
    wanted = [param.shape[:1].numel(), 1]
    where = f"state[{short_repr(place)}][{ROWS!r}]"
    if list(check_tensor(where, rows).shape) != wanted or not rows.is_floating_point():
        raise ValueError(
            f"{where} must be a floating-point tensor of shape {wanted}, got {short_repr(rows)}"
        )


def _check_matrices(where: str, params: list[Tensor]) -> None:
    """Refuse parameters that are no matrices, or only parts of some."""
    for index, param in enumerate(params):
        which = f"parameter {index}{where}"
        if param.dim() < 2:
            raise ValueError(
                f"{which} must have two dimensions or more for rule 'muon', got shape "
                f"{list(param.shape)}; put it into a group of rule 'adamw', or use "
                "lrfast.muon_groups"
            )
        if param.is_complex():
            raise ValueError(f"{which} must be real for rule 'muon', got {param.dtype}")
        placements = getattr(param, "placements", ())  # a DTensor's
        if any(placement.is_shard() for placement in placements):
            raise ValueError(
                f"{which} must be whole for rule 'muon', got shards {placements}; put it into a "
                "group of rule 'adamw'"
            )
