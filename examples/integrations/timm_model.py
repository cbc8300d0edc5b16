"""A vision transformer with timm's factory and scheduler, and with lrfast's: the same weights.

Rates fall from layer to layer, and follow a warm-up and a cosine; timm sets all of them from the
host at every step.

    pip install "lrfast[timm]"
    python examples/integrations/timm_model.py
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import timm
import torch
from common import Waits, options, report
from timm.models import VisionTransformer
from timm.utils import dispatch_clip_grad
from torch import Tensor, nn

import lrfast
from lrfast.integrations import timm as lrfast_timm

OPTIMIZER = {"lr": 2e-3, "weight_decay": 0.05, "layer_decay": 0.7}
SCHEDULE = {"sched": "cosine", "warmup_epochs": 1, "warmup_lr": 1e-5, "step_on_epochs": False}
NORM, UPDATES_PER_EPOCH = 1.0, 10
loss_fn = nn.functional.cross_entropy


def make_model(device: str) -> nn.Module:
    torch.manual_seed(0)
    size = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 4}
    # In doubles: the biases of keys have no gradient but rounding, of which Adam makes whole steps.
    return VisionTransformer(**size, num_classes=3).double().to(device)


def make_batches(device: str, count: int) -> list[tuple[Tensor, Tensor]]:
    """Images, of which one colour is a little brighter than the others."""
    generator = torch.Generator().manual_seed(0)
    colours = torch.randint(0, 3, (count, 16), generator=generator)
    images = torch.randn(count, 16, 3, 16, 16, generator=generator, dtype=torch.float64)
    images += 0.3 * nn.functional.one_hot(colours, 3)[..., None, None]
    return list(zip(images.to(device), colours.to(device), strict=True))


def train(prepare: Callable[[nn.Module, int], Any], chosen: Any) -> tuple[nn.Module, int, Any]:
    model = make_model(chosen.device)
    optimizer, after_step = prepare(model, -(-chosen.steps // UPDATES_PER_EPOCH))
    data = make_batches(chosen.device, chosen.steps)
    with Waits(chosen.device) as waits:
        for update, (images, colours) in enumerate(data):
            optimizer.zero_grad()
            loss_fn(model(images), colours).backward()
            after_step(model, optimizer, update)
    return model, waits.count, optimizer


def with_timm(model: nn.Module, epochs: int) -> Any:
    optimizer = timm.optim.create_optimizer_v2(model, "adamw", **OPTIMIZER)
    scheduler, _ = timm.scheduler.create_scheduler_v2(
        optimizer, num_epochs=epochs, updates_per_epoch=UPDATES_PER_EPOCH, **SCHEDULE
    )

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, update: int) -> None:
        dispatch_clip_grad(model.parameters(), NORM, "norm")
        optimizer.step()
        scheduler.step_update(update + 1)

    return optimizer, step


def with_lrfast(model: nn.Module, epochs: int) -> Any:
    optimizer = lrfast_timm.create_optimizer_v2(model, "adamw", max_grad_norm=NORM, **OPTIMIZER)
    schedule, _ = lrfast_timm.create_schedule(
        optimizer, UPDATES_PER_EPOCH, num_epochs=epochs, **SCHEDULE
    )
    optimizer.set_schedule(schedule)
    return optimizer, lambda model, optimizer, update: optimizer.step()


def main(arguments: Sequence[str] | None = None) -> None:
    chosen = options(arguments)
    theirs, before, _ = train(with_timm, chosen)
    ours, after, optimizer = train(with_lrfast, chosen)
    result = lrfast.lr_find(ours, optimizer, make_batches(chosen.device, 20), loss_fn, num_iter=50)
    report(chosen.steps, (theirs, ours), (before, after), result.suggestion)


if __name__ == "__main__":
    main()
