"""Built-in models of `lrfast bench`: model, batch and loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

cross_entropy = nn.functional.cross_entropy


@dataclass(frozen=True)
class Problem:
    """A model with a batch and a loss."""

    model: nn.Module
    batch: tuple[Tensor, Tensor]
    loss_fn: Callable[[Tensor, Tensor], Tensor] = cross_entropy


def mlp(device: str) -> Problem:
    """Three linear layers, 7 thousand parameters: all overhead."""
    layers = [nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)]
    return _problem(nn.Sequential(*layers), torch.randn(32, 32), device)


def cnn(device: str) -> Problem:
    """Four convolutions with batch norms over 32 x 3 x 32 x 32, 0.4 million parameters."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 32), (32, 64), (64, 128), (128, 256)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)]
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Flatten(), nn.Linear(1024, 10)]
    return _problem(nn.Sequential(*layers), torch.randn(32, 3, 32, 32), device)


def transformer(device: str) -> Problem:
    """Four encoder layers of width 256 over 8 x 32 x 256, 3.2 million parameters."""
    layer = nn.TransformerEncoderLayer(256, 4, 1024, dropout=0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
    model = nn.Sequential(encoder, nn.Flatten(), nn.Linear(32 * 256, 10))
    return _problem(model, torch.randn(8, 32, 256), device)


PROBLEMS: dict[str, Callable[[str], Problem]] = {"mlp": mlp, "cnn": cnn, "transformer": transformer}


def _problem(model: nn.Module, inputs: Tensor, device: str) -> Problem:
    targets = torch.randint(10, (len(inputs),))
    return Problem(model.to(device), (inputs.to(device), targets.to(device)))
