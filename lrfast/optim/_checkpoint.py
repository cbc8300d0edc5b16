"""Checks of an optimizer's state dict before anything changes, and the rollback of a load."""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, repeat
from typing import Any

import torch
from torch import Tensor

from lrfast._utils.extension import extension
from lrfast._utils.validation import (
    MAX_STEPS,
    check_choice,
    check_dict,
    check_finite,
    check_int,
    check_list,
    check_str,
    check_tensor,
    short_repr,
)
from lrfast.optim._buffer_averages import saved_averages
from lrfast.optim._loss_schedules import check_saved
from lrfast.optim._options import MASTERS, check_group, check_saved_groups
from lrfast.optim._scheduling import SchedulingMixin, saved_schedules
from lrfast.optim._state import CODES, MASTER, SCALARS, SCALES, base_name, count_scales

ENGINE_ENTRY = "lrfast"  # key of lrfast's entry in a state dict; torch.optim ignores it


# What wrappers put into the names of parameters: DDP, torch.compile, FSDP, activation checkpoints.
_WRAPPERS = re.compile(r"^module\.|_orig_mod\.|_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.")


def without_wrappers(name: str) -> str:
    """Return a name in a model as it is without wrappers around its modules."""
    return _WRAPPERS.sub("", name)


def check_state_dict(
    optimizer: SchedulingMixin, rule: str, state_dict: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a state dict that an optimizer can load, its parameters in the optimizer's order.

    torch checks the number of parameters.
    """
    check_dict("state_dict", state_dict, ["state", "param_groups"])
    check_dict("state", state_dict["state"])
    groups = [
        check_dict(f"param_groups[{index}]", group, ["params"])
        for index, group in enumerate(check_list("param_groups", state_dict["param_groups"]))
    ]
    for index, group in enumerate(groups):
        for place in check_list(f"params of param_groups[{index}]", group["params"]):
            if not isinstance(place, int | str):
                raise ValueError(f"params must be numbers or names, got {short_repr(place)}")
        _check_copies(f"param_groups[{index}]", group)
    groups = _in_own_order(optimizer, groups)
    state_dict = {**state_dict, "param_groups": groups}
    check_saved_groups(optimizer._hyper_names, state_dict)
    state_dict = optimizer._as_own(state_dict)
    groups = _with_own_dtypes(optimizer, state_dict["param_groups"])
    state_dict = {**state_dict, "param_groups": groups}
    _check_states(optimizer, rule, groups, state_dict["state"])
    check_entry(optimizer, state_dict.get(ENGINE_ENTRY, {}))
    return state_dict


def _in_own_order(optimizer: SchedulingMixin, groups: list[dict[Any, Any]]) -> list[dict[Any, Any]]:
    """Return saved groups with parameters by name, if both sides have names, else as they are.

    torch goes by position alone, so that two parameters of one shape may swap their states.
    """
    own: list[Any] = [group.get("param_names") for group in optimizer.param_groups]
    if len(own) != len(groups) or None in (*own, *(group.get("param_names") for group in groups)):
        return groups
    ordered = []
    for index, (group, names) in enumerate(zip(groups, own, strict=True)):
        where = f"param_names of param_groups[{index}]"
        saved = [check_str(where, name) for name in check_list(where, group["param_names"])]
        places = dict(zip(saved, group["params"], strict=False))
        wanted = names
        if places.keys() != set(names):
            places = {without_wrappers(name): place for name, place in places.items()}
            wanted = [without_wrappers(name) for name in names]
        lacking, foreign = sorted(set(wanted) - places.keys()), sorted(places.keys() - set(wanted))
        if lacking or foreign or not len(saved) == len(places) == len(group["params"]):
            raise ValueError(
                f"{where} must be the optimizer's {len(names)} names, got {len(saved)}, which lack "
                f"{short_repr(lacking)} and have {short_repr(foreign)}; delete 'param_names' from "
                "its groups to load by position"
            )
        params = [places[name] for name in wanted]
        ordered.append(group | {"params": params, "param_names": list(names)})
    return ordered


def _with_own_dtypes(
    optimizer: SchedulingMixin, groups: list[dict[Any, Any]]
) -> list[dict[Any, Any]]:
    """Return saved groups that keep their states as the optimizer's own do."""
    own = chain((group.get("state_dtype") for group in optimizer.param_groups), repeat(None))
    return [
        group if dtype is None and "state_dtype" not in group else group | {"state_dtype": dtype}
        for group, dtype in zip(groups, own, strict=False)
    ]


def check_entry(optimizer: SchedulingMixin, entry: Any) -> None:
    """Check lrfast's entry of a state dict."""
    saved = saved_schedules(check_dict(ENGINE_ENTRY, entry))
    if saved is not None:
        check_int("schedule_step", entry.get("schedule_step"))
        if len(saved) != len(optimizer.param_groups):
            raise ValueError(
                f"schedules must be one per param group, {len(optimizer.param_groups)}, got "
                f"{len(saved)}"
            )
    check_int("steps", entry.get("steps", 0))
    check_choice("master", entry.get("master", "24bit"), tuple(MASTERS))
    check_saved(optimizer, entry.get("loss_schedule"))
    averages = saved_averages(entry)
    if optimizer._buffer_averages is not None:
        optimizer._buffer_averages.check(averages)


def check_loaded_groups(optimizer: SchedulingMixin, rule: str) -> None:
    """Check that a step can read the hyperparameters that were loaded."""
    try:
        for index, group in enumerate(optimizer.param_groups):
            check_group(index, group)
        extension().check_groups(rule, optimizer.param_groups)
        for beta in chain.from_iterable(g.get("betas", ()) for g in optimizer.param_groups):
            # Its powers must not overflow; reading one on a GPU would synchronise.
            if not isinstance(beta, Tensor) or beta.is_cpu:
                check_finite("betas", float(beta), least=0.0, most=1.0)
    except KeyError as error:
        raise ValueError(f"state_dict must hold all hyperparameters: {error.args[0]}") from error
    except RuntimeError as error:  # of a value that is true and false
        reason = str(error)[:200]
        raise ValueError(f"state_dict must hold plain hyperparameters: {reason}") from error


@contextmanager
def rollback_on_error(optimizer: SchedulingMixin) -> Iterator[None]:
    """Restore the optimizer if the block raises; torch's load replaces its tables."""
    averages = ("_buffer_averages", "_saved_averages")
    names = ("state", "param_groups", "_engine", "_loaded_clock", "_distance_at_start", *averages)
    kept = {name: getattr(optimizer, name) for name in names}
    schedules = optimizer._schedule_snapshot()
    try:
        yield
    except BaseException:
        engine = kept["_engine"]
        vars(optimizer).update(kept)
        optimizer._engine = None  # it still has the schedules, so send none
        optimizer._schedule_restore(schedules)
        optimizer._engine = engine
        raise


def _check_states(
    optimizer: SchedulingMixin, rule: str, groups: list[dict[Any, Any]], state: dict[Any, Any]
) -> None:
    names = {key: {*chain.from_iterable(forms)} for key, forms in extension().rule_states.items()}
    coded = extension().coded_states.get(rule, {})
    moments = names[rule] | {"ema"}
    foreign = set().union(*names.values()) - moments
    saved = list(chain.from_iterable(group["params"] for group in groups))
    _check_copies("state", {place: state[place] for place in state.keys() - set(saved)})
    params = chain.from_iterable(group["params"] for group in optimizer.param_groups)
    for place, param in zip(saved, params, strict=False):
        if place not in state or not _may_train(param):
            continue
        for name, value in check_dict(f"state[{short_repr(place)}]", state[place]).items():
            where = f"state[{short_repr(place)}][{short_repr(check_str('a state', name))}]"
            if base_name(name) in foreign:
                raise ValueError(
                    f"state_dict must be of the same rule: its {where} is of another one"
                )
            if name in SCALARS:
                _check_scalar(name, where, value)
            elif name == MASTER:
                _check_master(where, value, param)
            elif (base := base_name(name)) != name and base in moments:
                if base not in coded or base in state[place]:
                    raise ValueError(f"{where} must be a state in 8 bits, of a rule that has some")
                _check_codes(where, base, state[place], param)
            elif isinstance(value, Tensor):
                if check_tensor(where, value).shape != param.shape and name in moments:
                    raise ValueError(
                        f"{where} must have its parameter's shape {list(param.shape)}, got "
                        f"{short_repr(value)}"
                    )
            elif value is not None and (name in moments or not isinstance(value, int | float)):
                raise ValueError(f"{where} must be a tensor or None, got {short_repr(value)}")


def _check_codes(where: str, name: str, state: dict[str, Any], param: Tensor) -> None:
    """Check the two tensors of a state in 8 bits."""
    codes, scales = state.get(name + CODES), state.get(name + SCALES)
    # Scales of a checkpoint that any number of processes reads are one for each code.
    shapes: tuple[list[Any], ...] = ([param.shape], [(count_scales(param),), param.shape])
    for value, allowed in zip((codes, scales), shapes, strict=True):
        is_bytes = isinstance(value, Tensor) and value.dtype is torch.uint8
        if not is_bytes or check_tensor(where, value).shape not in allowed:
            raise ValueError(
                f"{where} must be uint8 {list(allowed[0])}, beside the other of {name + CODES!r} "
                f"and {name + SCALES!r}, got {short_repr(value)}"
            )
    if hasattr(codes, "_local_tensor") != hasattr(param, "_local_tensor"):
        raise ValueError(f"{where} must be a DTensor if its parameter is one, got {type(codes)}")


def _check_master(where: str, value: Any, param: Tensor) -> None:
    """Check the master bits of a parameter."""
    is_bits = isinstance(value, Tensor) and value.dtype in (torch.int8, torch.int16)
    if not is_bits or check_tensor(where, value).shape != param.shape:
        raise ValueError(
            f"{where} must be int8 or int16 {list(param.shape)}, got {short_repr(value)}"
        )


def _may_train(param: Tensor) -> bool:
    """Return whether a step can use states of a parameter; torch's Adagrad makes them for any."""
    is_dense = param.layout is torch.strided and not param.is_quantized
    return is_dense and param.device.type != "meta"


def _check_copies(where: str, group: dict[Any, Any]) -> None:
    """Check that the entries of a group or state can be copied, as torch does it."""
    for name, value in group.items():
        if name == "params" or isinstance(value, int | float | str | None):
            continue
        if name in ("capturable", "fused"):  # torch takes their truth value
            raise ValueError(f"{where}[{name!r}] must be True or False, got {short_repr(value)}")
        try:
            copy.deepcopy(value)
        except Exception as error:
            raise ValueError(
                f"{where}[{short_repr(name)}] must be plain data, got {short_repr(value)}, which "
                f"cannot be copied: {type(error).__name__}"
            ) from error


def _check_scalar(name: str, where: str, value: Any) -> None:
    is_product = name.endswith("product")
    most = 1.0 if is_product else float(MAX_STEPS) if name == "step" else sys.float_info.max
    if not isinstance(value, Tensor):
        check_finite(where, value, least=0.0, most=most)
        return
    if check_tensor(where, value).numel() != 1 or value.is_complex():
        raise ValueError(f"{where} must be one number, got {short_repr(value)}")
    if value.is_cpu:  # reading one on a GPU would synchronise
        check_finite(where, float(value), least=0.0, most=most)
