"""Models of the tasks in `unseen`: other kinds than those that the rules were chosen on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.research.suggestions import data


class ResidualMLP(nn.Module):
    """Blocks of layer norm, a linear layer, ReLU and another one, each added to its input."""

    def __init__(self, inputs: int, outputs: int, width: int = 40, depth: int = 3) -> None:
        super().__init__()
        self.stem = nn.Linear(inputs, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width),
                nn.Linear(width, 2 * width),
                nn.ReLU(),
                nn.Linear(2 * width, width),
            )
            for _ in range(depth)
        )
        self.head = nn.Linear(width, outputs)

    def forward(self, rows: Tensor) -> Tensor:
        hidden = self.stem(rows)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        outputs: Tensor = self.head(hidden)
        return outputs


def deep_cnn(classes: int, width: int = 8, *, norm: bool) -> nn.Sequential:
    """Five 3x3 convolutions, two of which halve the image, the mean over places, a linear head."""
    layers: list[nn.Module] = []
    sizes = ((1, width, 2), (width, width, 1), (width, width, 1), (width, 2 * width, 2))
    for inputs, outputs, stride in (*sizes, (2 * width, 2 * width, 1)):
        layers.append(nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1))
        layers += [*([nn.BatchNorm2d(outputs)] * norm), nn.ReLU()]
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, classes)
    )


class WordLSTM(nn.Module):
    """Reads embedded words one by one; classes of the mean of what it remembers."""

    def __init__(self, classes: int, width: int = 28) -> None:
        super().__init__()
        self.embedding = nn.Embedding(data.WORDS, 16, padding_idx=0)
        self.body = nn.LSTM(16, width, batch_first=True)
        self.head = nn.Linear(width, classes)

    def forward(self, words: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.body(self.embedding(words))[0].mean(1))
        return outputs


class VisionTransformer(nn.Module):
    """Two encoder layers over 2x2 patches of a 14x14 image, and a head on their mean."""

    def __init__(self, classes: int, width: int = 24) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, stride=2)
        self.places = nn.Parameter(0.1 * torch.randn(49, width))
        layer = nn.TransformerEncoderLayer(
            width, 3, 2 * width, dropout=0.0, batch_first=True, norm_first=True, activation="gelu"
        )
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.places
        outputs: Tensor = self.head(self.body(tokens).mean(1))
        return outputs


class Factorisation(nn.Module):
    """A matrix as the product of what is learned of its rows and of its columns."""

    def __init__(self, side: int = 96, rank: int = 8) -> None:
        super().__init__()
        self.rows = nn.Embedding(side, rank)
        self.columns = nn.Embedding(side, rank)
        self.level = nn.Parameter(torch.zeros(1))

    def forward(self, places: Tensor) -> Tensor:
        product = self.rows(places[:, 0]) * self.columns(places[:, 1])
        outputs: Tensor = product.sum(1, keepdim=True) + self.level
        return outputs


class Forecaster(nn.Module):
    """Reads a series and predicts by how much it changes."""

    def __init__(self, channels: int = 4, width: int = 24) -> None:
        super().__init__()
        self.body = nn.GRU(channels, width, batch_first=True)
        self.head = nn.Linear(width, channels)

    def forward(self, series: Tensor) -> Tensor:
        outputs: Tensor = series[:, -1] + self.head(self.body(series)[0][:, -1])
        return outputs


class Siamese(nn.Module):
    """The logit that two images are of the same kind, from the distance of their embeddings."""

    def __init__(self, width: int = 48, embedding: int = 8) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Flatten(), nn.Linear(64, width), nn.Tanh(), nn.Linear(width, embedding)
        )
        self.threshold = nn.Parameter(torch.ones(1))

    def forward(self, pairs: Tensor) -> Tensor:
        distance = (self.body(pairs[:, 0]) - self.body(pairs[:, 1])).square().sum(1, keepdim=True)
        outputs: Tensor = self.threshold - distance
        return outputs


def patch_autoencoder(width: int = 12) -> nn.Sequential:
    """Convolutions that halve a 12x12 patch in colour twice, to 4 channels of 3x3, and back."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride=2, padding=1),
        nn.SiLU(),
        nn.Conv2d(width, 4, 3, stride=2, padding=1),
        nn.ConvTranspose2d(4, width, 4, stride=2, padding=1),
        nn.SiLU(),
        nn.ConvTranspose2d(width, 3, 4, stride=2, padding=1),
    )
