"""Optimizers: torch.optim's classes whose step updates all groups in one launch.

They inherit constructor, checks, state_dict and hooks from the installed torch.optim;
:class:`FusedOptimizer` replaces ``step``.
"""

from lrfast.optim._memory import Memory
from lrfast.optim._optimizer import FusedOptimizer
from lrfast.optim._options import Options
from lrfast.optim._scheduling import Planned
from lrfast.optim._wrap import wrap
from lrfast.optim.adadelta import Adadelta
from lrfast.optim.adagrad import Adagrad
from lrfast.optim.adam import Adam, AdamW
from lrfast.optim.adamax import Adamax
from lrfast.optim.lion import Lion
from lrfast.optim.muon import Muon
from lrfast.optim.nadam import NAdam
from lrfast.optim.prodigy import DAdaptAdam, Prodigy
from lrfast.optim.radam import RAdam
from lrfast.optim.rmsprop import RMSprop
from lrfast.optim.schedule_free import AdamWScheduleFree, SGDScheduleFree
from lrfast.optim.sgd import SGD

__all__ = [
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "AdamWScheduleFree",
    "Adamax",
    "DAdaptAdam",
    "FusedOptimizer",
    "Lion",
    "Memory",
    "Muon",
    "NAdam",
    "Options",
    "Planned",
    "Prodigy",
    "RAdam",
    "RMSprop",
    "SGDScheduleFree",
    "wrap",
]
