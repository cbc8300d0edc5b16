"""Inside Lightning's Trainer: the steps of torch's AdamW, clipping where Lightning refuses it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from trainers import NullOptimizer, Reads, check_example, furthest, load, quieten, run_example

pl = load("lightning").pytorch

import lrfast  # noqa: E402
from lrfast import schedules  # noqa: E402
from lrfast.integrations import lightning as integration  # noqa: E402
from lrfast.integrations.scheduler import DeviceScheduler  # noqa: E402

STEPS = 24  # 64 rows in batches of 8, three times

Make = Callable[[nn.Module], Any]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    quieten()
    yield
    logger.setLevel(level)


class Classifier(pl.LightningModule):  # type: ignore[misc]
    def __init__(self, make: Make) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            # No bias: a normalisation takes it out, so that its gradient is noise, which Adam turns
            # into whole steps.
            nn.Sequential(nn.Linear(8, 16, bias=False), nn.BatchNorm1d(16)),
            nn.Sequential(nn.Tanh(), nn.Linear(16, 16)),
            nn.Sequential(nn.Dropout(0.2), nn.Linear(16, 3)),
        )
        self.make = make
        self.seen: list[str] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs, targets = batch
        loss = nn.functional.cross_entropy(self.net(inputs), targets)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return self.make(self)


def ours(module: nn.Module) -> Any:
    optimizer = lrfast.AdamW(module.parameters(), lr=1e-2, weight_decay=0.1)
    scheduler = DeviceScheduler(optimizer, schedules.cosine(STEPS))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def theirs(module: nn.Module) -> Any:
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2, weight_decay=0.1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def in_groups(module: Any) -> Any:
    groups = lrfast.discriminative(module.net, slice(1e-3, 1e-2))
    return lrfast.AdamW(groups, schedule=schedules.cosine(STEPS))


def make_trainer(callbacks: Sequence[Any] = (), **options: Any) -> Any:
    given = {
        "max_epochs": 3,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return pl.Trainer(callbacks=list(callbacks), **(given | options))


def make_loader(**options: Any) -> DataLoader[Any]:
    inputs = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(inputs, inputs[:, :3].argmax(1)), 8, shuffle=True, **options)


def fit(
    make: Make,
    callbacks: Sequence[Any] = (),
    ckpt_path: Path | None = None,
    module_class: type[Any] = Classifier,
    **options: Any,
) -> Any:
    module, trainer = module_class(make), make_trainer(callbacks, **options)
    torch.manual_seed(5)
    trainer.fit(module, make_loader(), ckpt_path=ckpt_path)
    return module


class Resumable:
    """Batches that know in a checkpoint how many have been used."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches, self.place = batches, 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        self.place %= len(self.batches)  # the last epoch's iterator may not have been exhausted
        while self.place < len(self.batches):
            self.place += 1
            yield self.batches[self.place - 1]

    def state_dict(self) -> dict[str, int]:
        return {"place": self.place % len(self.batches)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.place = state["place"]


def half_on_cpu() -> list[Any]:
    """ "16-mixed", which Lightning offers on a GPU alone, by the plugin that it uses there."""
    return [pl.plugins.MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", 2.0**8))]


def weights(module: Any) -> list[Tensor]:
    return [parameter.detach() for parameter in module.parameters()]


@pytest.mark.parametrize(
    "options",
    [{}, {"gradient_clip_val": 0.3}, {"accumulate_grad_batches": 2}],
    ids=["plain", "clipped", "accumulated"],
)
def test_it_takes_torchs_steps(options: dict[str, Any]) -> None:
    other = fit(theirs, **options)
    module = fit(ours, **options)
    clipped = fit(ours, [integration.ClipInStep()], **options)
    start = furthest(weights(other), weights(Classifier(theirs)))
    assert furthest(weights(module), weights(other)) < 1e-5 < start / 1000
    assert furthest(weights(clipped), weights(other)) < 1e-5
    assert module.trainer.optimizers[0].schedule_step == module.trainer.global_step


def test_clipping_in_half_precision() -> None:
    """Lightning#21435: an optimizer that unscales in its step is refused, but for ClipInStep."""
    with pytest.raises(RuntimeError, match="does not allow for gradient clipping"):
        fit(ours, plugins=half_on_cpu(), gradient_clip_val=0.3)
    other = fit(theirs, plugins=half_on_cpu(), gradient_clip_val=0.3)
    module = fit(ours, [integration.ClipInStep()], plugins=half_on_cpu(), gradient_clip_val=0.3)
    assert furthest(weights(module), weights(other)) < 1e-3  # gradients are halves
    unclipped = fit(ours, plugins=half_on_cpu())
    assert furthest(weights(module), weights(unclipped)) > 1e-3
    assert module.trainer.gradient_clip_val == 0.3


def test_the_trainer_gets_its_clipping_back_after_an_exception() -> None:
    class Broken(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            raise RuntimeError("broken")

    module, trainer = Broken(ours), make_trainer([integration.ClipInStep()], gradient_clip_val=0.3)
    with pytest.raises(RuntimeError, match="broken"):
        trainer.fit(module, make_loader())
    assert trainer.gradient_clip_val == 0.3 and trainer.optimizers[0].max_grad_norm == 0.3


@pytest.mark.parametrize("kind", ["full", "half", "workers"])
def test_a_range_test_leaves_no_trace(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At two epochs' beginnings, with Dropout and BatchNorm; rates are left alone here."""

    def run(callbacks: Sequence[Any]) -> Any:
        module = Classifier(ours)
        plugins = half_on_cpu() if kind == "half" else None
        trainer = make_trainer(callbacks, accumulate_grad_batches=2, plugins=plugins)
        torch.manual_seed(5)
        options = {"num_workers": 1, "persistent_workers": True} if kind == "workers" else {}
        trainer.fit(module, make_loader(**options))
        return module

    plain = run([])
    monkeypatch.setattr(lrfast.RangeTest, "apply", lambda *given, **options: None)
    finder = integration.LRFindCallback(epochs=(0, 2), num_iter=12)
    tested = run([finder])
    assert [len(result.lrs) > 3 for result in finder.results] == [True, True]
    for one, other in zip(tested.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert tested.trainer.logged_metrics == plain.trainer.logged_metrics
    assert "log" not in tested.__dict__


def test_a_range_test_sets_the_rates() -> None:
    finder = integration.LRFindCallback(rule="steep", num_iter=30)
    module = fit(in_groups, [finder])
    rates = [group["lr"] for group in module.trainer.optimizers[0].param_groups]
    assert rates == pytest.approx(finder.results[0].suggested_lrs("steep"))
    assert rates[-1] == pytest.approx(10 * rates[0])


def test_metrics_and_indices_in_a_range_test() -> None:
    """Steps that take no index and return a dict; what metrics counted in the sweep is gone."""
    torchmetrics = pytest.importorskip("torchmetrics")

    class WithMetric(Classifier):
        def __init__(self, make: Make) -> None:
            super().__init__(make)
            self.rows = torchmetrics.SumMetric()

        def training_step(self, batch: Any) -> Any:
            self.rows.update(len(batch[0]))
            self.log_dict({"rows": self.rows})
            return {"loss": super().training_step(batch, 0)}

        def on_train_epoch_end(self) -> None:
            self.seen.append(str(float(self.rows.compute())))

    finder = integration.LRFindCallback(num_iter=9)
    module = fit(ours, [finder], module_class=WithMetric, max_epochs=1)
    assert len(finder.results) == 1 and module.seen == ["64.0"]


def test_unfreezing_by_a_timetable() -> None:
    """Frozen layers do not move, nor the statistics of their norms; param groups stay."""
    seen: list[tuple[list[bool], list[Tensor], Tensor]] = []

    class Watch(pl.Callback):  # type: ignore[misc]
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            optimizer = trainer.optimizers[0]
            frozen = [group["frozen"] for group in optimizer.param_groups]
            now = [weight.clone() for weight in weights(pl_module)]
            seen.append((frozen, now, pl_module.net[0][1].running_mean.clone()))

    start = weights(Classifier(in_groups))
    unfreezing = integration.GradualUnfreezing({0: -1, 1: -2, 2: 0}, norm_mode="keep")
    module = fit(in_groups, [unfreezing, Watch()])
    frozen = [entry[0] for entry in seen]
    assert frozen == [[True, True, False], [True, False, False], [False, False, False]]
    moved = [[not torch.equal(a, b) for a, b in zip(now, start, strict=True)] for _, now, _ in seen]
    assert moved[0] == [False] * 5 + [True] * 2 and moved[1] == [False] * 3 + [True] * 4
    assert all(moved[2])
    means = [mean for _, _, mean in seen]
    assert torch.equal(means[1], torch.zeros(16)) and not torch.equal(means[2], means[1])
    assert len(module.trainer.optimizers[0].param_groups) == 3


@pytest.mark.parametrize("at", [5, 16])
def test_resume_gives_the_same_weights(tmp_path: Path, at: int) -> None:
    """In mid-epoch while layers are frozen, and between epochs."""

    def callbacks() -> list[Any]:
        keeper = pl.callbacks.ModelCheckpoint(
            tmp_path, "at-{step}", every_n_train_steps=at, save_top_k=-1, save_weights_only=False
        )
        return [integration.GradualUnfreezing({0: -1, 1: 0}), keeper]

    class Steady(Classifier):
        """Without Dropout, as Lightning keeps no random state."""

        def __init__(self, make: Make) -> None:
            super().__init__(make)
            self.net[2][0] = nn.Identity()

        def train_dataloader(self) -> Any:
            return Resumable(list(DataLoader(make_loader().dataset, 8)))

    def run(ckpt_path: Path | None = None) -> Any:
        module = Steady(in_groups)
        trainer = make_trainer(callbacks(), enable_checkpointing=True)
        trainer.fit(module, ckpt_path=ckpt_path)
        return module

    whole = run()
    resumed = run(tmp_path / f"at-step={at}.ckpt")
    assert resumed.trainer.global_step == STEPS
    for one, other in zip(resumed.state_dict().values(), whole.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert resumed.trainer.optimizers[0].schedule_step == STEPS


def test_rates_and_norms_are_logged(tmp_path: Path) -> None:
    class Recorder(pl.loggers.logger.DummyLogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.rows: list[tuple[int, dict[str, float]]] = []

        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            if "loss" not in metrics and "epoch" not in metrics:
                self.rows.append((int(step or 0), dict(metrics)))

    recorder = Recorder()
    callbacks = [integration.ClipInStep(), integration.StepMonitor()]
    options = {"logger": recorder, "log_every_n_steps": 4, "gradient_clip_val": 0.3}
    module = fit(in_groups, callbacks, **options)
    first, *_, last = (group["name"] for group in module.trainer.optimizers[0].param_groups)
    assert [step for step, _ in recorder.rows] == [4, 8, 12, 16, 20, 24]
    schedule = schedules.cosine(STEPS)
    for step, row in recorder.rows:
        assert row[f"lr-{last}"] == pytest.approx(1e-2 * schedule.at(step - 1))
        assert row[f"lr-{first}"] == pytest.approx(1e-3 * schedule.at(step - 1))
        assert row["grad_norm"] > 0


def reads_of(make: Make, **options: Any) -> int:
    """Waits of the second epoch, which has no set-up in it."""
    counts = []
    for epochs in (1, 2):
        plugins = half_on_cpu() if options.get("half") else None
        callbacks = [integration.ClipInStep()] if options.get("clip") else []
        clip = 0.3 if options.get("clip") else None
        with Reads() as reads:
            fit(make, callbacks, max_epochs=epochs, plugins=plugins, gradient_clip_val=clip)
        counts.append(reads.count)
    return counts[1] - counts[0]


def without_steps(module: nn.Module) -> Any:
    return NullOptimizer(module.parameters(), lr=1e-2)


def test_no_wait_but_lightnings_own() -> None:
    """2 per epoch, for the order of the data; under a scaler others wait once per step."""
    own = reads_of(without_steps)
    assert own == 2
    assert reads_of(ours) == own
    assert reads_of(ours, half=True, clip=True) == own
    assert reads_of(without_steps, half=True) == own + 8


@pytest.mark.parametrize("options", [[], ["--half"]], ids=["full", "half"])
def test_the_example(
    options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_example("lightning_trainer", ["--steps", "6", *options], monkeypatch)
    check_example(capsys.readouterr().out, after=6)


ERRORS: list[tuple[Make, Any, dict[str, Any], type[Exception], str]] = [
    (theirs, integration.ClipInStep, {"gradient_clip_val": 1.0}, TypeError, "one of lrfast"),
    (
        ours,
        integration.ClipInStep,
        {"gradient_clip_val": 1.0, "gradient_clip_algorithm": "value"},
        ValueError,
        "gradient_clip_algorithm must be 'norm', got",
    ),
    (
        theirs,
        integration.LRFindCallback,
        {},
        ValueError,
        "the scheduler must be a DeviceScheduler, or none, for a range test: CosineAnnealingLR",
    ),
]


@pytest.mark.parametrize(("make", "callback", "options", "error", "message"), ERRORS)
def test_errors(
    make: Make, callback: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        fit(make, [callback()], **options)


def test_shards_that_only_a_strategy_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """FSDPStrategy wants GPUs; what is asked of it here is its class."""
    trainer = make_trainer([integration.ClipInStep()], gradient_clip_val=0.3)
    monkeypatch.setattr(integration, "_KEEP_THEIR_SHARDS", (type(trainer.strategy),))
    with pytest.raises(ValueError, match=r"strategy must not be FSDPStrategy .* ModelParallelStra"):
        trainer.fit(Classifier(ours), make_loader())
    assert trainer.gradient_clip_val == 0.3
