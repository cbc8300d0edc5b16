"""lrfast finds, schedules and applies learning rates on the device that trains."""

from lrfast import _former, schedules, suggest
from lrfast import plot as plot
from lrfast import snapshot as snapshot
from lrfast.bench import BenchResult, bench
from lrfast.curve import CurveStatus, LossCurve
from lrfast.finetune import FineTuner, accuracy
from lrfast.groups import (
    Timetable,
    discriminative,
    freeze,
    freeze_to,
    gradual,
    layer_groups,
    lora_groups,
    muon_groups,
    set_norm_mode,
    state_groups,
    unfreeze,
)
from lrfast.history import History, Stage
from lrfast.loss_schedules import Greedy, Plateau
from lrfast.optim import (
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    AdamWScheduleFree,
    DAdaptAdam,
    Lion,
    Muon,
    NAdam,
    Prodigy,
    RAdam,
    RMSprop,
    SGDScheduleFree,
    wrap,
)
from lrfast.range_test import (
    RangeTest,
    Retest,
    RetestEntry,
    WarmupSearch,
    find_in_warmup,
    lr_find,
)
from lrfast.sharded import ShardedState
from lrfast.telemetry import Telemetry
from lrfast.training.capture import CapturedStep, RecaptureNeeded, capture

__version__ = "0.1.0"
__all__ = [
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "AdamWScheduleFree",
    "Adamax",
    "BenchResult",
    "CapturedStep",
    "CurveStatus",
    "DAdaptAdam",
    "FineTuner",
    "Greedy",
    "History",
    "Lion",
    "LossCurve",
    "Muon",
    "NAdam",
    "Plateau",
    "Prodigy",
    "RAdam",
    "RMSprop",
    "RangeTest",
    "RecaptureNeeded",
    "Retest",
    "RetestEntry",
    "SGDScheduleFree",
    "ShardedState",
    "Stage",
    "Telemetry",
    "Timetable",
    "WarmupSearch",
    "accuracy",
    "bench",
    "capture",
    "discriminative",
    "find_in_warmup",
    "freeze",
    "freeze_to",
    "gradual",
    "layer_groups",
    "lora_groups",
    "lr_find",
    "muon_groups",
    "schedules",
    "set_norm_mode",
    "state_groups",
    "suggest",
    "unfreeze",
    "wrap",
]

_former.register_modules()


def __dir__() -> list[str]:
    """Return the public names; packages that only hold what is public elsewhere are left out."""
    return sorted(name for name in globals() if name not in ("tools", "training"))
