"""Models of the tasks in `fresh`: other kinds than those before."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.research.suggestions import data


def dropout_mlp(inputs: int, outputs: int, width: int = 64) -> nn.Sequential:
    """Two hidden layers with GELU and dropout."""
    return nn.Sequential(
        nn.Linear(inputs, width),
        nn.GELU(),
        nn.Dropout(0.2),
        nn.Linear(width, width),
        nn.GELU(),
        nn.Dropout(0.2),
        nn.Linear(width, outputs),
    )


class MixtureOfExperts(nn.Module):
    """A softmax of the inputs weights the outputs of small networks."""

    def __init__(self, inputs: int, outputs: int, experts: int = 4, width: int = 16) -> None:
        super().__init__()
        self.gate = nn.Linear(inputs, experts)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, outputs))
            for _ in range(experts)
        )

    def forward(self, rows: Tensor) -> Tensor:
        weights = self.gate(rows).softmax(1)
        found = torch.stack([expert(rows) for expert in self.experts], 1)
        return (weights.unsqueeze(-1) * found).sum(1)


class DilatedForecaster(nn.Module):
    """Dilated causal convolutions over a series; predicts what comes next."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Conv1d(1 if step == 1 else width, width, 2, dilation=step) for step in (1, 2, 4, 8)
        )
        self.head = nn.Linear(width, 1)

    def forward(self, series: Tensor) -> Tensor:
        hidden = series.transpose(1, 2)
        for layer in self.layers:
            hidden = torch.relu(layer(hidden))
        outputs: Tensor = self.head(hidden[..., -1])
        return outputs


class Coordinates(nn.Module):
    """Sines of a linear map of places, the higher the further, and layers of sines on them."""

    def __init__(self, outputs: int, width: int = 48) -> None:
        super().__init__()
        self.first = nn.Linear(2, width)
        self.second = nn.Linear(width, width)
        self.head = nn.Linear(width, outputs)

    def forward(self, places: Tensor) -> Tensor:
        hidden = torch.sin(10 * self.first(places))
        outputs: Tensor = self.head(torch.sin(3 * self.second(hidden)))
        return outputs


def group_norm_cnn(classes: int, width: int = 12) -> nn.Sequential:
    """Three convolutions with group norm and SiLU, two of which halve the image."""
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((1, width, 1), (width, width, 2), (width, 2 * width, 2)):
        layers.append(nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False))
        layers += [nn.GroupNorm(4, outputs), nn.SiLU()]
    return nn.Sequential(
        *layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(2 * width, classes)
    )


class Colouring(nn.Module):
    """An encoder and a decoder with a shortcut between them: the colours of a grey patch."""

    def __init__(self, width: int = 10) -> None:
        super().__init__()
        self.fine = nn.Conv2d(1, width, 3, padding=1)
        self.coarse = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.head = nn.Conv2d(2 * width, 3, 3, padding=1)

    def forward(self, patches: Tensor) -> Tensor:
        fine = torch.relu(self.fine(patches))
        up = torch.relu(self.up(torch.relu(self.coarse(fine))))
        outputs: Tensor = patches + self.head(torch.cat([fine, up], 1))
        return outputs


class Sharpener(nn.Module):
    """Twice the resolution: interpolation, and what convolutions and a pixel shuffle add."""

    def __init__(self, channels: int, width: int = 16) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.LeakyReLU(0.1),
            nn.Conv2d(width, 4 * channels, 3, padding=1),
            nn.PixelShuffle(2),
        )

    def forward(self, patches: Tensor) -> Tensor:
        coarse = nn.functional.interpolate(patches, scale_factor=2.0, mode="bilinear")
        outputs: Tensor = coarse + self.body(patches)
        return outputs


class CharLSTM(nn.Module):
    """Predicts each next character with two layers; logits [rows, symbols, places]."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embedding = nn.Embedding(data.SYMBOLS, 16)
        self.body = nn.LSTM(16, width, num_layers=2, batch_first=True)
        self.head = nn.Linear(width, data.SYMBOLS)

    def forward(self, symbols: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.body(self.embedding(symbols))[0]).transpose(1, 2)
        return outputs


class WordCNN(nn.Module):
    """Convolutions over embedded words, the largest answer of each, and a linear head."""

    def __init__(self, classes: int, width: int = 24) -> None:
        super().__init__()
        self.embedding = nn.Embedding(data.WORDS, 20, padding_idx=0)
        self.convolution = nn.Conv1d(20, width, 3, padding=1)
        self.head = nn.Linear(width, classes)

    def forward(self, words: Tensor) -> Tensor:
        hidden = torch.relu(self.convolution(self.embedding(words).transpose(1, 2)))
        outputs: Tensor = self.head(hidden.amax(-1))
        return outputs
