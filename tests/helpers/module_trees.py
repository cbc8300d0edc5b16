"""Small module trees to cut into layer groups."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def tree(**children: nn.Module | nn.Parameter) -> Any:
    """A module with named children and no forward."""
    module = nn.Module()
    for name, child in children.items():
        setattr(module, name, child)
    return module


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.norm = nn.LayerNorm(3)


def linear() -> nn.Linear:
    return nn.Linear(3, 3)


def chain() -> Any:
    return nn.Sequential(linear(), linear(), linear())


def parameter() -> nn.Parameter:
    return nn.Parameter(torch.ones(3))


def tied_model() -> Any:
    model = tree(embed=nn.Embedding(5, 3), body=linear(), head=nn.Linear(3, 5))
    model.head.weight = model.embed.weight
    return model
