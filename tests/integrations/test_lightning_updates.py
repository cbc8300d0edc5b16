"""Updates of a sweep inside Lightning's Trainer: those that training makes, bit for bit."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from tiny import bits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from trainers import cross_entropy, load, options_in_docs, quieten

pl = load("lightning").pytorch

import lrfast  # noqa: E402
from lrfast.integrations import lightning as integration  # noqa: E402
from lrfast.integrations.scheduler import DeviceScheduler  # noqa: E402

# 7 batches per epoch, so that windows of 2 end with half a window.
BATCHES, UPDATES = 7, 9
# Only the last group's learning rate moves; its parameter adds nothing to the loss.
SWEEP = {
    "vary": 1,
    "start_lr": 1e-4,
    "end_lr": 1e-2,
    "num_iter": UPDATES,
    "diverge_threshold": None,
}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    quieten()
    yield
    logger.setLevel(level)


class Module(pl.LightningModule):  # type: ignore[misc]
    automatic = True

    def __init__(self, kind: type[torch.optim.Optimizer]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.2), nn.Tanh(), nn.Linear(16, 3))
        self.moved = nn.Parameter(torch.ones(()))
        self.kind, self.automatic_optimization = kind, self.automatic

    def loss(self, batch: Any) -> Tensor:
        # Large losses, whose gradients are clipped, and never 0 for the parameter that moves.
        return 30 * cross_entropy(self.net(batch[0]), batch[1]) + 0 * self.moved

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.loss(batch)

    def configure_optimizers(self) -> Any:
        groups = [{"params": self.net.parameters(), "lr": 0.03}, {"params": [self.moved]}]
        return self.kind(groups, lr=1e-3, weight_decay=0.1)


class Spy(pl.Callback):  # type: ignore[misc]
    """Notes what each batch leaves, in a list that no snapshot finds."""

    def __init__(self, seen: list[Any]) -> None:
        self._note = seen.append

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *given: Any) -> None:
        group = trainer.optimizers[0].param_groups[0]
        states = [trainer.optimizers[0].state.get(each, {}) for each in group["params"]]
        weights = [each.detach().clone() for each in pl_module.net.parameters()]
        grads = [copy.deepcopy(each.grad) for each in pl_module.net.parameters()]
        counts = (trainer.global_step, trainer.fit_loop.batch_idx, group["lr"])
        self._note((weights, grads, copy.deepcopy(states), counts))


# Modules and callbacks of the table.


class DictLoss(Module):
    def training_step(self, batch: Any) -> Any:  # without an index
        return {"loss": self.loss(batch), "rows": len(batch[0])}


class Skipping(Module):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return None if batch_idx % 3 == 1 else self.loss(batch)


class Manual(Module):
    """Accumulates over 2 batches, clips by hand and returns nothing."""

    automatic = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        self.manual_backward(self.loss(batch) / 2)
        if batch_idx % 2:
            self.clip_gradients(optimizer, 0.3, "norm")
            optimizer.step()
            optimizer.zero_grad()


class TwoOptimizers(Manual):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()
        return loss

    def configure_optimizers(self) -> Any:
        params = [*self.net.parameters()]
        groups = [{"params": params[:2], "lr": 0.03}, {"params": [self.moved]}]
        return self.kind(groups, lr=1e-3), torch.optim.Adam(params[2:], lr=0.02)


class OwnClosure(Module):
    """Sharpness-aware: two evaluations in a step of its own."""

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, closure: Any) -> None:
        closure()
        params = [each for each in self.net.parameters() if each.grad is not None]
        with torch.no_grad():
            moves = [0.05 * each.grad.sign() for each in params]
            torch._foreach_add_(params, moves)
        closure()
        with torch.no_grad():
            torch._foreach_sub_(params, moves)
        optimizer.step(lambda: None)


class OwnClipping(Module):
    def configure_gradient_clipping(self, optimizer: Any, *given: Any, **named: Any) -> None:
        for each in self.net.parameters():
            each.grad.clamp_(-0.02 - 0.01 * self.global_step, 0.02)


class EndsEarly(Module):
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        return -1 if batch_idx == 4 else None


class Prepares(Module):
    """Changes batches on their way, and weights after a step; hooks before it make its list."""

    def on_train_epoch_start(self) -> None:
        self.losses: list[Tensor] = []

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch[0] * 1.5, batch[1]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.losses.append(super().training_step(batch, batch_idx))
        self.log("loss", self.losses[-1], prog_bar=True)
        return self.losses[-1]

    def on_train_batch_end(self, *given: Any) -> None:
        with torch.no_grad():
            self.net[0].weight.clamp_(-0.2, 0.2)
        assert "loss" in self.trainer.callback_metrics


class Touching(pl.Callback):  # type: ignore[misc]
    """Touches gradients in three hooks, with a count of its own."""

    def __init__(self) -> None:
        self.counts = {"steps": 0}

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        for each in pl_module.net.parameters():
            each.grad += 1e-2

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.counts["steps"] += 1
        for each in pl_module.net.parameters():
            each.grad *= 1 / self.counts["steps"]

    def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        with torch.no_grad():
            pl_module.net[3].bias *= 0.9


class Both(Module):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.loss(batch["a"]) + self.loss(batch["b"])


def with_scheduler(module: Module) -> Any:
    optimizer = Module.configure_optimizers(module)
    return [optimizer], [{"scheduler": DeviceScheduler(optimizer), "interval": "step"}]


class Scheduled(Module):
    def configure_optimizers(self) -> Any:
        return with_scheduler(self)


def make_loader(rows: int = 8 * BATCHES) -> DataLoader[Any]:
    inputs = torch.randn(rows, 8, generator=torch.Generator().manual_seed(1))
    data = TensorDataset(inputs, inputs[:, :3].argmax(1))
    # A generator of its own: without one each pass draws a seed from the global one.
    return DataLoader(data, 8, generator=torch.Generator())


def combined() -> Any:
    loaders = {"a": make_loader(), "b": make_loader(32)}
    return pl.utilities.CombinedLoader(loaders, "max_size_cycle")


def half() -> dict[str, Any]:
    """ "16-mixed", which Lightning offers on a GPU alone, by the plugin that it uses there."""
    scaler = torch.amp.GradScaler("cpu", 2.0**15, growth_interval=3)
    return {"plugins": [pl.plugins.MixedPrecision("16-mixed", "cpu", scaler)]}


@dataclass(frozen=True)
class Case:
    module: type[Module] = Module
    options: Callable[[], dict[str, Any]] = dict
    callbacks: Callable[[], list[Any]] = list
    loader: Callable[[], Any] = make_loader
    kinds: tuple[type[torch.optim.Optimizer], ...] = (lrfast.AdamW, torch.optim.AdamW)
    find: dict[str, Any] = field(default_factory=dict)


OURS = (lrfast.AdamW,)

# Row of the table in docs/integrations.md -> what is trained.
CASES: dict[str, list[Case]] = {
    "`gradient_clip_val`, `gradient_clip_algorithm`": [
        Case(),
        Case(options=lambda: {"gradient_clip_val": 0.3}),
        Case(options=lambda: {"gradient_clip_val": 0.05, "gradient_clip_algorithm": "value"}),
        Case(
            options=lambda: {"gradient_clip_val": 0.3},
            callbacks=lambda: [integration.ClipInStep()],
            kinds=OURS,
        ),
    ],
    "`configure_gradient_clipping`": [Case(OwnClipping, lambda: {"gradient_clip_val": 0.3})],
    "`accumulate_grad_batches`, `GradientAccumulationScheduler`": [
        Case(options=lambda: {"accumulate_grad_batches": 2, "gradient_clip_val": 0.3}),
        Case(
            callbacks=lambda: [
                pl.callbacks.GradientAccumulationScheduler(scheduling={0: 3}),
            ]
        ),
    ],
    "`precision`": [
        Case(options=lambda: {"precision": "bf16-mixed"}),
        Case(options=half),
        Case(options=lambda: half() | {"gradient_clip_val": 0.3}, kinds=(torch.optim.AdamW,)),
    ],
    "`limit_train_batches`": [
        Case(options=lambda: {"limit_train_batches": 5, "accumulate_grad_batches": 2})
    ],
    "manual optimization": [
        Case(Manual),
        Case(Manual, find={"gradient_accumulation_steps": 2}),
        Case(Manual, half, kinds=(torch.optim.AdamW,)),
    ],
    "several optimizers": [Case(TwoOptimizers)],
    "`optimizer_step`": [Case(OwnClosure)],
    "hooks and callbacks": [
        Case(Prepares, callbacks=lambda: [Touching()]),
        Case(Prepares, lambda: {"accumulate_grad_batches": 2}, lambda: [Touching()]),
    ],
    "`training_step` that returns a dict or None": [Case(DictLoss), Case(Skipping)],
    "`on_train_batch_start` that returns -1": [Case(EndsEarly)],
    "several loaders, `CombinedLoader`": [Case(Both, loader=combined)],
    "`DeviceScheduler`": [Case(Scheduled, kinds=OURS)],
}
IN_TABLE = [
    pytest.param(case, kind, id=f"{row}-{number}-{kind.__module__.partition('.')[0]}")
    for row, cases in CASES.items()
    for number, case in enumerate(cases)
    for kind in case.kinds
]
REFUSED = {"a scheduler on the host", "`training_step(dataloader_iter)`", "a warm-up in a hook"}


def fit(case: Case, kind: type[torch.optim.Optimizer], finder: Any = None) -> list[Any]:
    """Train for two epochs, and return what each batch left, those of a sweep first."""
    seen: list[Any] = []
    callbacks = [*([] if finder is None else [finder]), *case.callbacks(), Spy(seen)]
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "logger": False}
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        callbacks=callbacks,
        enable_model_summary=False,
        **quiet,
        **case.options(),
    )
    module = case.module(kind)
    torch.manual_seed(5)
    trainer.fit(module, case.loader())
    return seen


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
@pytest.mark.parametrize(("case", "kind"), IN_TABLE)
def test_updates_are_the_trainers_own(
    case: Case, kind: type[torch.optim.Optimizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a sweep that leaves the weights' learning rate alone, and in the training after it."""
    plain = fit(case, kind)
    monkeypatch.setattr(lrfast.RangeTest, "apply", lambda *given, **options: None)
    finder = integration.LRFindCallback(**(SWEEP | case.find))
    tested = fit(case, kind, finder)
    swept = len(tested) - len(plain)
    steps = {row[3][0] for row in plain}
    assert swept >= UPDATES and len(steps) > 4
    for number in range(min(swept, len(plain))):
        assert bits(tested[number]) == bits(plain[number]), f"batch {number} of the sweep"
    for number, row in enumerate(plain):
        assert bits(tested[swept + number]) == bits(row), f"batch {number} after the sweep"
    assert len(finder.results[0].losses) > 2


def test_the_table_of_the_docs_is_the_tested_one() -> None:
    honoured = options_in_docs("Lightning")
    assert {row for row in honoured if not honoured[row].startswith("refused")} == set(CASES)
    assert {row for row in honoured if honoured[row].startswith("refused")} == REFUSED


class WarmsUp(Module):
    def optimizer_step(self, *given: Any, **named: Any) -> None:
        super().optimizer_step(*given, **named)
        self.trainer.optimizers[0].param_groups[0]["lr"] = 1e-5 * (1 + self.global_step)


class Iterates(Module):
    def training_step(self, dataloader_iter: Any) -> Any:
        return self.loss(next(dataloader_iter)[0])


class LossIsSecret(Manual):
    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.loss(batch).backward()
        self.optimizers().step()


class OnTheHost(Module):
    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.ConstantLR(optimizer)]


ONCE = (
    r"train_loader must be given where the trainer's can be iterated only once, got list_iterator"
)
NO_MEASURE = "verify must be left out in manual optimization, which has no loss without a step"
ERRORS: list[tuple[Case, type[Exception], str]] = [
    (Case(Manual, find={"verify": 4}), ValueError, NO_MEASURE),
    (Case(WarmsUp), ValueError, "the training step must keep the learning rates, got 1e-05 for"),
    (Case(Iterates), TypeError, "training_step must take a batch for a range test, got one that"),
    (Case(LossIsSecret), ValueError, "training_step must return the loss for a range test, or"),
    (Case(OnTheHost), ValueError, "the scheduler must be a DeviceScheduler, or none, for a range"),
    (Case(loader=lambda: iter(list(make_loader()))), TypeError, ONCE),
]


@pytest.mark.filterwarnings("ignore:.*`dataloader_iter`")
@pytest.mark.parametrize("kind", [lrfast.AdamW, torch.optim.AdamW])
@pytest.mark.parametrize(("case", "error", "message"), ERRORS)
def test_what_cannot_be_reproduced_is_refused(
    case: Case, kind: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as raised:
        fit(case, kind, integration.LRFindCallback(**(SWEEP | case.find)))
    assert "\n" not in str(raised.value)


@pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual")
def test_what_a_sweep_leaves_alone(tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Metrics, logs, checkpoints and early stopping; notes and the suggestion are announced."""
    torchmetrics = pytest.importorskip("torchmetrics")
    rows: list[Any] = []

    class Recorder(pl.loggers.logger.DummyLogger):  # type: ignore[misc]
        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            rows.append((step, dict(metrics)))

    class Measures(TwoOptimizers):
        def __init__(self, kind: Any) -> None:
            super().__init__(kind)
            self.best = torchmetrics.MaxMetric()
            self.highest: list[float] = []

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            self.best.update(loss.detach())
            self.log("loss", loss, on_step=True, on_epoch=True)
            assert self.logger is not None
            return loss

        def on_train_epoch_end(self) -> None:
            self.highest.append(float(self.best.compute()))

    def run(name: str, finder: Any = None) -> Any:
        rows.clear()
        stopping = pl.callbacks.EarlyStopping("loss", check_on_train_epoch_end=True, patience=9)
        keeper = pl.callbacks.ModelCheckpoint(
            tmp_path / name, "{step}", every_n_train_steps=1, save_top_k=-1
        )
        callbacks = [stopping, keeper] + ([] if finder is None else [finder])
        trainer = pl.Trainer(
            max_epochs=3,
            accelerator="cpu",
            callbacks=callbacks,
            enable_model_summary=False,
            enable_progress_bar=False,
            logger=Recorder(),
            log_every_n_steps=1,
        )
        module = Measures(lrfast.AdamW)
        torch.manual_seed(5)
        trainer.fit(module, make_loader())
        files = sorted(file.name for file in (tmp_path / name).iterdir())
        seen = (files, list(rows), module.highest, trainer.callback_metrics, stopping.state_dict())
        return bits(seen), [group["lr"] for group in trainer.optimizers[0].param_groups]

    plain, rates = run("plain")
    finder = integration.LRFindCallback(
        epochs=(0, 2), rule="steep", **(SWEEP | {"diverge_threshold": 4.0})
    )
    with caplog.at_level(logging.INFO, "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger("lightning.pytorch").setLevel(logging.INFO)
        finder._take, take = (lambda result, optimizer: None), finder._take
        assert run("tested", finder) == (plain, rates)
        finder._take = take
        _, found = run("applied", finder)
    assert found[0] == rates[0] and found != rates
    told = [line for line in caplog.messages if line.startswith("LRFindCallback: ")]
    assert f"learning rate set from 0.03 to 0.03, 0.001 to {found[1]:.3g} (steep: " in told[0]
    assert told[-1].endswith("of the first of 2 optimizers; the others stepped at their own")
    assert finder.results[-1].notes[-1] in told[-1]


def test_a_loader_that_no_snapshot_restores_is_named() -> None:
    class Rows:
        def __iter__(self) -> Iterator[Any]:
            return iter(make_loader())

    finder = integration.LRFindCallback(**SWEEP)
    fit(Case(loader=Rows), lrfast.AdamW, finder)
    assert "Rows was iterated, and cannot be restored" in finder.results[0].notes


@pytest.mark.parametrize("find", [{"val_loader": True}, {"verify": 6}, {"lag": 1}, {"repeats": 2}])
def test_other_options_of_a_range_test(find: dict[str, Any]) -> None:
    """They measure with the module's own training step."""
    options = {"num_iter": 24, "progress": False} | find
    if "val_loader" in find:
        options["val_loader"] = list(make_loader())
    finder = integration.LRFindCallback(**options)
    case = Case() if "val_loader" in find else Case(Both, loader=combined)
    seen = fit(case, lrfast.AdamW, finder)
    result = finder.results[0]
    assert len(seen) > 2 * BATCHES + 12 and len(result.lrs) > 12
    assert (result.race is not None) == ("verify" in find)


@pytest.mark.parametrize("name", ["loss_fn", "compute_loss", "step_fn", "capture"])
def test_what_would_replace_the_trainers_updates(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be left out: the updates are the trainer's"):
        integration.LRFindCallback(**{name: None})


@pytest.mark.parametrize("given", ["the trainer's", "another", "dict"])
def test_loaders_given_for_a_range_test(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the trainer's own, while its workers run."""
    monkeypatch.setattr(lrfast.RangeTest, "apply", lambda *given, **options: None)
    rows = make_loader().dataset
    loaders = [
        DataLoader(rows, 8, shuffle=True, num_workers=1, persistent_workers=True) for _ in range(2)
    ]
    data = {"the trainer's": loaders[0], "another": make_loader(), "dict": combined().iterables}
    module = Both if given == "dict" else Module
    trained = combined if given == "dict" else lambda: loaders[0]
    plain = fit(Case(module, loader=trained), lrfast.AdamW)
    trained = combined if given == "dict" else lambda: loaders[1]
    if given == "the trainer's":
        data[given] = loaders[1]
    finder = integration.LRFindCallback(train_loader=data[given], **SWEEP)
    tested = fit(Case(module, loader=trained), lrfast.AdamW, finder)
    assert bits(tested[UPDATES:]) == bits(plain) and len(finder.results[0].lrs) == UPDATES
