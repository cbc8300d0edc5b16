"""Unfreezing schedules: the first layer group that trains in each epoch."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping

import torch

from lrfast._utils.arguments import checked, checked_methods
from lrfast._utils.public import public_in
from lrfast._utils.validation import is_int, short_repr
from lrfast.groups._freezing import freeze_to


@public_in("lrfast.groups")
@checked_methods("at")
class Timetable(Mapping[int, int]):
    """Unfreezing schedule: epochs and the first layer group that trains from each on. Immutable.

    Args:
        first: Epoch, counted from 0, -> index of the first layer group that trains from it on, as
            `freeze_to` takes it: negative counts from the head. Epoch 0 is required.

    Raises:
        TypeError: If first is not a mapping of whole numbers to whole numbers.
        ValueError: If epoch 0 is missing or an epoch is negative.

    Example:
        >>> timetable = Timetable({0: -1, 1: -2, 4: 0})
        >>> [timetable.at(epoch) for epoch in range(6)]
        [-1, -2, -2, -2, 0, 0]
    """

    __slots__ = ("_epochs", "_first")

    def __init__(self, first: Mapping[int, int]) -> None:
        for epoch, group in first.items():
            if not (is_int(epoch) and is_int(group)):
                raise TypeError(f"first must hold whole numbers, got {epoch!r}: {group!r}")
        if min(first, default=None) != 0:
            raise ValueError(f"first must start with epoch 0, got epochs {sorted(first)}")
        self._first = {int(epoch): int(first[epoch]) for epoch in sorted(first)}
        self._epochs = tuple(self._first)

    def at(self, epoch: int) -> int:
        """Return the first layer group that trains in an epoch.

        Args:
            epoch: Epoch, counted from 0.

        Raises:
            ValueError: If it is not a whole number or negative.
        """
        if not is_int(epoch) or epoch < 0:
            raise ValueError(f"epoch must be a whole number from 0 on, got {short_repr(epoch)}")
        return self._first[self._epochs[bisect_right(self._epochs, epoch) - 1]]

    def apply(
        self, optimizer: torch.optim.Optimizer, epoch: int, *, train_norms: bool = False
    ) -> bool:
        """Freeze the layer groups that do not train in an epoch, at its start or on resuming it.

        Args:
            optimizer: Any torch optimizer, as for `freeze_to`.
            epoch: Epoch, counted from 0.
            train_norms: Whether normalisation layers train too, as for `freeze_to`; default False.

        Returns:
            Whether another set of param groups trains now than before.

        Raises:
            ValueError: If the optimizer has no such layer group.
        """
        before = [bool(group.get("frozen")) for group in optimizer.param_groups]
        freeze_to(optimizer, self.at(epoch), train_norms=train_norms)
        return before != [group["frozen"] for group in optimizer.param_groups]

    def __getitem__(self, epoch: int) -> int:
        return self._first[epoch]

    def __iter__(self) -> Iterator[int]:
        return iter(self._epochs)

    def __len__(self) -> int:
        return len(self._epochs)

    def __hash__(self) -> int:
        return hash(tuple(self._first.items()))

    def __repr__(self) -> str:
        return f"Timetable({self._first})"


@checked
def gradual(n_groups: int, every: int = 1) -> Timetable:
    """Return ULMFiT's unfreezing schedule (arXiv:1801.06146): the head first, then a group each.

    Args:
        n_groups: Number of layer groups, 1 or more.
        every: Epochs from one group to the next, 1 or more; default 1. From epoch
            ``(n_groups - 1) * every`` on, all groups train.

    Raises:
        ValueError: If an argument is not a whole number, 1 or more.

    Example:
        >>> gradual(3, every=2)
        Timetable({0: -1, 2: -2, 4: -3})
    """
    for name, value in (("n_groups", n_groups), ("every", every)):
        if not is_int(value) or value < 1:
            raise ValueError(f"{name} must be a whole number from 1 on, got {value!r}")
    return Timetable({every * index: -1 - index for index in range(n_groups)})
