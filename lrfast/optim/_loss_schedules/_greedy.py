"""Raises the rates while a measured value improves, and lowers them while it does not."""

from __future__ import annotations

import torch
from torch import Tensor

from lrfast._utils.validation import MAX_STEPS, check_count
from lrfast.optim._loss_schedules._base import MOST, LossSchedule, Mode, ThresholdMode
from lrfast.optim._scheduling import Scheduled

# What a reset leaves alone: the counts of what has happened, and the cool-down that the last cut,
# which has brought the reset about, begins.
_LASTING = ("cuts", "raises", "resets", "cooldown")


class Greedy(LossSchedule):
    """Raises all rates while a measured value improves, and lowers them while it does not.

    GreedyLR as transformers counts it: a value that beats the best is good, any other one bad.
    Where more than ``patience`` in a row were good, the rates are divided by ``factor``, and what
    is observed during the ``warmup`` that follows is not counted; where more than ``patience`` were
    bad, they are multiplied by it, and a ``cooldown`` follows. The ``reset_start``-th cut to
    ``min_factor`` since the last raise begins anew: factor 1, no best value.

    Three things differ from transformers: the limits are multiples of each group's own rate, so
    that ratios between groups stay; there is no least change (``eps``); and the mean over the
    window is a number again once a NaN has left it.

    The factor comes on top of whatever schedule the optimizer has, also in the stages of a
    fine-tuner; while a range test plans the rates it rests. It and all that was observed are part
    of the optimizer's state dict.

    Args:
        optimizer: One of ours; its rates are multiplied, its groups' ``lr`` and its schedule stay.
        mode: "min" where smaller is better, "max" where larger is.
        factor: What a cut multiplies, and a raise divides, the rates by, in (0, 1).
        patience: Good or bad observations in a row that change nothing yet, 0 or more.
        threshold: How much better than the best counts as better.
        threshold_mode: "rel": a share of the best; "abs": an amount.
        cooldown: Observations after a cut that are not counted.
        warmup: Observations after a raise that are not counted.
        min_factor: Smallest multiple of the rates, in [0, 1].
        max_factor: Largest multiple of the rates, 1 or more. The defaults of both are those of
            transformers, 1e-3 and 1, for a rate of 0.1.
        window: The mean of so many last observations is judged, 1 or more; 1: each by itself.
        reset_start: Cuts to ``min_factor`` after which all begins anew, 1 or more.

    Raises:
        ValueError: If an argument is out of range, or differs from what the optimizer has loaded.
        TypeError: If ``optimizer`` is not one of ours.

    Example:
        >>> import torch, lrfast
        >>> layer = torch.nn.Linear(2, 1)
        >>> optimizer = lrfast.SGD(layer.parameters(), lr=0.1)
        >>> greedy = lrfast.Greedy(optimizer, factor=0.5, patience=1)
        >>> for loss in (1.0, 0.9):
        ...     greedy.observe(torch.tensor(loss))
        >>> optimizer.current_rates()
        [0.2]

    Reference:
        Subramanian & Ganapathiraman, "Zeroth Order GreedyLR: An Adaptive Learning Rate Scheduler
        for Deep Neural Network Training", 2023; arXiv:2512.14527; transformers,
        ``transformers.optimization.GreedyLR``.
    """

    _ARGUMENTS = (*LossSchedule._ARGUMENTS, "warmup", "max_factor", "reset_start")

    def __init__(
        self,
        optimizer: Scheduled,
        mode: Mode = "min",
        factor: float = 0.95,
        patience: int = 10,
        threshold: float = 1e-6,
        threshold_mode: ThresholdMode = "abs",
        cooldown: int = 0,
        warmup: int = 0,
        min_factor: float = 0.01,
        max_factor: float = 10.0,
        window: int = 1,
        reset_start: int = 500,
    ) -> None:
        self.warmup = check_count("warmup", warmup, 0, MAX_STEPS)
        self.reset_start = check_count("reset_start", reset_start, 1, MAX_STEPS)
        if not 1 <= max_factor <= MOST:
            raise ValueError(f"max_factor must be finite and 1 or more, got {max_factor}")
        self.max_factor = float(max_factor)
        super().__init__(
            optimizer,
            mode=mode,
            factor=factor,
            patience=patience,
            threshold=threshold,
            threshold_mode=threshold_mode,
            cooldown=cooldown,
            min_factor=min_factor,
            window=window,
        )

    @property
    def raises(self) -> int:
        """How often the rates were raised. Waits for the device."""
        return int(self._state["raises"])

    @property
    def resets(self) -> int:
        """How often all began anew. Waits for the device."""
        return int(self._state["resets"])

    def _start(self) -> dict[str, float]:
        counts = ("good", "warmup", "stuck", "raises", "resets")
        return super()._start() | dict.fromkeys(counts, 0.0)

    def _count(self, seen: Tensor, is_better: Tensor) -> None:
        state, scale = self._state, self._state["scale"]
        counts = (state["cooldown"] == 0) & (state["warmup"] == 0)
        is_better = is_better & counts
        good = torch.where(is_better, state["good"] + 1, 0.0)
        bad = torch.where(counts & ~is_better, state["bad"] + 1, 0.0)
        is_raise, is_cut = good > self.patience, bad > self.patience
        higher, lower = (scale / self.factor).clamp(max=self.max_factor), self._lowered()
        state["best"].copy_(torch.where(is_better, seen, state["best"]))
        state["raises"].add_(is_raise & (higher > scale))
        state["cuts"].add_(is_cut & (lower < scale))
        scale.copy_(torch.where(is_raise, higher, torch.where(is_cut, lower, scale)))
        for name, begins, length in (
            ("warmup", is_raise, self.warmup),
            ("cooldown", is_cut, self.cooldown),
        ):
            state[name].sub_(1).clamp_(min=0).masked_fill_(begins, length)
        state["good"].copy_(good.masked_fill_(is_raise, 0.0))
        state["bad"].copy_(bad.masked_fill_(is_cut, 0.0))
        self._reset_where_stuck(is_raise, is_cut)

    def _reset_where_stuck(self, is_raise: Tensor, is_cut: Tensor) -> None:
        state = self._state
        stuck = state["stuck"].masked_fill_(is_raise, 0.0)
        is_reset = stuck.add_(is_cut & (state["scale"] <= self.min_factor)) >= self.reset_start
        state["resets"].add_(is_reset)
        for name, value in self._start().items():
            if name not in _LASTING:
                state[name].masked_fill_(is_reset, value)
