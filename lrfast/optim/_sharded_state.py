"""Checkpoints of sharded training, through torch.distributed.checkpoint."""

from __future__ import annotations

import io
import warnings
from typing import Any, Literal

import torch

from lrfast._utils.arguments import checked_methods
from lrfast._utils.public import public_in
from lrfast._utils.validation import check_bytes, check_choice, check_dict, load_untrusted
from lrfast.optim._checkpoint import check_entry
from lrfast.optim._optimizer import FusedOptimizer


@public_in("lrfast.sharded")
@checked_methods()
class ShardedState:
    """A model and its optimizer as one entry of a ``torch.distributed.checkpoint``.

    torch's own functions keep an optimizer's states and param groups only, so that a schedule
    would start again at every resume. This keeps all of ``optimizer.state_dict()``, and loads in
    any number of processes.

    Args:
        model: The module, sharded or not.
        optimizer: An lrfast optimizer over the model's parameters.
        schedule: Which schedules a load keeps if the saved ones and the optimizer's differ, as in
            ``optimizer.load_state_dict``: "saved", "own", or None, the default.

    Raises:
        TypeError: If ``optimizer`` is not an lrfast optimizer.
        ValueError: If ``schedule`` is another word.

    Example:
        >>> import torch, lrfast
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = lrfast.AdamW(model.parameters(), schedule=lrfast.schedules.one_cycle(100))
        >>> state = lrfast.ShardedState(model, optimizer)
        >>> # torch.distributed.checkpoint.save({"training": state}, checkpoint_id=folder), and
        >>> # load with the same arguments; both call:
        >>> state.load_state_dict(state.state_dict())
        >>> optimizer.schedule_step
        0
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: Literal["saved", "own"] | None = None,
    ) -> None:
        if not isinstance(optimizer, FusedOptimizer):
            raise TypeError(f"optimizer must be one of lrfast's, got {type(optimizer).__name__}")
        if schedule is not None:
            check_choice("schedule", schedule, ("saved", "own"))
        self._model, self._optimizer, self._schedule = model, optimizer, schedule

    def state_dict(self) -> dict[str, Any]:
        """Return the sharded states of both. Synchronises the device."""
        from torch.distributed.checkpoint.state_dict import get_state_dict

        # torch makes the states of an optimizer that has none by a step with lr 0.
        clock = self._optimizer._clock()
        self._optimizer._keeps_shapes = True  # so that any number of processes finds the same ones
        try:
            model, states = get_state_dict(self._model, self._optimizer)
        finally:
            self._optimizer._keeps_shapes = False
        self._optimizer._set_clock(*clock)
        entry = io.BytesIO()
        torch.save(self._optimizer._entry(), entry)
        return {"model": model, "optimizer": states, "lrfast": entry.getvalue()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state, saved by this or another number of processes.

        Args:
            state_dict: From :meth:`state_dict`.

        Raises:
            ValueError: If an entry is missing or broken, the optimizers' ``master`` differ, or the
                saved schedule is of another kind than the attached one and ``schedule`` is None;
                nothing has changed then.
        """
        from torch.distributed.checkpoint.state_dict import set_state_dict

        check_dict("state_dict", state_dict, ["model", "optimizer", "lrfast"])
        entry = load_untrusted("lrfast", io.BytesIO(check_bytes("lrfast", state_dict["lrfast"])))
        check_entry(self._optimizer, entry)
        saved, own = entry.get("master"), self._optimizer._options.master
        if saved is not None and own not in (None, saved):
            raise ValueError(
                f"master must be {saved!r} or None, as its bits were read unconverted, got {own!r}"
            )
        keeps_own, note = self._optimizer._keeps_own(entry, self._schedule)
        model, states = state_dict["model"], state_dict["optimizer"]
        set_state_dict(
            self._model, self._optimizer, model_state_dict=model, optim_state_dict=states
        )
        self._optimizer._load_entry(entry, keeps_own)
        if note:
            warnings.warn(note, stacklevel=2)
