"""Tasks of kinds that the others lack, written down before anything was measured on them.

Language models, contrastive and density losses below 0, residuals of differential equations, policy
gradients, graphs, matrix factors, adapters of low rank, heads on frozen bodies, weights in
bfloat16, weights that ship in a package; batches of 4 to 512 rows, weight decay up to 1, 130 to 7e6
trained parameters. `BROAD` was in view when `auto` was changed; `SEALED` was looked at afterwards.

Their grids have 17 rates over four decades instead of 27, that of the largest model 9, so that they
take half an hour together. Losses of either sign have no relative error: another loss judges those.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional

import lrfast
from benchmarks.research.suggestions import broad_data, broad_models, data, models, problems
from benchmarks.research.suggestions.fresh_models import CharLSTM
from benchmarks.research.suggestions.tasks import MOMENTUM, Task
from benchmarks.research.suggestions.train import Problem

_ADVECTION: Final = 5.0

SGD_RATES: Final = tuple(10 ** (quarter / 4) for quarter in range(-12, 5))
ADAM_RATES: Final = tuple(10 ** (quarter / 4) for quarter in range(-16, 1))
LION_RATES: Final = tuple(10 ** (quarter / 4) for quarter in range(-20, -3))

_sgd = partial(Task, optimizer=lrfast.SGD, rates=SGD_RATES)
_adamw = partial(Task, optimizer=lrfast.AdamW, rates=ADAM_RATES)
_adam = partial(Task, optimizer=lrfast.Adam, rates=ADAM_RATES)
NESTEROV: Final = MappingProxyType[str, Any]({"momentum": 0.9, "nesterov": True})


def decay(weight_decay: float) -> MappingProxyType[str, Any]:
    return MappingProxyType({"weight_decay": weight_decay})


def contrast(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of which halves belong together, less that of chance: below 0 if it learns."""
    return matching(outputs, targets) - math.log(len(outputs))


def matching(outputs: Tensor, _targets: Tensor) -> Tensor:
    left, right = outputs.unbind(1)
    return functional.cross_entropy(left @ right.T / 0.1, torch.arange(len(outputs)))


def violation(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean squared residual of an equation."""
    return functional.mse_loss(outputs[:, 1], targets[:, 1])


def solution_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """The error of its solution, relative to the solution."""
    return (outputs[:, 0] - targets[:, 0]).norm() / targets[:, 0].norm()


def policy_gradient(outputs: Tensor, targets: Tensor) -> Tensor:
    """Reinforces actions that are drawn, by a reward of 1 for the right one, less the mean."""
    actions = torch.distributions.Categorical(logits=outputs).sample()
    rewards = (actions == targets).float()
    chosen = outputs.log_softmax(1).gather(1, actions[:, None])[:, 0]
    return -(chosen * (rewards - rewards.mean())).mean()


def missed_reward(outputs: Tensor, targets: Tensor) -> Tensor:
    return 1 - outputs.softmax(1).gather(1, targets[:, None]).mean()


def surprise(outputs: Tensor, targets: Tensor) -> Tensor:
    """The negative logarithm of a density, less a constant: of either sign."""
    means, deviations = outputs.unbind(-1)
    deviations = deviations.clamp(-7, 7)
    return (deviations + 0.5 * ((targets - means) / deviations.exp()) ** 2).mean()


def inverse_density(outputs: Tensor, targets: Tensor) -> Tensor:
    """The inverse of the density of a column, as a geometric mean."""
    return surprise(outputs, targets).exp()


def weighted_error(outputs: Tensor, targets: Tensor) -> Tensor:
    wanted, weights = targets.unbind(1)
    return (weights * (outputs[:, 0] - wanted) ** 2).mean()


def topics_transformer(seed: int) -> Problem:
    rows = data.ordered_split(*data.windows(broad_data.topics(), length=24))
    build = partial(models.Transformer, data.SYMBOLS, 24, data.SYMBOLS, causal=True)
    return problems.classify(rows, build, seed)


def topics_lstm(seed: int) -> Problem:
    rows = data.ordered_split(*data.windows(broad_data.topics(), length=12))
    return problems.classify(rows, CharLSTM, seed)


def halves(seed: int) -> Problem:
    torch.manual_seed(seed)
    rows = data.split(*broad_data.halves())
    return Problem(broad_models.Halves(32), *rows, contrast, matching)


def cancer_density(seed: int) -> Problem:
    torch.manual_seed(seed)
    rows = data.split(*broad_data.measurements())
    return Problem(broad_models.Density(10), *rows, surprise, inverse_density)


def flow(seed: int) -> Problem:
    torch.manual_seed(seed)
    rows = data.split(*broad_data.flow(_ADVECTION))
    return Problem(broad_models.Residuals(1, _ADVECTION), *rows, violation, solution_error)


def plate(seed: int) -> Problem:
    torch.manual_seed(seed)
    rows = data.split(*broad_data.plate())
    return Problem(broad_models.Residuals(2, 0.0), *rows, violation, solution_error)


def digits_bandit(seed: int) -> Problem:
    problem = problems.digits_mlp(seed)
    return replace(problem, loss_fn=policy_gradient, judged_by=missed_reward)


def wine_bandit(seed: int) -> Problem:
    rows = data.split(*data.classes("wine"), share=0.4)
    problem = problems.classify(rows, lambda: models.mlp(13, 24, 3), seed)
    return replace(problem, loss_fn=policy_gradient, judged_by=missed_reward)


def digits_graph(seed: int) -> Problem:
    images, labels = data.digits()
    return _graph(images.flatten(1), labels, 10, seed)


def cancer_graph(seed: int) -> Problem:
    return _graph(*data.classes("breast_cancer"), 2, seed)


def _graph(features: Tensor, labels: Tensor, classes: int, seed: int) -> Problem:
    train, valid = broad_data.few_labels(len(labels), 100)
    rows = (train, labels[train]), (valid, labels[valid])
    near = broad_data.neighbours(features)
    return problems.classify(rows, lambda: broad_models.GraphNetwork(features, near, classes), seed)


def page_factors(seed: int) -> Problem:
    """Small factors begin at a saddle."""
    rows = data.split(*broad_data.page(), share=0.15)
    return problems.regress(rows, lambda: broad_models.Factors(96, 96, 0.1, bias=False), seed)


def word_factors(seed: int) -> Problem:
    torch.manual_seed(seed)
    rows = data.split(*broad_data.word_pairs())
    words = broad_data.COMMON_WORDS
    return Problem(broad_models.Factors(words, words, 0.3, bias=True), *rows, weighted_error)


def mnist_to_digits_adapters(seed: int) -> Problem:
    """A network of MNIST gets scikit-learn's digits, by adapters alone."""
    weights = problems.pretrained(problems.mnist_mlp)
    images, labels = problems.enlarged_digits()
    rows = problems.few(data.split(images, labels), 600)
    problem = problems.tuned(
        problems.classify(rows, lambda: models.mlp(196, 64, 64, 10), seed), weights
    )
    broad_models.low_rank(problem.model, ("1.weight", "3.weight", "5.weight"))
    return problem


def descriptions_to_topics_adapters(seed: int) -> Problem:
    """A character model of descriptions of data gets Python's reference, by adapters alone."""
    weights = problems.pretrained(problems.next_character_transformer)
    rows = data.ordered_split(*data.windows(broad_data.topics()))
    problem = problems.tuned(problems.classify(rows, problems.character_transformer, seed), weights)
    names = ("self_attn.in_proj_weight", "linear1.weight", "linear2.weight")
    broad_models.low_rank(problem.model, [*(f"body.{name}" for name in names), "head.weight"])
    return problem


def codes_head(seed: int) -> Problem:
    """The frozen half of an autoencoder of MNIST gets a head for scikit-learn's digits."""
    weights = problems.pretrained(problems.mnist_autoencoder)
    rows = data.split(*problems.enlarged_digits())
    problem = problems.classify(rows, lambda: models.mlp(196, 64, 12, 10), seed)
    kept = {name: weights[name] for name in weights if name.startswith(("1.", "3."))}
    problems.tuned(problem, kept)
    problem.model[:4].requires_grad_(False)
    return problem


def surfaces_head(seed: int) -> Problem:
    """The frozen face detector gets a head for surfaces."""
    problem = surfaces(seed)
    for name, parameter in problem.model.named_parameters():
        parameter.requires_grad_(name.startswith("head."))
    return problem


def surfaces(seed: int) -> Problem:
    """A face detector learns surfaces."""
    rows = problems.few(data.split(*broad_data.surfaces()), 600)
    return problems.classify(rows, lambda: broad_models.FaceNetwork(6), seed)


def digits_half(seed: int) -> Problem:
    rows = data.split(*data.digits())
    return problems.classify(rows, lambda: broad_models.Half(models.mlp(64, 64, 64, 10)), seed)


def mnist_half(seed: int) -> Problem:
    rows = data.split(*data.mnist())
    return problems.classify(rows, lambda: broad_models.Half(models.mlp(196, 128, 10)), seed)


def wine_mlp(seed: int) -> Problem:
    rows = data.split(*data.classes("wine"), share=0.4)
    return problems.classify(rows, lambda: models.mlp(13, 64, 3), seed)


def mnist_deep(seed: int) -> Problem:
    return problems.classify(data.split(*data.mnist()), lambda: models.mlp(196, 96, 96, 10), seed)


def mnist_wide(seed: int) -> Problem:
    return problems.classify(data.split(*data.mnist()), lambda: models.mlp(196, 768, 768, 10), seed)


def mnist_widest(seed: int) -> Problem:
    rows = data.split(*data.mnist())
    return problems.classify(rows, lambda: models.mlp(196, 2600, 2600, 10), seed)


def wide_reviews(seed: int) -> Problem:
    rows = data.split(*broad_data.wide_reviews())
    return problems.classify(
        rows, lambda: broad_models.wide_word_bag(2, broad_data.WIDE_WORDS), seed
    )


def _tuned(task: Task) -> Task:
    return replace(task, kind="fine-tune")


BROAD: tuple[Task, ...] = (
    _adamw("topics-transformer-adamw", topics_transformer, batch_size=4, options=decay(0.1)),
    _adam("halves-contrast-adam", halves, batch_size=128),
    _adam("flow-residuals-adam", flow, batch_size=64),
    _sgd("digits-bandit-sgd", digits_bandit, batch_size=64, options=MOMENTUM),
    _adamw("digits-graph-adamw", digits_graph, batch_size=100, options=decay(0.05)),
    _sgd("page-factors-sgd", page_factors, batch_size=512, options=MOMENTUM),
    _tuned(_adamw("mnist-to-digits-adapters-adamw", mnist_to_digits_adapters, batch_size=16)),
    _tuned(_sgd("codes-head-plain", codes_head, batch_size=8)),
    _adamw("digits-half-adamw", digits_half, batch_size=32, options=decay(0.01)),
    _adamw("wine-mlp-decay-adamw", wine_mlp, batch_size=4, options=decay(1.0)),
    _adam("mnist-wide-adam", mnist_wide, batch_size=32),
)

SEALED: tuple[Task, ...] = (
    _sgd("topics-lstm-sgd", topics_lstm, batch_size=8, options=MOMENTUM),
    _adam("cancer-density-adam", cancer_density, batch_size=32),
    Task("plate-residuals-rmsprop", plate, lrfast.RMSprop, 128, rates=ADAM_RATES),
    _adam("wine-bandit-adam", wine_bandit, batch_size=16),
    _sgd("cancer-graph-nesterov", cancer_graph, batch_size=100, options=NESTEROV | decay(5e-4)),
    Task("word-factors-adagrad", word_factors, lrfast.Adagrad, 512, rates=SGD_RATES),
    _tuned(
        _adamw(
            "descriptions-to-topics-adapters-adamw",
            descriptions_to_topics_adapters,
            batch_size=8,
            options=decay(0.3),
        )
    ),
    _tuned(Task("surfaces-head-lion", surfaces_head, lrfast.Lion, 64, rates=LION_RATES)),
    _tuned(_adamw("surfaces-faces-adamw", surfaces, batch_size=24, options=decay(0.01))),
    _sgd("mnist-half-sgd", mnist_half, batch_size=128, options=MOMENTUM),
    _sgd("mnist-deep-plain", mnist_deep, batch_size=512),
    _adam("wide-reviews-adam", wide_reviews, batch_size=256),
    Task("mnist-widest-adamw", mnist_widest, lrfast.AdamW, 16, decay(0.1), rates=ADAM_RATES[::2]),
)
