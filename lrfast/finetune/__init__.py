"""Fine-tuning: learning rates by layer group, freezing, range tests and scheduled training.

A :class:`FineTuner` puts the parts together: groups (:mod:`lrfast.groups`), a fused optimizer
(:mod:`lrfast.optim`), schedules (:mod:`lrfast.schedules`), the range test and the loss curve. Its
training loop synchronises once per epoch, for validation; with an optimizer of torch.optim on a
GPU at every step, so that a loss that is not finite does not reach the weights.
"""

from lrfast.finetune._callbacks import Callback, EarlyStop, Observe
from lrfast.finetune._metrics import Metric, accuracy
from lrfast.finetune._recipe._plan import PlannedStage
from lrfast.finetune._recipe._recipe import Recipe
from lrfast.finetune._recipe._report import AppliedStage
from lrfast.finetune._stage_state import Run
from lrfast.finetune._tuner import FineTuner

__all__ = [
    "AppliedStage",
    "Callback",
    "EarlyStop",
    "FineTuner",
    "Metric",
    "Observe",
    "PlannedStage",
    "Recipe",
    "Run",
    "accuracy",
]
