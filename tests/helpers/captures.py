"""What the tests of captured steps share: a training set-up that can be made twice alike."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import lrfast
from lrfast import schedules as S

Batch = tuple[Tensor, Tensor]

# Hyperparameters that are not neutral, in all that a step does besides the rule.
ADAMW = partial(
    lrfast.AdamW,
    weight_decay=0.1,
    max_grad_norm=0.3,
    ema_decay=0.9,
    zero_grads=True,
    schedule=S.one_cycle(40, momentum=(0.95, 0.85)),
)
SGD = partial(lrfast.SGD, momentum=0.8, weight_decay=0.02, nesterov=True, schedule=S.cosine(25))
LION = partial(lrfast.Lion, betas=(0.8, 0.9), weight_decay=0.3, schedule=S.warmup(7, 0.1))


def make_muon(groups: list[dict[str, Any]]) -> lrfast.Muon:
    """Return Muon for the matrices of each group, and AdamW for its other parameters."""
    split = []
    for group in groups:
        matrices = [param for param in group["params"] if param.dim() > 1]
        others = [param for param in group["params"] if param.dim() < 2]
        split += [group | {"params": matrices, "beta2": 0.9 - 0.2 * len(split)}]
        split += [group | {"params": others, "rule": "adamw"}]
    schedule = S.one_cycle(40, momentum=(0.95, 0.85))
    return lrfast.Muon(split, max_grad_norm=0.3, ema_decay=0.9, zero_grads=True, schedule=schedule)


class Training:
    """A model with batch norm and dropout, its optimizer, and its training step.

    Args:
        make: Makes the optimizer from param groups.
        device: Where it trains.
        zeroing: "step": the optimizer zeroes by itself; "before" and "after" the rest of a step:
            zero_grad(); "in place": zero_grad(set_to_none=False) before it.
        scaler: Whether a GradScaler is used.
    """

    def __init__(
        self,
        make: Callable[..., Any] = ADAMW,
        device: torch.device | str = "cpu",
        zeroing: str = "step",
        scaler: bool = False,
    ) -> None:
        torch.manual_seed(3)
        self.body = nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.Tanh(), nn.Dropout(0.3))
        self.head = nn.Linear(9, 3)
        self.unused = nn.Parameter(torch.ones(4, device=device))
        self.model = nn.Sequential(self.body, self.head).to(device)
        self.optimizer = make(
            [
                {"params": list(self.body.parameters()), "lr": 2e-3},
                {"params": [*self.head.parameters(), self.unused], "lr": 1e-2},
            ]
        )
        self.zeroing = zeroing
        self.device = torch.device(device)
        kind = self.device.type
        self.scaler = torch.amp.GradScaler(kind, init_scale=2.0**9, growth_interval=7)
        self.scales = scaler
        self.factor = torch.ones((), device=device)  # of the loss, to make it diverge
        self.calls = 0

    def step(self, batch: Batch) -> Tensor:
        """Do what a user's training loop does with a batch."""
        self.calls += 1
        if self.zeroing in ("before", "in place"):
            self.optimizer.zero_grad(set_to_none=self.zeroing == "before")
        loss = self.factor * nn.functional.cross_entropy(self.model(batch[0]), batch[1])
        if self.scales:
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            loss.backward()
            self.optimizer.step()
        if self.zeroing == "after":
            self.optimizer.zero_grad()
        return loss

    def capture(self, **options: Any) -> lrfast.CapturedStep:
        """Capture the step; the batch that it is captured with must not matter."""
        scaler = self.scaler if self.scales else None
        example = (torch.full((8, 6), 3.0), torch.zeros(8, dtype=torch.int64))
        return lrfast.capture(self.step, self.optimizer, example, scaler=scaler, **options)

    def memory(self) -> dict[str, Any]:
        """Return all that training changes."""
        saved = self.optimizer.state_dict()
        states = {
            f"state {index} {name}": value
            for index, state in saved["state"].items()
            for name, value in state.items()
        }
        weights = {f"model {name}": value for name, value in self.model.state_dict().items()}
        scaler = self.scaler.state_dict() if self.scales else {}
        return weights | states | scaler | {"clock": self.optimizer._clock()}


def make_batches(count: int, device: torch.device | str = "cpu", rows: int = 8) -> list[Batch]:
    """Return batches that are all different."""
    generator = torch.Generator().manual_seed(11)
    return [
        (
            torch.randn(rows, 6, generator=generator).to(device),
            torch.randint(3, (rows,), generator=generator).to(device),
        )
        for _ in range(count)
    ]


def copied(memory: dict[str, Any]) -> dict[str, Any]:
    """Return a copy that training does not change."""
    return {k: v.clone() if isinstance(v, Tensor) else v for k, v in memory.items()}


def assert_same(memory: dict[str, Any], other: dict[str, Any]) -> None:
    """Check that two trainings agree bit for bit."""
    assert memory.keys() == other.keys()
    for name, value in memory.items():
        if isinstance(value, Tensor):
            assert torch.equal(value, other[name]), name
        else:
            assert value == other[name], name


Change = Callable[[Training], Any]


def train_both(
    changes: dict[int, Change],
    device: torch.device | str = "cpu",
    steps: int = 24,
    make: Callable[..., Any] = ADAMW,
    options: dict[str, Any] | None = None,
    **kind: Any,
) -> tuple[Training, Training, lrfast.CapturedStep]:
    """Train twice with the same changes before some steps, eagerly and captured, and compare.

    Args:
        changes: What to do before which step.
        device: Where.
        steps: How many.
        make: The optimizer.
        options: Of the capture.
        **kind: Of the training.
    """
    batches = make_batches(steps, device)
    eager = Training(make, device, **kind)
    torch.manual_seed(5)
    wanted = []
    for index, batch in enumerate(batches):
        changes.get(index, lambda _: None)(eager)
        wanted.append(eager.step(batch).detach())
    captured = Training(make, device, **kind)
    torch.manual_seed(5)
    step = captured.capture(**(options or {}))
    for index, batch in enumerate(batches):
        changes.get(index, lambda _: None)(captured)
        assert torch.equal(step(batch), wanted[index]), f"the loss of step {index}"
    assert_same(captured.memory(), eager.memory())
    return eager, captured, step


def trained(inputs: Tensor, captures: bool, **options: Any) -> Any:
    """Return AdamW with options after four steps of a layer."""
    torch.manual_seed(6)
    model = nn.Linear(100, 50).to(inputs)
    optimizer = lrfast.AdamW(model.parameters(), lr=0.05, **options)

    def train_step(batch: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = model(batch).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    step = lrfast.capture(train_step, optimizer, inputs) if captures else train_step
    for _ in range(4):
        step(inputs)
    return optimizer
