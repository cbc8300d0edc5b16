"""Small models, data and losses that the tests of the upper half share, and what a run leaves."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import count, islice
from typing import Any

import numpy as np
import torch
from device_reads import READS
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import Dataset

import lrfast

Batch = tuple[Tensor, Tensor]

# Nothing is neutral: each hyperparameter changes what a step does.
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: lrfast.SGD(p, lr=0.05, momentum=0.9, dampening=0.3, weight_decay=0.01),
    "adamw": lambda p: lrfast.AdamW(p, lr=0.01, betas=(0.8, 0.95), weight_decay=0.1),
    "torch-sgd": lambda p: torch.optim.SGD(
        p, lr=0.05, momentum=0.9, dampening=0.3, weight_decay=0.01
    ),
    "torch-adamw": lambda p: torch.optim.AdamW(p, lr=0.01, betas=(0.8, 0.95), weight_decay=0.1),
}
OURS = ("sgd", "adamw")

cross_entropy = nn.functional.cross_entropy


def make_model() -> nn.Sequential:
    """Three layer groups, with a norm's buffers and dropout's random numbers; always the same."""
    state = torch.get_rng_state()
    torch.manual_seed(7)
    model = nn.Sequential(
        nn.Linear(4, 8),
        nn.BatchNorm1d(8),
        nn.Tanh(),
        nn.Dropout(0.2),
        nn.Linear(8, 6),
        nn.Tanh(),
        nn.Linear(6, 3),
    )
    torch.set_rng_state(state)
    return model


def make_batches(number: int, size: int = 8) -> list[Batch]:
    """Batches (inputs [size, 4], classes [size]) that a linear model can tell apart."""
    generator = torch.Generator().manual_seed(11)
    batches = []
    for _ in range(number):
        inputs = torch.randn(size, 4, generator=generator)
        batches.append((inputs, inputs[:, :3].argmax(1)))
    return batches


class Noisy(Dataset[Batch]):
    """Twelve rows with noise from Python, numpy and torch, as augmentations draw it."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Any:
        noise = random.random() + float(np.random.rand()) + torch.rand(4)
        return torch.linspace(-1, 1, 4) * (index - 6) / 6 + 0.1 * noise, index % 3


def make_scripted(losses: Any) -> Callable[[nn.Module, Any], Tensor]:
    """A compute_loss whose k-th loss is losses[k], with a gradient of 1 for each parameter."""
    steps = count()

    def compute_loss(model: nn.Module, batch: Any) -> Tensor:
        total = torch.stack([p.double().sum() for p in model.parameters()]).sum()
        return total - total.detach() + float(losses[next(steps)])

    return compute_loss


def failing(at: int, failure: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """A loss that fails in its at-th training step, 1 being the first."""
    calls = 0

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls
        calls += torch.is_grad_enabled()
        loss = cross_entropy(outputs, targets)
        return failure(loss) if calls == at and torch.is_grad_enabled() else loss

    return loss_fn


def boom(loss: Tensor) -> Tensor:
    raise RuntimeError("boom")


def used_rates(optimizer: torch.optim.Optimizer) -> list[list[float]]:
    """A list that grows with each step by the rates per group that the step used."""
    used: list[list[float]] = []

    def note(optimizer: Any, args: Any, kwargs: Any) -> None:
        if hasattr(optimizer, "last_rates"):
            used.append(optimizer.last_rates.tolist())
        else:
            used.append([float(group["lr"]) for group in optimizer.param_groups])

    optimizer.register_step_post_hook(note)
    return used


def ema(losses: Any, beta: float) -> list[float]:
    """Bias-corrected, from the definition: the mean with weights beta ** age."""
    means = []
    for k in range(len(losses)):
        weights = [beta ** (k - i) for i in range(k + 1)]
        means.append(sum(w * x for w, x in zip(weights, losses, strict=False)) / sum(weights))
    return means


class CountReads(TorchDispatchMode):
    """Counts the operators that read a device's value on the host."""

    reads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.reads += func.overloadpacket.__name__ in READS
        return func(*args, **(kwargs or {}))


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, data: Any, steps: int, scheduler: Any = None
) -> list[Tensor]:
    """A plain training loop over the data, again and again."""
    losses = []
    for inputs, targets in islice(_forever(data), steps):
        optimizer.zero_grad()
        loss = cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        losses.append(loss.detach())
    return losses


def _forever(data: Any) -> Iterator[Any]:
    while True:
        yield from data


def bits(value: Any) -> Any:
    """The value with each tensor as dtype, shape and bytes, so that == compares bit for bit."""
    if isinstance(value, Tensor):
        values = value.detach()
        if value.dtype is torch.bfloat16:  # which numpy has not
            values = values.view(torch.int16)
        return value.dtype, tuple(value.shape), values.numpy().tobytes()
    if isinstance(value, np.ndarray):
        return value.dtype, value.shape, value.tobytes()
    if isinstance(value, dict):
        return [(key, bits(item)) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return [bits(item) for item in value]
    return value


def trace(model: nn.Module, optimizer: Any, others: Any = ()) -> dict[str, Any]:
    """All that training changes, in a form that == compares bit for bit."""
    return {
        "parameters": bits([(p, p.grad, p.requires_grad) for p in model.parameters()]),
        "buffers": bits(dict(model.named_buffers())),
        "training": [module.training for module in model.modules()],
        "optimizer": bits(optimizer.state_dict()),
        "rates": [(type(g["lr"]), float(g["lr"])) for g in optimizer.param_groups],
        "clock": getattr(optimizer, "schedule_step", None),
        "others": [bits(other.state_dict()) for other in others],
        "python": random.getstate(),
        "numpy": bits(np.random.get_state()),
        "torch": bits(torch.get_rng_state()),
    }
