"""What the claims are tried on: the suggestions' data and models, and fine-tuning with few labels.

Ten labels of each class are drawn anew for every seed; the rows that judge stay the same.
"""

from __future__ import annotations

import importlib
import sys
from functools import partial
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn import functional

import lrfast
from benchmarks.provenance import ROOT
from benchmarks.research.suggestions import data, models, problems
from benchmarks.research.suggestions.data import Pair
from benchmarks.research.suggestions.tasks import MOMENTUM, Task, fine_tune
from benchmarks.research.suggestions.train import Problem

LABELS = 10  # per class, in fine-tuning
NOISE = 0.2  # as in examples/finetune_faces.py


def mnist_mlp_norm(seed: int) -> Problem:
    return problems.classify(data.split(*data.mnist()), lambda: mlp_norm(10), seed)


def mlp_norm(classes: int) -> nn.Module:
    return models.mlp(196, 64, 64, classes, norm=True)


def few_new_digits_cnn(seed: int) -> Problem:
    """A CNN that knows the digits 0 to 4 gets a new head for 5 to 9."""
    problem = problems.classify(new_digits(seed), lambda: models.cnn(5), seed)
    return problems.tuned(problem, problems.pretrained(problems.old_digits), new_head="6.")


def few_new_digits_mlp_norm(seed: int) -> Problem:
    """The same with an MLP with batch norm."""
    problem = problems.classify(new_digits(seed), lambda: mlp_norm(5), seed)
    return problems.tuned(problem, problems.pretrained(old_digits_mlp_norm), new_head="7.")


def old_digits_mlp_norm(seed: int) -> Problem:
    images, labels = data.mnist()
    rows = data.split(images[labels < 5], labels[labels < 5])
    return problems.classify(rows, lambda: mlp_norm(5), seed)


def new_digits(seed: int) -> tuple[Pair, Pair]:
    images, labels = data.mnist()
    return few(data.split(images[labels > 4], labels[labels > 4] - 5), seed)


def few_mnist_to_digits(seed: int) -> Problem:
    """A CNN with batch norm that knows MNIST gets scikit-learn's digits and a new head."""
    rows = few(data.split(*problems.enlarged_digits()), seed)
    problem = problems.classify(rows, lambda: models.cnn(10, norm=True), seed)
    return problems.tuned(problem, problems.pretrained(problems.mnist_cnn_norm), new_head="8.")


def few_new_modules(seed: int) -> Problem:
    """A transformer that knows some modules' documentation gets a new head for others."""
    rows = few(data.split(*data.words(problems.NEW_MODULES)), seed)
    problem = problems.classify(rows, problems.word_transformer, seed)
    weights = problems.pretrained(problems.module_transformer)
    return problems.tuned(problem, weights, new_head="head.")


def few_faces(seed: int) -> Problem:
    """R-Net, with its published weights and its head, gets faces upside down and in noise."""
    images, classes = example("faces").load_faces(NOISE)
    (inputs, targets), valid = few(data.split(images, classes, share=0.6), seed)
    return Problem(example("pretrained").RNet(), (inputs, targets), valid, functional.cross_entropy)


def example(name: str) -> ModuleType:
    """Returns a module of examples/, which are scripts and no package."""
    folder = str(ROOT / "examples")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(name)


def few(rows: tuple[Pair, Pair], seed: int) -> tuple[Pair, Pair]:
    """Keeps `LABELS` rows of each class for training."""
    (inputs, targets), valid = rows
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(seed))
    kept = torch.cat([first_of(order, targets, value) for value in targets.unique()])
    return (inputs[kept], targets[kept]), valid


def first_of(order: Tensor, targets: Tensor, value: Tensor) -> Tensor:
    return order[targets[order] == value][:LABELS]


sgd = partial(Task, optimizer=lrfast.SGD, options=MOMENTUM)
adamw = partial(Task, optimizer=lrfast.AdamW, options={"weight_decay": 0.01})
few_labels = partial(fine_tune, optimizer=lrfast.AdamW, batch_size=25)

SCHEDULED = (
    sgd("digits-mlp", problems.digits_mlp, batch_size=32),
    sgd("digits-cnn-norm", problems.digits_cnn_norm, batch_size=32, tags=("batch norm",)),
    sgd("mnist-cnn", problems.mnist_cnn, batch_size=32),
    sgd("mnist-mlp-norm", mnist_mlp_norm, batch_size=32, tags=("batch norm",)),
    sgd("module-words", problems.module_words, batch_size=32, tags=("text",)),
)
WARMED = (
    adamw("digits-mlp", problems.digits_mlp, batch_size=32),
    adamw("digits-cnn-norm", problems.digits_cnn_norm, batch_size=32, tags=("batch norm",)),
    adamw("mnist-mlp-norm", mnist_mlp_norm, batch_size=32, tags=("batch norm",)),
    adamw("module-transformer", problems.module_transformer, batch_size=32, tags=("text",)),
    adamw(
        "characters-transformer",
        problems.next_character_transformer,
        batch_size=16,
        tags=("text",),
    ),
)
TUNED = (
    few_labels("new-digits-cnn", few_new_digits_cnn),
    few_labels("new-digits-mlp-norm", few_new_digits_mlp_norm, tags=("batch norm",)),
    few_labels("mnist-to-digits-cnn-norm", few_mnist_to_digits, tags=("batch norm",)),
    few_labels("new-modules-transformer", few_new_modules, tags=("text",)),
    few_labels("faces-rnet", few_faces, batch_size=10, tags=("published weights",)),
)
