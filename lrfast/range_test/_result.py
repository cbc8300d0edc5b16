"""Results of range tests: curves and suggestions, applied, shown and saved."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from textwrap import wrap
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from torch.optim import Optimizer

from lrfast import suggest
from lrfast._utils.arguments import checked_methods
from lrfast._utils.atomic_write import replacing
from lrfast._utils.figures import centred_average, html_image
from lrfast._utils.public import public_in
from lrfast._utils.tables import Table, short_time
from lrfast._utils.validation import check_key
from lrfast.optim._scheduling import set_rate
from lrfast.range_test import _serialize
from lrfast.range_test._display import lr_text, terminal_plot
from lrfast.range_test._peak_rates import Change, PeakRates, undo_changes
from lrfast.range_test._plot import File, Labels, Rules, draw_range_test, plot_comparison
from lrfast.range_test._sweep import FloatArray, Sweep
from lrfast.suggest import Suggestion

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table as RichTable

Outcome = Literal["completed", "diverged", "non-finite"]


@public_in("lrfast.range_test")
@dataclass(frozen=True)
class Candidate:
    """One learning rate that took part in a race.

    Args:
        lr: Learning rate of the reference group.
        rule: Suggestion method that it comes from; "neighbour" for one tried around it.
        losses: Its loss after each round, [rounds]; NaN or infinite if it diverged.
        winner: Whether it won.
    """

    lr: float
    rule: str
    losses: tuple[float, ...]
    winner: bool


@public_in("lrfast.range_test")
@dataclass(frozen=True)
class Race:
    """Candidates that trained from the same state, and their losses.

    Args:
        candidates: The learning rates that took part.
        steps: Updates of a candidate that was not dropped.
        judged_by: Losses that decided, "validation" or "training".
        seconds: Wall time, in seconds.
        updates: Updates made in all, those of dropped candidates and of second seeds included.

    Its string says what it has cost.
    """

    candidates: tuple[Candidate, ...]
    steps: int
    judged_by: Literal["validation", "training"]
    seconds: float
    updates: int = 0

    def __str__(self) -> str:
        made = f"{self.updates} updates in " if self.updates else ""  # older files do not know
        return (
            f"Race: {len(self.candidates)} learning rates in {self.steps} steps each by their "
            f"{self.judged_by} loss, {made}{short_time(self.seconds)}"
        )


@public_in("lrfast.range_test")
class AppliedRates(list[float]):
    """Learning rates set on an optimizer, one per param group: a list that can undo that.

    Its string is a table of the groups with their old and new learning rates.

    Args:
        optimizer: Its param groups have the new learning rates.
        old: Learning rate of each param group before, [groups].
        new: Learning rate of each param group since, [groups].

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

    # If old and new are peak learning rates of schedulers of torch: what was changed for them.
    _changes: Sequence[Change] | None = None

    def __init__(self, optimizer: Optimizer, old: Sequence[float], new: Sequence[float]) -> None:
        super().__init__(new)
        self.old = list(old)
        self._optimizer = optimizer
        groups = enumerate(optimizer.param_groups)
        self._names = [str(group.get("name", index)) for index, group in groups]

    @property
    def new(self) -> list[float]:
        """The learning rates that were set, [groups]."""
        return list(self)

    def undo(self) -> None:
        """Restore the old learning rates, in place if they are tensors; schedules go on.

        Raises:
            ValueError: If the number of param groups has changed; nothing is set then.
        """
        count = len(self._optimizer.param_groups)
        if count != len(self.old):
            raise ValueError(
                f"optimizer must have the {len(self.old)} param groups that the rates were applied "
                f"to, got {count}"
            )
        if self._changes is not None:
            undo_changes(self._changes)
            self._changes = []
            return
        for group, rate in zip(self._optimizer.param_groups, self.old, strict=True):
            set_rate(group, rate)

    def __str__(self) -> str:
        rates = zip(self._names, self.old, self, strict=True)
        rows = [(name, f"{old:.1e}", f"{new:.1e}") for name, old, new in rates]
        return Table(("group", "old", "new"), rows).shortened().text()


@public_in("lrfast.range_test")
@dataclass(frozen=True, repr=False, eq=False)
@checked_methods()
class RangeTest:
    """Curves of a range test, and the learning rates that they suggest.

    Args:
        lrs: Learning rates of the reference group, [points], up to the end of the sweep.
        losses: Raw losses, [points], each just before the update at its learning rate; medians
            over the repeats if there are several.
        smoothed: Bias-corrected EMA of the losses, [points].
        derivative: Slope of the smoothed losses over the natural logarithm of ``lrs``, [points].
        sweep: The learning rates of every param group.
        suggestions: Suggestion of each method of :mod:`lrfast.suggest`, by name, and of the race
            as "verified".
        outcome: "completed", or what ended the sweep: "diverged" (the stop rule) or "non-finite"
            (a NaN or infinite loss).
        seconds: Wall time with snapshot and restore, in seconds.
        notes: Remarks for the reader, such as that the loader was cycled.
        repeats: Raw losses of every sweep, [repeats, points of the longest], NaN after its end;
            None for a single sweep.
        snapshot_bytes: Size of the snapshot that restored everything, in bytes.
        race: Candidates that were trained with, or None without a race.

    Example:
        >>> import torch, lrfast
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = lrfast.SGD(model.parameters(), lr=0.1)
        >>> batches = [(torch.ones(4, 2), torch.full((4, 1), 5.0))]
        >>> mse = torch.nn.functional.mse_loss
        >>> result = lrfast.lr_find(model, optimizer, batches, mse, progress=False)
        >>> result.table().splitlines()[0].split()
        ['rule', 'lr', 'confidence', 'reason']
        >>> applied = result.apply(optimizer)
        >>> optimizer.param_groups[0]["lr"] == applied.new[0] == result.suggestion.lr
        True
        >>> applied.undo()
        >>> optimizer.param_groups[0]["lr"]
        0.1
    """

    lrs: FloatArray
    losses: FloatArray
    smoothed: FloatArray
    derivative: FloatArray
    sweep: Sweep
    suggestions: MappingProxyType[str, Suggestion]
    outcome: Outcome
    seconds: float
    notes: tuple[str, ...] = ()
    repeats: FloatArray | None = None
    snapshot_bytes: int = 0
    race: Race | None = None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"suggestions": dict(self.suggestions)}  # a view cannot be pickled

    def __setstate__(self, state: dict[str, Any]) -> None:
        suggestions = MappingProxyType(state["suggestions"])
        vars(self).update(state, suggestions=suggestions)

    @property
    def rule(self) -> str:
        """Name of the default method, "verified" if there was a race, else "auto"."""
        return "verified" if "verified" in self.suggestions else "auto"

    @property
    def suggestion(self) -> Suggestion:
        """The suggestion of :attr:`rule`."""
        return self.suggestions[self.rule]

    @property
    def ratios(self) -> tuple[float | None, ...]:
        """Learning rate of each param group over ``lrs``, [groups]; None if that changes."""
        return self.sweep.ratios

    @property
    def band(self) -> tuple[FloatArray, FloatArray] | None:
        """Lower and upper quartiles of the repeats' finite losses, [points] each.

        NaN if no repeat has a finite loss there; None for a single sweep.
        """
        if self.repeats is None:
            return None
        repeats = self.repeats[:, : len(self.lrs)]
        low, high = np.full((2, len(self.lrs)), math.nan)
        finite = np.where(np.isfinite(repeats), repeats, math.nan)
        seen = np.isfinite(finite).any(axis=0)
        low[seen], high[seen] = np.nanquantile(finite[:, seen], (0.25, 0.75), axis=0)
        return low, high

    def suggested_lrs(self, rule: str | None = None) -> list[float]:
        """Return the suggested learning rate of each param group, [groups].

        Args:
            rule: Name of a suggestion method; None for :attr:`rule`.

        Raises:
            ValueError: If there is no such method, or it has no suggestion; the message says why.
        """
        rule = self.rule if rule is None else rule
        if rule not in self.suggestions:
            if rule == "verified":
                raise ValueError(
                    "rule 'verified' needs candidates that were trained with; "
                    "run the range test with verify="
                )
            check_key("rule", rule, dict.fromkeys(suggest.names()))
            raise ValueError(f"rule must be one of {', '.join(self.suggestions)}, got {rule!r}")
        lr = self.suggestions[rule].lr
        if lr is None:
            raise ValueError(f"rule {rule!r} suggests no rate: {self.suggestions[rule].reason}")
        if not (math.isfinite(lr) and lr > 0):
            raise ValueError(f"rule {rule!r} must suggest a finite rate above 0, got {lr}")
        # torch cannot load a state dict with numbers of numpy.
        return [float(rate) for rate in self.sweep.rates_at(lr)]

    def apply(
        self,
        optimizer: Optimizer,
        rule: str | None = None,
        *,
        schedulers: Sequence[Any] = (),
    ) -> AppliedRates:
        """Set the suggested learning rates, except in groups that the sweep held; return them.

        They are what an lrfast schedule multiplies, and the peak learning rates of schedulers of
        torch, which keep their place: the next steps train at the suggestion times their factor.

        Args:
            optimizer: That of the range test, or one with as many param groups.
            rule: As for :meth:`suggested_lrs`.
            schedulers: All schedulers of torch that are attached to the optimizer; default: none.
                Except ``eta_min``, all that they compute from is scaled.

        Returns:
            The learning rate of each param group, [groups], with ``undo()``.

        Raises:
            TypeError: If a scheduler is not one of torch.
            ValueError: If there is no suggestion, a learning rate is not finite and above 0, the
                optimizer has another number of groups, or a scheduler is attached to it that is not
                among ``schedulers``; nothing is set then.
        """
        peaks, rates = PeakRates(optimizer, schedulers), self.suggested_lrs(rule)
        groups = optimizer.param_groups
        if len(groups) != len(rates):
            raise ValueError(
                f"optimizer must have the {len(rates)} param groups of the range test, got "
                f"{len(groups)}"
            )
        old = list(peaks.peaks())
        for index, (first, last) in enumerate(self.sweep.ranges):
            if first == last:
                rates[index] = old[index]
            elif not (math.isfinite(rates[index]) and rates[index] > 0):
                raise ValueError(
                    f"rates must be finite and above 0, got {rates[index]} for group {index}"
                )
            elif schedulers and old[index] == 0:
                raise ValueError(
                    "schedulers must have a peak learning rate above 0 for every group, got 0 for "
                    f"group {index}"
                )
        applied = AppliedRates(optimizer, old, rates)
        if schedulers:
            pairs = zip(rates, old, strict=True)
            applied._changes = peaks.scale([new / each if each else 1.0 for new, each in pairs])
            return applied
        for group, rate in zip(groups, rates, strict=True):
            set_rate(group, rate)
        return applied

    def table(self) -> str:
        """Return all suggestions as lines of text; a star marks :attr:`rule`."""
        return self._table().text()

    def to_csv(self, path: str | Path) -> None:
        """Write one row per point, with every digit: lr, loss, smoothed, derivative.

        With several param groups, their learning rates follow as lr_0, lr_1 and so on.

        Args:
            path: File to write.
        """
        columns = {"lr": self.lrs, "loss": self.losses}
        columns |= {"smoothed": self.smoothed, "derivative": self.derivative}
        if len(self.sweep.ranges) > 1:
            rates = self.sweep.table(len(self.lrs))
            columns |= {f"lr_{group}": column for group, column in enumerate(rates.T)}
        with replacing(path, newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(zip(*(column.tolist() for column in columns.values()), strict=True))

    def to_json(self, path: str | Path) -> None:
        """Write everything to a file that :meth:`from_json` reads, bit for bit.

        Args:
            path: File to write. It is strict JSON: NaN and infinities are strings such as "nan".
        """
        _serialize.save(self, path)

    @classmethod
    def from_json(cls, path: str | Path) -> RangeTest:
        """Return the range test that :meth:`to_json` wrote.

        Args:
            path: The file.

        Raises:
            ValueError: If the file is broken or of an unknown format.
        """
        return _serialize.load(path, cls)

    @overload
    def plot(
        self,
        path: File = None,
        others: Sequence[RangeTest] = (),
        *,
        rules: Rules = None,
        skip_start: int | None = None,
        skip_end: int | None = None,
        ax: None = None,
    ) -> Figure: ...
    @overload
    def plot(
        self,
        path: File = None,
        others: Sequence[RangeTest] = (),
        *,
        rules: Rules = None,
        skip_start: int | None = None,
        skip_end: int | None = None,
        ax: Axes,
    ) -> Axes: ...
    def plot(
        self,
        path: File = None,
        others: Sequence[RangeTest] = (),
        *,
        rules: Rules = None,
        skip_start: int | None = None,
        skip_end: int | None = None,
        ax: Axes | None = None,
    ) -> Figure | Axes:
        """Return a figure of losses, derivative and suggestion; needs matplotlib.

        The line through the losses is a centred average, which does not lag as the EMA of the stop
        rule does.

        Args:
            path: Where to save the figure too; the suffix names the format.
            others: Range tests whose smoothed losses and derivatives are drawn behind.
            rules: Suggestions to mark: None, the default, for that of :attr:`rule`, "all", a name,
                or a list of names.
            skip_start: Points to leave out at the start, 0 or more. None, the default: the flat
                part but for a decade.
            skip_end: Points to leave out at the end, 0 or more. None, the default: those whose loss
                is far above the rest.
            ax: Axes of matplotlib to draw losses and suggestion into, without the derivative, which
                are returned; None, the default: a new figure.

        Raises:
            TypeError: If ``ax`` are no axes.
            ValueError: If ``rules`` names a method that the range test does not have, or fewer than
                two points would be left.
        """
        return draw_range_test(self, path, others, rules, (skip_start, skip_end), ax)

    @overload
    def compare(
        self, *others: RangeTest, path: File = None, labels: Labels = None, ax: None = None
    ) -> Figure: ...
    @overload
    def compare(
        self, *others: RangeTest, path: File = None, labels: Labels = None, ax: Axes
    ) -> Axes: ...
    def compare(
        self,
        *others: RangeTest,
        path: File = None,
        labels: Labels = None,
        ax: Axes | None = None,
    ) -> Figure | Axes:
        """Return a figure of the losses and suggestions of range tests; needs matplotlib.

        Args:
            others: Range tests to compare with, one or more.
            path: Where to save the figure too; the suffix names the format.
            labels: Name of each, this one first; None for "run 1", "run 2" and so on.
            ax: Axes of matplotlib to draw into, which are returned; None: a new figure.

        Raises:
            ValueError: If there is nothing to compare with, or not one label per run.
        """
        return plot_comparison((self, *others), path, labels, ax=ax)

    def terminal_plot(self, width: int = 72, height: int = 18, ascii: bool = False) -> str:
        """Return the smoothed losses and the suggested learning rate as lines of text.

        Args:
            width: Columns, 32 or more.
            height: Lines, 8 or more.
            ascii: Whether to use ASCII characters only.

        Raises:
            ValueError: If there is no room.
        """
        answer = (f"{self.rule}: {lr_text(self.suggestion)}", self.suggestion.lr)
        return terminal_plot(self.lrs, centred_average(self.losses), *answer, width, height, ascii)

    def _span(self) -> str:
        if len(self.lrs) == 0:
            return "no points"
        points = "1 point" if len(self.lrs) == 1 else f"{len(self.lrs)} points"
        return f"{points} from {self.lrs[0]:.1e} to {self.lrs[-1]:.1e}"

    def _table(self) -> Table:
        columns = ("rule", "lr", "confidence", "reason")
        found = self.suggestions.items()
        rows = [(name, lr_text(s), f"{s.confidence:.2f}", s.reason) for name, s in found]
        return Table(columns, rows, chosen=list(self.suggestions).index(self.rule))

    def _repr_html_(self) -> str:
        summary = "<br>".join(escape(line) for line in self._sentences())
        try:
            picture = html_image(self.plot(), "loss over learning rate")
        except ImportError:
            picture = f"<pre>{escape(self.terminal_plot())}</pre>"
        return f"<div><p>{summary}</p>{self._table().html()}{picture}</div>"

    def __rich__(self) -> RichTable:
        return self._table().rich(str(self))

    def _sentences(self) -> list[str]:
        head = f"Range test: {self._span()}, {self.outcome} in {self.seconds:.1f} s"
        cost = [] if self.race is None else [str(self.race)]
        return [head, str(self.suggestion), *cost, *self.notes]

    def __str__(self) -> str:
        lines = [wrap(line, 80, subsequent_indent="  ") for line in self._sentences()]
        return "\n".join(part for parts in lines for part in parts)

    def __repr__(self) -> str:
        answer = f"{self.rule}: {lr_text(self.suggestion)}"
        return f"RangeTest({self._span()}, {self.outcome}, {answer})"
