"""Results of a timing, and what follows from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lrfast._utils.public import public_in
from lrfast._utils.tables import Table
from lrfast.optim._memory import Memory
from lrfast.tools.bench._contenders import LRFAST, TORCH
from lrfast.tools.bench._timing import FORWARD

Quartiles = tuple[float, float, float]
UPDATE = "update"  # all parts but forward and backward
MEMORY_NUMBERS = (3, 4, 5)  # columns of the table of memory


@public_in("lrfast.bench")
@dataclass(frozen=True)
class BenchResult:
    """Times of an update by torch, as set up by the user, and by lrfast, on equal work.

    Args:
        optimizer: Class of the given optimizer.
        device: Device of the parameters.
        parameters: Number of elements that are updated.
        tensors: Number of their tensors.
        groups: Number of param groups.
        times: Quartiles in microseconds, by contender ("torch", set up as given, "lrfast", and
            "torch, fused=True" if that differs) and part ("clip", "step", "average", "scheduler",
            "zero_grad", "update" for all of these, "forward + backward"). On a GPU its own time.
        host_times: The same by the host's clock, which for a GPU is the time to queue the work.
        bytes_moved: Bytes that one update of lrfast reads and writes.
        bandwidth: Bytes per second of adding one array to another, in place, over as much memory;
            None if a step moves too little for that to matter.
        difference: Largest difference between the parameters after three steps, as a fraction of
            what roundings explain.
        rounds: Number of timings of each.
        memory: What parameters, gradients and states take if they were of other dtypes, by dtype
            of the parameters and ``state_dtype`` of lrfast's optimizer. "bfloat16, 24bit master"
            stands for parameters that were bfloat16 with ``master="24bit"``, whose bits count as
            states; a rule that refuses masters has no such entry.
    """

    optimizer: str
    device: str
    parameters: int
    tensors: int
    groups: int
    times: dict[str, dict[str, Quartiles]]
    host_times: dict[str, dict[str, Quartiles]]
    bytes_moved: int
    bandwidth: float | None
    difference: float
    rounds: int
    memory: dict[tuple[str, str], Memory] = field(default_factory=dict)

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update({"memory": {}} | state)  # former versions knew none

    def median(self, contender: str, part: str = UPDATE) -> float:
        """Return a median in microseconds; 0 for a part that the contender does not have.

        Args:
            contender: A key of ``times``.
            part: A key of ``times[contender]``; default "update".
        """
        return self.times[contender].get(part, (0.0, 0.0, 0.0))[1]

    @property
    def ratio(self) -> float:
        """Time of torch's update over lrfast's, above 1 if lrfast is faster."""
        return self.median(TORCH) / self.median(LRFAST)

    @property
    def saved_us(self) -> float:
        """Microseconds that lrfast saves per step; negative if it is slower."""
        return self.median(TORCH) - self.median(LRFAST)

    @property
    def update_share(self) -> float | None:
        """The update's fraction of a whole training step as given; None without a batch."""
        if FORWARD not in self.times[TORCH]:
            return None
        return self.median(TORCH) / (self.median(TORCH) + self.median(TORCH, FORWARD))

    @property
    def step_ratio(self) -> float | None:
        """Time of a whole training step as given over that with lrfast; None without a batch."""
        if FORWARD not in self.times[TORCH]:
            return None
        rest = self.median(TORCH, FORWARD)  # the same work, so that its noise does not count
        return (rest + self.median(TORCH)) / (rest + self.median(LRFAST))

    def bandwidth_share(self, contender: str) -> float | None:
        """Return an update's bandwidth as a fraction of the measured one; None: not measured.

        It counts the bytes that lrfast's update needs, for all contenders.

        Args:
            contender: A key of ``times``.
        """
        if self.bandwidth is None:
            return None
        return self.bytes_moved / (self.median(contender) * 1e-6) / self.bandwidth

    def header(self) -> str:
        """Return one line with optimizer, device and sizes."""
        groups = f"{self.groups} group{'s' if self.groups > 1 else ''}"
        return (
            f"{self.optimizer} on {self.device}: {self.parameters:,} parameters in {self.tensors} "
            f"tensors, {groups}; {self.rounds} rounds"
        )

    def rows(self) -> list[tuple[str, ...]]:
        """Return the table's cells, titles first: medians and the update's quartiles in us."""
        names = list(self.times)
        rows: list[tuple[str, ...]] = [("us", *names)]
        parts = dict.fromkeys(part for name in names for part in self.times[name])
        rows += [(part, *(self._cell(name, part) for name in names)) for part in parts]
        quartiles = ([self.times[name][UPDATE][place] for name in names] for place in (0, 2))
        for title, found in zip(
            ("update, lower quartile", "upper quartile"), quartiles, strict=True
        ):
            rows.append((title, *map(_short, found)))
        if self.times != self.host_times:  # on a GPU
            cells = (f"{self.host_times[name][UPDATE][1]:,.1f}" for name in names)
            rows.append(("update, host's time", *cells))
        if self.bandwidth is not None:
            shares = (f"{self.bandwidth_share(name):.0%}" for name in names)
            rows.append(("of the bandwidth", *shares))
        return rows

    def _cell(self, name: str, part: str) -> str:
        if part not in self.times[name]:
            return "in the step" if name == LRFAST else "-"
        return _short(self.times[name][part][1])

    def summary(self) -> list[str]:
        """Return sentences on the speedup, the share of a step and the memory."""
        what = "faster" if self.ratio >= 1 else "slower"
        factor = max(self.ratio, 1 / self.ratio)
        verb = "saves" if self.saved_us >= 0 else "costs"
        saved = f"{verb} {abs(self.saved_us):,.1f} us per step"
        lines = [f"lrfast's update is {factor:.2f} times {what} and {saved}."]
        best = min((name for name in self.times if name != LRFAST), key=self.median)
        if best != TORCH:
            ratio = self.median(best) / self.median(LRFAST)
            lines.append(f"Next to {best}, the faster way in torch, the ratio is {ratio:.2f}.")
        if self.update_share is not None:
            lines.append(
                f"The update is {self.update_share:.0%} of a training step; with lrfast a whole "
                f"step takes {1 / (self.step_ratio or 1):.0%} of its time."
            )
        megabytes = self.bytes_moved / 1e6
        if self.bandwidth is None:
            reach = "too little for the memory's bandwidth to matter"
            return [*lines, f"It moves {megabytes:,.3f} MB: {reach}."]
        rate = self.bandwidth / 1e9
        return [*lines, f"It moves {megabytes:,.1f} MB; memory here does {rate:,.1f} GB/s."]

    def memory_rows(self) -> list[tuple[str, ...]]:
        """Return the cells of the table of memory, titles first, by dtypes."""
        titles = ("state bytes per parameter", "bytes per parameter", "MB in all")
        rows: list[tuple[str, ...]] = [("parameters", "master", "state_dtype", *titles)]
        for (weights, states), memory in self.memory.items():
            dtype, _, master = weights.removesuffix(" master").partition(", ")
            sizes = (f"{size / memory.numel:.2f}" for size in (memory.states, memory.total))
            rows.append((dtype, master or "none", states, *sizes, f"{memory.total / 1e6:,.3f}"))
        return rows

    def memory_table(self) -> str:
        """Return what parameters, gradients and states take in each dtype as plain text."""
        titles, *rows = self.memory_rows()
        return Table(titles, rows, right=MEMORY_NUMBERS).text(width=0)

    def table(self) -> str:
        """Return header, rows and summary as plain text."""
        titles, *rows = self.rows()
        table = Table(titles, rows).text(width=0)
        return "\n".join([self.header(), "", table, "", *self.summary()])


def _short(time: float) -> str:
    """Return microseconds with their significant digits."""
    return f"{time:,.1f}" if time < 1000 else f"{time:,.0f}"
