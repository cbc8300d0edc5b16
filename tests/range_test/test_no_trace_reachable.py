"""A range test leaves no trace in what the training reaches besides: with it is without it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from tiny import bits, cross_entropy, make_batches, make_model
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler, TensorDataset
from trainers import declare_torchvision_operators

import lrfast
from lrfast import Retest, lr_find

Optimizer = torch.optim.Optimizer


class Run:
    """A training run that a range test may stand in the middle of."""

    def __init__(self, make: Callable[[], nn.Module] = make_model, data: Any = None) -> None:
        torch.manual_seed(3)
        self.model: Any = make()
        self.optimizer: Any = lrfast.SGD(self.model.parameters(), lr=0.05, momentum=0.9)
        self.data = make_batches(4) if data is None else data
        self.step_fn: Callable[[Any], Tensor] | None = None

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return cross_entropy(model(batch[0]), batch[1])

    def step(self, batch: Any) -> Tensor:
        if self.step_fn is not None:
            return self.step_fn(batch)
        self.optimizer.zero_grad()
        loss = self.loss(self.model, batch)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def trace(self) -> Any:
        return bits([list(self.model.parameters()), self.optimizer.state_dict()])

    def find(self, **options: Any) -> Any:
        how = {"compute_loss": self.loss} if self.step_fn is None else {"step_fn": self.step_fn}
        settings = {"num_iter": 12, "end_lr": 1e4, "diverge_threshold": None, "progress": False}
        return lr_find(self.model, self.optimizer, self.data, **(how | settings | options))


# --- models


class Recurrent(nn.Module):
    """Its hidden state goes from batch to batch, and to NaN in a sweep."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(4, 8, nonlinearity="relu")
        self.head = nn.Linear(8, 3)
        self.hidden: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        y, hidden = self.rnn(x, self.hidden)
        self.hidden = hidden.detach()
        return self.head(y)


class Collecting(nn.Module):
    """It fills a list and a table, and its scale follows them."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.outputs = make_model(), [1.0]
        self.best = {"mean": 0.0}

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        self.outputs.append(float(y.detach().mean()))
        self.best["mean"] = max(self.best["mean"], self.outputs[-1])
        return y * (1 + 0.1 * np.tanh(np.mean(self.outputs) + self.best["mean"]))


class Meter:
    """A metric of the user's own class."""

    def __init__(self) -> None:
        self.total, self.count = torch.zeros(1), 0

    def update(self, value: Tensor) -> float:
        self.total += value.detach().mean()
        self.count += 1
        return float(torch.tanh(self.total / self.count))


class Metered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.meter = make_model(), Meter()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return y * (1 + 0.1 * self.meter.update(y))


class Noisy(nn.Module):
    """It draws from a generator of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.draws = make_model(), np.random.default_rng(1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x * (1 + 0.1 * float(self.draws.random())))
        return y


# --- data


class Rows(Dataset[Any]):
    def __init__(self, draw: Callable[[], float]) -> None:
        self.draw = draw

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> Any:
        return torch.linspace(-1, 1, 4) * (index - 8) / 8 + 0.1 * self.draw(), index % 3


class Shuffled(Sampler[int]):
    def __init__(self, shuffle: Callable[[list[int]], None]) -> None:
        self.shuffle = shuffle

    def __iter__(self) -> Iterator[int]:
        places = list(range(16))
        self.shuffle(places)
        return iter(places)

    def __len__(self) -> int:
        return 16


def shuffled_by(generator: torch.Generator) -> Callable[[list[int]], None]:
    def shuffle(places: list[int]) -> None:
        places[:] = torch.randperm(len(places), generator=generator).tolist()

    return shuffle


class Growing(Dataset[Any]):
    """It caches what it has made, with the count at that time in it."""

    def __init__(self) -> None:
        self.cache: dict[int, Any] = {}

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> Any:
        if index not in self.cache:
            self.cache[index] = (torch.full((4,), len(self.cache) / 16), index % 3)
        return self.cache[index]


def plain_rows() -> Any:
    inputs, targets = (torch.cat(part) for part in zip(*make_batches(2), strict=True))
    return TensorDataset(inputs, targets)


def by_sampler(shuffle: Callable[[list[int]], None]) -> Run:
    return Run(data=DataLoader(plain_rows(), batch_size=4, sampler=Shuffled(shuffle)))


def by_batches(shuffle: Callable[[list[int]], None]) -> Run:
    sampler = BatchSampler(Shuffled(shuffle), 4, drop_last=False)
    return Run(data=DataLoader(plain_rows(), batch_sampler=sampler))


def by_rows(draw: Callable[[], float]) -> Run:
    return Run(data=DataLoader(Rows(draw), batch_size=4))


def by_collate(draw: Callable[[], float]) -> Run:
    def collate(rows: list[Any]) -> Any:
        inputs, targets = torch.utils.data.default_collate(rows)
        return inputs + 0.1 * draw(), targets

    return Run(data=DataLoader(plain_rows(), batch_size=4, collate_fn=collate))


# --- training steps


class SAM(torch.optim.Optimizer):
    """Sharpness-aware minimisation over another optimizer."""

    def __init__(self, params: Any, base: Any, rho: float = 0.05, **options: Any) -> None:
        super().__init__(params, {"rho": rho} | options)
        self.base = base(self.param_groups, **options)
        self.param_groups = self.base.param_groups

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        closure = torch.enable_grad()(closure)
        held = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        old = [p.clone() for p in held]
        for p in held:
            p.add_(p.grad, alpha=0.05)
        self.zero_grad()
        closure()
        for p, before in zip(held, old, strict=True):
            p.copy_(before)
        self.base.step()
        self.zero_grad()


def sharpness_aware(base: Any) -> Run:
    run = Run()
    run.optimizer = SAM(run.model.parameters(), base, lr=0.05, momentum=0.9)

    def step(batch: Any) -> Tensor:
        def closure() -> Tensor:
            loss = run.loss(run.model, batch)
            loss.backward()
            return loss

        loss = closure()
        run.optimizer.step(closure)
        return loss.detach()

    run.step_fn = step
    run.trace = lambda: bits(  # type: ignore[method-assign]
        [list(run.model.parameters()), run.optimizer.base.state_dict()]
    )
    return run


def adversarial(make: Callable[..., Optimizer], where: str) -> Run:
    """Two networks and a schedule, of which only the first is given to the range test."""
    run = Run()
    other = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    optimizer = make(other.parameters(), lr=0.05)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)
    parts: dict[str, Any] = {"net": other, "steps": [optimizer, scheduler]}

    def step(batch: Any, parts: dict[str, Any] = parts) -> Tensor:
        net, (adversary, schedule) = parts["net"], parts["steps"]
        fake = run.model(batch[0])
        adversary.zero_grad()
        net(fake.detach()).square().mean().backward()
        adversary.step()
        schedule.step()
        run.optimizer.zero_grad()
        loss = cross_entropy(fake, batch[1]) + net(fake).mean()
        loss.backward()
        run.optimizer.step()
        return loss.detach()

    class Trainer:
        def __init__(self) -> None:
            self.parts = parts

        def make_step(self, batch: Any) -> Tensor:
            return step(batch, self.parts)

    trainer = Trainer()
    run.step_fn = trainer.make_step if where == "method" else step
    plain = run.trace
    run.trace = lambda: [  # type: ignore[method-assign]
        plain(),
        bits([other.state_dict(), optimizer.state_dict(), scheduler.state_dict()]),
        [(p.grad is None, p.requires_grad) for p in other.parameters()],
    ]
    return run


class Margin(nn.Module):
    """A loss with weights and a running mean."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(self.norm(outputs), targets)


def with_loss_module() -> Run:
    run = Run()
    criterion = Margin()
    run.loss = lambda model, batch: criterion(model(batch[0]), batch[1])  # type: ignore[method-assign]
    plain = run.trace
    run.trace = lambda: (plain(), bits(criterion.state_dict()))  # type: ignore[method-assign]
    return run


RUNS: dict[str, Callable[[], Run]] = {
    "hidden state": lambda: Run(Recurrent),
    "lists that a step fills": lambda: Run(Collecting),
    "a metric": lambda: Run(Metered),
    "draws of a model": lambda: Run(Noisy),
    "numpy's sampler": lambda: by_sampler(np.random.default_rng(1).shuffle),
    "numpy's former sampler": lambda: by_sampler(np.random.RandomState(1).shuffle),
    "Python's sampler": lambda: by_sampler(random.Random(1).shuffle),
    "torch's sampler": lambda: by_sampler(shuffled_by(torch.Generator().manual_seed(1))),
    "batches of numpy": lambda: by_batches(np.random.default_rng(1).shuffle),
    "batches of Python": lambda: by_batches(random.Random(1).shuffle),
    "rows of numpy": lambda: by_rows(np.random.default_rng(1).random),
    "rows of Python": lambda: by_rows(random.Random(1).random),
    "collated by numpy": lambda: by_collate(np.random.default_rng(1).random),
    "collated by Python": lambda: by_collate(random.Random(1).random),
    "a cache": lambda: Run(data=DataLoader(Growing(), batch_size=4)),
    "SAM": lambda: sharpness_aware(lrfast.SGD),
    "SAM over torch": lambda: sharpness_aware(torch.optim.SGD),
    "a GAN": lambda: adversarial(lrfast.Adam, "closure"),
    "a GAN of torch": lambda: adversarial(torch.optim.Adam, "method"),
    "a loss with buffers": with_loss_module,
}


def trained(run: Run, steps: int) -> list[Tensor]:
    return [run.step(batch) for _ in range(steps) for batch in run.data]


@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("name", RUNS)
def test_training_after_a_range_test_is_training_without(name: str, before: int) -> None:
    plain = RUNS[name]()
    losses = trained(plain, before) + trained(plain, 3)
    swept = RUNS[name]()  # and all random numbers from the start
    swept_losses = trained(swept, before)
    untouched = swept.trace()
    options: dict[str, Any] = {} if swept.step_fn else {"verify": 4, "repeats": 2}
    result = swept.find(**options)
    assert swept.trace() == untouched
    assert not any("restored" in note for note in result.notes)
    swept_losses += trained(swept, 3)
    assert bits(swept_losses) == bits(losses)
    assert swept.trace() == plain.trace()


@pytest.mark.parametrize("name", ["hidden state", "a metric", "batches of numpy", "a GAN"])
def test_a_retest_leaves_no_trace_either(name: str) -> None:
    plain = RUNS[name]()
    losses = trained(plain, 3)
    swept = RUNS[name]()
    how: Any = {"compute_loss": swept.loss} if swept.step_fn is None else {}
    how = how or {"step_fn": swept.step_fn}
    retest = Retest(
        *(swept.model, swept.optimizer, swept.data),
        every=1,
        tolerance=1e9,
        max_change=1e10,
        budget=None,
        num_iter=12,
        progress=False,
        **how,
    )
    swept_losses = []
    for _ in range(3):
        swept_losses += trained(swept, 1)
        entry = retest.epoch_end()
        assert entry is not None and entry.outcome in ("kept", "declined")
    assert bits(swept_losses) == bits(losses)
    assert swept.trace() == plain.trace()


def test_torchmetrics_keep_their_best() -> None:
    declare_torchvision_operators()  # which torchmetrics imports
    torchmetrics = pytest.importorskip("torchmetrics")
    run = Run(Metered)
    best, in_model = torchmetrics.MaxMetric(), torchmetrics.MeanMetric()
    run.model.score = in_model
    best.update(0.5)
    in_model.update(torch.tensor([1.0, 2.0]))

    def loss(model: Any, batch: Any) -> Tensor:
        found = cross_entropy(model(batch[0]), batch[1])
        best.update(float(found.detach()) + 100)
        model.score.update(found.detach())
        return found

    run.find(compute_loss=loss)
    assert (float(best.compute()), float(in_model.compute())) == (0.5, 1.5)


def test_one_shot_data_are_named() -> None:
    run = Run()
    result = lr_find(
        *(run.model, run.optimizer, (batch for batch in make_batches(12)), cross_entropy),
        num_iter=10,
        progress=False,
    )
    assert any(note.startswith("train_loader is not as before") for note in result.notes)


def test_a_step_that_writes_into_large_data_is_named() -> None:
    run = Run()
    run.data = [(torch.ones(2000, 4), torch.zeros(2000, dtype=torch.long)) for _ in range(2)]

    def loss(model: nn.Module, batch: Any) -> Tensor:
        batch[0].mul_(1.001)
        return cross_entropy(model(batch[0]), batch[1])

    notes = run.find(compute_loss=loss).notes
    assert [note.partition(" was ")[0] for note in notes if "in place" in note] == [
        "train_loader[0][0]",
        "train_loader[1][0]",
    ]


def test_an_optimizer_that_needs_a_closure_after_all() -> None:
    run = sharpness_aware(lrfast.SGD)
    with pytest.raises(TypeError, match=r"optimizer must make a step .* got SAM, .* pass step_fn"):
        lr_find(run.model, run.optimizer, run.data, cross_entropy, progress=False)
