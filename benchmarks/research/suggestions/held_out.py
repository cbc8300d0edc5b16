"""Tasks that no constant of a rule was chosen on, made of the other tasks' data and models."""

from __future__ import annotations

import lrfast
from benchmarks.research.suggestions import data, models, problems
from benchmarks.research.suggestions.tasks import MOMENTUM, Task, fine_tune
from benchmarks.research.suggestions.train import Problem


def iris_mlp(seed: int) -> Problem:
    rows = data.split(*data.classes("iris"), share=0.4)
    return problems.classify(rows, lambda: models.mlp(4, 32, 32, 3), seed)


def cancer_mlp(seed: int) -> Problem:
    rows = data.split(*data.classes("breast_cancer"))
    return problems.classify(rows, lambda: models.mlp(30, 32, 2), seed)


def wide_digits_mlp(seed: int) -> Problem:
    return problems.classify(data.split(*data.digits()), lambda: models.mlp(64, 256, 256, 10), seed)


HELD_OUT: tuple[Task, ...] = (
    Task("digits-cnn-sgd", problems.digits_cnn, lrfast.SGD, 32, MOMENTUM),
    Task("mnist-cnn-norm-plain", problems.mnist_cnn_norm, lrfast.SGD, 64),
    Task("mnist-rows-gru-rmsprop", problems.mnist_rows, lrfast.RMSprop, 32),
    Task("photo-denoise-adagrad", problems.photo_denoise, lrfast.Adagrad, 16),
    Task("iris-mlp-adam", iris_mlp, lrfast.Adam, 16),
    Task("module-words-adam", problems.module_words, lrfast.Adam, 64),
    Task("characters-gru-sgd", problems.next_character_gru, lrfast.SGD, 16, MOMENTUM),
    Task("mnist-mlp-plain", problems.mnist_mlp, lrfast.SGD, 32),
    Task("cancer-mlp-sgd", cancer_mlp, lrfast.SGD, 16, MOMENTUM),
    Task("wide-digits-mlp-lion", wide_digits_mlp, lrfast.Lion, 32),
    Task("diabetes-mlp-nadam", problems.diabetes_mlp, lrfast.NAdam, 16),
    fine_tune("autoencoder-to-digits-adam", problems.autoencoder_to_digits, lrfast.Adam, 32),
    fine_tune("mnist-to-digits-sgd", problems.mnist_to_digits, lrfast.SGD, 16, MOMENTUM),
    fine_tune("gru-to-descriptions-rmsprop", problems.gru_to_descriptions, lrfast.RMSprop, 16),
)
