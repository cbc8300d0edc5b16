"""Gradual unfreezing: which layer groups train from which epoch on."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping

import torch

from lrfast.groups._freezing import freeze_to


class Timetable(Mapping[int, int]):
    """Says from which epoch on which layer group is the first one that trains. Immutable.

    Args:
        first: epoch, from 0, -> index of the first layer group that trains from that epoch on, as
            `freeze_to` takes it: negative counts from the head. It starts with epoch 0.

    Raises:
        TypeError: if first is not a mapping of whole numbers to whole numbers.
        ValueError: if epoch 0 is missing or an epoch is negative.

    Example:
        >>> timetable = Timetable({0: -1, 1: -2, 4: 0})
        >>> [timetable.at(epoch) for epoch in range(6)]
        [-1, -2, -2, -2, 0, 0]
    """

    __slots__ = ("_epochs", "_first")

    def __init__(self, first: Mapping[int, int]) -> None:
        if not isinstance(first, Mapping):
            raise TypeError(f"first must be a dict from epochs to groups, got {type(first)}")
        for epoch, group in first.items():
            if _is_no_whole_number(epoch) or _is_no_whole_number(group):
                raise TypeError(f"first must hold whole numbers, got {epoch!r}: {group!r}")
        if min(first, default=None) != 0:
            raise ValueError(f"first must start with epoch 0, got epochs {sorted(first)}")
        self._epochs = tuple(sorted(first))
        self._first = {epoch: first[epoch] for epoch in self._epochs}

    def at(self, epoch: int) -> int:
        """Return the first layer group that trains in an epoch, counted from 0.

        Args:
            epoch: Counted from 0.

        Raises:
            ValueError: If it is not a whole number or negative.
        """
        if _is_no_whole_number(epoch) or epoch < 0:
            raise ValueError(f"epoch must be a whole number from 0 on, got {epoch!r}")
        return self._first[self._epochs[bisect_right(self._epochs, epoch) - 1]]

    def apply(
        self, optimizer: torch.optim.Optimizer, epoch: int, *, train_norms: bool = False
    ) -> bool:
        """Freeze what is to be frozen in an epoch; for the start of any epoch, a resumed one too.

        Args:
            optimizer: as for `freeze_to`, whose other argument train_norms is.
            epoch: counted from 0.
            train_norms: as for `freeze_to`.

        Returns:
            Whether another set of param groups trains now than before.

        Raises:
            ValueError: if the optimizer has no such layer group.
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


def gradual(n_groups: int, every: int = 1) -> Timetable:
    """Return ULMFiT's timetable: the head alone first, then one layer group more at a time.

    Args:
        n_groups: number of layer groups, from 1 on.
        every: epochs from one group to the next, from 1 on.

    Returns:
        The timetable; from epoch ``(n_groups - 1) * every`` on, all groups train.

    Raises:
        ValueError: if an argument is not a whole number from 1 on.

    Example:
        >>> gradual(3, every=2)
        Timetable({0: -1, 2: -2, 4: -3})

    Reference:
        Howard and Ruder, "Universal Language Model Fine-tuning for Text Classification", 2018.
    """
    for name, value in (("n_groups", n_groups), ("every", every)):
        if _is_no_whole_number(value) or value < 1:
            raise ValueError(f"{name} must be a whole number from 1 on, got {value!r}")
    return Timetable({every * index: -1 - index for index in range(n_groups)})


def _is_no_whole_number(value: object) -> bool:
    return isinstance(value, bool) or not isinstance(value, int)
