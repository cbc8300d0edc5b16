"""Learning-rate suggestions of fastai 2.8, slow and in plain Python floats.

The oracle of suggest/test_suggest.py, written from the formulas; imports nothing of lrfast. Every
function takes rates and losses and returns the index it settles on, raw: `valley` can say -1,
which in fastai wraps around to the last point.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def steep(lrs: Sequence[float], losses: Sequence[float]) -> int:
    slopes = [
        (losses[i + 1] - losses[i]) / (math.log(lrs[i + 1]) - math.log(lrs[i]))
        for i in range(len(lrs) - 1)
    ]
    return slopes.index(min(slopes))


def minimum(lrs: Sequence[float], losses: Sequence[float]) -> int:
    return list(losses).index(min(losses))


def valley(lrs: Sequence[float], losses: Sequence[float]) -> int:
    best_ending_at: list[int] = []
    for i, loss in enumerate(losses):
        before = [best_ending_at[j] for j in range(i) if losses[j] > loss]
        best_ending_at.append(1 + max(before, default=0))
    longest = max(best_ending_at)
    end = best_ending_at.index(longest)
    start = end - longest
    section = (end - start) / 3
    return start + int(section) + int(section / 2)


def slide(
    lrs: Sequence[float],
    losses: Sequence[float],
    lr_diff: int = 15,
    loss_threshold: float = 0.005,
) -> int:
    last = len(losses) - 1
    slope = [losses[1] - losses[0]]
    slope += [(losses[i + 1] - losses[i - 1]) / 2 for i in range(1, last)]
    slope += [losses[last] - losses[last - 1]]
    right, left = -1, -1 - lr_diff
    found = left
    while left >= -len(losses) and abs(slope[right] - slope[left]) > loss_threshold:
        found = left
        right, left = right - 1, left - 1
    return len(losses) + found
