"""The table of claims, and the experiments that try them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from benchmarks.research.claims import sides, tasks
from benchmarks.research.claims.sides import Side
from benchmarks.research.suggestions.tasks import Task

# Rates are powers of the root of ten: 10 ** (k / 2) for whole k. These are the first to be tried;
# the grid grows where the best of any side is at its end.
FIRST_RATES: Final[Mapping[str, range]] = MappingProxyType(
    {"SGD": range(-4, 1), "AdamW": range(-7, -2)}
)


@dataclass(frozen=True)
class Claim:
    """That one side reaches a lower validation loss than another.

    Args:
        text: The claim, in words.
        source: Whose it is.
        side: The name of the side that is said to be better.
        rival: The name of the other.
    """

    text: str
    source: str
    side: str
    rival: str


@dataclass(frozen=True)
class Experiment:
    """Sides that are all trained on the same tasks, at the same rates, and their claims."""

    name: str
    tasks: tuple[Task, ...]
    sides: tuple[Side, ...]
    claims: tuple[Claim, ...]


SCHEDULES = Experiment(
    "schedules",
    tasks.SCHEDULED,
    sides.SCHEDULES,
    (
        Claim(
            "One-cycle beats constant rates",
            "Smith and Topin, 1708.07120",
            "one-cycle",
            "one constant rate",
        ),
        Claim(
            "One-cycle beats constant rates in a quarter of the steps",
            "the same",
            "one-cycle, a quarter of the steps",
            "one constant rate, a quarter of the steps",
        ),
        Claim(
            "One-cycle in a quarter of the steps beats constant rates in all of them "
            "(super-convergence)",
            "the same",
            "one-cycle, a quarter of the steps",
            "one constant rate",
        ),
        Claim("triangular2 beats step decay", "Smith, 1506.01186", "triangular2", "step decay"),
        Claim("triangular2 beats a cosine", "none, for scale", "triangular2", "cosine"),
        Claim(
            "SGDR with cycle_mult=2 beats step decay",
            "Loshchilov and Hutter, 1608.03983",
            "SGDR",
            "step decay",
        ),
        Claim("SGDR with cycle_mult=2 beats a cosine", "none, for scale", "SGDR", "cosine"),
        Claim("A cosine beats step decay", "the same as SGDR's", "cosine", "step decay"),
    ),
)
FINE_TUNING = Experiment(
    "fine-tuning",
    tasks.TUNED,
    sides.FINE_TUNING,
    (
        Claim(
            "Rates that fall tenfold towards the input beat one rate",
            "Howard and Ruder, 1801.06146",
            "slice(r / 10, r)",
            "one rate for all layers",
        ),
        Claim(
            "A tenth of the head's rate for all other layers beats one rate",
            "fastai's slice(r)",
            "slice(r)",
            "one rate for all layers",
        ),
        Claim(
            "Gradual unfreezing beats training all layers at once",
            "Howard and Ruder, 1801.06146",
            "gradual unfreezing",
            "one rate for all layers",
        ),
    ),
)
WARM_UP = Experiment(
    "warm-up",
    tasks.WARMED,
    sides.WARM_UPS,
    (
        Claim(
            "A warm-up helps AdamW",
            "Vaswani et al., 1706.03762; Liu et al., 1908.03265",
            "warm-up and cosine",
            "cosine",
        ),
    ),
)
EXPERIMENTS = (SCHEDULES, FINE_TUNING, WARM_UP)
