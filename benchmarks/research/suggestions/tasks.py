"""The table of tasks: small, real, and as different as what people train."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any, Final, Literal

from torch import nn

import lrfast
from benchmarks.research.suggestions import problems
from benchmarks.research.suggestions.train import STEPS, Optimizer, Problem

GRID: Final = tuple(10 ** (quarter / 4) for quarter in range(-22, 5))


@dataclass(frozen=True)
class Task:
    """Something to train.

    Args:
        name: Short and unique.
        make: Builds the problem from a seed, which decides the new weights.
        optimizer: Optimizer of lrfast.
        batch_size: Rows in a batch.
        options: The optimizer's arguments besides the rate.
        kind: Whether all weights are new, or some trained before.
        tags: What it is like.
        rates: Peak rates of the grid.
        steps: Of a training.
        sweeps: Range tests, each with a seed of its own.
    """

    name: str
    make: Callable[[int], Problem]
    optimizer: type[Optimizer]
    batch_size: int
    options: Mapping[str, Any] = field(default_factory=dict)
    kind: Literal["scratch", "fine-tune"] = "scratch"
    tags: tuple[str, ...] = ()
    rates: tuple[float, ...] = GRID
    steps: int = STEPS
    sweeps: int = 10

    def make_optimizer(self, parameters: Iterable[nn.Parameter], lr: float) -> Optimizer:
        return self.optimizer(parameters, lr=lr, **self.options)


MOMENTUM: Final[Mapping[str, Any]] = MappingProxyType({"momentum": 0.9})
fine_tune = partial(Task, kind="fine-tune")

TASKS: tuple[Task, ...] = (
    Task("digits-mlp-sgd", problems.digits_mlp, lrfast.SGD, 64, MOMENTUM, tags=("image", "mlp")),
    Task("digits-linear-plain", problems.digits_linear, lrfast.SGD, 128, tags=("image", "linear")),
    Task("digits-cnn-rmsprop", problems.digits_cnn, lrfast.RMSprop, 16, tags=("image", "cnn")),
    Task(
        "digits-cnn-norm-sgd",
        problems.digits_cnn_norm,
        lrfast.SGD,
        32,
        MOMENTUM,
        tags=("image", "cnn", "batch-norm"),
    ),
    Task("mnist-cnn-adam", problems.mnist_cnn, lrfast.Adam, 64, tags=("image", "cnn")),
    Task(
        "mnist-cnn-norm-adamw",
        problems.mnist_cnn_norm,
        lrfast.AdamW,
        128,
        {"weight_decay": 0.05},
        tags=("image", "cnn", "batch-norm"),
    ),
    Task("mnist-mlp-adagrad", problems.mnist_mlp, lrfast.Adagrad, 32, tags=("image", "mlp")),
    Task("mnist-rows-gru-adam", problems.mnist_rows, lrfast.Adam, 32, tags=("image", "gru")),
    Task(
        "mnist-autoencoder-adam",
        problems.mnist_autoencoder,
        lrfast.Adam,
        64,
        tags=("image", "mlp", "regression"),
    ),
    Task(
        "diabetes-mlp-sgd",
        problems.diabetes_mlp,
        lrfast.SGD,
        8,
        MOMENTUM,
        tags=("table", "mlp", "regression"),
    ),
    Task(
        "autompg-mlp-adamw",
        problems.autompg_mlp,
        lrfast.AdamW,
        32,
        {"weight_decay": 0.1},
        tags=("table", "mlp", "regression"),
    ),
    Task(
        "cancer-linear-adagrad",
        problems.cancer_linear,
        lrfast.Adagrad,
        16,
        tags=("table", "linear"),
    ),
    Task(
        "wine-mlp-norm-sgd",
        problems.wine_mlp_norm,
        lrfast.SGD,
        8,
        MOMENTUM,
        tags=("table", "mlp", "batch-norm"),
    ),
    Task(
        "photo-denoise-adam",
        problems.photo_denoise,
        lrfast.Adam,
        16,
        tags=("image", "cnn", "regression"),
    ),
    Task(
        "photo-colour-sgd",
        problems.photo_colour,
        lrfast.SGD,
        16,
        MOMENTUM,
        tags=("image", "cnn", "regression"),
    ),
    Task(
        "module-words-adagrad",
        problems.module_words,
        lrfast.Adagrad,
        64,
        tags=("text", "embedding-bag"),
    ),
    Task(
        "module-transformer-adamw",
        problems.module_transformer,
        lrfast.AdamW,
        32,
        {"weight_decay": 0.01},
        tags=("text", "transformer"),
    ),
    Task("characters-gru-adam", problems.next_character_gru, lrfast.Adam, 16, tags=("text", "gru")),
    Task(
        "characters-transformer-adamw",
        problems.next_character_transformer,
        lrfast.AdamW,
        16,
        tags=("text", "transformer"),
    ),
    fine_tune(
        "new-digits-cnn-sgd",
        problems.new_digits_cnn,
        lrfast.SGD,
        32,
        MOMENTUM,
        tags=("image", "cnn", "new-head"),
    ),
    fine_tune(
        "mnist-to-digits-adamw",
        problems.mnist_to_digits,
        lrfast.AdamW,
        16,
        tags=("image", "cnn", "batch-norm"),
    ),
    fine_tune(
        "mnist-to-digits-head-sgd",
        problems.mnist_to_digits_head,
        lrfast.SGD,
        32,
        MOMENTUM,
        tags=("image", "cnn", "new-head", "frozen-body"),
    ),
    fine_tune(
        "autoencoder-to-digits-rmsprop",
        problems.autoencoder_to_digits,
        lrfast.RMSprop,
        32,
        tags=("image", "mlp", "regression"),
    ),
    fine_tune(
        "gru-to-descriptions-adam",
        problems.gru_to_descriptions,
        lrfast.Adam,
        16,
        tags=("text", "gru"),
    ),
    fine_tune(
        "denoise-other-photo-adam",
        problems.denoise_other_photo,
        lrfast.Adam,
        16,
        tags=("image", "cnn", "regression"),
    ),
    fine_tune(
        "new-modules-transformer-adamw",
        problems.new_modules_transformer,
        lrfast.AdamW,
        32,
        tags=("text", "transformer", "new-head"),
    ),
    fine_tune(
        "foreign-cars-sgd",
        problems.foreign_cars,
        lrfast.SGD,
        8,
        MOMENTUM,
        tags=("table", "mlp", "regression"),
    ),
)
