"""The range tests of other libraries, as they are, where they are installed.

The project depends on none of them; `make peers` installs them.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

STEPS = 100
RANGE = (1e-7, 1e-3)
Loader = DataLoader[tuple[Tensor, Tensor]]
cross_entropy = nn.functional.cross_entropy


@dataclass(frozen=True)
class Peer:
    """Somebody else's range test."""

    sweep: Callable[[nn.Module, torch.optim.Optimizer, Loader], list[float]]
    package: str
    smooths: bool = False
    begin: int = 0  # first of the losses that can be compared with ours
    tolerance: float = 1e-3  # of the largest loss


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


def _lightning(model: nn.Module, optimizer: torch.optim.Optimizer, loader: Loader) -> list[float]:
    """Tuner.lr_find, which always smooths; no suggestion, logger or progress bar."""
    with _quiet(), tempfile.TemporaryDirectory() as folder:
        from lightning import pytorch as pl
        from lightning.pytorch.tuner import Tuner

        class Module(pl.LightningModule):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.model = model
                self.lr = RANGE[0]

            def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
                return cross_entropy(self.model(batch[0]), batch[1])

            def configure_optimizers(self) -> torch.optim.Optimizer:
                return optimizer

        trainer = pl.Trainer(
            accelerator="gpu" if next(model.parameters()).is_cuda else "cpu",
            devices=1,
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        finder: Any = Tuner(trainer).lr_find(
            Module(),
            loader,
            min_lr=RANGE[0],
            max_lr=RANGE[1],
            num_training=STEPS,
            early_stop_threshold=None,
            update_attr=False,
        )
    losses: list[float] = finder.results["loss"]
    return losses


def _fastai(model: nn.Module, optimizer: torch.optim.Optimizer, loader: Loader) -> list[float]:
    """Learner.lr_find, which always smooths; no suggestion or plot, an optimizer without a past."""
    with _quiet(), tempfile.TemporaryDirectory() as folder:
        from fastai.basics import DataLoaders, Learner, OptimWrapper
        from fastai.callback import progress, schedule  # noqa: F401 (they add methods to Learner)

        given = {
            name: optimizer.defaults[name] for name in ("momentum",) if name in optimizer.defaults
        }
        learner = Learner(
            DataLoaders(loader, loader, device=next(model.parameters()).device),
            model,
            loss_func=cross_entropy,
            opt_func=partial(OptimWrapper, opt=type(optimizer), **given),
            path=folder,
        )
        with learner.no_bar(), learner.no_logging():
            learner.lr_find(
                RANGE[0], RANGE[1], STEPS, stop_div=False, show_plot=False, suggest_funcs=None
            )
    losses: list[float] = [float(loss) for loss in learner.recorder.losses]
    return losses


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without messages, warnings, progress bars, and what Lightning logs about the machine."""
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


# ignite's rates are those of the next step, a hundredth of the sweep ahead. Lightning's bias
# correction is off by a step, which the second half of a curve hardly shows. fastai's optimizer
# starts without the states that the others have.
PEERS = {
    "torch-lr-finder": Peer(_torch_lr_finder, "torch_lr_finder"),
    "ignite": Peer(_ignite, "ignite", tolerance=0.2),
    "lightning": Peer(_lightning, "lightning", True, STEPS // 2, 0.05),
    "fastai": Peer(_fastai, "fastai", True, tolerance=0.05),
}
