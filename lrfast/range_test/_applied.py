"""The rates that a range test has set, and the way back."""

from __future__ import annotations

from collections.abc import Sequence

from torch.optim import Optimizer

from lrfast.optim._scheduling import set_rate
from lrfast.range_test._text import aligned


class AppliedRates(list[float]):
    """Rates that have been set on an optimizer, one per param group: a list that can undo that.

    Its string is a table of the groups with their old and new rates.

    Args:
        optimizer: Where they have been set.
        old: Rate of each param group before, [groups].
        new: Rate of each param group since, [groups].

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.02)
        >>> applied = AppliedRates(optimizer, old=[0.1], new=[0.02])
        >>> applied == [0.02], applied.old
        (True, [0.1])
        >>> str(applied).splitlines()
        ['group  old      new', '0      1.0e-01  2.0e-02']
        >>> applied.undo()
        >>> optimizer.param_groups[0]["lr"]
        0.1
    """

    def __init__(self, optimizer: Optimizer, old: Sequence[float], new: Sequence[float]) -> None:
        super().__init__(new)
        self.old = list(old)
        self._optimizer = optimizer
        groups = enumerate(optimizer.param_groups)
        self._names = [str(group.get("name", index)) for index, group in groups]

    @property
    def new(self) -> list[float]:
        """The rates that were set, [groups]."""
        return list(self)

    def undo(self) -> None:
        """Set the old rates again, in place where they are tensors.

        Raises:
            ValueError: If the optimizer has another number of param groups by now; nothing is
                changed then.
        """
        count = len(self._optimizer.param_groups)
        if count != len(self.old):
            raise ValueError(
                f"optimizer must have the {len(self.old)} param groups that the rates were applied "
                f"to, got {count}"
            )
        set_rates(self._optimizer, self.old)

    def __str__(self) -> str:
        rates = zip(self._names, self.old, self, strict=True)
        rows = [(name, f"{old:.1e}", f"{new:.1e}") for name, old, new in rates]
        return aligned([("group", "old", "new"), *rows])


def set_rates(optimizer: Optimizer, rates: Sequence[float]) -> None:
    """Set the rate of every param group, in place where it is a tensor."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        set_rate(group, rate)
