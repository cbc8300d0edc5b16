"""A loop under Accelerate with torch's AdamW, and with lrfast: the same weights, no scheduler.

The norm that clips is found in the optimizer's step. With --device cuda, add --half for float16.

    pip install "lrfast[accelerate]"
    python examples/integrations/accelerate_loop.py
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from common import Waits, batches, make_loader, make_model, options, report
from torch import nn

import lrfast
from lrfast.integrations.accelerate import clip_in_step, undisturbed

loss_fn = nn.functional.cross_entropy


def with_torch(model: nn.Module, steps: int) -> Any:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)


def with_lrfast(model: nn.Module, steps: int) -> Any:
    return lrfast.AdamW(model.parameters(), lr=3e-3, schedule=lrfast.schedules.cosine(steps)), None


def train(make: Any, chosen: Any) -> tuple[nn.Module, int, Any]:
    accelerator = Accelerator(
        cpu=chosen.device == "cpu", mixed_precision="fp16" if chosen.is_half else "no"
    )
    model = make_model()
    optimizer, scheduler = make(model, chosen.steps)
    model, optimizer, loader = accelerator.prepare(model, optimizer, make_loader())
    found = None
    if scheduler is None:
        clip_in_step(accelerator, optimizer)
        with undisturbed(accelerator):
            found = lrfast.lr_find(model, optimizer.optimizer, loader, loss_fn).suggestion
    with Waits(chosen.device) as waits:
        for inputs, targets in batches(loader, chosen.steps):
            accelerator.backward(loss_fn(model(inputs), targets))
            accelerator.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            optimizer.zero_grad()
    return accelerator.unwrap_model(model), waits.count, found


def main(arguments: Sequence[str] | None = None) -> None:
    chosen = options(arguments, has_half=True)
    theirs, before, _ = train(with_torch, chosen)
    ours, after, found = train(with_lrfast, chosen)
    report(chosen.steps, (theirs, ours), (before, after), found)


if __name__ == "__main__":
    main()
