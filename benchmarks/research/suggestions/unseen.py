"""Tasks of other data, models and batch sizes, written down before anything was measured on them.

What `auto` makes of the size of weights was chosen after they had been looked at.
"""

from __future__ import annotations

from functools import partial
from types import MappingProxyType
from typing import Any, Final

import torch
from torch.nn import functional

import lrfast
from benchmarks.research.suggestions import data, models, problems, unseen_data, unseen_models
from benchmarks.research.suggestions.tasks import MOMENTUM, Task, fine_tune
from benchmarks.research.suggestions.train import Problem

NESTEROV: Final = MappingProxyType[str, Any]({"momentum": 0.9, "nesterov": True})
DECAY: Final = MappingProxyType[str, Any]({"weight_decay": 0.1})
LONG_MEMORY: Final = MappingProxyType[str, Any]({"momentum": 0.95})


def housing(seed: int) -> Problem:
    rows = data.split(*unseen_data.housing())
    return problems.regress(rows, lambda: unseen_models.ResidualMLP(13, 1), seed)


def faces(seed: int) -> Problem:
    rows = data.split(*unseen_data.faces(), share=0.3)
    return problems.classify(rows, lambda: unseen_models.deep_cnn(2, norm=False), seed)


def textures(seed: int) -> Problem:
    rows = data.split(*unseen_data.textures())
    return problems.classify(rows, lambda: unseen_models.deep_cnn(3, norm=True), seed)


def reviews_lstm(seed: int) -> Problem:
    rows = data.split(*unseen_data.reviews(2500))
    return problems.classify(rows, lambda: unseen_models.WordLSTM(2), seed)


def reviews_bag(seed: int) -> Problem:
    return problems.classify(
        data.split(*unseen_data.reviews(5000)), lambda: models.WordBag(2), seed
    )


def mnist_patches(seed: int) -> Problem:
    build = partial(unseen_models.VisionTransformer, 10)
    return problems.classify(data.split(*data.mnist()), build, seed)


def elevations(seed: int) -> Problem:
    rows = data.split(*unseen_data.elevations())
    return problems.regress(rows, lambda: models.mlp(32, 48, 48, 48, 1), seed)


def camera(seed: int) -> Problem:
    rows = data.split(*unseen_data.pixels("camera"), share=0.15)
    return problems.regress(rows, unseen_models.Factorisation, seed)


def same_digit(seed: int) -> Problem:
    torch.manual_seed(seed)
    rows = data.split(*unseen_data.digit_pairs())
    loss_fn = functional.binary_cross_entropy_with_logits
    return Problem(unseen_models.Siamese(), *rows, loss_fn)


def astronaut(seed: int) -> Problem:
    patches = unseen_data.cut(unseen_data.picture("astronaut"), 12, 2000)
    return problems.regress(data.split(patches, patches), unseen_models.patch_autoencoder, seed)


def cancer(seed: int) -> Problem:
    rows = data.split(*data.classes("breast_cancer"))
    return problems.classify(rows, lambda: unseen_models.ResidualMLP(30, 2, width=24), seed)


def brain_waves(seed: int) -> Problem:
    rows = data.ordered_split(*unseen_data.brain_waves(), share=0.25)
    return problems.regress(rows, unseen_models.Forecaster, seed)


def coffee(seed: int) -> Problem:
    """An autoencoder of patches of one picture gets few of another."""
    weights = problems.pretrained(astronaut)
    patches = unseen_data.cut(unseen_data.picture("coffee"), 12, 1200)
    rows = problems.few(data.split(patches, patches), 400)
    build = unseen_models.patch_autoencoder
    return problems.tuned(problems.regress(rows, build, seed), weights)


def old_digits(seed: int) -> Problem:
    images, labels = data.mnist()
    rows = data.split(images[labels < 5], labels[labels < 5])
    return problems.classify(rows, partial(unseen_models.VisionTransformer, 5), seed)


def new_digits(seed: int) -> Problem:
    """A vision transformer that knows the digits 0 to 4 gets a new head and 400 of 5 to 9."""
    weights = problems.pretrained(old_digits)
    images, labels = data.mnist()
    rows = problems.few(data.split(images[labels > 4], labels[labels > 4] - 5), 400)
    build = partial(unseen_models.VisionTransformer, 5)
    return problems.tuned(problems.classify(rows, build, seed), weights, new_head="head.")


def reviews_to_modules(seed: int) -> Problem:
    """An LSTM that knows film reviews gets a new head for lines of documentation."""
    weights = problems.pretrained(reviews_lstm)
    rows = problems.few(data.split(*data.words(problems.NEW_MODULES)), 1500)
    build = partial(unseen_models.WordLSTM, len(problems.NEW_MODULES))
    return problems.tuned(problems.classify(rows, build, seed), weights, new_head="head.")


UNSEEN: tuple[Task, ...] = (
    Task("housing-resmlp-nesterov", housing, lrfast.SGD, 20, NESTEROV),
    Task("faces-cnn-adam", faces, lrfast.Adam, 10),
    Task("textures-cnn-norm-lion", textures, lrfast.Lion, 48),
    Task("reviews-lstm-adamw", reviews_lstm, lrfast.AdamW, 24, DECAY),
    Task("reviews-words-nesterov", reviews_bag, lrfast.SGD, 128, NESTEROV),
    Task("elevations-mlp-rmsprop", elevations, lrfast.RMSprop, 256),
    Task("camera-factors-adagrad", camera, lrfast.Adagrad, 200),
    Task("same-digit-siamese-adam", same_digit, lrfast.Adam, 40),
    Task("astronaut-autoencoder-nadam", astronaut, lrfast.NAdam, 40),
    Task("cancer-resmlp-plain", cancer, lrfast.SGD, 64),
    Task("brain-waves-gru-sgd", brain_waves, lrfast.SGD, 12, LONG_MEMORY),
    fine_tune("coffee-autoencoder-sgd", coffee, lrfast.SGD, 32, MOMENTUM),
    fine_tune("reviews-to-modules-lstm-adamw", reviews_to_modules, lrfast.AdamW, 16, DECAY),
)
