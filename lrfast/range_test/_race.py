"""A race between rates: short one-cycle runs from one state on the same batches."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any, Literal

from torch import Tensor
from torch.optim import Optimizer

from lrfast import schedules
from lrfast._utils.progress import Progress
from lrfast.curve import LossCurve
from lrfast.optim._schedule_driver import Driver, drive
from lrfast.optim._scheduling import set_rate
from lrfast.range_test._result import Candidate, Race
from lrfast.range_test._sweep import Sweep
from lrfast.suggest import Suggestion
from lrfast.training._data import close, device_of, evaluating
from lrfast.training._snapshot import Snapshot
from lrfast.training._step import Training

# A quarter of a decade. Near its best rate a one-cycle run's loss changes by a few per cent over
# that, and by less than the draw of the batches over less.
_FACTOR = 10.0**0.25
_MAX_CANDIDATES = 8
_JUDGED_WINDOWS = 10  # at most, where there are no validation data
_DIVERGED = 4.0  # times the best loss, as in the sweep


def race(
    training: Training,
    sweep: Sweep,
    snapshot: Snapshot,
    first: Suggestion,
    steps: int,
    progress: bool,
) -> tuple[Race, Suggestion]:
    """Train at the suggested rate and its neighbours, and return what wins.

    The race climbs: it tries half a decade to either side of the best rate so far until both sides
    are worse, and then a quarter. A candidate that is far behind the best one in the middle of its
    run is dropped. The rate wins around which losses are lowest, on average over a quarter of a
    decade to either side: a single run's loss scatters, and next to a rate that diverges the next
    run might.

    Args:
        training: How to train and who judges.
        sweep: Says every group's rate.
        snapshot: Where every candidate begins.
        first: The rate to begin with.
        steps: Updates of a run, 2 or more.
        progress: Whether to show how far each run is.

    Returns:
        The race and the winner as a suggestion of rule "verified".
    """
    began = time.perf_counter()
    track = _Track(training, sweep, snapshot, steps, progress)
    assert first.lr is not None
    ran = {0: track.run(first.lr)}  # by the rate's place, in factors from the first one
    for stride, most in ((2, _MAX_CANDIDATES - 2), (1, _MAX_CANDIDATES)):
        while len(ran) < most:
            best = _best(ran)
            untried = [place for place in (best - stride, best + stride) if place not in ran]
            if not untried:
                break
            for place in untried:
                ran[place] = track.run(first.lr * _FACTOR**place)
    best = _winner(ran, track.initial)
    candidates = tuple(
        Candidate(
            first.lr * _FACTOR**place,
            first.rule if place == 0 else "neighbour",
            losses,
            place == best,
        )
        for place, losses in sorted(ran.items())
    )
    result = Race(candidates, steps, track.judged_by, time.perf_counter() - began)
    return result, _verdict(result, track.initial)


def _one_cycle(optimizer: Optimizer, steps: int) -> schedules.Schedule:
    """The one-cycle policy; it cycles momentum only where the optimizer has some in every group."""
    has_momentum = all("betas" in g or g.get("momentum", 0) > 0 for g in optimizer.param_groups)
    return schedules.one_cycle(steps, momentum=(0.95, 0.85) if has_momentum else None)


def _best(ran: Mapping[int, tuple[float, ...]]) -> int:
    """The place whose run ended best; while all diverge the lowest, to go on from there."""
    return min(ran, key=lambda place: (_final(ran[place]), place))


def _winner(ran: Mapping[int, tuple[float, ...]], initial: float) -> int:
    """The place around which losses are lowest, of the best one and those between two others.

    A run that was not finished counts with its last loss, a neighbour of the best one that did not
    run like the best one.
    """

    def loss(place: int) -> float:
        last = ran[place][-1]
        return min(last, initial) if math.isfinite(last) else initial

    def around(place: int) -> float:
        own = loss(place)
        beside = [loss(near) if near in ran else own for near in (place - 1, place + 1)]
        return sum(beside) + 4 * own  # Simpson's rule for the mean

    best = _best(ran)
    between = [place for place in ran if {place - 1, place + 1} <= ran.keys()]
    eligible = [place for place in between if math.isfinite(_final(ran[place]))]
    return min([best, *eligible], key=lambda place: (around(place), place))


def _final(losses: tuple[float, ...]) -> float:
    """What a run is judged by; a run that was dropped or diverged is worse than any other."""
    finished = len(losses) == len(_Track.ROUNDS) and math.isfinite(losses[-1])
    return losses[-1] if finished else math.inf


def _verdict(race: Race, initial: float) -> Suggestion:
    winner = next(candidate for candidate in race.candidates if candidate.winner)
    count = f"{len(race.candidates)} rates in {race.steps} steps each"
    loss = _final(winner.losses)
    if not loss < initial:
        reason = f"none of {count} brought the {race.judged_by} loss below its {initial:.3g}"
        return Suggestion(None, "verified", reason, 0.0)
    ends = (race.candidates[0], race.candidates[-1])
    reason = f"the best of {count}: {race.judged_by} loss {initial:.3g} to {loss:.3g}"
    return Suggestion(winner.lr, "verified", reason, 0.5 if winner in ends else 1.0)


class _Track:
    """Where candidates run: one state, the same batches, one judge."""

    ROUNDS = (0.5, 1.0)  # shares of the steps after which a candidate is judged

    def __init__(
        self, training: Training, sweep: Sweep, snapshot: Snapshot, steps: int, progress: bool
    ) -> None:
        self._training = training
        self._sweep = sweep
        self._snapshot = snapshot
        self._steps = steps
        self._progress = progress and training.ranks.is_first
        self._best: tuple[float, ...] | None = None
        self.judged_by: Literal["validation", "training"] = (
            "training" if training.judge is None else "validation"
        )
        snapshot.restore()
        self._judges = self._judging_batches()
        self.initial = self._judge()

    def run(self, lr: float) -> tuple[float, ...]:
        """Train one candidate and return its loss after each round it took part in."""
        training = self._training
        self._snapshot.restore()
        training.model.train()
        groups = training.optimizer.param_groups
        for group, rate in zip(groups, self._sweep.rates_at(lr), strict=True):
            set_rate(group, rate)
        curve = LossCurve(self._steps, device_of(training.model), stop=_DIVERGED)
        schedule = _one_cycle(training.optimizer, self._steps)
        driver = drive(training.optimizer, schedule, self._steps, curve.stop_flag)
        windows = training.windows()
        losses: list[float] = []
        made = 0
        bar = Progress(f"race, rate {lr:.1e}", self._steps, shown=self._progress)
        try:
            for share in self.ROUNDS:
                until = round(share * self._steps)
                for step, window in enumerate(islice(windows, until - made), made + 1):
                    self._step(window, curve, driver)
                    bar.show(step, lambda: {"loss": f"{curve.poll().smoothed:.4g}"})
                made = until
                loss = self._judge() if curve.status().outcome == "running" else math.inf
                losses.append(loss)
                if self._is_lost(losses):
                    break
        finally:
            bar.close()
            close(windows)
            driver.detach()
        final = _final(tuple(losses))
        if final < (math.inf if self._best is None else _final(self._best)):
            self._best = tuple(losses)
        return tuple(losses)

    def _step(self, window: list[Any], curve: LossCurve, driver: Driver) -> None:
        training = self._training
        if training.takes_closure:
            driver.before_step()
            curve.record(training.closure_step(window))
            driver.after_step()
            return
        loss = training.backward(window)
        skip = training.found_inf()
        curve.record(loss, skip=skip)
        driver.before_step()
        training.update()
        driver.after_step()

    def _is_lost(self, losses: list[float]) -> bool:
        """Whether a run has diverged, or has come less than half as far as the best by now."""
        if not math.isfinite(losses[-1]):
            return True
        if self._best is None:
            return False
        best = self._best[len(losses) - 1]
        return losses[-1] - best > 0.5 * (self.initial - best) > 0

    def _judging_batches(self) -> Iterable[Any]:
        """The validation data, or some batches that follow those of the runs."""
        if self._training.judge is not None:
            return self._training.judge
        count = min(max(self._steps // 10, 1), _JUDGED_WINDOWS)
        following = islice(self._training.windows(), self._steps, self._steps + count)
        return [batch for window in following for batch in window]

    def _judge(self) -> float:
        with evaluating(self._training.model):
            loss: Tensor = self._training.loss(self._judges)
        return loss.item()
