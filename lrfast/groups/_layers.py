"""The cut of a model into layer groups, automatic or explicit, each parameter counted once."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from lrfast._utils.arguments import checked, described
from lrfast.groups._automatic import Block, automatic_blocks
from lrfast.groups._explicit import Groups, Names, explicit_blocks, numbered_blocks
from lrfast.groups._layer_group import LayerGroup, LayerGroups


@checked
def layer_groups(model: nn.Module, groups: Groups | None = None) -> LayerGroups:
    """Cut a model into layer groups, ordered from body to head.

    The walk starts at the first module with several children that have parameters, or parameters
    of its own. Containers (Sequential, ModuleList, ModuleDict) are expanded into their blocks, and
    so is a child that keeps at least half of its weights, embeddings aside, in containers of
    repeated blocks, as encoders of torchvision and timm do. Every other child is one group.

    Groups are in the order of registration. Among the children of a module that is no container,
    embedding tables come first, a norm named as the final one follows the layers, and a child named
    as a head or classifier comes last. A normalisation layer, one with a class named like
    BatchNorm2d or RMSNorm, joins the group before it, an embedding the embedding before it. A
    module's direct parameters, such as cls_token, belong to its first group.

    Args:
        model: Module to cut.
        groups: Explicit groups, either a list, body first, or a function; None, the default, for
            automatic ones. A list holds per group a module, a list of modules or parameters, or a
            string: a glob for the names of parameters, whose ``*`` also matches dots, or for the
            path of a module. A last string of ``"*"`` takes the rest. A function gets the name of a
            parameter and returns the index of its group, 0 for the body, or None for no group.
            An optimizer's param groups may stand in a list, such as those of `lora_groups`; what is
            frozen may then be in none of them. Layer groups of the model are returned as they are.

    Returns:
        The groups. A parameter with several names or in several groups counts once, in the first
        group that holds it, and is listed in ``tied`` or ``duplicates``.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If the model has no parameters, explicit groups leave one out or hold one that
            is not in the model, or one of them adds none to those before it.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 2))
        >>> [group.names for group in layer_groups(model)]
        [('0.weight', '0.bias', '1.weight', '1.bias'), ('3.weight', '3.bias')]
        >>> len(layer_groups(model, ["[01]", "*"]))
        2
    """
    if isinstance(groups, LayerGroups) and groups.model is model:
        return groups
    names = parameter_names(model)
    if not names:
        raise ValueError(f"model must have parameters, got {type(model).__name__} without any")
    if groups is None:
        blocks = automatic_blocks(model)
    elif callable(groups) and not isinstance(groups, nn.Module):
        blocks = numbered_blocks(groups, names)
    elif isinstance(groups, Iterable):
        blocks = explicit_blocks(model, groups, names)
    else:
        raise TypeError(f"groups must be a list with one entry per group, got {described(groups)}")
    return _counted_once(model, blocks, names)


def parameter_names(model: nn.Module) -> dict[Tensor, list[str]]:
    """Return all names of each parameter, in the order of registration."""
    names: dict[Tensor, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    return names


def _counted_once(model: nn.Module, blocks: list[Block], names: Names) -> LayerGroups:
    """Return the groups, each parameter in the first block that holds it."""
    seen: dict[Tensor, int] = {}  # and the index of its group
    groups: list[LayerGroup] = []
    repeated: list[Tensor] = []
    until: dict[Tensor, int] = {}
    for block in blocks:
        members = dict.fromkeys([*block.direct, *(p for _, part in block.parts for p in part)])
        again = [parameter for parameter in members if parameter in seen]
        new = tuple(parameter for parameter in members if parameter not in seen)
        # A part whose parameters all lie in earlier groups gives no group its name.
        name = next((path for path, part in block.parts if not seen.keys() >= set(part)), None)
        if new:
            seen |= dict.fromkeys(new, len(groups))
            member_names = tuple(names[p][0] for p in new)
            groups.append(LayerGroup(name or block.parts[0][0], new, member_names, block.options))
        repeated += again
        last = len(groups) - 1
        until |= {p: last for p in again if len(names[p]) > 1 and seen[p] < last}
    tied = [tuple(aliases) for aliases in names.values() if len(aliases) > 1]
    duplicates = [names[p][0] for p in dict.fromkeys(repeated)]
    return LayerGroups(tuple(groups), tied, duplicates, model, until)
