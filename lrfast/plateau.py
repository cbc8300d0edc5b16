"""A schedule that waits for the loss: cut the rates where it stops improving.

The state stays on the device, as does the factor that the fused step multiplies the rates by:
neither an observation nor a cut waits for the device. The factor comes on top of whatever schedule
the optimizer has. It rests while a range test or a stage of a fine-tuner plans the rates.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from lrfast._fused import FusedOptimizer

_START = {"best": math.inf, "bad": 0.0, "cooldown": 0.0, "scale": 1.0, "cuts": 0.0}


class Plateau:
    """Cuts all rates by a factor where a measured value has stopped improving.

    ``counting`` chooses whose rules hold. "torch": as ReduceLROnPlateau of torch and timm, a cut
    comes when the value has been bad more than ``patience`` times; "keras": as ReduceLROnPlateau of
    Keras (and optax), at the ``patience``-th time, one observation earlier, and what is observed
    as a cool-down ends counts already.

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

    Raises:
        ValueError: If an argument is out of range.
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

    def __init__(
        self,
        optimizer: FusedOptimizer,
        mode: Literal["min", "max"] = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: Literal["rel", "abs"] = "rel",
        cooldown: int = 0,
        min_factor: float = 0.0,
        counting: Literal["torch", "keras"] = "torch",
    ) -> None:
        if not isinstance(optimizer, FusedOptimizer):
            raise TypeError(
                f"optimizer must be one of lrfast's, got {type(optimizer).__name__}; for another "
                "one torch.optim.lr_scheduler.ReduceLROnPlateau does the same from the host"
            )
        if optimizer._rate_scale is not None:
            raise ValueError("optimizer must have one Plateau at most, got one that has its own")
        for name, value, choices in (
            ("mode", mode, ("min", "max")),
            ("threshold_mode", threshold_mode, ("rel", "abs")),
            ("counting", counting, ("torch", "keras")),
        ):
            if value not in choices:
                raise ValueError(f"{name} must be {' or '.join(map(repr, choices))}, got {value!r}")
        if not 0 < factor < 1:
            raise ValueError(f"factor must lie in (0, 1), got {factor}")
        if not 0 <= min_factor <= 1:
            raise ValueError(f"min_factor must lie in [0, 1], got {min_factor}")
        if not 0 <= threshold < math.inf:
            raise ValueError(f"threshold must be finite and not negative, got {threshold}")
        least = 1 if counting == "keras" else 0
        for name, count, minimum in (("patience", patience, least), ("cooldown", cooldown, 0)):
            if isinstance(count, bool) or not isinstance(count, int) or count < minimum:
                raise ValueError(f"{name} must be a whole number, {minimum} or more, got {count!r}")
        self.mode, self.threshold_mode, self.counting = mode, threshold_mode, counting
        self.factor, self.min_factor, self.threshold = factor, min_factor, threshold
        self.patience, self.cooldown = patience, cooldown
        device = optimizer.param_groups[0]["params"][0].device
        self._state = {
            name: torch.tensor(value, dtype=torch.float64, device=device)
            for name, value in _START.items()
        }
        self._optimizer = optimizer
        optimizer._scale_rates(self._state["scale"])

    @property
    def scale(self) -> Tensor:
        """What multiplies the rates now, one float64 on the device."""
        return self._state["scale"].clone()

    @property
    def cuts(self) -> int:
        """How often the rates were cut. Waits for the device."""
        return int(self._state["cuts"])

    @torch.no_grad()
    def observe(self, value: Tensor | float) -> None:
        """Take note of a value, such as a validation loss; never waits for the device.

        A value that is not a number is a bad one.

        Args:
            value: A scalar.

        Raises:
            ValueError: If it is not a scalar.
        """
        state = self._state
        device = state["best"].device
        if isinstance(value, Tensor) and value.numel() != 1:
            raise ValueError(f"value must be a scalar, got shape {list(value.shape)}")
        if isinstance(value, Tensor) and (value.device == device or not value.is_cpu):
            seen = value.detach().reshape(()).to(device, torch.float64)
        else:  # filled in by a kernel: a copy from the host's memory would wait
            seen = torch.full((), float(value), dtype=torch.float64, device=device)
        seen = seen if self.mode == "min" else -seen
        is_better = seen < self._limit(state["best"])
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
        lower = (state["scale"] * self.factor).clamp(min=self.min_factor)
        state["best"].copy_(torch.where(is_better, seen, state["best"]))
        state["cuts"].add_(is_cut & (lower < state["scale"]))
        state["scale"].copy_(torch.where(is_cut, lower, state["scale"]))
        state["cooldown"].copy_(torch.where(is_cut, float(self.cooldown), cooldown))
        state["bad"].copy_(torch.where(is_cut, 0.0, bad))

    def state_dict(self) -> dict[str, Any]:
        """Return what was observed so far, as tensors that ``torch.save`` can write."""
        return {name: value.clone() for name, value in self._state.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned.

        Raises:
            ValueError: If an entry is missing.
        """
        missing = sorted(_START.keys() - state_dict.keys())
        if missing:
            raise ValueError(
                f"state_dict must be what Plateau.state_dict returned, got one without {missing}"
            )
        for name, value in self._state.items():
            value.copy_(torch.as_tensor(state_dict[name]))

    def detach(self) -> None:
        """Let the optimizer go: its rates are no longer multiplied."""
        self._optimizer._scale_rates(None)

    def _limit(self, best: Tensor) -> Tensor:
        """Below which a value is better; losses are compared with their sign turned for "max"."""
        if self.threshold_mode == "abs":
            return best - self.threshold
        if self.mode == "min":
            return best * (1 - self.threshold)
        return -(-best * (1 + self.threshold))
