"""Cuts the rates where a measured value has stopped improving."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lrfast._utils.validation import MAX_STEPS, check_choice, check_count
from lrfast.optim._loss_schedules._base import LossSchedule, Mode, ThresholdMode
from lrfast.optim._scheduling import Scheduled


class Plateau(LossSchedule):
    """Cuts all rates by a factor where a measured value has stopped improving.

    ``counting`` chooses whose rules hold. "torch": as ReduceLROnPlateau of torch and timm, a cut
    comes when the value has been bad more than ``patience`` times; "keras": as ReduceLROnPlateau of
    Keras (and optax), at the ``patience``-th time, one observation earlier, and what is observed
    as a cool-down ends counts already.

    The factor comes on top of whatever schedule the optimizer has, also in the stages of a
    fine-tuner; while a range test plans the rates it rests. It and all that was observed are part
    of the optimizer's state dict.

    Args:
        optimizer: One of ours; its rates are multiplied, its groups' ``lr`` and its schedule stay.
        mode: "min" where smaller is better, "max" where larger is.
        factor: What a cut multiplies the rates by, in (0, 1).
        patience: Bad observations that are borne, 0 or more; 1 or more where ``counting`` is
            "keras".
        threshold: How much better than the best counts as better.
        threshold_mode: "rel": a share of the best; "abs": an amount.
        cooldown: Observations after a cut that are not counted.
        min_factor: Smallest multiple of the rates, in [0, 1].
        counting: "torch" or "keras".
        window: The mean of so many last observations is judged, 1 or more; 1: each by itself.

    Raises:
        ValueError: If an argument is out of range, or differs from what the optimizer has loaded.
        TypeError: If ``optimizer`` is not one of ours.

    Example:
        >>> import torch, lrfast
        >>> layer = torch.nn.Linear(2, 1)
        >>> optimizer = lrfast.SGD(layer.parameters(), lr=0.1)
        >>> plateau = lrfast.Plateau(optimizer, factor=0.5, patience=1)
        >>> for loss in (1.0, 0.9, 0.95, 0.93):
        ...     plateau.observe(torch.tensor(loss))
        >>> optimizer.current_rates()
        [0.05]

    Reference:
        torch 2.13, ``torch.optim.lr_scheduler.ReduceLROnPlateau``; Keras 3,
        ``keras.callbacks.ReduceLROnPlateau``.
    """

    _ARGUMENTS = (*LossSchedule._ARGUMENTS, "counting")

    def __init__(
        self,
        optimizer: Scheduled,
        mode: Mode = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: ThresholdMode = "rel",
        cooldown: int = 0,
        min_factor: float = 0.0,
        counting: Literal["torch", "keras"] = "torch",
        window: int = 1,
    ) -> None:
        check_choice("counting", counting, ("torch", "keras"))
        check_count("patience", patience, 1 if counting == "keras" else 0, MAX_STEPS)
        self.counting = counting
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

    def _count(self, seen: Tensor, is_better: Tensor) -> None:
        state = self._state
        cooldown = (state["cooldown"] - 1).clamp(min=0)
        if self.counting == "torch":
            counts = state["cooldown"] == 0
            bad = torch.where(is_better | ~counts, 0.0, state["bad"] + 1)
            is_cut = bad > self.patience
        else:
            counts = cooldown == 0
            before = torch.where(state["cooldown"] == 0, state["bad"], 0.0)
            bad = torch.where(is_better, 0.0, before + counts)
            is_cut = ~is_better & (bad >= self.patience)
        lower = self._lowered()
        state["best"].copy_(torch.where(is_better, seen, state["best"]))
        state["cuts"].add_(is_cut & (lower < state["scale"]))
        state["scale"].copy_(torch.where(is_cut, lower, state["scale"]))
        state["cooldown"].copy_(torch.where(is_cut, float(self.cooldown), cooldown))
        state["bad"].copy_(torch.where(is_cut, 0.0, bad))
