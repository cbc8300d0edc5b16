"""What was measured, and what follows from it."""

from __future__ import annotations

from dataclasses import dataclass

from lrfast._utils.tables import Table
from lrfast.tools.bench._contenders import OURS, THEIRS
from lrfast.tools.bench._timing import FORWARD

Quartiles = tuple[float, float, float]
UPDATE = "update"  # all parts but forward and backward


@dataclass(frozen=True)
class BenchResult:
    """Times of an update by torch, as the user set it up, and by lrfast, on equal work.

    Args:
        optimizer: Class of the optimizer given.
        device: Where the parameters are.
        parameters: Elements that are updated.
        tensors: Tensors that they are in.
        groups: Param groups.
        times: By contender ("torch", set up as given, "lrfast", and "torch, fused=True" where that
            is something else) and part ("clip", "step", "average", "scheduler", "zero_grad",
            "update" for all of these, "forward + backward"): quartiles in microseconds. On a GPU
            its own time.
        host_times: The same by the host's clock, which only starts the work of a GPU.
        bytes_moved: Bytes that one of lrfast's updates reads and writes.
        bandwidth: Bytes per second of adding one array to another, in place, over as much memory;
            None where a step moves too little for that to matter.
        difference: Largest difference between the parameters after three steps, as a part of what
            roundings explain.
        rounds: How often each was timed.
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

    def median(self, contender: str, part: str = UPDATE) -> float:
        """Return a median in microseconds; 0 for what the contender does not do.

        Args:
            contender: One of the columns.
            part: One of the rows.
        """
        return self.times[contender].get(part, (0.0, 0.0, 0.0))[1]

    @property
    def ratio(self) -> float:
        """Time of torch's update over lrfast's, above 1 where lrfast is faster."""
        return self.median(THEIRS) / self.median(OURS)

    @property
    def saved_us(self) -> float:
        """Microseconds that lrfast saves per step; negative where it loses."""
        return self.median(THEIRS) - self.median(OURS)

    @property
    def update_share(self) -> float | None:
        """The update's part of a whole training step as given; None where no batch was given."""
        if FORWARD not in self.times[THEIRS]:
            return None
        return self.median(THEIRS) / (self.median(THEIRS) + self.median(THEIRS, FORWARD))

    @property
    def step_ratio(self) -> float | None:
        """Time of a whole training step as given over that with lrfast; None without a batch."""
        if FORWARD not in self.times[THEIRS]:
            return None
        rest = self.median(THEIRS, FORWARD)  # the same work, so that its noise does not count
        return (rest + self.median(THEIRS)) / (rest + self.median(OURS))

    def bandwidth_share(self, contender: str) -> float | None:
        """Speed at which an update gets its bytes moved, as a part of the measured bandwidth.

        The bytes are those that lrfast's update needs; who moves more of them is as slow as if they
        were idle.

        Args:
            contender: One of the columns.

        Returns:
            The part; None where the bandwidth was not measured.
        """
        if self.bandwidth is None:
            return None
        return self.bytes_moved / (self.median(contender) * 1e-6) / self.bandwidth

    def header(self) -> str:
        """Return one line about what was timed."""
        groups = f"{self.groups} group{'s' if self.groups > 1 else ''}"
        return (
            f"{self.optimizer} on {self.device}: {self.parameters:,} parameters in {self.tensors} "
            f"tensors, {groups}; {self.rounds} rounds"
        )

    def rows(self) -> list[tuple[str, ...]]:
        """Return the table's cells, the titles first: median and quartiles in microseconds."""
        names = list(self.times)
        rows: list[tuple[str, ...]] = [("microseconds", *names)]
        parts = dict.fromkeys(part for name in names for part in self.times[name])
        rows += [(part, *(self._cell(name, part) for name in names)) for part in parts]
        on_gpu = self.times != self.host_times
        if on_gpu:
            cells = (f"{self.host_times[name][UPDATE][1]:,.1f}" for name in names)
            rows.append(("update, host's time", *cells))
        if self.bandwidth is not None:
            shares = (f"{self.bandwidth_share(name):.0%}" for name in names)
            rows.append(("of the bandwidth", *shares))
        return rows

    def _cell(self, name: str, part: str) -> str:
        if part not in self.times[name]:
            return "in the step" if name == OURS else "-"
        low, median, high = (_short(time) for time in self.times[name][part])
        return f"{median} ({low} to {high})"

    def summary(self) -> list[str]:
        """Return in sentences what it comes to, also where lrfast loses."""
        what = "faster" if self.ratio >= 1 else "slower"
        factor = max(self.ratio, 1 / self.ratio)
        verb = "saves" if self.saved_us >= 0 else "costs"
        lines = [
            f"lrfast's update is {factor:.2f} times {what} and {verb} {abs(self.saved_us):,.1f} us "
            "per step."
        ]
        best = min((name for name in self.times if name != OURS), key=self.median)
        if best != THEIRS:
            ratio = self.median(best) / self.median(OURS)
            lines.append(f"Next to {best}, the faster way in torch, the ratio is {ratio:.2f}.")
        if self.update_share is not None:
            lines.append(
                f"The update is {self.update_share:.0%} of a training step; with lrfast a whole "
                f"step takes {1 / (self.step_ratio or 1):.0%} of its time."
            )
        if self.bandwidth is not None:
            lines.append(
                f"It moves {self.bytes_moved / 1e6:,.1f} MB; memory here does "
                f"{self.bandwidth / 1e9:,.1f} GB/s."
            )
        else:
            lines.append(
                f"It moves {self.bytes_moved / 1e6:,.3f} MB: too little for the memory's bandwidth "
                "to matter."
            )
        return lines

    def table(self) -> str:
        """Return all of it as plain text."""
        titles, *rows = self.rows()
        table = Table(titles, rows).text(width=0)
        return "\n".join([self.header(), "", table, "", *self.summary()])


def _short(time: float) -> str:
    """Microseconds with the digits that mean something."""
    return f"{time:,.1f}" if time < 1000 else f"{time:,.0f}"
