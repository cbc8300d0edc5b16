"""Suggestion methods: functions that read a learning rate off the loss curve of a range test.

A method is a pure function of two arrays, the learning rates in sweep order and the losses. It
returns a `Suggestion`: a learning rate with a reason and a confidence, or no suggestion and why.

`steep`, `minimum`, `valley` and `slide` read smoothed losses and compute what fastai 2.8 computes,
in float64. They give no suggestion if fastai fails (too few points, an index before the first
point) or answers from a curve that never falls. All others read raw losses and estimate their
noise. `auto` also takes prior knowledge: the `typical_rate` of such a training with its
`typical_deviation`, and the `rate_scale` of its batches and data.

A new method is one function and one entry in `_rules.py`.
"""

from lrfast.suggest._auto import auto
from lrfast.suggest._curve import trim
from lrfast.suggest._descents import cyclic, last_decreasing, longest_descent
from lrfast.suggest._fastai import minimum, slide, steep, valley
from lrfast.suggest._flat import flat
from lrfast.suggest._priors import rate_scale, typical_deviation, typical_rate
from lrfast.suggest._rules import get, names, reads_raw
from lrfast.suggest._suggestion import Rule, Suggestion

__all__ = [
    "Rule",
    "Suggestion",
    "auto",
    "cyclic",
    "flat",
    "get",
    "last_decreasing",
    "longest_descent",
    "minimum",
    "names",
    "rate_scale",
    "reads_raw",
    "slide",
    "steep",
    "trim",
    "typical_deviation",
    "typical_rate",
    "valley",
]
