"""Parameter groups of LoRA adapters, with the learning rates of LoRA+."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lrfast._utils.arguments import checked
from lrfast._utils.validation import check_positive, check_rate, short_repr
from lrfast.groups._discriminative import is_bias
from lrfast.groups._norms import norm_parameters

# Parts of parameters' names, with which PEFT, loralib, torchtune and kohya name the two matrices.
_EMBEDDING: Final = ("lora_embedding_A", "lora_embedding_B")
_KNOWN: Final = (
    frozenset({"lora_A", "lora_a", "lora_down", _EMBEDDING[0]}),
    frozenset({"lora_B", "lora_b", "lora_up", _EMBEDDING[1]}),
)
_GROUPS: Final = ("lora A", "lora embedding", "lora B", "lora B, no decay")
_Names = tuple[frozenset[str], frozenset[str]]


@checked
def lora_groups(
    model: nn.Module,
    lr: float,
    ratio: float = 16.0,
    *,
    embedding_lr: float = 1e-6,
    weight_decay: float | None = None,
    names: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Build an optimizer's parameter groups for LoRA adapters, as LoRA+ has them.

    An adapter adds ``B @ A`` to a frozen weight. LoRA+ trains B at ``ratio`` times the learning
    rate of A. The groups are those of PEFT's ``create_loraplus_optimizer``, empty ones left out:

    ===================  ==============  ==========================================================
    name                 learning rate   parameters that train
    ===================  ==============  ==========================================================
    "lora A"             lr              A, and all else with two dimensions or more
    "lora embedding"     embedding_lr    those of adapted embeddings
    "lora B"             ratio * lr      B, and all else with one dimension, as DoRA's magnitudes
    "lora B, no decay"   ratio * lr      those of "lora B" that are biases or in normalisation
                                         layers, without weight decay
    ===================  ==============  ==========================================================

    Frozen parameters are in no group: base weights of any kind, also quantized ones, and adapters
    that are not active. Layers are known by the names of their parameters, so PEFT's and
    hand-written ones work alike, and PEFT need not be installed.

    Args:
        model: Model with adapters, in which only what shall train requires gradients.
        lr: Learning rate of A, finite and 0 or more.
        ratio: Learning rate of B over that of A, finite and above 0; default 16. At 1 the groups
            are those of plain LoRA.
        embedding_lr: Learning rate of both matrices of adapted embeddings, finite and 0 or more;
            default 1e-6, as in PEFT.
        weight_decay: Weight decay of all groups but the last, 0 or more; None, the default: the
            optimizer's. PEFT's default is 0.
        names: Two parts of parameters' names, between dots, that stand for A and B, such as
            ``("down", "up")``; None, the default: lora_A and lora_B, lora_a and lora_b, lora_down
            and lora_up.

    Returns:
        One dict per group: "params", "lr", "name" and, if it applies, "weight_decay".

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If the model has no adapter or none that trains, a number lies outside its
            range, or names are not two.

    Example:
        >>> layer = nn.ModuleDict({"base": nn.Linear(4, 3), "lora_A": nn.Linear(4, 2, bias=False),
        ...                        "lora_B": nn.Linear(2, 3, bias=False)})
        >>> layer["base"] = layer["base"].requires_grad_(False)
        >>> [(group["name"], group["lr"]) for group in lora_groups(layer, 1e-3)]
        [('lora A', 0.001), ('lora B', 0.016)]

    Reference:
        LoRA+: arXiv:2402.12354; ``create_loraplus_optimizer`` of PEFT 0.21.
    """
    rate, rate_of_embeddings = check_rate("lr", lr), check_rate("embedding_lr", embedding_lr)
    check_positive("ratio", ratio)
    decay = None if weight_decay is None else check_rate("weight_decay", weight_decay)
    known = _known(names)
    adapters = adapter_parameters(model, known)
    if not adapters:
        raise ValueError(
            f"model must have LoRA adapters, got {type(model).__name__} without a parameter named "
            f'{" or ".join(sorted(known[0] | known[1]))}; pass names=("down", "up") for others'
        )
    if not any(p.requires_grad for p in adapters.values()):
        raise ValueError(
            f"model must have an adapter that trains, got {len(adapters)} frozen parameters of "
            "adapters; call requires_grad_() on them, with PEFT model.set_adapter(name)"
        )
    norms = norm_parameters(model)
    members: dict[str, list[Tensor]] = {name: [] for name in _GROUPS}
    for name, p in model.named_parameters():
        if p.requires_grad:
            members[_group_of(model, name, p, known, p in norms)].append(p)
    rates = dict(zip(_GROUPS, (rate, rate_of_embeddings, ratio * rate, ratio * rate), strict=True))
    decays = {name: decay for name in _GROUPS if decay is not None} | {_GROUPS[-1]: 0.0}
    built: list[dict[str, Any]] = []
    for name, params in members.items():
        group = {"params": params, "lr": rates[name], "name": name}
        if name in decays:
            group["weight_decay"] = decays[name]
        if params:
            built.append(group)
    return built


def adapter_parameters(model: nn.Module, known: _Names = _KNOWN) -> dict[str, Tensor]:
    """Return the parameters of adapters by name, frozen ones included."""
    named = model.named_parameters()
    return {name: p for name, p in named if adapted_layer(name, known) is not None}


def adapted_layer(name: str, known: _Names = _KNOWN) -> str | None:
    """Return the path of the layer that an adapter's parameter belongs to; None of others."""
    parts = name.split(".")
    places = (place for place, part in enumerate(parts) if part in known[0] | known[1])
    place = next(places, None)
    return None if place is None else ".".join(parts[:place])


def _known(names: Sequence[str] | None) -> _Names:
    if names is None:
        return _KNOWN
    if len(names) != 2 or not all(isinstance(each, str) and each for each in names):
        raise ValueError(
            'names must be two parts of names, of A and of B, such as ("down", "up"), '
            f"got {short_repr(names)}"
        )
    return frozenset(names[:1]), frozenset(names[1:])


def _group_of(model: nn.Module, name: str, p: Tensor, known: _Names, is_norm: bool) -> str:
    """Return the name of a parameter's group."""
    if _is_of_embedding(model, name, known):
        return _GROUPS[1]
    if known[1].isdisjoint(name.split(".")) and (is_lazy(p) or p.dim() != 1):
        return _GROUPS[0]
    return _GROUPS[3] if is_norm or is_bias(name) else _GROUPS[2]


def _is_of_embedding(model: nn.Module, name: str, known: _Names) -> bool:
    """Tell whether a parameter is held by an adapted embedding, as PEFT looks for its layer."""
    path = adapted_layer(name, known)
    # PEFT takes whatever lies two names below a layer for the layer's.
    layer = model.get_submodule(".".join(name.split(".")[:-2]) if path is None else path)
    if any(len(getattr(layer, each, ())) for each in _EMBEDDING):
        return True
    children = (each for child, each in layer.named_children() if child not in known[0] | known[1])
    base = [each for each in children if any(True for _ in each.parameters())] or [layer]
    return path is not None and all(isinstance(each, nn.Embedding) for each in base)
