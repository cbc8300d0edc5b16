"""Checkpoints of sharded training, through torch.distributed.checkpoint."""

from __future__ import annotations

import io
from typing import Any, Literal

import torch

from lrfast._utils.validation import check_bytes, check_choice, check_dict, load_untrusted
from lrfast.optim._checkpoint import check_entry
from lrfast.optim._optimizer import FusedOptimizer
from lrfast.optim._scheduling import saved_schedules


class ShardedState:
    """A model and its optimizer as one entry of a ``torch.distributed.checkpoint``.

    torch's own functions for optimizers keep states and param groups, and nothing else: a schedule
    would begin anew at every resume. This keeps what ``optimizer.state_dict()`` keeps, in whatever
    number of processes the checkpoint is read again.

    Args:
        model: The module, sharded or not.
        optimizer: One of ours over the model's parameters.
        schedule: What a load does where the saved schedules and the optimizer's differ, as
            ``optimizer.load_state_dict`` does it: "saved", "own", or None, which refuses.

    Raises:
        TypeError: If ``optimizer`` is not one of ours.
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
        self._schedule = schedule
        self._model = model
        self._optimizer = optimizer

    def state_dict(self) -> dict[str, Any]:
        """Return the sharded states of both. Waits for the device."""
        from torch.distributed.checkpoint.state_dict import get_state_dict

        # torch makes the states of an optimizer that has none by a step, at a rate of 0.
        clock = self._optimizer._clock()
        model, states = get_state_dict(self._model, self._optimizer)
        self._optimizer._set_clock(*clock)
        entry = io.BytesIO()
        torch.save(self._optimizer._entry(), entry)
        return {"model": model, "optimizer": states, "lrfast": entry.getvalue()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` returned, here or in another number of processes.

        Args:
            state_dict: What was returned.

        Raises:
            ValueError: If an entry is missing or broken, or another schedule is attached than the
                saved one, and nobody said which one goes on; nothing has been changed then.
        """
        from torch.distributed.checkpoint.state_dict import set_state_dict

        check_dict("state_dict", state_dict, ["model", "optimizer", "lrfast"])
        entry = load_untrusted("lrfast", io.BytesIO(check_bytes("lrfast", state_dict["lrfast"])))
        check_entry(self._optimizer, entry)
        if self._schedule is None:
            self._optimizer._check_saved_schedules(saved_schedules(entry))
        set_state_dict(
            self._model,
            self._optimizer,
            model_state_dict=state_dict["model"],
            optim_state_dict=state_dict["optimizer"],
        )
        self._optimizer._load_entry(entry, keeps_own=self._schedule == "own")
