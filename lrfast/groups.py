"""Layer groups of a model, from body to head, with their learning rates and their freezing.

`layer_groups` cuts a module tree into ordered groups, `discriminative` turns them into the
parameter groups of an optimizer, and `freeze_to` freezes the body of what such an optimizer
trains. How rates move while training is left to the schedules, the update to the optimizer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple, TypeAlias, overload

import torch
from torch import Tensor, nn

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)

# BatchNorm2d, LayerNorm, LlamaRMSNorm, but not NormedLinear, which is a classifier head.
_NORM_CLASS = re.compile(r"Norm(\dd)?$")


@dataclass(frozen=True, eq=False)
class LayerGroup:
    """Parameters that share one learning rate, each in one group only."""

    name: str  # path of the module the group stands for
    parameters: tuple[Tensor, ...]
    names: tuple[str, ...]  # of the parameters, in the same order; the first of a tied one


GroupSpec: TypeAlias = nn.Module | LayerGroup | Iterable[nn.Module | Tensor]
Rates: TypeAlias = float | slice | Sequence[float]


@dataclass(frozen=True, eq=False)
class LayerGroups(Sequence[LayerGroup]):
    """Layer groups in order, from body to head."""

    groups: tuple[LayerGroup, ...]
    tied: list[tuple[str, ...]]  # all names of each parameter with several names
    duplicates: list[str]  # parameters that several groups held; the first one kept them

    def __len__(self) -> int:
        return len(self.groups)

    @overload
    def __getitem__(self, index: int) -> LayerGroup: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[LayerGroup, ...]: ...
    def __getitem__(self, index: int | slice) -> LayerGroup | tuple[LayerGroup, ...]:
        return self.groups[index]

    def describe(self) -> str:
        """Return a table of the groups, with the tied and duplicate parameters below it.

        Returns:
            One line per group: position, name, tensors, parameters, and how many of those train.

        Example:
            >>> model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 2))
            >>> print(layer_groups(model).describe())
            group  name  tensors  parameters  trainable
                0  0           4          56         56
                1  3           2          18         18
        """
        width = max(4, *(len(group.name) for group in self.groups))
        lines = [f"group  {'name':<{width}}  tensors  parameters  trainable"]
        for index, group in enumerate(self.groups):
            total = sum(p.numel() for p in group.parameters)
            trainable = sum(p.numel() for p in group.parameters if p.requires_grad)
            row = f"{index:>5}  {group.name:<{width}}  {len(group.names):>7}"
            lines.append(f"{row}  {total:>10,}  {trainable:>9,}")
        lines += [f"tied: {' = '.join(names)}" for names in self.tied]
        lines += [f"in several groups: {name}" for name in self.duplicates]
        return "\n".join(lines)


class _Block(NamedTuple):  # a candidate for a group, before parameters are counted once
    name: str
    parameters: list[Tensor]


def layer_groups(model: nn.Module, groups: Iterable[GroupSpec] | None = None) -> LayerGroups:
    """Cut a model into layer groups, ordered from body to head.

    The walk starts at the first module that has several children with parameters, or parameters
    of its own. Containers (Sequential, ModuleList, ModuleDict) are expanded into their blocks,
    recursively; every other child is one group. A normalisation layer, a leaf with a class named
    like BatchNorm2d or RMSNorm, joins the group before it. A module's own parameters, such as
    cls_token, belong to its first group. Order is the order of registration.

    Args:
        model: the module to cut.
        groups: explicit groups instead, body first: modules, or lists of modules or parameters.

    Returns:
        The groups. A parameter with several names or in several groups counts once, in the first
        group that holds it, and is listed in ``tied`` or ``duplicates``.

    Raises:
        TypeError: if an argument is of another type.
        ValueError: if the model has no parameters, if explicit groups leave one out or hold one
            that is not in the model, or if one of them adds none to those before it.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 2))
        >>> [group.names for group in layer_groups(model)]
        [('0.weight', '0.bias', '1.weight', '1.bias'), ('3.weight', '3.bias')]
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model)}")
    names: dict[Tensor, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    if not names:
        raise ValueError(f"model must have parameters, got {type(model).__name__} without any")
    if not isinstance(groups, Iterable | None):
        raise TypeError(f"groups must be a list with one entry per group, got {type(groups)}")
    blocks = _found_blocks(model) if groups is None else _given_blocks(model, groups, names)
    return _counted_once(blocks, names)


def discriminative(
    model: nn.Module,
    lr: Rates,
    weight_decay: float | None = None,
    groups: Iterable[GroupSpec] | None = None,
) -> list[dict[str, Any]]:
    """Build an optimizer's parameter groups with one learning rate per layer group.

    Args:
        model: the module to train.
        lr: the rates, as `spread` takes them.
        weight_decay: weight decay of every group; None leaves it to the optimizer's default.
        groups: explicit groups, as `layer_groups` takes them.

    Returns:
        One dict per group, body first: "params", with or without gradients, "lr", "name" and,
        where it is given, "weight_decay".

    Raises:
        TypeError, ValueError: where `layer_groups` or `spread` refuse their arguments, or the
            weight decay is not a number, negative or not finite.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> [(group["name"], group["lr"]) for group in discriminative(model, slice(1e-4, 1e-2))]
        [('0', 0.0001), ('2', 0.01)]

    Reference:
        Howard and Ruder, "Universal Language Model Fine-tuning for Text Classification", 2018.
    """
    layers = layer_groups(model, groups)
    extra = {} if weight_decay is None else {"weight_decay": _number("weight_decay", weight_decay)}
    return [
        {"params": list(group.parameters), "lr": rate, "name": group.name, **extra}
        for group, rate in zip(layers, spread(lr, len(layers)), strict=True)
    ]


def spread(lr: Rates, n: int) -> list[float]:
    """Spread learning rates over layer groups.

    ``slice(a, b)`` grows geometrically, ``a * (b / a) ** (i / (n - 1))``, and hits both ends
    exactly. ``slice(b)`` is b for the last group and b / 10 for all others, as in fastai.

    Args:
        lr: a number for all groups, a slice, or a list or tuple with one number per group.
        n: number of groups.

    Returns:
        [n] rates, body first.

    Raises:
        TypeError: if a rate is not a number.
        ValueError: if a rate is negative or not finite, a slice has a zero, no end, a step or
            only one group to fill, or a list has another length than n.

    Example:
        >>> spread(slice(1e-3), 3)
        [0.0001, 0.0001, 0.001]

    Reference:
        fastai 2.8, ``fastai/optimizer.py``, ``Optimizer.set_hyper``.
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"n must be a whole number of groups from 1 on, got {n!r}")
    if isinstance(lr, slice):
        return _spread_slice(lr, n)
    if isinstance(lr, (list, tuple)):
        if len(lr) != n:
            raise ValueError(f"lr must have one rate per group, got {len(lr)} for {n} groups")
        return [_number(f"lr[{i}]", rate) for i, rate in enumerate(lr)]
    return [_number("lr", lr)] * n


def freeze_to(optimizer: torch.optim.Optimizer, n: int) -> None:
    """Freeze all parameter groups before group n, and train group n and those after it.

    Sets ``group["frozen"]`` on every group. Parameters of a frozen group stop requiring gradients
    and lose the one they have; all parameters of the others require gradients. The optimizer's
    groups and states stay as they are.

    Args:
        optimizer: any torch optimizer, its groups ordered from body to head.
        n: index of the first group to train; negative counts from the end, -1 is the head alone.

    Raises:
        TypeError: if an argument is of another type.
        ValueError: if there is no group n.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4), nn.Linear(4, 2))
        >>> optimizer = torch.optim.SGD(discriminative(model, slice(1e-4, 1e-2)))
        >>> freeze_to(optimizer, 1)
        >>> [group["frozen"] for group in optimizer.param_groups]
        [True, False, False]
    """
    count = _group_count(optimizer)
    if isinstance(n, bool) or not isinstance(n, int):
        raise TypeError(f"n must be a whole number, the index of a group, got {n!r}")
    if not -count <= n < count:
        raise ValueError(f"n must be from {-count} to {count - 1} for {count} groups, got {n}")
    first = n % count
    for index, group in enumerate(optimizer.param_groups):
        group["frozen"] = index < first
        for parameter in group["params"]:
            parameter.requires_grad_(index >= first)
            if index < first:
                parameter.grad = None


def freeze(optimizer: torch.optim.Optimizer) -> None:
    """Freeze all parameter groups but the last, the head, as `freeze_to` does.

    Args:
        optimizer: any torch optimizer with at least two groups, ordered from body to head.

    Raises:
        ValueError: if there is one group, which is both body and head.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
        >>> freeze(torch.optim.SGD(discriminative(model, slice(1e-4, 1e-2))))
        >>> [parameter.requires_grad for parameter in model.parameters()]
        [False, False, True, True]
    """
    if _group_count(optimizer) < 2:
        raise ValueError("optimizer must have at least 2 groups, got 1; see discriminative()")
    freeze_to(optimizer, -1)


def unfreeze(optimizer: torch.optim.Optimizer) -> None:
    """Train all parameter groups, as ``freeze_to(optimizer, 0)`` does.

    Args:
        optimizer: any torch optimizer.

    Example:
        >>> model = nn.Linear(4, 2).requires_grad_(False)
        >>> unfreeze(torch.optim.SGD(model.parameters()))
        >>> model.weight.requires_grad
        True
    """
    freeze_to(optimizer, 0)


def _children(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        if next(child.parameters(), None) is not None:
            yield name, child


def _own(module: nn.Module) -> list[Tensor]:
    return list(module.parameters(recurse=False))


def _found_blocks(model: nn.Module) -> list[_Block]:
    path, module = "", model
    while len(children := list(_children(module))) == 1 and not _own(module):
        name, module = children[0]
        path = f"{path}.{name}" if path else name
    blocks: list[_Block] = []
    _add_blocks(blocks, path, module)
    return blocks


def _add_blocks(blocks: list[_Block], path: str, module: nn.Module) -> None:
    first = len(blocks)
    for name, child in _children(module):
        child_path = f"{path}.{name}" if path else name
        if isinstance(child, _CONTAINERS):
            _add_blocks(blocks, child_path, child)
        elif _is_norm(child) and blocks:
            blocks[-1].parameters.extend(child.parameters())
        else:
            blocks.append(_Block(child_path, list(child.parameters())))
    if own := _own(module):
        if first == len(blocks):
            blocks.append(_Block(path or type(module).__name__, []))
        blocks[first].parameters[:0] = own


def _is_norm(module: nn.Module) -> bool:
    is_leaf = next(module.children(), None) is None
    return is_leaf and any(_NORM_CLASS.search(cls.__name__) for cls in type(module).__mro__)


def _given_blocks(
    model: nn.Module, groups: Iterable[GroupSpec], names: dict[Tensor, list[str]]
) -> list[_Block]:
    """Return one block per explicit group, after checking that together they are the model."""
    paths = {id(module): path for path, module in model.named_modules()}
    blocks: list[_Block] = []
    given: set[Tensor] = set()
    for index, group in enumerate(groups):
        parameters = _members(index, group)
        if not all(parameter in names for parameter in parameters):
            raise ValueError(
                f"groups[{index}] must hold parameters of the model, got others too; "
                "pass modules of the model itself, not of a copy"
            )
        if given.issuperset(parameters):
            raise ValueError(
                f"groups[{index}] must hold a parameter that no earlier group holds, got none; "
                "leave this group out"
            )
        given.update(parameters)
        name = group.name if isinstance(group, LayerGroup) else paths.get(id(group))
        blocks.append(_Block(name or f"group {index}", parameters))
    missing = [aliases[0] for parameter, aliases in names.items() if parameter not in given]
    if missing:
        raise ValueError(f"groups must hold every parameter, add {', '.join(missing)} to one")
    return blocks


def _members(index: int, group: GroupSpec) -> list[Tensor]:
    if isinstance(group, (nn.Module, LayerGroup)):
        return list(group.parameters() if isinstance(group, nn.Module) else group.parameters)
    members: list[Tensor] = []
    for member in group if isinstance(group, Iterable) else [group]:
        if not isinstance(member, (nn.Module, Tensor)):
            raise TypeError(
                f"groups[{index}] must be a module or a list of modules or parameters, "
                f"got {type(member).__name__} in it"
            )
        members.extend(member.parameters() if isinstance(member, nn.Module) else [member])
    return members


def _counted_once(blocks: list[_Block], names: dict[Tensor, list[str]]) -> LayerGroups:
    """Return the groups, each parameter in the first block that holds it."""
    seen: set[Tensor] = set()
    groups: list[LayerGroup] = []
    repeated: list[Tensor] = []
    for block in blocks:
        members = dict.fromkeys(block.parameters)
        repeated += [parameter for parameter in members if parameter in seen]
        new = tuple(parameter for parameter in members if parameter not in seen)
        seen.update(new)
        if new:
            groups.append(LayerGroup(block.name, new, tuple(names[p][0] for p in new)))
    tied = [tuple(aliases) for aliases in names.values() if len(aliases) > 1]
    return LayerGroups(tuple(groups), tied, [names[p][0] for p in dict.fromkeys(repeated)])


def _spread_slice(lr: slice, n: int) -> list[float]:
    if lr.stop is None or lr.step is not None:
        raise ValueError(f"lr must be slice(first, last) or slice(last) if a slice, got {lr}")
    last = _number("lr.stop", lr.stop)
    first = last / 10 if lr.start is None else _number("lr.start", lr.start)
    if first == 0 or last == 0:
        raise ValueError(f"lr must not be 0 at an end of a slice, got {lr}; pass a list for that")
    if n == 1:
        raise ValueError(f"lr must be a number if there is one group, got {lr}; pass {last:g}")
    if lr.start is None:
        return [first] * (n - 1) + [last]
    # The formula may miss the last rate by a rounding error.
    return [first * (last / first) ** (i / (n - 1)) for i in range(n - 1)] + [last]


def _number(argument: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{argument} must be a number, got {value!r}; pass a float such as 1e-3")
    if not 0 <= float(value) < math.inf:
        raise ValueError(f"{argument} must be finite and not negative, got {value}; try 1e-3")
    return float(value)


def _group_count(optimizer: torch.optim.Optimizer) -> int:
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer)}")
    return len(optimizer.param_groups)
