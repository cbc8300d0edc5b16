"""Normalisation layers of a model, and their running statistics in frozen layer groups."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from lrfast._utils.arguments import checked
from lrfast._utils.validation import check_choice

NormPolicy = Literal["train", "keep", "adapt"]

# BatchNorm2d, LayerNorm, LlamaRMSNorm, but not NormedLinear, which is a classifier head.
_NORM_CLASS = re.compile(r"Norm(\dd)?$")


def is_norm(module: nn.Module) -> bool:
    """Tell whether a module is a normalisation layer, not a block that begins with one."""
    if any(True for child in module.children() for _ in child.parameters()):
        return False
    return any(_NORM_CLASS.search(cls.__name__) for cls in type(module).__mro__)


def norm_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the normalisation layers of a model that have parameters, with their paths."""
    for name, module in model.named_modules():
        if next(module.parameters(recurse=False), None) is not None and is_norm(module):
            yield name, module


def norm_parameters(model: nn.Module) -> set[Tensor]:
    """Return the parameters of all normalisation layers."""
    return {p for _, layer in norm_layers(model) for p in layer.parameters(recurse=False)}


def statistics_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers with running statistics, with or without parameters, and their paths."""
    for name, module in model.named_modules():
        if getattr(module, "running_mean", None) is not None:
            yield name, module


@checked
def set_norm_mode(
    model: nn.Module, optimizer: torch.optim.Optimizer, policy: NormPolicy
) -> list[str]:
    """Set the mode of layers with running statistics, for those whose group is frozen.

    Call it after each ``model.train()``, which puts all of them into training mode.

    =========  ====================  ==================  ==================================
    policy     weights when frozen   running statistics  as
    =========  ====================  ==================  ==================================
    "train"    stay                  move                torch's ``requires_grad = False``
    "keep"     stay                  stay, and are used  Keras's ``trainable = False``,
                                                         fastai 0.7's ``bn_freeze``
    "adapt"    train                 move                fastai 2's ``train_bn=True``
    =========  ====================  ==================  ==================================

    Args:
        model: Model in training mode.
        optimizer: Optimizer that trains it, after `freeze_to`.
        policy: "train": all such layers are put into training mode. "keep": those without a
            parameter that trains are put into evaluation mode; a layer without parameters follows
            the module around it. "adapt": as "train", after a check that no normalisation layer is
            frozen: use ``discriminative(..., split_norms=True)``, ``freeze_to(...,
            train_norms=True)``.

    Returns:
        Paths of the layers that are in evaluation mode now.

    Raises:
        ValueError: If policy is another one, the model is in evaluation mode, or "adapt" finds
            frozen normalisation layers.

    Example:
        >>> from lrfast import discriminative, freeze
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
        >>> optimizer = torch.optim.SGD(discriminative(model, 1e-2))
        >>> freeze(optimizer)
        >>> set_norm_mode(model.train(), optimizer, "keep")
        ['1']
    """
    check_choice("policy", policy, get_args(NormPolicy))
    if not model.training:
        raise ValueError("model must be in training mode, got one in evaluation mode")
    if policy == "adapt":
        _check_that_norms_train(model, optimizer)
    groups = [group for group in optimizer.param_groups if not group.get("frozen")]
    training = {p for group in groups for p in group["params"] if p.requires_grad}
    stay: list[str] = []
    for name, layer in statistics_layers(model):
        stays = policy == "keep" and training.isdisjoint(_parameters_at(model, name))
        layer.train(not stays)
        if stays:
            stay.append(name)
    return stay


def _parameters_at(model: nn.Module, path: str) -> list[Tensor]:
    """Return the parameters of a layer, or of the nearest module around it that has some."""
    while True:
        parameters: list[Tensor] = list(model.get_submodule(path).parameters())
        if parameters or not path:
            return parameters
        path = path.rpartition(".")[0]


def _check_that_norms_train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    frozen: set[Tensor] = set()
    for group in optimizer.param_groups:
        if group.get("frozen"):
            kept = set(group.get("kept_frozen", ()))
            frozen.update(p for i, p in enumerate(group["params"]) if i not in kept)
    held = [name for name, layer in norm_layers(model) if not frozen.isdisjoint(layer.parameters())]
    if held:
        raise ValueError(
            f"policy 'adapt' needs normalisation layers that train, got {', '.join(held)} in "
            "frozen groups; use discriminative(..., split_norms=True) and "
            "freeze_to(..., train_norms=True)"
        )
