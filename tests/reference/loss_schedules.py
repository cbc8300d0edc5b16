"""GreedyLR as transformers counts it, slowly, for the rates themselves; imports nothing of lrfast.

transformers, ``src/transformers/optimization.py``, class GreedyLR (pull request 44271), restated;
its least change of a rate, ``eps``, is left out.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any


class GreedyReference:
    """Rates of several groups, each with its own limits."""

    def __init__(
        self, rates: list[float], lowest: list[float], highest: list[float], options: dict[str, Any]
    ) -> None:
        self.first, self.rates = list(rates), list(rates)
        self.lowest, self.highest = lowest, highest
        self.o = options
        self.raises = self.cuts = self.resets = 0
        self._forget()
        self.at_lowest = 0

    def _forget(self) -> None:
        self.best = math.inf if self.o["mode"] == "min" else -math.inf
        self.good = self.bad = self.pause_after_cut = self.pause_after_raise = 0
        self.recent: deque[float] = deque(maxlen=self.o["window"])

    def _beats(self, value: float) -> bool:
        margin, sign = self.o["threshold"], 1 if self.o["mode"] == "max" else -1
        if self.o["threshold_mode"] == "rel":
            bar = self.best * (1 + sign * margin)
        else:
            bar = self.best + sign * margin
        return value > bar if sign > 0 else value < bar

    def step(self, value: float) -> None:
        self.recent.append(value)
        value = sum(self.recent) / len(self.recent)
        if self.pause_after_cut or self.pause_after_raise:
            if self.pause_after_cut:
                self.pause_after_cut -= 1
            else:
                self.pause_after_raise -= 1
            self.good = self.bad = 0
            return
        if self._beats(value):
            self.best, self.good, self.bad = value, self.good + 1, 0
        else:
            self.good, self.bad = 0, self.bad + 1
        if self.good > self.o["patience"]:
            self._raise()
        elif self.bad > self.o["patience"]:
            self._cut()

    def _raise(self) -> None:
        before = self.rates
        pairs = zip(before, self.highest, strict=True)
        self.rates = [min(rate / self.o["factor"], most) for rate, most in pairs]
        self.raises += self.rates != before
        self.at_lowest = 0
        self.good, self.pause_after_raise = 0, self.o["warmup"]

    def _cut(self) -> None:
        before = self.rates
        pairs = zip(before, self.lowest, strict=True)
        self.rates = [max(rate * self.o["factor"], least) for rate, least in pairs]
        self.cuts += self.rates != before
        if all(rate <= least for rate, least in zip(self.rates, self.lowest, strict=True)):
            self.at_lowest += 1
            if self.at_lowest >= self.o["reset_start"]:
                self._forget()
                self.rates, self.at_lowest = list(self.first), 0
                self.resets += 1
        self.bad, self.pause_after_cut = 0, self.o["cooldown"]
