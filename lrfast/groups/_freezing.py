"""Freezing of layer groups as a mask: the optimizer's groups and states stay as they are."""

from __future__ import annotations

import warnings

import torch

from lrfast._utils.arguments import checked
from lrfast._utils.validation import is_int


@checked
def freeze_to(optimizer: torch.optim.Optimizer, n: int, *, train_norms: bool = False) -> None:
    """Freeze all layer groups before group n, and train group n and those after it.

    Layer groups are counted by the "layer" that `discriminative` gave to each param group; a param
    group without one is a layer group of its own, behind those before it.

    Sets ``group["frozen"]`` on every param group. Parameters of a frozen one stop requiring
    gradients and lose theirs; all others require gradients. The optimizer's groups and states stay
    as they are. With param groups of `discriminative`, parameters that did not require gradients
    when it was called never train, and a parameter tied to one of a trained group trains with it.

    Args:
        optimizer: Any torch optimizer, its groups ordered from body to head.
        n: Index of the first layer group to train; negative counts from the end, -1: the head,
            which warns if there is but one group.
        train_norms: Whether normalisation layers train in frozen groups too, like fastai's
            ``train_bn=True``; default False. Needs ``discriminative(..., split_norms=True)``.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If there is no group n, or train_norms finds norms and weights in one group.

    Example:
        >>> from lrfast import discriminative
        >>> model = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(3)))
        >>> optimizer = torch.optim.SGD(discriminative(model, slice(1e-4, 1e-2)))
        >>> freeze_to(optimizer, 1)
        >>> [group["frozen"] for group in optimizer.param_groups]
        [True, False, False]
    """
    layers = _layers(optimizer)
    count = max(layers) + 1
    if not is_int(n):
        raise TypeError(f"n must be a whole number, the index of a group, got {n!r}")
    if not -count <= n < count:
        raise ValueError(f"n must be from {-count} to {count - 1} for {count} groups, got {n}")
    if count == 1 and n < 0:
        warnings.warn(
            f"freeze_to({n}) freezes nothing, because the optimizer has one layer group, which is "
            "both body and head; make several with discriminative()",
            stacklevel=2,
        )
    if train_norms and not all("norms" in group for group in optimizer.param_groups):
        raise ValueError(
            "train_norms needs param groups that tell norms from weights, got one without "
            '"norms"; make them with discriminative(..., split_norms=True)'
        )
    first, is_captured = n % count, getattr(optimizer, "_captured_by", None) is not None
    for group, layer in zip(optimizer.param_groups, layers, strict=True):
        trains = group.get("tied_until", layer) >= first or (train_norms and group["norms"])
        group["frozen"] = frozen = not trains
        kept = set(group.get("kept_frozen", ()))
        own = [p for position, p in enumerate(group["params"]) if position not in kept]
        if is_captured and all(p.requires_grad for p in own):
            continue  # a captured graph writes on to the gradients whose addresses it recorded
        for position, parameter in enumerate(group["params"]):
            is_number = parameter.is_floating_point() or parameter.is_complex()
            # As an attribute: lazy parameters have no requires_grad_().
            parameter.requires_grad = is_number and not frozen and position not in kept
            if not parameter.requires_grad:
                parameter.grad = None


@checked
def freeze(optimizer: torch.optim.Optimizer, *, train_norms: bool = False) -> None:
    """Freeze all layer groups but the last, the head, as `freeze_to` does.

    Args:
        optimizer: Any torch optimizer with at least two layer groups, ordered from body to head.
        train_norms: Whether normalisation layers train too, as for `freeze_to`; default False.

    Raises:
        ValueError: If there is one group, which is both body and head.

    Example:
        >>> from lrfast import discriminative
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
        >>> freeze(torch.optim.SGD(discriminative(model, slice(1e-4, 1e-2))))
        >>> [parameter.requires_grad for parameter in model.parameters()]
        [False, False, True, True]
    """
    if layer_count(optimizer) < 2:
        raise ValueError("optimizer must have at least 2 groups, got 1; see discriminative()")
    freeze_to(optimizer, -1, train_norms=train_norms)


@checked
def unfreeze(optimizer: torch.optim.Optimizer) -> None:
    """Train all layer groups, as ``freeze_to(optimizer, 0)`` does.

    Args:
        optimizer: Any torch optimizer.

    Example:
        >>> model = torch.nn.Linear(4, 2).requires_grad_(False)
        >>> unfreeze(torch.optim.SGD(model.parameters()))
        >>> model.weight.requires_grad
        True
    """
    freeze_to(optimizer, 0)


@checked
def layer_count(optimizer: torch.optim.Optimizer) -> int:
    """Return the number of layer groups, which `freeze_to` counts.

    Args:
        optimizer: Any torch optimizer.

    Example:
        >>> from lrfast import discriminative
        >>> optimizer = torch.optim.SGD(discriminative(torch.nn.Linear(4, 2), 1.0, no_decay=True))
        >>> layer_count(optimizer), len(optimizer.param_groups)
        (1, 2)
    """
    return max(_layers(optimizer)) + 1


def _layers(optimizer: torch.optim.Optimizer) -> list[int]:
    """Return the index of each param group's layer group."""
    layers: list[int] = []
    following = 0
    for index, group in enumerate(optimizer.param_groups):
        layer = group.get("layer", following)
        if not is_int(layer) or layer < 0:
            raise ValueError(
                f'param_groups[{index}]["layer"] must be a whole number from 0 on, got {layer!r}'
            )
        layers.append(int(layer))
        following = max(following, layer + 1)
    return layers
