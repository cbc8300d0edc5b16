"""Parameter groups of Muon and AdamW: hidden matrices apart from all else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lrfast._utils.arguments import checked
from lrfast._utils.validation import check_rate
from lrfast.groups._automatic import is_head
from lrfast.groups._discriminative import is_bias
from lrfast.groups._explicit import all_matching
from lrfast.groups._layers import layer_groups, parameter_names
from lrfast.groups._norms import norm_parameters

_HIDDEN, _EMBEDDINGS, _HEAD, _OTHERS, _SPARED = (
    "hidden matrices",
    "embeddings",
    "head",
    "others",
    "norms and biases",
)
_NAMES: Final = (_HIDDEN, _EMBEDDINGS, _HEAD, _OTHERS, _SPARED)


@checked
def muon_groups(
    model: nn.Module,
    lr: float,
    adamw_lr: float,
    *,
    weight_decay: float | None = None,
    adamw: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Build the parameter groups of :class:`lrfast.Muon`: hidden matrices, and all else for AdamW.

    The names of the groups say where a parameter has gone, and why; empty groups are left out:

    ==================  =======  ===================================================================
    name                rule     parameters that train
    ==================  =======  ===================================================================
    "hidden matrices"   muon     weights with two dimensions or more that are in no other group
    "embeddings"        adamw    those of embedding tables, tied heads included, and of layers whose
                                 path says "embed", such as a patch embedding
    "head"              adamw    the last matrix of the model, if the last layer group is one layer
                                 or is named as a head
    "others"            adamw    weights of grouped convolutions, tensors of one row or column, such
                                 as class tokens, those that are not named weight, such as tables of
                                 positions, and those that ``adamw`` matches
    "norms and biases"  adamw    normalisation layers, biases and vectors, without weight decay
    ==================  =======  ===================================================================

    Args:
        model: Model, in which only what shall train requires gradients.
        lr: Learning rate of the hidden matrices, finite and 0 or more.
        adamw_lr: Learning rate of all other groups, finite and 0 or more.
        weight_decay: Weight decay of all groups but the last, 0 or more; None, the default: the
            optimizer's.
        adamw: Patterns, as `layer_groups` takes them, of more parameters for AdamW; default none.

    Returns:
        One dict per group: "params", "rule", "lr", "name" and, if it applies, "weight_decay".

    Raises:
        ValueError: If a number lies outside its range, a pattern matches nothing, a parameter is
            not initialised yet, or no hidden matrix trains.

    Example:
        >>> layers = (nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 2))
        >>> model = nn.Sequential(*layers)
        >>> [(group["name"], len(group["params"])) for group in muon_groups(model, 0.02, 3e-4)]
        [('hidden matrices', 2), ('head', 1), ('norms and biases', 5)]
    """
    rates = {_HIDDEN: check_rate("lr", lr)}
    other_rate = check_rate("adamw_lr", adamw_lr)
    decay = None if weight_decay is None else check_rate("weight_decay", weight_decay)
    names = parameter_names(model)
    chosen = all_matching("adamw", adamw, names)
    norms, head = norm_parameters(model), _head(model)
    members: dict[str, list[Tensor]] = {name: [] for name in _NAMES}
    for p, aliases in names.items():
        if not p.requires_grad:
            continue
        if is_lazy(p):
            raise ValueError(
                f"model must have initialised parameters, got {aliases[0]!r} without a shape; run "
                "a batch through it first"
            )
        if p in norms or is_bias(aliases[0]) or p.dim() < 2:
            kind = _SPARED
        elif any(is_embedded(model, name) for name in aliases):
            kind = _EMBEDDINGS
        elif p is head:
            kind = _HEAD
        else:
            kind = _OTHERS if p in chosen or not _is_hidden(model, aliases[0], p) else _HIDDEN
        members[kind].append(p)
    if not members[_HIDDEN]:
        raise ValueError(
            "model must have hidden matrices that train, got none beside its embeddings and its "
            "head; use lrfast.AdamW"
        )
    built: list[dict[str, Any]] = []
    for name, params in members.items():
        rule = "muon" if name == _HIDDEN else "adamw"
        group = {"params": params, "rule": rule, "lr": rates.get(name, other_rate), "name": name}
        if name == _SPARED or decay is not None:
            group["weight_decay"] = 0.0 if name == _SPARED else decay
        if params:
            built.append(group)
    return built


def _head(model: nn.Module) -> Tensor | None:
    """Return the weight that makes the model's outputs; None of a model without a head."""
    last = layer_groups(model)[-1]
    norms = norm_parameters(model)
    weights = [p for p in last.parameters if not is_lazy(p) and p.dim() > 1 and p not in norms]
    is_layer = len(weights) == 1 or is_head(last.name.rpartition(".")[2])
    return weights[-1] if weights and is_layer else None


def is_embedded(model: nn.Module, name: str) -> bool:
    """Tell whether a parameter is an embedding, by its layer or the layer's path."""
    path = name.rpartition(".")[0]
    is_table = isinstance(model.get_submodule(path), nn.Embedding | nn.EmbeddingBag)
    return is_table or "embed" in path.lower()


def _is_hidden(model: nn.Module, name: str, p: Tensor) -> bool:
    path, _, own = name.rpartition(".")
    is_matrix = 1 < p.shape[0] < p.numel()
    return is_matrix and "weight" in own and getattr(model.get_submodule(path), "groups", 1) == 1
