"""Lightning's Trainer with torch's AdamW, and with lrfast: the same weights, fewer waits.

With --half it clips under float16, which Lightning itself refuses to do for fused optimizers; the
bottom layers are unfrozen after the first epoch.

    pip install "lrfast[lightning]"
    python examples/integrations/lightning_trainer.py
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from common import Waits, make_loader, make_model, options, report
from torch import Tensor, nn

import lrfast
from lrfast.integrations.lightning import ClipInStep, GradualUnfreezing, LRFindCallback


class Classifier(pl.LightningModule):
    def __init__(self, configure: Callable[[nn.Module, int], Any], steps: int) -> None:
        super().__init__()
        self.net = make_model()
        self.configure, self.steps = configure, steps

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        inputs, targets = batch
        return nn.functional.cross_entropy(self.net(inputs), targets)

    def configure_optimizers(self) -> Any:
        return self.configure(self.net, self.steps)


def with_torch(net: nn.Module, steps: int) -> Any:
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def with_lrfast(net: nn.Module, steps: int) -> Any:
    return lrfast.AdamW(net.parameters(), lr=3e-3, schedule=lrfast.schedules.cosine(steps))


def in_groups(net: nn.Module, steps: int) -> Any:
    groups = lrfast.discriminative(net, slice(1e-4, 3e-3))
    return lrfast.AdamW(groups, schedule=lrfast.schedules.one_cycle(steps))


def train(configure: Any, callbacks: list[Any], chosen: Any) -> tuple[Classifier, int]:
    module = Classifier(configure, chosen.steps)
    precision = pl.plugins.MixedPrecision("16-mixed", chosen.device) if chosen.is_half else None
    trainer = pl.Trainer(
        max_steps=chosen.steps,
        gradient_clip_val=0.5,
        accelerator="gpu" if chosen.device == "cuda" else "cpu",
        plugins=precision,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with Waits(chosen.device) as waits:
        trainer.fit(module, make_loader())
    return module, waits.count


def main(arguments: Sequence[str] | None = None) -> None:
    chosen = options(arguments, has_half=True)
    theirs, before = train(with_torch, [], chosen)
    ours, after = train(with_lrfast, [ClipInStep()], chosen)
    finder = LRFindCallback(num_iter=50)
    train(in_groups, [ClipInStep(), GradualUnfreezing({0: -1, 1: 0}), finder], chosen)
    report(chosen.steps, (theirs, ours), (before, after), finder.results[0].suggestion)


if __name__ == "__main__":
    main()
