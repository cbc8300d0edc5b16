"""A training set-up with everything that torch training changes, and what it looks like in bits."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, Dataset


class Noisy(Dataset[Tensor]):
    """Twelve rows with noise from Python, numpy and torch, as augmentations draw it."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Tensor:
        noise = random.random() + float(np.random.rand()) + torch.rand(4)
        return torch.linspace(-1, 1, 4) * (index + 1) / 12 + 0.1 * noise


class Net(nn.Module):
    """Tied weights, batch norm, dropout, a frozen layer, a part in eval mode, odd buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.fixed_norm = nn.BatchNorm1d(4).eval()
        self.dropout = nn.Dropout(0.3)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.decoder = nn.Linear(4, 4)
        self.decoder.weight = self.encoder.weight
        self.register_buffer("seen", torch.zeros(4), persistent=False)
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("expanded", torch.zeros(1).expand(3))
        self.register_buffer("cache", None)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.seen += x.sum(0)
            self.mean = 0.9 * self.mean + 0.1 * x.mean(0)  # binds a new tensor
        x = self.fixed_norm(self.dropout(self.norm(self.encoder(x))))
        return self.decoder(torch.tanh(self.frozen(x))) + self.seen.tanh() + self.mean


@dataclass
class Run:
    model: Net
    optimizer: torch.optim.Optimizer
    scheduler: OneCycleLR
    scaler: torch.amp.GradScaler
    loader: DataLoader[Tensor]

    def watched(self) -> dict[str, Any]:
        return {"others": (self.scheduler, self.scaler), "loaders": (self.loader,)}


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
}


def build(
    optimizer: str = "sgd", own_generator: bool = True, workers: int = 0, persistent: bool = False
) -> Run:
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    model = Net()
    built = OPTIMIZERS[optimizer]([p for p in model.parameters() if p.requires_grad])
    return Run(
        model,
        built,
        OneCycleLR(built, max_lr=0.1, total_steps=100),
        torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=3),
        DataLoader(
            Noisy(),
            batch_size=4,
            shuffle=True,
            generator=torch.Generator().manual_seed(4) if own_generator else None,
            num_workers=workers,
            persistent_workers=persistent,
        ),
    )


def batches(loader: DataLoader[Tensor]) -> Iterator[Tensor]:
    while True:
        yield from loader


def train(run: Run, steps: int) -> list[Tensor]:
    losses = []
    for batch in islice(batches(run.loader), steps):
        run.optimizer.zero_grad()
        loss = (run.model(batch) - batch).square().mean()
        run.scaler.scale(loss).backward()
        run.scaler.step(run.optimizer)
        run.scaler.update()
        run.scheduler.step()
        losses.append(loss.detach())
    return losses


def sweep(run: Run, error: BaseException | None = None) -> None:
    """What a careless range test does, ending in the middle of a step if there is an error."""
    run.model.train()
    for group in run.optimizer.param_groups:
        group["lr"], group["note"] = 1.0, "swept"
    train(run, 4)
    if error is not None:
        batch = next(iter(run.loader))
        run.scaler.scale(run.model(batch).sum()).backward()
        run.scaler.unscale_(run.optimizer)
        raise error


def bits(value: Any) -> Any:
    """`value` with each tensor as dtype, shape and bytes, so that == compares bit for bit."""
    if isinstance(value, Tensor):
        return value.dtype, tuple(value.shape), value.detach().numpy().tobytes()
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if isinstance(value, dict):
        return [(bits(k) if isinstance(k, Tensor) else k, bits(v)) for k, v in value.items()]
    if isinstance(value, (list, tuple)):
        return [bits(item) for item in value]
    return value


def trace(run: Run) -> dict[str, Any]:
    generator = run.loader.generator
    return {
        "parameters": bits([(p, p.grad, p.requires_grad) for p in run.model.parameters()]),
        "buffers": bits(dict(run.model.named_buffers())),
        "training": [m.training for m in run.model.modules()],
        "optimizer": bits(run.optimizer.state_dict()),
        "scheduler": bits(run.scheduler.state_dict()),
        "scaler": bits(run.scaler.state_dict()),
        "python": random.getstate(),
        "numpy": bits(np.random.get_state()),
        "torch": bits(torch.get_rng_state()),
        "loader": None if generator is None else bits(generator.get_state()),
    }


Small = tuple[nn.Linear, torch.optim.Optimizer]
