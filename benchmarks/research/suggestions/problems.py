"""The problems of the tasks: data, a model and a loss, built from the seed of a run.

The seed decides the weights that are new. Those trained before are the same for every seed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional

import lrfast
from benchmarks.research.suggestions import data, models, train
from benchmarks.research.suggestions.data import Pair
from benchmarks.research.suggestions.train import Problem

MODULES = ("numpy.random", "scipy.optimize", "scipy.ndimage", "scipy.sparse", "scipy.special")
NEW_MODULES = ("numpy", "scipy.linalg", "scipy.signal", "scipy.interpolate", "scipy.spatial")
PRETRAINING = 1234  # the seed of what is fine-tuned, whatever the seed of the run


def classify(rows: tuple[Pair, Pair], build: Callable[[], nn.Module], seed: int) -> Problem:
    """A problem with cross-entropy and a model built anew."""
    torch.manual_seed(seed)
    return Problem(build(), *rows, functional.cross_entropy)


def regress(rows: tuple[Pair, Pair], build: Callable[[], nn.Module], seed: int) -> Problem:
    """A problem with the mean squared error and a model built anew."""
    torch.manual_seed(seed)
    return Problem(build(), *rows, functional.mse_loss)


def digits_mlp(seed: int) -> Problem:
    return classify(data.split(*data.digits()), lambda: models.mlp(64, 64, 10), seed)


def digits_linear(seed: int) -> Problem:
    return classify(data.split(*data.digits()), lambda: models.mlp(64, 10), seed)


def digits_cnn(seed: int) -> Problem:
    return classify(data.split(*data.digits()), lambda: models.cnn(10), seed)


def digits_cnn_norm(seed: int) -> Problem:
    return classify(data.split(*data.digits()), lambda: models.cnn(10, norm=True), seed)


def mnist_cnn(seed: int) -> Problem:
    return classify(data.split(*data.mnist()), lambda: models.cnn(10), seed)


def mnist_cnn_norm(seed: int) -> Problem:
    return classify(data.split(*data.mnist()), lambda: models.cnn(10, norm=True), seed)


def mnist_mlp(seed: int) -> Problem:
    return classify(data.split(*data.mnist()), lambda: models.mlp(196, 64, 64, 10), seed)


def mnist_rows(seed: int) -> Problem:
    return classify(data.split(*data.mnist()), lambda: models.RowGRU(14, 32, 10), seed)


def mnist_autoencoder(seed: int) -> Problem:
    images = data.mnist()[0].flatten(1)
    return regress(data.split(images, images), lambda: models.mlp(196, 64, 12, 64, 196), seed)


def diabetes_mlp(seed: int) -> Problem:
    return regress(data.split(*data.numbers("diabetes")), lambda: models.mlp(10, 32, 1), seed)


def autompg_mlp(seed: int) -> Problem:
    return regress(data.split(*data.numbers("autompg")), lambda: models.mlp(7, 32, 1), seed)


def cancer_linear(seed: int) -> Problem:
    return classify(data.split(*data.classes("breast_cancer")), lambda: models.mlp(30, 2), seed)


def wine_mlp_norm(seed: int) -> Problem:
    rows = data.split(*data.classes("wine"), share=0.4)
    return classify(rows, lambda: models.mlp(13, 32, 3, norm=True), seed)


def photo_denoise(seed: int) -> Problem:
    return regress(data.split(*data.noisy("china")), models.Denoiser, seed)


def photo_colour(seed: int) -> Problem:
    rows = data.split(*data.grey("flower"))
    return regress(rows, lambda: models.convolutions(1, 12, 2), seed)


def module_words(seed: int) -> Problem:
    return classify(data.split(*data.words(MODULES)), lambda: models.WordBag(len(MODULES)), seed)


def module_transformer(seed: int) -> Problem:
    return classify(data.split(*data.words(MODULES)), word_transformer, seed)


def word_transformer() -> nn.Module:
    return models.Transformer(data.WORDS, 12, len(MODULES))


def next_character_gru(seed: int) -> Problem:
    return classify(data.ordered_split(*data.windows(data.descriptions())), models.CharGRU, seed)


def next_character_transformer(seed: int) -> Problem:
    rows = data.ordered_split(*data.windows(data.descriptions()))
    return classify(rows, character_transformer, seed)


def character_transformer() -> nn.Module:
    return models.Transformer(data.SYMBOLS, 16, data.SYMBOLS, causal=True)


def new_digits_cnn(seed: int) -> Problem:
    """A CNN that knows the digits 0 to 4 gets a new head and 300 images of 5 to 9."""
    weights = pretrained(old_digits)
    images, labels = data.mnist()
    rows = few(data.split(images[labels > 4], labels[labels > 4] - 5), 300)
    return tuned(classify(rows, lambda: models.cnn(5), seed), weights, new_head="6.")


def old_digits(seed: int) -> Problem:
    images, labels = data.mnist()
    rows = data.split(images[labels < 5], labels[labels < 5])
    return classify(rows, lambda: models.cnn(5), seed)


def mnist_to_digits(seed: int) -> Problem:
    """A CNN with batch norm that knows MNIST gets 300 of scikit-learn's digits; same head."""
    weights = pretrained(mnist_cnn_norm)
    rows = few(data.split(*enlarged_digits()), 300)
    return tuned(classify(rows, lambda: models.cnn(10, norm=True), seed), weights)


def mnist_to_digits_head(seed: int) -> Problem:
    """A CNN that knows MNIST gets scikit-learn's digits and a new head, which alone is trained."""
    weights = pretrained(mnist_cnn)
    rows = data.split(*enlarged_digits())
    problem = tuned(classify(rows, lambda: models.cnn(10), seed), weights, new_head="6.")
    for name, parameter in problem.model.named_parameters():
        parameter.requires_grad_(name.startswith("6."))
    return problem


def enlarged_digits() -> Pair:
    images, labels = data.digits()
    return functional.interpolate(images, (14, 14), mode="bilinear"), labels


def autoencoder_to_digits(seed: int) -> Problem:
    """An autoencoder of MNIST gets scikit-learn's digits."""
    weights = pretrained(mnist_autoencoder)
    images = enlarged_digits()[0].flatten(1)
    rows = few(data.split(images, images), 500)
    return tuned(regress(rows, lambda: models.mlp(196, 64, 12, 64, 196), seed), weights)


def gru_to_descriptions(seed: int) -> Problem:
    """A character model of numpy's documentation gets descriptions of data sets."""
    weights = pretrained(documentation_gru)
    rows = data.split(*data.windows(data.descriptions()))
    return tuned(classify(rows, models.CharGRU, seed), weights)


def documentation_gru(seed: int) -> Problem:
    rows = data.ordered_split(*data.windows(data.docstrings("numpy"), count=20000))
    return classify(rows, models.CharGRU, seed)


def denoise_other_photo(seed: int) -> Problem:
    """A denoiser of one photo gets another with stronger noise."""
    weights = pretrained(photo_denoise)
    return tuned(regress(data.split(*data.noisy("flower", 1.0)), models.Denoiser, seed), weights)


def new_modules_transformer(seed: int) -> Problem:
    """A transformer that knows some modules' documentation gets a new head for others."""
    weights = pretrained(module_transformer)
    rows = data.split(*data.words(NEW_MODULES))
    return tuned(classify(rows, word_transformer, seed), weights, new_head="head.")


def foreign_cars(seed: int) -> Problem:
    """A model of the consumption of American cars gets those from elsewhere."""
    weights = pretrained(american_cars)
    rows = data.split(*cars(american=False))
    return tuned(regress(rows, lambda: models.mlp(7, 32, 32, 1), seed), weights)


def american_cars(seed: int) -> Problem:
    rows = data.split(*cars(american=True))
    return regress(rows, lambda: models.mlp(7, 32, 32, 1), seed)


def cars(*, american: bool) -> Pair:
    inputs, targets = data.numbers("autompg")
    chosen = (inputs[:, 6] < 0) == american  # the seventh column is the origin, 1 for America
    return inputs[chosen], targets[chosen]


def few(rows: tuple[Pair, Pair], count: int) -> tuple[Pair, Pair]:
    """Keeps that many rows for training; fine-tuning rarely has many."""
    (inputs, targets), valid = rows
    return (inputs[:count], targets[:count]), valid


def tuned(problem: Problem, weights: dict[str, Tensor], new_head: str = "-") -> Problem:
    """Loads all weights but those of the head, if it is new."""
    kept = {name: value for name, value in weights.items() if not name.startswith(new_head)}
    problem.model.load_state_dict(problem.model.state_dict() | kept)
    return problem


@lru_cache
def pretrained(make: Callable[[int], Problem]) -> dict[str, Tensor]:
    """Returns the weights after 2000 steps, far more than are tuned, at a rate that suits all."""
    problem = make(PRETRAINING)
    optimizer = lrfast.Adam(problem.model.parameters(), lr=5e-3)
    if not train.fit(problem, optimizer, batch_size=32, seed=PRETRAINING, steps=2000):
        raise RuntimeError(f"{make.__name__} diverges at the rate of its pretraining")
    return problem.model.state_dict()
