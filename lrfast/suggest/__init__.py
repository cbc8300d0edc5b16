"""Rules that read a learning rate off the loss curve of a range test.

A rule is a pure function of two arrays, the rates in sweep order and the losses, and returns a
`Suggestion`: a rate with a reason and a confidence, or no rate and the reason why not. Recording
is left to the loss curve, running the sweep to the range test, and drawing to the plots.

`steep`, `minimum`, `valley` and `slide` read smoothed losses and compute what fastai 2.8 computes,
in float64. Where fastai fails (too few points, an index before the first point) or answers from a
curve that never falls, they decline. The others read raw losses, and know how noisy these are.
`auto` also takes what is known before the sweep: the `typical_rate` of such a training, and the
`rate_scale` of its batches and data.

A new rule is one function and one entry in `_rules.py`.
"""

from lrfast.suggest._auto import auto
from lrfast.suggest._curve import trim
from lrfast.suggest._descents import cyclic, last_decreasing, longest_descent
from lrfast.suggest._fastai import minimum, slide, steep, valley
from lrfast.suggest._flat import flat
from lrfast.suggest._priors import typical_rate
from lrfast.suggest._rules import get, names, reads_raw
from lrfast.suggest._scale import rate_scale
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
    "typical_rate",
    "valley",
]
