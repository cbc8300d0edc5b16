"""What sweeps over learning rates in the range test's benchmark: ours, peers', and a bare loop.

The peers are the packages themselves, where `torch-lr-finder` and `pytorch-ignite` are installed;
the project does not depend on them. All work on the same batches, from a DataLoader, over the same
range, where nothing diverges, so that each makes all its steps; and all put model and optimizer
back.
"""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import lrfast

STEPS, BATCHES = 100, 10
RANGE = (1e-7, 1e-3)
BARE, OURS, TORCH = "bare", "lrfast", "lrfast, torch's optimizer"
PEERS = {"torch-lr-finder": "torch_lr_finder", "ignite": "ignite"}
NAMES = (BARE, OURS, TORCH, *PEERS)

Loader = DataLoader[tuple[Tensor, Tensor]]
cross_entropy = nn.functional.cross_entropy


@dataclass
class Sweeper:
    """One way of sweeping, with a model of its own."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    sweep: Callable[[], list[float]]  # returns the losses, none where the loop keeps none


def small_cnn() -> nn.Module:
    """Three convolutions over 3 x 32 x 32, 24 thousand parameters: mostly forward and backward."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 4 * 4, 10))


def small_mlp() -> nn.Module:
    """Three linear layers behind 3 x 32 x 32: mostly overhead."""
    layers = [nn.Linear(3 * 32 * 32, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh()]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(16, 10))


MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {  # with the rows of a batch
    "cnn": (small_cnn, 64),
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
        if name in PEERS and find_spec(PEERS[name]) is None:
            continue
        own = copy.deepcopy(start)
        module = lrfast if name == OURS else torch.optim
        options = {"momentum": 0.9} if rule == "SGD" else {}
        optimizer = getattr(module, rule)(own.parameters(), lr=RANGE[0], **options)
        _train(own, optimizer, loader, steps=1)  # so that there are states to put back
        sweepers[name] = Sweeper(own, optimizer, _sweep_of(name, own, optimizer, loader))
    return sweepers


def _sweep_of(
    name: str, model: nn.Module, optimizer: torch.optim.Optimizer, loader: Loader
) -> Callable[[], list[float]]:
    sweep = {
        BARE: _bare,
        OURS: _lr_find,
        TORCH: _lr_find,
        "torch-lr-finder": _torch_lr_finder,
        "ignite": _ignite,
    }[name]
    return lambda: sweep(model, optimizer, loader)


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


def _torch_lr_finder(
    model: nn.Module, optimizer: torch.optim.Optimizer, loader: Loader
) -> list[float]:
    """Without its smoothing, messages and progress bar; no suggestion, which it gives in a plot."""
    with _quiet():
        from torch_lr_finder import LRFinder, lr_finder

        finder = LRFinder(model, optimizer, cross_entropy)
        with mock.patch.object(lr_finder, "tqdm", iter):
            finder.range_test(
                loader, start_lr=RANGE[0], end_lr=RANGE[1], num_iter=STEPS, smooth_f=0
            )
        finder.reset()
    losses: list[float] = finder.history["loss"]
    return losses


def _ignite(model: nn.Module, optimizer: torch.optim.Optimizer, loader: Loader) -> list[float]:
    """FastaiLRFinder around a supervised trainer, without smoothing; no suggestion."""
    with _quiet():
        from ignite.engine import create_supervised_trainer
        from ignite.handlers import FastaiLRFinder

        trainer = create_supervised_trainer(model, optimizer, cross_entropy)
        finder = FastaiLRFinder()
        kept = {"model": model, "optimizer": optimizer}
        options = {"num_iter": STEPS, "start_lr": RANGE[0], "end_lr": RANGE[1], "smooth_f": 0}
        with finder.attach(trainer, to_save=kept, **options) as attached:
            attached.run(loader)
    losses: list[float] = finder.get_results()["loss"]
    return losses


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def assert_equal_work(sweepers: dict[str, Sweeper]) -> None:
    """Sweeps once with all: as many steps, losses as close as pairings allow, nothing left over."""
    expected = sweepers[OURS].sweep()
    assert len(expected) == STEPS
    for name, sweeper in sweepers.items():
        weights = copy.deepcopy(sweeper.model.state_dict())
        losses = sweeper.sweep()
        for key, value in sweeper.model.state_dict().items():
            assert torch.equal(value, weights[key]), f"{name} leaves {key} changed"
        if name == BARE:
            continue
        assert len(losses) == STEPS, f"{name} made {len(losses)} steps"
        # ignite's rates are those of the next step, a hundredth of the sweep ahead.
        differences = [abs(a - b) for a, b in zip(losses, expected, strict=True)]
        assert max(differences) < (0.2 if name == "ignite" else 1e-3) * max(expected), name
