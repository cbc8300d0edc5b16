"""Which layers of a model normalise, and which of those keep running statistics."""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import Tensor, nn

# BatchNorm2d, LayerNorm, LlamaRMSNorm, but not NormedLinear, which is a classifier head.
_NORM_CLASS = re.compile(r"Norm(\dd)?$")


def is_norm(module: nn.Module) -> bool:
    """Tell whether a module is a normalisation layer, and not a block that begins with one."""
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
