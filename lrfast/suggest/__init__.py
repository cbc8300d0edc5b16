"""Rules that read a learning rate off the loss curve of a range test.

A rule is a pure function of two arrays, the rates in sweep order and the smoothed losses, and
returns a `Suggestion`: a rate with a reason and a confidence, or no rate and the reason why not.
Recording and smoothing the losses is left to the loss curve, running the sweep to the range
test, and drawing the result to the plots.

The rules compute what fastai 2.8 computes, in float64. Where fastai fails (too few points, an
index before the first point) or answers from a curve that never falls, they decline.

A new rule is one function and one entry in `_RULES`, both in `_rules.py`.
"""

from lrfast.suggest._arrays import trim
from lrfast.suggest._rules import Rule, Suggestion, auto, get, minimum, names, slide, steep, valley

__all__ = [
    "Rule",
    "Suggestion",
    "auto",
    "get",
    "minimum",
    "names",
    "slide",
    "steep",
    "trim",
    "valley",
]
