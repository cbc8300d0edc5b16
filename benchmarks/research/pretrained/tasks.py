"""The table of tasks: few labels, and a network that has learned something else."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional

import lrfast
from benchmarks.research.pretrained.networks import (
    ONet,
    comparison,
    efficientnet_lite,
    finetune_efficientnet,
    finetune_text,
    load_faces,
    pretrained,
)
from benchmarks.research.suggestions import broad_data
from benchmarks.research.suggestions.data import Pair
from benchmarks.research.suggestions.tasks import MOMENTUM, Task
from benchmarks.research.suggestions.train import Optimizer, Problem

NOISE = 0.2  # of the range of grey
DOCUMENTED = ("numpy", "torch.nn.functional", "matplotlib.pyplot", "scipy.stats")


def rates(lowest: int, highest: int) -> tuple[float, ...]:
    """Returns learning rates a factor of 1.8 apart, from quarters of decades."""
    return tuple(10 ** (quarter / 4) for quarter in range(lowest, highest + 1))


def problem(
    rows: Pair, network: Callable[[], nn.Module], labels: int, judged: int, seed: int
) -> Problem:
    """Draws so many labels per class, others to judge by, and the weights of a new head."""
    torch.manual_seed(seed)
    model = network()
    drawn = comparison.few_labels(*rows, labels, judged, seed)
    train, valid = drawn.train.tensors, drawn.valid.tensors
    return Problem(model, (train[0], train[1]), (valid[0], valid[1]), functional.cross_entropy)


@lru_cache
def digits() -> Pair:
    return finetune_efficientnet.load_images(finetune_efficientnet.SIZE)


@lru_cache
def surfaces() -> Pair:
    images, classes = broad_data.surfaces()
    large = functional.interpolate(images, size=finetune_efficientnet.SIZE, mode="bilinear")
    return large.contiguous(memory_format=torch.channels_last), classes


@lru_cache
def noisy_faces(size: int) -> Pair:
    """Faces upside down and other pictures, with noise."""
    images, classes = load_faces(NOISE)
    return functional.interpolate(images, size=size, mode="bilinear"), classes


@lru_cache
def reviews() -> Pair:
    return finetune_text.load_reviews()


@lru_cache
def documentation() -> Pair:
    """First sentences of functions' documentation, as tokens, and which package they are of."""
    texts: list[str] = []
    classes: list[int] = []
    for place, name in enumerate(DOCUMENTED):
        module = importlib.import_module(name)
        documents = [inspect.getdoc(getattr(module, each)) or "" for each in sorted(dir(module))]
        sentences = dict.fromkeys(text.strip().partition(". ")[0] for text in documents)
        told = [text for text in sentences if len(text.split()) >= 4]
        texts += [text.replace(name, "").replace(name.partition(".")[0], "") for text in told]
        classes += [place] * len(told)
    return pretrained.WordPieces()(texts, finetune_text.LENGTH), torch.tensor(classes)


def r_net_faces(seed: int) -> Problem:
    return problem(noisy_faces(24), pretrained.RNet, 10, 180, seed)


def o_net_faces(seed: int) -> Problem:
    return problem(noisy_faces(48), lambda: ONet(2), 10, 180, seed)


def lite0_digits(seed: int) -> Problem:
    return problem(digits(), lambda: efficientnet_lite(0, 10), 10, 200, seed)


def lite1_surfaces(seed: int) -> Problem:
    return problem(surfaces(), lambda: efficientnet_lite(1, 6), 10, 200, seed)


def lite2_faces(seed: int) -> Problem:
    faces = noisy_faces(finetune_efficientnet.SIZE)
    return problem(faces, lambda: efficientnet_lite(2, 2), 20, 160, seed)


def minilm_reviews(seed: int) -> Problem:
    return problem(reviews(), lambda: pretrained.MiniLM(2), 200, 300, seed)


def minilm_documents(seed: int) -> Problem:
    return problem(documentation(), lambda: pretrained.MiniLM(4), 60, 200, seed)


def _task(
    make: Callable[[int], Problem],
    name: str,
    optimizer: type[Optimizer],
    lowest: int,
    highest: int,
    step: int = 1,
) -> Task:
    decay: Mapping[str, Any] = {"weight_decay": 0.01}
    options = {lrfast.SGD: MOMENTUM, lrfast.AdamW: decay}.get(optimizer, {})
    grid = rates(lowest, highest)[::step]
    return Task(name, make, optimizer, 16, options, "fine-tune", (), grid, steps=60, sweeps=3)


TASKS = (
    _task(r_net_faces, "r-net-faces-adamw", lrfast.AdamW, -18, -7),
    _task(r_net_faces, "r-net-faces-sgd", lrfast.SGD, -18, -7),
    _task(o_net_faces, "o-net-faces-adamw", lrfast.AdamW, -18, -7),
    _task(o_net_faces, "o-net-faces-sgd", lrfast.SGD, -18, -5),
    _task(lite0_digits, "lite0-digits-adamw", lrfast.AdamW, -17, -9),
    _task(lite0_digits, "lite0-digits-sgd", lrfast.SGD, -13, -4),
    _task(lite1_surfaces, "lite1-surfaces-adamw", lrfast.AdamW, -17, -9),
    _task(lite2_faces, "lite2-faces-adam", lrfast.Adam, -17, -9, 2),
    _task(minilm_reviews, "minilm-reviews-adamw", lrfast.AdamW, -19, -11, 2),
    _task(minilm_documents, "minilm-documents-adam", lrfast.Adam, -19, -11, 2),
)
# Those that were looked at before "auto" was changed for them.
SEEN = (
    "r-net-faces-adamw",
    "r-net-faces-sgd",
    "o-net-faces-adamw",
    "o-net-faces-sgd",
    "lite0-digits-adamw",
    "minilm-reviews-adamw",
)
