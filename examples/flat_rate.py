"""Fine-tuning a network that is good already: a rate for new weights ruins it, "flat" does not.

A CNN is trained on 4,000 MNIST digits. It then goes on with 500 others that are rotated by 10
degrees, its weights as they are, at a constant rate: once that of rule "auto", from the middle of
the range test's valley, and once that of rule "flat", the highest one at which the loss is still
where it started. Needs the extra "demo".
"""

from __future__ import annotations

import copy
import math
import sys
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

import lrfast
from lrfast.demo import Batches, Digits, load_digits

STEPS = 100
BATCH = 50


@dataclass(frozen=True)
class Outcome:
    """Validation losses before and after fine-tuning, and the rates that were used."""

    rates: dict[str, float]
    before: float
    after: dict[str, float]


def make_model() -> nn.Sequential:
    """A CNN without batch norm, for 28 x 28 images."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(32 * 49, 10)),
    )


def rotated(digits: Digits, degrees: float) -> Digits:
    """The same digits, turned about their middle."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = torch.tensor([[cos, -sin, 0.0], [sin, cos, 0.0]]).expand(len(digits), 2, 3)
    grid = functional.affine_grid(turn, list(digits.images.shape), align_corners=False)
    images = functional.grid_sample(digits.images, grid, align_corners=False)
    return Digits(images, digits.classes)


def pretrain(digits: Digits) -> nn.Module:
    """Trains the CNN at the rate that a range test finds."""
    torch.manual_seed(0)
    model = make_model()
    optimizer = lrfast.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    batches = Batches(digits, BATCH, seed=0)
    loss_fn = functional.cross_entropy
    lrfast.lr_find(model, optimizer, batches, loss_fn, progress=False).apply(optimizer)
    optimizer.set_schedule(lrfast.schedules.one_cycle(3 * len(batches)))
    for _ in range(3):
        for inputs, targets in batches:
            step(model, optimizer, inputs, targets)
    return model


def step(
    model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, targets: Tensor
) -> None:
    optimizer.zero_grad()
    functional.cross_entropy(model(inputs), targets).backward()
    optimizer.step()


def valid_loss(model: nn.Module, digits: Digits) -> float:
    with torch.no_grad():
        return functional.cross_entropy(model(digits.images), digits.classes).item()


def run() -> Outcome:
    """Pretrains once, fine-tunes at both rates, and measures on digits that neither has seen."""
    digits = load_digits()
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0))
    pretrained = pretrain(digits.take(order[:4000]))
    turned = rotated(digits, 10)
    train, valid = turned.take(order[4000:4500]), turned.take(order[4500:])
    optimizer = lrfast.SGD(pretrained.parameters(), lr=1.0, momentum=0.9, weight_decay=1e-4)
    batches = Batches(train, BATCH, seed=1)
    test = lrfast.lr_find(pretrained, optimizer, batches, functional.cross_entropy, progress=False)
    rates = {rule: test.rates(rule)[0] for rule in ("auto", "flat")}
    after = {}
    for rule, rate in rates.items():
        model = copy.deepcopy(pretrained)
        optimizer = lrfast.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=1e-4)
        batches = Batches(train, BATCH, seed=2, passes=STEPS * BATCH // len(train))
        for inputs, targets in batches:
            step(model, optimizer, inputs, targets)
        after[rule] = valid_loss(model, valid)
    return Outcome(rates, valid_loss(pretrained, valid), after)


if __name__ == "__main__":
    outcome = run()
    sys.stdout.write(f"validation loss of the pretrained network: {outcome.before:.3f}\n")
    for rule, rate in outcome.rates.items():
        loss = outcome.after[rule]
        sys.stdout.write(f"after {STEPS} steps at rule {rule!r}'s {rate:.1e}: {loss:.3f}\n")
