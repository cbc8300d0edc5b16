"""What sweeps over learning rates in the range test's benchmark: ours, peers', and a bare loop.

All work on the same batches, from a DataLoader, over the same range, where nothing diverges, so
that each makes all its steps; and all put the model back.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import torch
from torch import nn
from torch.utils.data import DataLoader

import lrfast
from benchmarks.speed import finder_peers
from benchmarks.speed.finder_peers import RANGE, STEPS, Loader, cross_entropy
from benchmarks.speed.implementations import reason_of

BATCHES = 10
BARE, OURS, TORCH = "bare", "lrfast", "lrfast, torch's optimizer"
NAMES = (BARE, OURS, TORCH, *finder_peers.PEERS)


@dataclass
class Sweeper:
    """One way of sweeping, with a model of its own."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    sweep: Callable[[], list[float]]  # returns the losses, none where the loop keeps none


def small_cnn() -> nn.Module:
    """Three convolutions over 3 x 32 x 32, 34 thousand parameters: mostly forward and backward."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 4 * 4, 10))


def small_mlp() -> nn.Module:
    """Three linear layers behind 3 x 32 x 32: mostly overhead."""
    layers = [nn.Linear(3 * 32 * 32, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh()]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(16, 10))


MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {  # with the rows of a batch
    "cnn": (small_cnn, 16),
    "mlp": (small_mlp, 8),
}


def make_loader(rows: int, device: str) -> Loader:
    """Batches that stay on the device, as many as a sweep takes, a few of them again and again."""
    batches = [
        (torch.randn(rows, 3, 32, 32, device=device), torch.randint(10, (rows,), device=device))
        for _ in range(BATCHES)
    ]
    return DataLoader(batches * (STEPS // BATCHES), batch_size=None)  # type: ignore[arg-type]


def make_sweepers(model: str, rule: str, device: str) -> dict[str, Sweeper]:
    """Every way of sweeping that can be had here, by name, with equal models and states."""
    build, rows = MODELS[model]
    start = build().to(device)
    loader = make_loader(rows, device)
    sweepers = {}
    for name in NAMES:
        peer = finder_peers.PEERS.get(name)
        if peer and find_spec(peer.package) is None:
            continue
        own = copy.deepcopy(start)
        module = lrfast if name == OURS else torch.optim
        options = {"momentum": 0.9} if rule == "SGD" else {}
        optimizer = getattr(module, rule)(own.parameters(), lr=RANGE[0], **options)
        _train(own, optimizer, loader, steps=1)  # so that there are states to put back
        sweep = peer.sweep if peer else _bare if name == BARE else _lr_find
        sweepers[name] = Sweeper(own, optimizer, partial(sweep, own, optimizer, loader))
    return sweepers


def _train(model: nn.Module, optimizer: torch.optim.Optimizer, loader: Loader, steps: int) -> None:
    for _, (inputs, targets) in zip(range(steps), loader, strict=False):
        optimizer.zero_grad()
        loss = cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()


def _bare(model: nn.Module, optimizer: torch.optim.Optimizer, loader: Loader) -> list[float]:
    """The plain loop at a constant rate, with a snapshot before and a restore behind it."""
    weights = copy.deepcopy(model.state_dict())
    states = copy.deepcopy(optimizer.state_dict())
    _train(model, optimizer, loader, STEPS)
    model.load_state_dict(weights)
    optimizer.load_state_dict(states)
    return []


def _lr_find(model: nn.Module, optimizer: torch.optim.Optimizer, loader: Loader) -> list[float]:
    """The whole call: snapshot, sweep, restore, smoothing, every rule's suggestion."""
    start, end = RANGE
    result = lrfast.lr_find(
        model, optimizer, loader, cross_entropy, start_lr=start, end_lr=end, progress=False
    )
    losses: list[float] = result.losses.tolist()
    return losses


def participants(sweepers: dict[str, Sweeper]) -> dict[str, str]:
    """Sweeps once with all: as many steps, losses as close as pairings allow, nothing left over.

    A peer that fails or does something else is taken out, and returned with the reason.
    """
    expected = sweepers[OURS].sweep()
    assert len(expected) == STEPS
    refused = {}
    for name in tuple(sweepers):
        if name not in finder_peers.PEERS:
            _check(name, sweepers[name], expected)
            continue
        try:
            _check(name, sweepers[name], expected)
        except Exception as error:  # whatever keeps a library from running here
            del sweepers[name]
            refused[name] = reason_of(error)
    return refused


def _check(name: str, sweeper: Sweeper, expected: list[float]) -> None:
    weights = copy.deepcopy(sweeper.model.state_dict())
    losses = sweeper.sweep()
    for key, value in sweeper.model.state_dict().items():
        assert torch.equal(value, weights[key]), f"leaves {key} changed"
    if name == BARE:
        return
    assert len(losses) == STEPS, f"made {len(losses)} steps"
    peer = finder_peers.PEERS.get(name)
    begin, tolerance = 0, 1e-3
    if peer:
        begin, tolerance = peer.begin, peer.tolerance
        expected = _smoothed(expected) if peer.smooths else expected
    pairs = list(zip(losses, expected, strict=True))[begin:]
    difference = max(abs(a - b) for a, b in pairs) / max(expected)
    assert difference < tolerance, f"losses differ by {difference:.1e} of the largest"


def _smoothed(losses: list[float]) -> list[float]:
    """By the moving average that peers smooth with."""
    curve = lrfast.LossCurve(len(losses), beta=0.98)
    for loss in losses:
        curve.record(torch.tensor(loss))
    smoothed: list[float] = curve.smoothed("ema").tolist()
    return smoothed
