"""An Ignite engine with torch's AdamW, and with lrfast: the same weights, fewer waits.

A handler runs a range test when an engine starts, and lets it go on at what it finds.

    pip install "lrfast[ignite]"
    python examples/integrations/ignite_engine.py
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from common import Waits, make_loader, make_model, options, report
from ignite.engine import Events, create_supervised_trainer
from torch import nn

import lrfast
from lrfast.integrations.ignite import LRFindHandler

loss_fn = nn.functional.cross_entropy


def train_with_torch(chosen: Any) -> tuple[nn.Module, int]:
    model = make_model().to(chosen.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, chosen.steps)
    engine = create_supervised_trainer(model, optimizer, loss_fn, chosen.device)
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: scheduler.step())
    return model, run(engine, chosen)


def train_with_lrfast(chosen: Any, rates: Any = None) -> tuple[nn.Module, int]:
    """No scheduler; a handler for range tests, if one is to look for a rate first."""
    model = make_model().to(chosen.device)
    schedule = lrfast.schedules.cosine(chosen.steps)
    optimizer = lrfast.AdamW(model.parameters(), lr=3e-3, schedule=schedule)
    engine = create_supervised_trainer(
        model, optimizer, loss_fn, chosen.device,
        output_transform=lambda x, y, y_pred, loss: loss,  # the default waits, for loss.item()
    )  # fmt: skip
    if rates is not None:
        finder = LRFindHandler(model, optimizer).attach(engine)
        rates.append(finder.results)
    return model, run(engine, chosen)


def run(engine: Any, chosen: Any) -> int:
    with Waits(chosen.device) as waits:
        engine.run(make_loader(), max_iters=chosen.steps)
    return waits.count


def main(arguments: Sequence[str] | None = None) -> None:
    chosen = options(arguments)
    theirs, before = train_with_torch(chosen)
    ours, after = train_with_lrfast(chosen)
    found: list[Any] = []
    train_with_lrfast(chosen, found)
    report(chosen.steps, (theirs, ours), (before, after), found[0][0].suggestion)


if __name__ == "__main__":
    main()
