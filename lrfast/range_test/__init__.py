"""The learning-rate range test: a sweep over learning rates that leaves no trace.

A range test is a schedule, a loss curve with a stop rule, and a snapshot that restores everything.
Its loop does not synchronise with the device. Methods that suggest a learning rate from the curve
are in :mod:`lrfast.suggest`; figures are in :mod:`lrfast.plot`.
"""

from lrfast.range_test._in_warmup import WarmupSearch, find_in_warmup
from lrfast.range_test._lr_find import lr_find
from lrfast.range_test._result import AppliedRates, Candidate, Race, RangeTest
from lrfast.range_test._retest import Retest, RetestEntry
from lrfast.range_test._sweep import Sweep

__all__ = [
    "AppliedRates",
    "Candidate",
    "Race",
    "RangeTest",
    "Retest",
    "RetestEntry",
    "Sweep",
    "WarmupSearch",
    "find_in_warmup",
    "lr_find",
]
