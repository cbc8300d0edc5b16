"""Race between learning rates: short one-cycle runs from one state on the same batches."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import cycle, islice
from typing import Any, Literal

import torch
from torch.optim import Optimizer

from lrfast import schedules
from lrfast._utils.progress import Progress
from lrfast._utils.tables import short_time
from lrfast.curve import LossCurve
from lrfast.optim._schedule_driver import attach_schedule
from lrfast.optim._scheduling import set_rate
from lrfast.range_test._result import Candidate, Race
from lrfast.range_test._sweep import Sweep
from lrfast.suggest import Suggestion
from lrfast.training._data import device_of, iterate_once, num_batches, set_training
from lrfast.training._random import reseed
from lrfast.training._snapshot import Snapshot
from lrfast.training._step import Training, kind_of_step

_log = logging.getLogger(__name__)

# A quarter of a decade. Near the best learning rate the loss of a one-cycle run changes by a few
# per cent over that; over less, by less than the draw of the batches.
_FACTOR = 10.0**0.25
_MAX_CANDIDATES = 8
_JUDGED_UPDATES = 10  # whose batches judge at most, if there are no validation data
_DIVERGED = 4.0  # times the best loss, as in the sweep
_ROUNDS = (0.5, 1.0)  # shares of the steps after which a candidate is judged


def race(
    training: Training,
    sweep: Sweep,
    snapshot: Snapshot,
    first: Suggestion,
    plan: RacePlan,
    progress: bool,
) -> tuple[Race | None, Suggestion]:
    """Train at the suggested learning rate and its neighbours; return the race and its verdict.

    There is no race if its time is too short for two runs.
    """
    # The race climbs: it tries half a decade to either side of the best learning rate so far until
    # both sides are worse, and then a quarter. A candidate that is far behind the best one in the
    # middle of its run is dropped. The candidate wins around which losses are lowest, on average
    # over a quarter of a decade to either side: a single run's loss scatters, and next to a
    # learning rate that diverges the next run might.
    runner = _RaceRunner(training, sweep, snapshot, plan, progress)
    _log.info(plan.cost(runner.run_seconds))
    if not runner.affords(2):
        why = f"no race, because two runs of {plan.steps} steps take longer than {plan.limit}"
        return None, replace(first, rule="verified", reason=f"{first.reason}; {why}")
    lr = first.lr
    assert lr is not None
    ran = {0: runner.run(lr)}  # by the learning rate's place, in factors from the first one
    for stride, most in ((2, _MAX_CANDIDATES - 2), (1, _MAX_CANDIDATES)):
        while len(ran) < most:
            best = _best(ran)
            untried = [place for place in (best - stride, best + stride) if place not in ran]
            if not untried:
                break
            for place in untried:
                if runner.affords(2):  # the last one is a second seed's
                    ran[place] = runner.run(lr * _FACTOR**place)
            if not runner.affords(2):
                break
    best = _confirmed_winner(ran, runner, lr)
    candidates = tuple(
        Candidate(lr * _FACTOR**place, "neighbour" if place else first.rule, losses, place == best)
        for place, losses in sorted(ran.items())
    )
    judged_by: Literal["validation", "training"] = (
        "training" if training.judge_data is None else "validation"
    )
    result = Race(candidates, plan.steps, judged_by, runner.seconds, runner.updates)
    return result, _verdict(result, runner.initial)


def _confirmed_winner(ran: dict[int, tuple[float, ...]], runner: _RaceRunner, lr: float) -> int:
    """Return the winner's place, confirmed with a second seed if a neighbour of it has diverged.

    To diverge is to end worse than untrained. A winner that is not confirmed counts as diverged,
    and the next one is asked.
    """
    while True:
        best = _winner(ran, runner.initial)
        nearest = [*filter(best.__gt__, sorted(ran))][-1:] + [*filter(best.__lt__, sorted(ran))][:1]
        is_at_edge = any(not ran[place][-1] <= runner.initial for place in nearest)
        if not is_at_edge or not math.isfinite(_final(ran[best])):
            return best
        is_last = not runner.affords(2)
        if math.isfinite(_final(runner.run(lr * _FACTOR**best, seed=1))):
            return best
        ran[best] = (*ran[best][:-1], math.inf)
        if is_last:  # the next one cannot be asked
            return _winner(ran, runner.initial)


def one_cycle_for(optimizer: Optimizer, steps: int) -> schedules.Schedule:
    """The one-cycle policy; it cycles momentum only if the optimizer has some in every group."""
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


def _final(losses: Sequence[float]) -> float:
    """The loss that judges a run; one that was dropped or diverged is worse than any other."""
    finished = len(losses) == len(_ROUNDS) and math.isfinite(losses[-1])
    return losses[-1] if finished else math.inf


def _verdict(race: Race, initial: float) -> Suggestion:
    winner = next(candidate for candidate in race.candidates if candidate.winner)
    count = f"{len(race.candidates)} learning rates in {race.steps} steps each"
    cost = f"; {race.updates} updates in all"
    loss = _final(winner.losses)
    if not loss < initial:
        reason = f"none of {count} brought the {race.judged_by} loss below its {initial:.3g}{cost}"
        return Suggestion(None, "verified", reason, 0.0)
    ends = (race.candidates[0], race.candidates[-1])
    reason = f"the best of {count}: {race.judged_by} loss {initial:.3g} to {loss:.3g}{cost}"
    return Suggestion(winner.lr, "verified", reason, 0.5 if winner in ends else 1.0)


@dataclass(frozen=True)
class RacePlan:
    """Length and schedule of a race's runs, and the most updates, or time, of all of them."""

    steps: int
    schedule: schedules.Schedule
    budget: int | timedelta | None = None
    pace: float | None = None  # seconds of an update; None: unknown before the first run

    @property
    def limit(self) -> str:
        """The budget in words."""
        if isinstance(self.budget, timedelta):
            return f"{self.budget.total_seconds():g} s"
        return f"{self.budget} updates"

    def cost(self, run_seconds: float | None) -> str:
        """Return in words what the race may cost, by the time of a run if that is known."""
        steps, most, budget, more = self.steps, _MAX_CANDIDATES, self.budget, ""

        def about(updates: int) -> str:
            if run_seconds is None:
                return ""
            return f" (about {short_time(updates / steps * run_seconds)})"

        if budget is None:
            said = f"makes {most * steps} updates at most{about(most * steps)}"
            more = f"; {steps} more for each winner beside one that diverges"
        elif isinstance(budget, timedelta):
            said = f"takes {self.limit} at most"
        else:  # all runs but the first may be dropped in the first round
            said = f"makes {self.limit} at most{about(budget)}"
            most = min(most, 1 + (budget - 2 * steps) // round(_ROUNDS[0] * steps))
        runs = f"{most} learning rates at most, in runs of {steps} steps{about(steps)}"
        return f"the race {said}: {runs}{more}"


@dataclass
class _RaceRunner:
    """Runs the candidates: from one state, on the same batches, under one judge."""

    training: Training
    sweep: Sweep
    snapshot: Snapshot
    plan: RacePlan
    progress: bool

    def __post_init__(self) -> None:
        self.training = replace(self.training, val_loader=None)  # which belongs to the sweep
        self.steps, self.updates = self.plan.steps, 0
        self._began = time.perf_counter()
        self._best: tuple[float, ...] = ()  # of the best run so far
        # The windows that runs train on, again and again; None: those of the data.
        self._windows: list[list[Any]] | None = None
        self.snapshot.restore()
        self._judges = self._judging_batches()
        began = self.seconds
        self.initial = self._judge()
        judging, pace = self.seconds - began, self.plan.pace
        self.run_seconds: float | None = None  # of the last run; at first as the sweep foretells
        if pace is not None:
            self.run_seconds = self._of_all(pace) * self.steps + judging * len(_ROUNDS)

    @property
    def seconds(self) -> float:
        """Time since the race began."""
        return self._of_all(time.perf_counter() - self._began)

    def _of_all(self, seconds: float) -> float:
        """Return the mean of a time over all processes, so that they decide alike."""
        ranks, device = self.training.ranks, device_of(self.training.model)
        return (
            seconds if ranks.is_alone else ranks.mean(torch.tensor(seconds, device=device)).item()
        )

    def affords(self, runs: int) -> bool:
        """Whether the budget has so many whole runs left."""
        budget = self.plan.budget
        if isinstance(budget, timedelta):
            return self.seconds + runs * (self.run_seconds or 0.0) <= budget.total_seconds()
        return budget is None or self.updates + runs * self.steps <= budget

    def run(self, lr: float, seed: int = 0) -> tuple[float, ...]:
        """Train one candidate and return its loss after each round it took part in.

        Another ``seed`` than 0 draws other random numbers, and the batches in another order.
        """
        training, began = self.training, self.seconds
        self.snapshot.restore()
        training.model.train()
        set_training(training.optimizer, True)
        groups = training.optimizer.param_groups
        for group, rate in zip(groups, self.sweep.rates_at(lr), strict=True):
            set_rate(group, rate)
        curve = LossCurve(self.steps, device_of(training.model), diverge_threshold=_DIVERGED)
        plan = (training.optimizer, self.plan.schedule, self.steps, curve.stop_flag)
        driver = attach_schedule(*plan)
        train_step = kind_of_step(training)(training, curve, driver)
        batches = self._batches(seed)
        losses: list[float] = []
        made = 0
        shown = self.progress and training.ranks.is_first
        bar = Progress(f"race, lr {lr:.1e}", self.steps, shown=shown)
        try:
            for share in _ROUNDS:
                until = round(share * self.steps)
                for step, micro_batches in enumerate(islice(batches, until - made), made + 1):
                    train_step.record(micro_batches)
                    train_step.update()
                    bar.show(step, lambda: {"loss": f"{curve.poll().smoothed:.4g}"})
                self.updates += until - made
                made = until
                losses.append(self._judge() if curve.status().outcome == "running" else math.inf)
                if self._is_lost(losses):
                    break
        finally:
            bar.close()
            batches.close()
            driver.detach()
        self.run_seconds = (self.seconds - began) * self.steps / made
        if _final(losses) < _final(self._best):
            self._best = tuple(losses)
        return tuple(losses)

    def _is_lost(self, losses: list[float]) -> bool:
        """Whether a run has diverged, or has come less than half as far as the best by now."""
        if not math.isfinite(losses[-1]):
            return True
        if not self._best:
            return False
        best = self._best[len(losses) - 1]
        return losses[-1] - best > 0.5 * (self.initial - best) > 0

    def _batches(self, seed: int) -> Generator[list[Any], None, None]:
        """Yield the windows of a run."""
        windows = self._windows
        batches = self.training.micro_batches() if windows is None else cycle(windows)
        if not seed:
            yield from batches
            return
        drawn = list(islice(batches, self.steps))  # by the old seed: others may be those that judge
        reseed(seed, [])
        order = torch.randperm(len(drawn), generator=torch.Generator().manual_seed(seed))
        yield from (drawn[place] for place in order.tolist())

    def _judging_batches(self) -> Iterable[Any]:
        """The validation data, or batches of training that no run trains on.

        If a pass is long enough, they follow those of the runs. Otherwise a tenth of a pass is held
        back, and the runs train on the rest of its batches again and again, as they were drawn.
        """
        training = self.training
        if training.judge_data is not None:
            return training.judge_data
        count = min(max(self.steps // 10, 1), _JUDGED_UPDATES)
        size = training.gradient_accumulation_steps
        runs = 1 if training.same_batch else self.steps  # windows that a run trains on
        most = (runs + count) * size  # batches of runs and judge: an endless pass ends there
        batches = num_batches(training.train_loader)
        if training.same_batch or batches is None or batches < most:
            drawn = list(islice(iterate_once(training.train_loader), most))
            windows = [drawn[k : k + size] for k in range(0, len(drawn) - size + 1, size)]
            held_count = max(len(windows) - runs, min(count, len(windows) // 10), 1)
            windows, held = windows[:-held_count], windows[-held_count:]
            if windows:
                self._windows = windows
                return [batch for window in held for batch in window]
        following = islice(training.micro_batches(), self.steps, self.steps + count)
        return [batch for micro_batches in following for batch in micro_batches]

    def _judge(self) -> float:
        return self.training.validation_loss(self._judges).item()
