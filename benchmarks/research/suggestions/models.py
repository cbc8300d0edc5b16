"""Small models of the usual kinds; a training step of each takes a few milliseconds at most."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from benchmarks.research.suggestions import data


def mlp(*sizes: int, norm: bool = False) -> nn.Sequential:
    """Linear layers with ReLU between them, and batch norm in front of it if wanted."""
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise(sizes[:-1]):
        layers += [nn.Linear(inputs, outputs), *([nn.BatchNorm1d(outputs)] * norm), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))


def cnn(classes: int, width: int = 8, *, norm: bool = False) -> nn.Sequential:
    """Two 3x3 convolutions, each of which halves the image, pooling to 2x2, and a linear head."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, width), (width, 2 * width)):
        layers.append(nn.Conv2d(inputs, outputs, 3, stride=2, padding=1))
        layers += [*([nn.BatchNorm2d(outputs)] * norm), nn.ReLU()]
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8 * width, classes)
    )


class Denoiser(nn.Module):
    """Three 3x3 convolutions that predict what to subtract from a patch."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.noise = convolutions(3, width, 3)

    def forward(self, patches: Tensor) -> Tensor:
        outputs: Tensor = patches - self.noise(patches)
        return outputs


def convolutions(inputs: int, width: int, outputs: int) -> nn.Sequential:
    """Three 3x3 convolutions that keep the size of a patch."""
    return nn.Sequential(
        nn.Conv2d(inputs, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, outputs, 3, padding=1),
    )


class RowGRU(nn.Module):
    """Reads an image row by row."""

    def __init__(self, side: int, width: int, classes: int) -> None:
        super().__init__()
        self.body = nn.GRU(side, width, batch_first=True)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.body(images.squeeze(1))[0][:, -1])
        return outputs


class CharGRU(nn.Module):
    """Predicts the next character at every place; logits [rows, symbols, places]."""

    def __init__(self, width: int = 40) -> None:
        super().__init__()
        self.embedding = nn.Embedding(data.SYMBOLS, 20)
        self.body = nn.GRU(20, width, batch_first=True)
        self.head = nn.Linear(width, data.SYMBOLS)

    def forward(self, symbols: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.body(self.embedding(symbols))[0]).transpose(1, 2)
        return outputs


class Transformer(nn.Module):
    """An encoder layer over embedded tokens; classes of their mean or, causal, of every place."""

    def __init__(
        self, tokens: int, length: int, classes: int, width: int = 32, *, causal: bool = False
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, width)
        self.places = nn.Parameter(0.1 * torch.randn(length, width))
        self.body = nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)
        self.causal = causal
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(length))

    def forward(self, symbols: Tensor) -> Tensor:
        hidden = self.embedding(symbols) + self.places
        hidden = self.body(hidden, self.mask if self.causal else None, is_causal=self.causal)
        hidden = self.norm(hidden)
        outputs: Tensor = self.head(hidden if self.causal else hidden.mean(1))
        return outputs.transpose(1, 2) if self.causal else outputs


class WordBag(nn.Module):
    """The mean of the words' embeddings, and a linear head."""

    def __init__(self, classes: int, width: int = 32) -> None:
        super().__init__()
        self.body = nn.EmbeddingBag(data.WORDS, width, padding_idx=0)
        self.head = nn.Linear(width, classes)

    def forward(self, words: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.body(words))
        return outputs
