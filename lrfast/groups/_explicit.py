"""Explicit layer groups: modules, parameters, name patterns or a function, checked for gaps."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import translate
from typing import Any, TypeAlias

from torch import Tensor, nn

from lrfast._utils.validation import is_int
from lrfast.groups._automatic import Block
from lrfast.groups._layer_group import LayerGroup

GroupSpec: TypeAlias = (
    nn.Module | LayerGroup | str | Mapping[str, Any] | Iterable[nn.Module | Tensor]
)
Groups: TypeAlias = Iterable[GroupSpec] | Callable[[str], int | None]
Names: TypeAlias = Mapping[Tensor, list[str]]

_REST = "*"
# What param groups have of `discriminative`, which makes it anew.
_MADE = ("params", "name", "layer", "tied_until", "kept_frozen", "norms", "frozen")


def compile_pattern(pattern: str) -> Callable[[str], object]:
    """Return a test for parameter names.

    A glob, whose ``*`` also matches dots, matches the whole name of a parameter or the whole path
    of a module that holds it: ``layers.1`` picks ``layers.1.fc.weight`` but not
    ``layers.10.fc.weight``. Case counts.
    """
    return re.compile(f"(?:{translate(pattern)})|(?:{translate(pattern + '.*')})").match


def matching(pattern: str, names: Names) -> list[Tensor]:
    """Return the parameters with a name that a pattern matches."""
    matches = compile_pattern(pattern)
    return [p for p, aliases in names.items() if any(map(matches, aliases))]


def all_matching(argument: str, patterns: Sequence[str], names: Names) -> set[Tensor]:
    """Return the parameters that any of an argument's patterns matches; each has to match some."""
    chosen: set[Tensor] = set()
    for index, pattern in enumerate(patterns):
        found = matching(pattern, names)
        if not found:
            raise ValueError(
                f"{argument}[{index}] must match the name of a parameter or the path of a module, "
                f"got {pattern!r}; a part of a name matches as '*{pattern}*'"
            )
        chosen.update(found)
    return chosen


def explicit_blocks(model: nn.Module, groups: Iterable[GroupSpec], names: Names) -> list[Block]:
    """Return one block per explicit group, after checking that they hold the model's parameters."""
    paths = {id(module): path for path, module in model.named_modules()}
    blocks: list[Block] = []
    given: set[Tensor] = set()
    may_leave_out = False  # what is frozen, as an optimizer's param groups may
    for index, group in enumerate(groups):
        if isinstance(group, str):
            taken = given if group == _REST else set()
            parameters = [p for p in matching(group, names) if p not in taken]
        else:
            parameters = _members(index, group)
        if isinstance(group, str) and not parameters and group != _REST:
            raise ValueError(
                f"groups[{index}] must match the name of a parameter or the path of a module, "
                f"got {group!r}"
            )
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
        options = group.items() if isinstance(group, Mapping) else ()
        own = {key: value for key, value in options if key not in _MADE}
        blocks.append(Block([(_spec_name(index, group, paths), parameters)], options=own))
        may_leave_out |= isinstance(group, Mapping)
    missing = [
        aliases[0]
        for parameter, aliases in names.items()
        if parameter not in given and (parameter.requires_grad or not may_leave_out)
    ]
    if missing:
        raise ValueError(f"groups must hold every parameter, add {', '.join(missing)} to one")
    return blocks


def _spec_name(index: int, group: GroupSpec, paths: Mapping[int, str]) -> str:
    if isinstance(group, str):
        return group
    if isinstance(group, Mapping):
        name = group.get("name")
    else:
        name = group.name if isinstance(group, LayerGroup) else paths.get(id(group))
    return name or f"group {index}"


def _members(index: int, group: GroupSpec) -> list[Tensor]:
    if isinstance(group, (nn.Module, LayerGroup)):
        return list(group.parameters() if isinstance(group, nn.Module) else group.parameters)
    if isinstance(group, Mapping):
        if "params" not in group:
            raise ValueError(f'groups[{index}] must have "params" if a dict, got {list(group)}')
        group = [group["params"]] if isinstance(group["params"], Tensor) else group["params"]
    members: list[Tensor] = []
    for member in group if isinstance(group, Iterable) else [group]:
        if not isinstance(member, (nn.Module, Tensor)):
            hint = "; names go into one glob, such as '[01].*'" if isinstance(member, str) else ""
            raise TypeError(
                f"groups[{index}] must be a module or a list of modules or parameters, "
                f"got {type(member).__name__} in it{hint}"
            )
        members.extend(member.parameters() if isinstance(member, nn.Module) else [member])
    return members


def numbered_blocks(number_of: Callable[[str], object], names: Names) -> list[Block]:
    """Return one block per number that a function gives to names, after such checks."""
    numbered: dict[int, list[Tensor]] = {}
    missing: list[str] = []
    for parameter, aliases in names.items():
        numbers = {n for name in aliases if (n := _number(number_of, name)) is not None}
        for number in numbers:
            numbered.setdefault(number, []).append(parameter)
        if not numbers:
            missing.append(aliases[0])
    if missing:
        listed = ", ".join(missing)
        raise ValueError(f"groups must give every parameter a number, got None for {listed}")
    given: set[Tensor] = set()
    for at, (number, members) in enumerate(sorted(numbered.items())):
        if number != at:
            raise ValueError(f"groups must use every number from 0 on, got no parameter for {at}")
        if given.issuperset(members):
            raise ValueError(
                f"groups must give group {number} a parameter that no earlier group holds, "
                f"got {', '.join(names[p][0] for p in members)}"
            )
        given.update(members)
    return [Block([(f"group {number}", numbered[number])]) for number in range(len(numbered))]


def _number(number_of: Callable[[str], object], name: str) -> int | None:
    found = number_of(name)
    if found is not None and not (is_int(found) and found >= 0):
        raise ValueError(
            f"groups must return a whole number from 0 on, or None, got {found!r} for {name}"
        )
    return None if found is None else int(found)
