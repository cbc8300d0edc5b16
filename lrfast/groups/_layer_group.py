"""Layer groups as data: their parameters, and which are tied, frozen or left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lrfast._utils.public import public_in
from lrfast._utils.tables import Table
from lrfast.groups._norms import norm_layers


@public_in("lrfast.groups")
@dataclass(frozen=True, eq=False)
class LayerGroup:
    """Parameters that share one learning rate, each in one group only.

    Args:
        name: Path of the module that the group stands for, or its pattern.
        parameters: Its parameters, one or more.
        names: Names of the parameters, in the same order; the first name of a tied one.
        options: What else the param group held that it was given as, such as "lr"; default none.
    """

    name: str
    parameters: tuple[Tensor, ...]
    names: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update({"options": {}} | state)  # a former version had no options


@public_in("lrfast.groups")
@dataclass(frozen=True, eq=False)
class LayerGroups(Sequence[LayerGroup]):
    """Layer groups in order, from body to head, with their tied and duplicate parameters.

    Args:
        groups: The groups.
        tied: All names of each parameter with several names.
        duplicates: Names of parameters that several groups held; the first group kept them.
        model: The model that was cut.
        tied_until: Index of the last group that an earlier group's parameter is tied to, by that
            parameter. A layer whose parameters are all tied, such as a language model's head,
            counts to the group before it.
    """

    groups: tuple[LayerGroup, ...]
    tied: list[tuple[str, ...]]
    duplicates: list[str]
    model: nn.Module
    tied_until: Mapping[Tensor, int]

    def __len__(self) -> int:
        return len(self.groups)

    @overload
    def __getitem__(self, index: int) -> LayerGroup: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[LayerGroup, ...]: ...
    def __getitem__(self, index: int | slice) -> LayerGroup | tuple[LayerGroup, ...]:
        return self.groups[index]

    @property
    def unassigned(self) -> list[str]:
        """Names of parameters in no group.

        The model got them after it was cut, or they were frozen and in none of its param groups.
        """
        held = {p for group in self.groups for p in group.parameters}
        return [name for name, p in self.model.named_parameters() if p not in held]

    @property
    def frozen(self) -> list[str]:
        """Names of parameters that do not require gradients now."""
        pairs = (zip(g.names, g.parameters, strict=True) for g in self.groups)
        return [name for group in pairs for name, p in group if not p.requires_grad]

    @property
    def frozen_norms(self) -> list[str]:
        """Paths of normalisation layers in groups without a parameter that trains now.

        Their running statistics still move; see `set_norm_mode`.
        """
        frozen = [g for g in self.groups if not any(p.requires_grad for p in g.parameters)]
        still = {p for group in frozen for p in group.parameters}
        layers = norm_layers(self.model)
        return [name for name, layer in layers if still.issuperset(layer.parameters(False))]

    def describe(self) -> str:
        """Return a table of the groups: position, name, tensors, parameters, and how many train.

        Then one line for each of `tied`, `duplicates`, `unassigned`, `frozen` and `frozen_norms`.

        Example:
            >>> from lrfast import layer_groups
            >>> model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 2))
            >>> model[3].bias.requires_grad = False
            >>> print(layer_groups(model).describe())
            group  name  tensors  parameters  trainable
                0  0           4          56         56
                1  3           2          18         16
            frozen: 3.bias
        """
        return self._text(most=len(self.groups))

    def _text(self, most: int) -> str:
        """Return the table, without its middle and with counts for names if they are many."""
        rows = []
        for index, group in enumerate(self.groups):
            sized = [p for p in group.parameters if not is_lazy(p)]
            total = sum(p.numel() for p in sized)
            trainable = sum(p.numel() for p in sized if p.requires_grad)
            counts = (str(len(group.names)), f"{total:,}", f"{trainable:,}")
            rows.append((str(index), group.name, *counts))
        columns = ("group", "name", "tensors", "parameters", "trainable")
        table = Table(columns, rows, right=(0, 2, 3, 4))
        lines = [table.shortened(most).text(width=0)]
        remarks = {
            "tied": [" = ".join(names) for names in self.tied],
            "in several groups": self.duplicates,
            "in no group": self.unassigned,
            "frozen": self.frozen,
            "normalisation in a frozen group": self.frozen_norms,
        }
        for remark, names in remarks.items():
            if len(names) > most:
                lines.append(f"{remark}: {len(names)}, from {names[0]} to {names[-1]}")
            else:
                lines += [f"{remark}: {name}" for name in names]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return self._text(most=12)  # that of a dataclass would print all weights
