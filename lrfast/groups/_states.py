"""Parameter groups by how states are kept: embeddings and norms apart from states in 8 bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lrfast._utils.arguments import checked
from lrfast.groups._explicit import all_matching
from lrfast.groups._layers import parameter_names
from lrfast.groups._muon import is_embedded
from lrfast.groups._norms import norm_parameters


@checked
def state_groups(
    model: nn.Module,
    groups: Sequence[Mapping[str, Any]] | None = None,
    *,
    float32: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Split param groups so that some states stay in float32, if the optimizer's are in 8 bits.

    Args:
        model: Model whose parameters are trained.
        groups: Param groups of an optimizer, such as those of `discriminative`, which keep their
            other entries, and a ``state_dtype`` of their own. None, the default: one with all
            parameters that require gradients.
        float32: Parameters whose states stay in float32: those that these patterns match, as
            `layer_groups` takes them. None, the default: those of embedding tables, tied heads
            included, of layers whose path says "embed", and of normalisation layers.

    Returns:
        One or two dicts per group; in the second of two, ``"state_dtype"`` is torch.float32.

    Raises:
        TypeError, ValueError: If an argument is of another type, a group has no "params", or a
            pattern matches nothing.

    Example:
        >>> import lrfast
        >>> model = nn.Sequential(nn.Embedding(99, 64), nn.LayerNorm(64), nn.Linear(64, 99))
        >>> groups = state_groups(model)
        >>> [(len(group["params"]), group.get("state_dtype")) for group in groups]
        [(2, None), (3, torch.float32)]
        >>> optimizer = lrfast.AdamW(groups, lr=1e-3, state_dtype="8bit")
    """
    names = parameter_names(model)
    if float32 is None:
        tables = {p for p, own in names.items() if any(is_embedded(model, name) for name in own)}
        wide = tables | norm_parameters(model)
    else:
        wide = all_matching("float32", float32, names)
    given = [{"params": [p for p in names if p.requires_grad]}] if groups is None else groups
    return [part for index, group in enumerate(given) for part in _split(index, group, wide)]


def _split(index: int, group: Mapping[str, Any], wide: set[Tensor]) -> list[dict[str, Any]]:
    """Return a group as it is, or in two parts with the members of ``wide`` in the second."""
    if "params" not in group:
        raise ValueError(f'groups[{index}] must have "params", got {list(group)}')
    given = group["params"]
    params = [given] if isinstance(given, Tensor) else list(given)
    # Of named_parameters(), too.
    is_wide = [(each[1] if isinstance(each, tuple) else each) in wide for each in params]
    if group.get("state_dtype") is not None or not any(is_wide):
        return [{**group, "params": params}]
    parts = []
    for side in (False, True):
        places = [place for place, own in enumerate(is_wide) if own is side]
        part = {**group, "params": [params[place] for place in places]}
        if side:
            part["state_dtype"] = torch.float32
        if "kept_frozen" in group:  # positions; see discriminative
            part["kept_frozen"] = [i for i, p in enumerate(places) if p in group["kept_frozen"]]
        if places:
            parts.append(part)
    return parts
