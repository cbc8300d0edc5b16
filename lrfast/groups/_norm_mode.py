"""What normalisation layers do in frozen layer groups: their running statistics, made explicit."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from lrfast.groups._norms import norm_layers, statistics_layers

NormPolicy = Literal["train", "keep", "adapt"]


def set_norm_mode(
    model: nn.Module, optimizer: torch.optim.Optimizer, policy: NormPolicy
) -> list[str]:
    """Say what normalisation layers with running statistics do while their group is frozen.

    ``model.train()`` puts them all into training mode: call this after each of its calls.

    =========  ====================  ==================  ==================================
    policy     weights when frozen   running statistics  as
    =========  ====================  ==================  ==================================
    "train"    stay                  move                torch's ``requires_grad = False``
    "keep"     stay                  stay, and are used  Keras's ``trainable = False``,
                                                         fastai 0.7's ``bn_freeze``
    "adapt"    train                 move                fastai 2's ``train_bn=True``
    =========  ====================  ==================  ==================================

    Args:
        model: the model, in training mode.
        optimizer: the optimizer that trains it, after `freeze_to`.
        policy: "train" puts all such layers into training mode. "keep" puts those none of whose
            parameters trains into evaluation mode and all others into training mode; one without
            parameters goes with the module around it. "adapt" is "train", and makes sure that no
            normalisation layer is frozen: that takes ``discriminative(..., split_norms=True)`` and
            ``freeze_to(..., train_norms=True)``, which leave out what was frozen before.

    Returns:
        Paths of the layers that are in evaluation mode now.

    Raises:
        ValueError: if policy is another one, if the model is in evaluation mode, or if "adapt"
            finds a normalisation layer in a frozen group.

    Example:
        >>> from lrfast import discriminative, freeze
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
        >>> optimizer = torch.optim.SGD(discriminative(model, 1e-2))
        >>> freeze(optimizer)
        >>> set_norm_mode(model.train(), optimizer, "keep")
        ['1']
    """
    if policy not in get_args(NormPolicy):
        raise ValueError(f"policy must be 'train', 'keep' or 'adapt', got {policy!r}")
    if not model.training:
        raise ValueError("model must be in training mode, got one in evaluation mode")
    if policy == "adapt":
        _check_that_norms_train(model, optimizer)
    training = {
        parameter
        for group in optimizer.param_groups
        if not group.get("frozen")
        for parameter in group["params"]
        if parameter.requires_grad
    }
    stay: list[str] = []
    for name, layer in statistics_layers(model):
        stays = policy == "keep" and training.isdisjoint(_parameters_at(model, name))
        layer.train(not stays)
        if stays:
            stay.append(name)
    return stay


def _parameters_at(model: nn.Module, path: str) -> list[Tensor]:
    """Return the parameters of the layer, or else of the nearest module around it with any."""
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
