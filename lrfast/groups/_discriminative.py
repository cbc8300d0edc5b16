"""Parameter groups of an optimizer, one or a few per layer group."""

from __future__ import annotations

import re
from collections.abc import Sequence
from operator import itemgetter
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lrfast._utils.arguments import checked
from lrfast._utils.validation import check_rate
from lrfast.groups._explicit import Groups, all_matching
from lrfast.groups._layers import layer_groups, parameter_names
from lrfast.groups._norms import norm_parameters
from lrfast.groups._rates import Rates, decayed, spread

_BIAS = re.compile(r"(^|_)bias(_|$)")


@checked
def discriminative(
    model: nn.Module,
    lr: Rates,
    weight_decay: float | None = None,
    decay: float | None = None,
    groups: Groups | None = None,
    no_decay: Sequence[str] | Literal[True] | None = None,
    min_scale: float = 0.0,
    *,
    split_norms: bool = False,
) -> list[dict[str, Any]]:
    """Build an optimizer's parameter groups with one learning rate per layer group.

    A layer group becomes one param group, and one more for each kind of its parameters that
    differs: without weight decay, tied to a later group, of normalisation layers.

    Args:
        model: Module to train.
        lr: Learning rates, as `spread` takes them.
        weight_decay: Weight decay of every group, 0 or more; None, the default: the optimizer's.
            Param groups among ``groups`` keep their own.
        decay: Factor in (0, 1] from one layer group to the one before it; None, the default: 1.
            Group i has ``lr * max(min_scale, decay ** (last - i))``. ULMFiT's is 1/2.6.
        groups: Explicit groups, as `layer_groups` takes them; None, the default: automatic.
        no_decay: Parameters whose weight decay is 0. True: those of normalisation layers, biases,
            and all of dimension 1 or less. A list: those that its patterns match, as
            `layer_groups` takes them. None, the default: none.
        min_scale: Smallest fraction of lr, in [0, 1], that decay leads to; default 0.
        split_norms: Whether parameters of normalisation layers get param groups of their own, which
            can train in frozen layer groups (``train_norms`` of `freeze_to`); default False.

    Returns:
        One dict per param group, body first: "params", with or without gradients, "lr", "name",
        "layer" (index of the layer group, as `freeze_to` counts) and, if they apply,
        "weight_decay", "tied_until" (index of the last layer group with a parameter that these are
        tied to: they train with it), "norms" (with split_norms: whether these are of normalisation
        layers) and "kept_frozen" (positions of those without gradients now, which stay so).

    Raises:
        TypeError, ValueError: If `layer_groups` or `spread` refuse their arguments, a number lies
            outside its range, lr is none beside decay, or a pattern of no_decay matches nothing.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> [(group["name"], group["lr"]) for group in discriminative(model, slice(1e-4, 1e-2))]
        [('0', 0.0001), ('2', 0.01)]
        >>> [group["name"] for group in discriminative(model, 1e-2, decay=0.5, no_decay=True)]
        ['0', '0, no decay', '2', '2, no decay']

    Reference:
        ULMFiT: arXiv:1801.06146; ``param_groups_layer_decay`` of timm 1.0.
    """
    layers = layer_groups(model, groups)
    if decay is not None:
        rates = decayed(lr, len(layers), decay, min_scale)
    elif min_scale != 0:
        raise ValueError(f"min_scale must come with a decay, got {min_scale} without one")
    else:
        rates = spread(lr, layers)
    settings: dict[str, Any] = {}
    if weight_decay is not None:
        settings["weight_decay"] = check_rate("weight_decay", weight_decay)
    spared = _spared(model, no_decay)
    norms = norm_parameters(model) if split_norms else set()
    built: list[dict[str, Any]] = []
    for index, (layer, rate) in enumerate(zip(layers, rates, strict=True)):
        kinds: dict[tuple[int, bool, bool], list[Tensor]] = {}
        for p in layer.parameters:
            kind = (layers.tied_until.get(p, index), p in norms, p in spared)
            kinds.setdefault(kind, []).append(p)
        for (until, is_norm, is_spared), params in sorted(kinds.items(), key=itemgetter(0)):
            name = layer.name + (f", tied to {until}" if until > index else "")
            name += (", norms" if is_norm else "") + (", no decay" if is_spared else "")
            group = {"params": params, "lr": rate, "name": name, "layer": index, **settings}
            group |= {option: value for option, value in layer.options.items() if option != "lr"}
            if until > index:
                group["tied_until"] = until
            if is_spared:
                group["weight_decay"] = 0.0
            # Positions and not names or tensors: a state dict keeps them, and they fit any copy.
            if kept := [position for position, p in enumerate(params) if not p.requires_grad]:
                group["kept_frozen"] = kept
            if split_norms:
                group["norms"] = is_norm
            built.append(group)
    return built


def is_bias(name: str) -> bool:
    """Tell by a parameter's name whether it is a bias."""
    return _BIAS.search(name.rpartition(".")[2]) is not None


def _spared(model: nn.Module, no_decay: Sequence[str] | Literal[True] | None) -> set[Tensor]:
    """Return the parameters without weight decay."""
    if no_decay is None:
        return set()
    names = parameter_names(model)
    if no_decay is True:
        biases = {p for p, aliases in names.items() if is_bias(aliases[0])}
        vectors = {p for p in names if not is_lazy(p) and p.dim() <= 1}
        return norm_parameters(model) | biases | vectors
    return all_matching("no_decay", no_decay, names)
