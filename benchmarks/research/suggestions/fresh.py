"""Tasks that no rule, constant or choice between rules was made with in view.

Those of transformers were written down with `unseen`, but measured only with the others here, after
`auto` had been changed.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, Final

import lrfast
from benchmarks.research.suggestions import data, fresh_data, fresh_models, problems, unseen
from benchmarks.research.suggestions.tasks import MOMENTUM, Task, fine_tune
from benchmarks.research.suggestions.train import Problem

DECAY: Final = MappingProxyType[str, Any]({"weight_decay": 0.05})
NESTEROV: Final = MappingProxyType[str, Any](
    {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-3}
)


def voters(seed: int) -> Problem:
    rows = data.split(*fresh_data.voters())
    return problems.classify(rows, lambda: fresh_models.dropout_mlp(8, 7), seed)


def marriages(seed: int) -> Problem:
    rows = data.split(*fresh_data.marriages())
    return problems.classify(rows, lambda: fresh_models.MixtureOfExperts(8, 2), seed)


def visits(seed: int) -> Problem:
    rows = data.split(*fresh_data.visits())
    return problems.regress(rows, lambda: fresh_models.dropout_mlp(9, 1, width=32), seed)


def carbon_dioxide(seed: int) -> Problem:
    rows = data.ordered_split(*fresh_data.carbon_dioxide(), share=0.25)
    return problems.regress(rows, fresh_models.DilatedForecaster, seed)


def stained(seed: int) -> Problem:
    return problems.regress(data.split(*fresh_data.stained()), fresh_models.Colouring, seed)


def retina(seed: int) -> Problem:
    """What colours stained tissue gets 300 patches of an eye."""
    weights = problems.pretrained(stained)
    rows = data.split(*fresh_data.retina())
    return problems.tuned(problems.regress(rows, fresh_models.Colouring, seed), weights)


def galaxies(seed: int) -> Problem:
    rows = data.split(*fresh_data.galaxies())
    return problems.regress(rows, lambda: fresh_models.Coordinates(3), seed)


def chelsea(seed: int) -> Problem:
    rows = data.split(*fresh_data.sharpened("chelsea"))
    return problems.regress(rows, lambda: fresh_models.Sharpener(3), seed)


def objects(seed: int) -> Problem:
    rows = data.split(*fresh_data.objects())
    return problems.classify(rows, lambda: fresh_models.group_norm_cnn(4), seed)


def documentation_lstm(seed: int) -> Problem:
    windows = data.windows(data.docstrings("scipy.signal"), length=20)
    return problems.classify(data.ordered_split(*windows), fresh_models.CharLSTM, seed)


def reviews_lstm(seed: int) -> Problem:
    """What writes documentation gets 1000 windows of film reviews."""
    weights = problems.pretrained(documentation_lstm)
    windows = data.windows(fresh_data.review_text(), length=20)
    rows = problems.few(data.ordered_split(*windows), 1000)
    return problems.tuned(problems.classify(rows, fresh_models.CharLSTM, seed), weights)


def modules_cnn(seed: int) -> Problem:
    rows = data.split(*data.words(problems.MODULES))
    classes = len(problems.MODULES)
    return problems.classify(rows, lambda: fresh_models.WordCNN(classes), seed)


FRESH: tuple[Task, ...] = (
    Task("voters-mlp-dropout-adamw", voters, lrfast.AdamW, 32, DECAY),
    Task("marriages-experts-sgd", marriages, lrfast.SGD, 64, MOMENTUM),
    Task("visits-mlp-dropout-adagrad", visits, lrfast.Adagrad, 128),
    Task("carbon-dioxide-dilated-rmsprop", carbon_dioxide, lrfast.RMSprop, 32),
    Task("stained-colouring-adamw", stained, lrfast.AdamW, 24, DECAY),
    Task("galaxies-sines-adam", galaxies, lrfast.Adam, 256),
    Task("chelsea-sharpener-nesterov", chelsea, lrfast.SGD, 32, NESTEROV),
    Task("objects-cnn-norm-plain", objects, lrfast.SGD, 32),
    Task("documentation-lstm-nadam", documentation_lstm, lrfast.NAdam, 20),
    Task("modules-words-cnn-sgd", modules_cnn, lrfast.SGD, 48, MOMENTUM),
    Task("mnist-transformer-adamw", unseen.mnist_patches, lrfast.AdamW, 50, unseen.DECAY),
    fine_tune("new-digits-transformer-adam", unseen.new_digits, lrfast.Adam, 20),
    fine_tune("retina-colouring-lion", retina, lrfast.Lion, 16),
    fine_tune("reviews-lstm-sgd", reviews_lstm, lrfast.SGD, 20, MOMENTUM),
)
