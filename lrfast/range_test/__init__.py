"""The learning-rate range test: a sweep over rates that leaves no trace, and what it shows.

A range test is a schedule, a loss curve with a stop rule, and a snapshot that puts everything back.
Nothing in its loop waits for the device. Rules that read a rate off the curve are in
:mod:`lrfast.suggest`; drawing is in :mod:`lrfast.plot`.
"""

from lrfast.range_test._applied import AppliedRates
from lrfast.range_test._lr_find import lr_find
from lrfast.range_test._race_result import Candidate, Race
from lrfast.range_test._result import RangeTest
from lrfast.range_test._retest import Retest
from lrfast.range_test._retest_log import RetestEntry
from lrfast.range_test._sweep import Sweep

__all__ = [
    "AppliedRates",
    "Candidate",
    "Race",
    "RangeTest",
    "Retest",
    "RetestEntry",
    "Sweep",
    "lr_find",
]
