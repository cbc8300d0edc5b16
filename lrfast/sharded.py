"""Checkpoints of sharded training, through torch.distributed.checkpoint."""

from __future__ import annotations

import io
from typing import Any

import torch

from lrfast._fused import FusedOptimizer
from lrfast.loss_schedules import check_saved


class ShardedState:
    """A model and its optimizer as one entry of a ``torch.distributed.checkpoint``.

    torch's own functions for optimizers keep states and param groups, and nothing else: a schedule
    would begin anew at every resume. This keeps what ``optimizer.state_dict()`` keeps, in whatever
    number of processes the checkpoint is read again.

    Args:
        model: The module, sharded or not.
        optimizer: One of ours over the model's parameters.

    Raises:
        TypeError: If ``optimizer`` is not one of ours.

    Example:
        >>> import tempfile, torch, lrfast
        >>> import torch.distributed.checkpoint as dcp
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = lrfast.AdamW(model.parameters(), schedule=lrfast.schedules.one_cycle(100))
        >>> state = {"training": lrfast.ShardedState(model, optimizer)}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = dcp.save(state, checkpoint_id=folder, no_dist=True)
        ...     dcp.load(state, checkpoint_id=folder, no_dist=True)
        >>> optimizer.schedule_step
        0
    """

    def __init__(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        if not isinstance(optimizer, FusedOptimizer):
            raise TypeError(f"optimizer must be one of lrfast's, got {type(optimizer).__name__}")
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

        Raises:
            KeyError: If an entry is missing.
            ValueError: If a loss-driven schedule is attached that is not the saved one.
        """
        from torch.distributed.checkpoint.state_dict import set_state_dict

        entry = torch.load(io.BytesIO(state_dict["lrfast"]), weights_only=True)
        check_saved(self._optimizer, entry.get("loss_schedule"))
        set_state_dict(
            self._model,
            self._optimizer,
            model_state_dict=state_dict["model"],
            optim_state_dict=state_dict["optimizer"],
        )
        self._optimizer._load_entry(entry)
