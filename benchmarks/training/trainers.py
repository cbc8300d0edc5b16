"""Training loops of small models, step by step: as torch has them, and by lrfast.

Each does the same work on the same batches: forward, backward, clipping by the global norm, AdamW
with a rate per layer, one-cycle schedule of rate and beta1, average of the weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

import lrfast
from benchmarks.speed.finder_loops import small_cnn
from benchmarks.speed.implementations import HYPERS
from benchmarks.speed.whole_update import DECAY, MOMENTUM, TOTAL_STEPS, torch_one_cycle

MAX_NORM = 1.0
TOLERANCE = (
    0.02  # of how far weights have moved: rounding errors turn into steps where gradients vanish
)
OURS, CAPTURED = "lrfast", "lrfast captured"
EAGER, FASTEST = "torch, as usual", "torch, fastest"
Batch = tuple[Tensor, Tensor]


class _Residual(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        same = stride == 1 and inputs == width
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, width, 1, stride, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.relu(self.body(inputs) + self.shortcut(inputs))


def resnet18(width: int = 16) -> nn.Module:
    """ResNet-18 for images of 32 x 32, a quarter as wide as usual: 700 thousand parameters."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)]
    inputs = width
    for stage in range(4):
        for block in range(2):
            outputs = width << stage
            stride = 2 if stage and block == 0 else 1
            layers.append(_Residual(inputs, outputs, stride))
            inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


class Transformer(nn.Module):
    """Six encoder layers over 1,000 tokens, width 256: 5.3 million parameters."""

    def __init__(self, tokens: int = 1000, width: int = 256, layers: int = 6) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, width)
        layer = nn.TransformerEncoderLayer(
            width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.ModuleList(copy.deepcopy(layer) for _ in range(layers))
        self.head = nn.Linear(width, tokens)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.embedding(inputs)
        for layer in self.layers:
            hidden = layer(hidden)
        logits: Tensor = self.head(hidden)
        return logits.flatten(0, 1)


def images(rows: int) -> Batch:
    return torch.randn(rows, 3, 32, 32), torch.randint(10, (rows,))


def tokens(rows: int) -> Batch:
    """Sequences of 16."""
    return torch.randint(1000, (rows, 16)), torch.randint(1000, (rows * 16,))


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Batch]]] = {
    "cnn": (small_cnn, images),
    "resnet18": (resnet18, images),
    "transformer": (Transformer, tokens),
}


@dataclass
class Trainer:
    """One way of training, with a model of its own."""

    model: nn.Module
    step: Callable[[], Any]  # returns the loss, or nothing where the loop reads it
    update: Callable[[], Any]  # what follows the backward pass, alone
    losses: list[Tensor]
    averages: Callable[[], Sequence[Tensor]]


def trainers(model: str, rows: int, device: str) -> dict[str, Trainer]:
    """Every way of training that can be had here, with equal weights and batches."""
    build, sample = MODELS[model]
    start = build().to(device)
    batch = tuple(tensor.to(device) for tensor in sample(rows))
    makers: dict[str, Callable[[nn.Module, Batch], Trainer]] = {
        OURS: _lrfast,
        FASTEST: lambda own, data: _torch(own, data, reads=False, fused=True),
        EAGER: lambda own, data: _torch(own, data, reads=True),
    }
    if hasattr(lrfast, "capture"):
        makers[CAPTURED] = _captured
    return {name: make(copy.deepcopy(start), batch) for name, make in makers.items()}  # type: ignore[arg-type]


def groups_of(model: nn.Module) -> list[dict[str, Any]]:
    """One param group per module that owns parameters, rates falling from head to body."""
    layers = [own for module in model.modules() if (own := list(module.parameters(recurse=False)))]
    lr = HYPERS["AdamW"]["lr"] / 10
    return [
        {"params": own, "lr": lr * 0.9 ** (len(layers) - 1 - number)}
        for number, own in enumerate(layers)
    ]


def _loss(model: nn.Module, batch: Batch) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def _torch(model: nn.Module, batch: Batch, *, reads: bool, **flags: bool) -> Trainer:
    """torch's parts; `reads` the loss at each step, as most loops do, and default optimizers."""
    groups = groups_of(model)
    params = [param for group in groups for param in group["params"]]
    optimizer = torch.optim.AdamW(groups, **(HYPERS["AdamW"] | flags))
    scheduler = torch_one_cycle(optimizer, [group["lr"] for group in groups])
    averages = [param.detach().clone() for param in params]
    average = get_ema_multi_avg_fn(DECAY)
    losses: list[Tensor] = []
    total = 0.0

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(params, MAX_NORM, foreach=None if reads else True)
        optimizer.step()
        scheduler.step()
        average(averages, params, 0)

    def step() -> None:
        nonlocal total
        optimizer.zero_grad()
        loss = _loss(model, batch)
        loss.backward()
        update()
        if reads:
            total += loss.item()
        losses[:] = [loss.detach()]

    return Trainer(model, step, update, losses, lambda: averages)


def _optimizer(model: nn.Module, **options: Any) -> Any:
    return lrfast.AdamW(
        groups_of(model),
        weight_decay=HYPERS["AdamW"]["weight_decay"],
        max_grad_norm=MAX_NORM,
        ema_decay=DECAY,
        schedule=lrfast.schedules.one_cycle(TOTAL_STEPS, momentum=MOMENTUM),
        **options,
    )


def _averages(model: nn.Module, optimizer: Any) -> list[Tensor]:
    return [optimizer.state[param]["ema"] for param in model.parameters()]


def _lrfast(model: nn.Module, batch: Batch) -> Trainer:
    optimizer = _optimizer(model)
    losses: list[Tensor] = []

    def step() -> None:
        optimizer.zero_grad()
        loss = _loss(model, batch)
        loss.backward()
        optimizer.step()
        losses[:] = [loss.detach()]

    return Trainer(model, step, optimizer.step, losses, lambda: _averages(model, optimizer))


def _captured(model: nn.Module, batch: Batch) -> Trainer:
    """The same step in one CUDA graph, whose gradients stay; on a CPU the call runs it as it is."""
    optimizer = _optimizer(model, zero_grads=True)
    losses: list[Tensor] = []

    def train_step(batch: Batch) -> Tensor:
        loss = _loss(model, batch)
        loss.backward()
        optimizer.step()
        return loss

    capture: Any = lrfast.capture  # type: ignore[attr-defined]
    captured = capture(train_step, optimizer, batch)

    def step() -> None:
        losses[:] = [captured(batch).detach()]

    return Trainer(model, step, optimizer.step, losses, lambda: _averages(model, optimizer))


def assert_equal_work(ways: dict[str, Trainer], steps: int = 5) -> None:
    """Trains some steps with all, and compares losses, weights and averages with torch's."""
    fastest = ways[FASTEST]
    start = [param.detach().clone() for param in fastest.model.parameters()]
    for _ in range(steps):
        for way in ways.values():
            way.step()
        expected = float(fastest.losses[0])
        for name, way in ways.items():
            difference = abs(float(way.losses[0]) - expected)
            assert difference < 1e-3 * abs(expected), f"loss of {name}: {difference:.1e} off"
    weights = list(fastest.model.parameters())
    moved = _difference(weights, start)
    assert moved > 0
    for name, way in ways.items():
        own, averages = list(way.model.parameters()), way.averages()
        assert _difference(own, weights) < TOLERANCE * moved, f"weights of {name}"
        assert _difference(averages, fastest.averages()) < TOLERANCE * moved, f"averages of {name}"


def _difference(tensors: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    pairs = zip(tensors, others, strict=True)
    return max(float((a.detach() - b.detach()).abs().max()) for a, b in pairs)
