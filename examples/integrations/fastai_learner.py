"""fastai's Learner with torch's AdamW, and with lrfast: the same weights, and clipping in the step.

fastai's one-cycle callback sets rates and momentum, as ever.

    pip install "lrfast[fastai]"
    python examples/integrations/fastai_learner.py
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from common import BATCH, ROWS, Waits, make_loader, make_model, options, report
from fastai.callback.schedule import Learner
from fastai.callback.training import GradientClip
from fastai.data.core import DataLoaders
from fastai.optimizer import OptimWrapper
from torch import nn

from lrfast.integrations.fastai import lr_find, opt_func

NORM = 0.5


def with_torch() -> dict[str, Any]:
    def make(params: Any, **options: Any) -> OptimWrapper:
        return OptimWrapper(params, torch.optim.AdamW, **options)

    return {"opt_func": make, "cbs": [GradientClip(NORM)]}


def with_lrfast() -> dict[str, Any]:
    return {"opt_func": opt_func(max_grad_norm=NORM)}


def make_learner(how: dict[str, Any], chosen: Any) -> Learner:
    data = DataLoaders(make_loader(), make_loader(), device=torch.device(chosen.device))
    return Learner(data, make_model(), nn.CrossEntropyLoss(), **how)


def train(how: dict[str, Any], chosen: Any) -> tuple[nn.Module, int]:
    learner = make_learner(how, chosen)
    epochs = max(chosen.steps * BATCH // ROWS, 1)
    with Waits(chosen.device) as waits, learner.no_bar(), learner.no_logging():
        learner.fit_one_cycle(epochs, 3e-3)
    return learner.model, waits.count


def main(arguments: Sequence[str] | None = None) -> None:
    chosen = options(arguments)
    theirs, before = train(with_torch(), chosen)
    ours, after = train(with_lrfast(), chosen)
    found = lr_find(make_learner(with_lrfast(), chosen), num_iter=50).suggestion
    report(chosen.steps, (theirs, ours), (before, after), found)


if __name__ == "__main__":
    main()
