"""Data of the tasks in `broad`, inside installed packages like those of `data`, or computed."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.research.suggestions import data
from benchmarks.research.suggestions.data import Pair
from benchmarks.research.suggestions.unseen_data import cut, picture, reviews

WIDE_WORDS = 2**15
COMMON_WORDS = 400


@lru_cache
def topics() -> str:
    """The reference of the Python language, 465 thousand characters in Python 3.11."""
    from pydoc_data.topics import topics as found

    return "\n".join(found[name] for name in sorted(found))


@lru_cache
def halves() -> Pair:
    """Upper and lower halves of handwritten digits, [rows, 2, 32], and nothing to predict."""
    images = data.digits()[0].flatten(1)
    return torch.stack([images[:, :32], images[:, 32:]], 1), torch.zeros(len(images), 1)


@lru_cache
def flow(advection: float, count: int = 2000) -> Pair:
    """Places from -1 to 1, [rows, 1], and the solution of -u'' + c u' = 1 and its f, [rows, 2]."""
    places = torch.linspace(-1, 1, count + 2, dtype=torch.float64)[1:-1]
    wave = (torch.exp(advection * (places - 1)) - math.exp(-2 * advection)) / (
        1 - math.exp(-2 * advection)
    )
    solution = (places + 1 - 2 * wave) / advection
    return places[:, None].float(), torch.stack([solution, torch.ones(count)], 1).float()


@lru_cache
def plate(count: int = 2000) -> Pair:
    """Places in a square, [rows, 2], and the solution of -laplacian(u) = f, and f, [rows, 2]."""
    places = 2 * torch.rand(count, 2, generator=torch.Generator().manual_seed(0)) - 1
    solution = (math.pi * places).sin().prod(1)
    return places, torch.stack([solution, 2 * math.pi**2 * solution], 1)


def neighbours(features: Tensor, count: int = 6) -> Tensor:
    """Each row's nearest rows, itself first, [rows, count]."""
    return torch.cdist(features, features).topk(count, largest=False).indices


@lru_cache
def page(side: int = 96) -> Pair:
    """Row and column of every pixel of a printed page, [rows, 2], and its grey, [rows, 1]."""
    grey = functional.adaptive_avg_pool2d(picture("page").mean(0, keepdim=True), side)[0]
    grey = (grey - grey.mean()) / grey.std()
    places = torch.cartesian_prod(torch.arange(side), torch.arange(side))
    return places, grey.reshape(-1, 1)


@lru_cache
def word_pairs(window: int = 5) -> Pair:
    """Pairs of common words, [rows, 2], how often they meet, as a logarithm, and its weight."""
    words = topics().lower().split()
    counts: dict[str, int] = {}
    for word in words:
        counts[word] = counts.get(word, 0) + 1
    common = sorted(counts, key=lambda word: (-counts[word], word))[:COMMON_WORDS]
    place = {word: index for index, word in enumerate(common)}
    codes = [place.get(word, -1) for word in words]
    met = torch.zeros(COMMON_WORDS, COMMON_WORDS)
    for index, code in enumerate(codes):
        for other in codes[index + 1 : index + 1 + window]:
            if code >= 0 and other >= 0:
                met[code, other] += 1
    places = met.nonzero()
    often = met[places[:, 0], places[:, 1]]
    weights = (often / 100).clamp(max=1.0) ** 0.75
    return places, torch.stack([often.log(), weights], 1)


@lru_cache
def wide_reviews(count: int = 4000, length: int = 30) -> Pair:
    """Film reviews as hashed words of a larger vocabulary, and whether they praise the film."""
    return reviews(count, length, WIDE_WORDS, seed=1)


@lru_cache
def surfaces(side: int = 24, count: int = 300) -> Pair:
    """Patches of six pictures, three times as grey, and which picture each comes from."""
    names = ("brick", "grass", "gravel", "coins", "page", "text")
    kinds = [cut(picture(name)[:1], side, count).expand(-1, 3, -1, -1) for name in names]
    return torch.cat(kinds).contiguous(), torch.arange(len(names)).repeat_interleave(count)


@lru_cache
def measurements() -> Pair:
    """Cells of breasts, a tenth of unit variance, and nothing to predict."""
    columns = data.classes("breast_cancer")[0][:, :10] / 10
    return columns, columns


def few_labels(nodes: int, count: int) -> tuple[Tensor, Tensor]:
    """Indices of nodes for training, few as they are, and all the others."""
    order = torch.randperm(nodes, generator=torch.Generator().manual_seed(0))
    return order[:count], order[count:]
