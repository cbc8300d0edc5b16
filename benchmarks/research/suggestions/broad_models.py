"""Models of the tasks in `broad`: of kinds that the other tasks lack."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from benchmarks.research.suggestions import models
from benchmarks.research.suggestions.unseen_data import package_file


class Halves(nn.Module):
    """Embeds both halves of an image by networks of their own, [rows, 2, width], of length 1."""

    def __init__(self, pixels: int, width: int = 16) -> None:
        super().__init__()
        self.sides = nn.ModuleList(models.mlp(pixels, 64, width) for _ in range(2))

    def forward(self, halves: Tensor) -> Tensor:
        embedded = [side(half) for side, half in zip(self.sides, halves.unbind(1), strict=True)]
        return nn.functional.normalize(torch.stack(embedded, 1), dim=-1)


class Residuals(nn.Module):
    """What a network solves of -laplacian(u) + c . grad(u) = f, with u = 0 at the ends -1 and 1.

    Outputs [rows, 2]: the solution, and how much its equation is violated, less f.
    """

    def __init__(self, dimensions: int, advection: float, width: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Linear(dimensions, width), nn.Tanh()]
        layers += [nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1)]
        self.body = nn.Sequential(*layers)
        self.advection = advection

    def forward(self, places: Tensor) -> Tensor:
        with torch.enable_grad():
            columns = [column.requires_grad_() for column in places.detach().unbind(1)]
            inside = torch.stack([1 - column**2 for column in columns]).prod(0)
            solution = inside * self.body(torch.stack(columns, 1))[:, 0]
            equation = torch.zeros_like(solution)
            for column in columns:
                slope = _derivative(solution, column)
                equation = equation - _derivative(slope, column) + self.advection * slope
        return torch.stack([solution, equation], 1)


def _derivative(values: Tensor, by: Tensor) -> Tensor:
    return torch.autograd.grad(values.sum(), by, create_graph=True)[0]


class GraphNetwork(nn.Module):
    """Two layers over a graph: each node's answer is that of its neighbours' means.

    Inputs are indices of nodes; features and neighbours stay with the model.
    """

    def __init__(self, features: Tensor, neighbours: Tensor, classes: int, width: int = 32) -> None:
        super().__init__()
        self.first = nn.Linear(features.shape[1], width)
        self.second = nn.Linear(width, classes)
        self.register_buffer("features", features)
        self.register_buffer("neighbours", neighbours)

    def forward(self, nodes: Tensor) -> Tensor:
        hidden = torch.relu(self._mean(self.first(self.features)))
        outputs: Tensor = self._mean(self.second(hidden))[nodes]
        return outputs

    def _mean(self, values: Tensor) -> Tensor:
        return values[self.neighbours].mean(1)


class Factors(nn.Module):
    """A row's factors times a column's, with a bias of each if wanted."""

    def __init__(self, rows: int, columns: int, size: float, *, bias: bool, rank: int = 16) -> None:
        super().__init__()
        self.rows = nn.Parameter(size * torch.randn(rows, rank))
        self.columns = nn.Parameter(size * torch.randn(columns, rank))
        self.bias = nn.Parameter(torch.zeros(rows + columns)) if bias else None

    def forward(self, places: Tensor) -> Tensor:
        row, column = places.unbind(1)
        outputs = (self.rows[row] * self.columns[column]).sum(1, keepdim=True)
        if self.bias is not None:
            outputs = outputs + (self.bias[row] + self.bias[len(self.rows) + column]).unsqueeze(1)
        return outputs


class Density(nn.Module):
    """The mean and logarithmic deviation of each column, given those before it, [rows, c, 2]."""

    def __init__(self, columns: int, width: int = 64) -> None:
        super().__init__()
        self.hidden = nn.Linear(columns, width)
        self.head = nn.Linear(width, 2 * columns)
        order = torch.arange(columns)
        degrees = torch.arange(width) % (columns - 1)
        self.register_buffer("before", (order <= degrees[:, None]).float())
        self.register_buffer("after", (degrees < order.repeat(2)[:, None]).float())

    def forward(self, rows: Tensor) -> Tensor:
        linear = nn.functional.linear
        hidden = torch.relu(linear(rows, self.before * self.hidden.weight, self.hidden.bias))
        outputs = linear(hidden, self.after * self.head.weight, self.head.bias)
        return outputs.unflatten(1, (2, -1)).transpose(1, 2)


class Half(nn.Module):
    """A model whose weights, inputs and activations are bfloat16, and its outputs float32."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body.to(torch.bfloat16)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.body(inputs.to(torch.bfloat16)).float()
        return outputs


class LowRank(nn.Module):
    """A frozen weight plus the product of two thin matrices, the first of which begins at 0."""

    def __init__(self, weight: Tensor, rank: int = 4) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.zeros(len(weight), rank))
        self.down = nn.Parameter(torch.randn(rank, weight.shape[1]) / weight.shape[1] ** 0.5)

    def forward(self, weight: Tensor) -> Tensor:
        return weight + 2 * self.up @ self.down


def low_rank(model: nn.Module, names: Iterable[str]) -> nn.Module:
    """Freezes a model, and adds adapters of low rank to the named weights."""
    model.requires_grad_(False)
    for name in names:
        owner, _, weight = name.rpartition(".")
        module = model.get_submodule(owner)
        parametrize.register_parametrization(module, weight, LowRank(getattr(module, weight)))
    return model


def wide_word_bag(classes: int, words: int, width: int = 32) -> nn.Sequential:
    """The mean of the words' embeddings, and a linear head."""
    return nn.Sequential(nn.EmbeddingBag(words, width, padding_idx=0), nn.Linear(width, classes))


class FaceNetwork(nn.Module):
    """R-Net of facenet-pytorch with the weights that it ships and a new head."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(3, 28, 3), nn.PReLU(28), nn.MaxPool2d(3, 2, ceil_mode=True)),
            *(nn.Conv2d(28, 48, 3), nn.PReLU(48), nn.MaxPool2d(3, 2, ceil_mode=True)),
            *(nn.Conv2d(48, 64, 2), nn.PReLU(64)),
        )
        self.neck = nn.Sequential(nn.Linear(576, 128), nn.PReLU(128))
        shipped = torch.load(package_file("facenet_pytorch", "data/rnet.pt"), weights_only=True)
        kept = [value for name, value in shipped.items() if not name.startswith("dense5")]
        self.load_state_dict(dict(zip(self.state_dict(), kept, strict=True)))
        self.head = nn.Linear(128, classes)

    def forward(self, images: Tensor) -> Tensor:
        # The weights come from a framework that stores images as width x height x channels.
        hidden = self.body(images).permute(0, 3, 2, 1).flatten(1)
        outputs: Tensor = self.head(self.neck(hidden))
        return outputs
