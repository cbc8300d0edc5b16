"""lrfast finds, schedules and applies learning rates on the device that trains."""

from lrfast import schedules, suggest
from lrfast.bench import BenchResult, bench
from lrfast.curve import CurveStatus, LossCurve
from lrfast.finetune import FineTuner, accuracy
from lrfast.finetune._history import History, Stage
from lrfast.groups import (
    Timetable,
    discriminative,
    freeze,
    freeze_to,
    gradual,
    layer_groups,
    set_norm_mode,
    unfreeze,
)
from lrfast.optim import SGD, Adagrad, Adam, AdamW, Lion, NAdam, RMSprop, wrap
from lrfast.optim._loss_schedules import Greedy, Plateau
from lrfast.optim._sharded_state import ShardedState
from lrfast.optim._telemetry import Telemetry
from lrfast.range_test import RangeTest, Retest, RetestEntry, lr_find
from lrfast.training.capture import CapturedStep, RecaptureNeeded, capture

__version__ = "0.1.0"
__all__ = [
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "BenchResult",
    "CapturedStep",
    "CurveStatus",
    "FineTuner",
    "Greedy",
    "History",
    "Lion",
    "LossCurve",
    "NAdam",
    "Plateau",
    "RMSprop",
    "RangeTest",
    "RecaptureNeeded",
    "Retest",
    "RetestEntry",
    "ShardedState",
    "Stage",
    "Telemetry",
    "Timetable",
    "accuracy",
    "bench",
    "capture",
    "discriminative",
    "freeze",
    "freeze_to",
    "gradual",
    "layer_groups",
    "lr_find",
    "schedules",
    "set_norm_mode",
    "suggest",
    "unfreeze",
    "wrap",
]
