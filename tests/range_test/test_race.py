"""The race between rates: one state, the same batches, and the lowest loss wins."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from tiny import OPTIMIZERS, OURS, Batch, bits, cross_entropy, make_scripted, trace
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lrfast
from lrfast import RangeTest, lr_find, suggest
from lrfast._utils.tables import short_time
from lrfast.range_test import Candidate, Race
from lrfast.range_test._race import RacePlan, _confirmed_winner, _RaceRunner, _winner
from lrfast.range_test._sweep import make_sweep
from lrfast.suggest import Suggestion
from lrfast.training._snapshot import Snapshot
from lrfast.training._step import Training

ALL = pytest.mark.parametrize("kind", OPTIMIZERS)
STEPS = 20


@pytest.fixture(scope="module")
def digits() -> tuple[list[Batch], list[Batch]]:
    """Batches of 32 to train with, and uneven ones to judge by."""
    data: Any = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    inputs = torch.tensor(data.data[order] / 16, dtype=torch.float32)
    targets = torch.tensor(data.target[order])
    batches = [(inputs[k : k + 32], targets[k : k + 32]) for k in range(0, 1280, 32)]
    judge = [(inputs[a:b], targets[a:b]) for a, b in ((1300, 1500), (1500, 1550), (1550, 1797))]
    return batches, judge


def make_net(kind: str) -> tuple[nn.Sequential, Any]:
    torch.manual_seed(21)
    model = nn.Sequential(nn.Linear(64, 32), nn.Dropout(0.1), nn.ReLU(), nn.Linear(32, 10))
    groups = [
        {"params": list(model[0].parameters()), "lr": 0.01},
        {"params": list(model[3].parameters()), "lr": 0.04},
    ]
    return model, OPTIMIZERS[kind](groups)


class Watch:
    """What every training step of a call begins from, and which batch it sees."""

    def __init__(self, model: nn.Module, optimizer: Any) -> None:
        self.batches: list[Any] = []
        self.states: list[Any] = []
        self.judged: list[Any] = []
        self.draws: list[Any] = []
        self._optimizer = optimizer

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        if torch.is_grad_enabled():
            self.batches.append(bits(batch))
            self.states.append(
                bits([list(model.parameters()), self._optimizer.state_dict()["state"]])
            )
            self.draws.append(bits(torch.get_rng_state()))
            assert model.training
        else:
            self.judged.append(bits(batch))
            assert not model.training
        return cross_entropy(model(batch[0]), batch[1])


def mean_loss(model: nn.Module, judge: list[Batch]) -> float:
    """The mean over all rows, without dropout."""
    model.eval()
    with torch.no_grad():
        losses = [cross_entropy(model(x), y, reduction="sum").item() for x, y in judge]
    model.train()
    return sum(losses) / sum(len(y) for _, y in judge)


def race(
    model: nn.Module, optimizer: Any, data: Any, compute_loss: Any = None, **options: Any
) -> RangeTest:
    settings = {"num_iter": 50, "verify": STEPS, "progress": False} | options
    if compute_loss is None:
        settings["loss_fn"] = cross_entropy
    return lr_find(model, optimizer, data, compute_loss=compute_loss, **settings)


def runs_of(watch: Watch, swept: int) -> list[slice]:
    """Where in the watch's lists each run after a sweep of so many steps lies."""
    first = watch.states[0]
    starts = [k for k, state in enumerate(watch.states) if k >= swept and state == first]
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], len(watch.states)], strict=True)]


def has_asked_again(race_: Race, untrained: float) -> bool:
    """Whether a winner has run again, as one does beside a run that ends worse than untrained.

    One that is not confirmed has an infinite loss in the end.
    """
    last = [candidate.losses[-1] for candidate in race_.candidates]
    (place,) = (place for place, candidate in enumerate(race_.candidates) if candidate.winner)
    beside = last[max(place - 1, 0) : place] + last[place + 1 : place + 2]
    return math.inf in last or any(loss > untrained for loss in beside)


@ALL
@pytest.mark.parametrize("trained", [0, 3])
def test_one_state_and_the_same_batches_for_all(kind: str, trained: int, digits: Any) -> None:
    batches, judge = digits
    model, optimizer = make_net(kind)
    for inputs, targets in batches[:trained]:
        optimizer.zero_grad()
        cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    dataset = TensorDataset(*(torch.cat(part) for part in zip(*batches, strict=True)))
    loader: Any = DataLoader(dataset, 32, shuffle=True)
    watch = Watch(model, optimizer)
    before = trace(model, optimizer)
    result = race(model, optimizer, loader, watch, judge=judge, diverge_threshold=None)
    assert trace(model, optimizer) == before
    assert result.race is not None
    started, count = runs_of(watch, 50), len(result.race.candidates)
    runs, confirming = started[:count], started[count:]
    assert len(runs) == count > 2
    assert bool(confirming) == has_asked_again(result.race, mean_loss(model, judge))
    for run in confirming:  # with another seed
        assert watch.states[run][0] == watch.states[0]
        assert watch.batches[run][0] != watch.batches[0]
    lengths = [len(watch.batches[run]) for run in runs]
    assert set(lengths) <= {STEPS // 2, STEPS} and STEPS in lengths
    for run, length in zip(runs, lengths, strict=True):
        assert watch.batches[run] == watch.batches[:length]
        assert watch.states[run][0] == watch.states[0]
        assert watch.draws[run][0] == watch.draws[0]
    rounds = sum(len(candidate.losses) for candidate in result.race.candidates)
    rounds += sum(len(watch.batches[run]) // (STEPS // 2) for run in confirming)
    assert watch.judged == [bits(batch) for batch in judge] * (rounds + 1)


@ALL
def test_the_lowest_final_loss_wins(kind: str, digits: Any) -> None:
    batches, judge = digits
    model, optimizer = make_net(kind)
    result = race(model, optimizer, batches, judge=judge)
    race_ = result.race
    assert race_ is not None and (race_.steps, race_.judged_by) == (STEPS, "validation")
    assert race_.seconds > 0
    candidates = race_.candidates
    assert len(candidates) >= 3
    lrs = [candidate.lr for candidate in candidates]
    assert {round(4 * step, 9) for step in np.diff(np.log10(lrs))} <= {1.0, 2.0}
    assert [c.rule for c in candidates].count("neighbour") == len(candidates) - 1
    winner = wins_by_simpson(candidates, mean_loss(model, judge))
    assert [c.winner for c in candidates] == [k == winner for k in range(len(candidates))]
    best = result.suggestion
    assert (result.rule, best.rule, best.lr) == ("verified", "verified", lrs[winner])
    assert result.suggestions["verified"] is best
    at_an_end = winner in (0, len(candidates) - 1)
    assert best.confidence == (0.5 if at_an_end else 1.0)
    assert (
        f"the best of {len(candidates)} learning rates in {STEPS} steps each: validation"
        in best.reason
    )
    result.apply(optimizer)
    rates = [group["lr"] for group in optimizer.param_groups]
    np.testing.assert_allclose(rates, [best.lr / 4, best.lr], rtol=1e-12)


@ALL
def test_a_run_is_a_short_one_cycle(kind: str, digits: Any) -> None:
    """The winner's loss is that of a plain one-cycle run at its rate, momentum included."""
    batches, judge = digits
    model, optimizer = make_net(kind)
    model[1].p = 0.0
    result = race(model, optimizer, batches, judge=judge)
    winner = next(c for c in result.race.candidates if c.winner)  # type: ignore[union-attr]
    schedule = lrfast.schedules.one_cycle(STEPS)
    multipliers, momenta = schedule.values(range(STEPS)), schedule.momentum(range(STEPS))
    assert momenta is not None
    rates = winner.lr / 4, winner.lr
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    if kind in OURS:
        optimizer.set_schedule(schedule)
    for step, (inputs, targets) in enumerate(batches[:STEPS]):
        optimizer.zero_grad()
        cross_entropy(model(inputs), targets).backward()
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            if kind in OURS:
                continue
            group["lr"] = rate * multipliers[step]
            if "betas" in group:
                group["betas"] = (momenta[step], group["betas"][1])
            else:
                group["momentum"] = momenta[step]
        optimizer.step()
    model.eval()
    with torch.no_grad():
        rows = sum(len(targets) for _, targets in judge)
        loss = sum(len(y) * cross_entropy(model(x), y).item() for x, y in judge) / rows
    assert winner.losses[-1] == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize("kind", ["adamw", "torch-sgd"])
def test_who_judges(kind: str, digits: Any) -> None:
    batches, judge = digits
    model, optimizer = make_net(kind)
    few = batches[:STEPS]
    watch = Watch(model, optimizer)
    by_valid = race(model, optimizer, few, val_loader=judge[:1], num_iter=20)
    assert by_valid.race is not None and by_valid.race.judged_by == "validation"
    both = race(model, optimizer, few, watch, val_loader=judge[:1], judge=judge[1:], num_iter=20)
    assert both.race is not None and both.race.judged_by == "validation"
    assert watch.judged[-2:] == [bits(batch) for batch in judge[1:]]
    assert watch.judged[:20] == [bits(judge[0])] * 20
    watch = Watch(model, optimizer)
    neither = race(model, optimizer, batches, watch, num_iter=20)
    assert neither.race is not None and neither.race.judged_by == "training"
    unseen = [bits(batch) for batch in batches[STEPS : STEPS + 2]]
    rounds = sum(len(candidate.losses) for candidate in neither.race.candidates)
    trained = len(watch.batches) - 20
    assert trained == neither.race.updates
    untrained = mean_loss(model, batches[STEPS : STEPS + 2])
    assert (trained // (STEPS // 2) > rounds) == has_asked_again(neither.race, untrained)
    assert watch.judged == unseen * (trained // (STEPS // 2) + 1)
    assert "training loss" in neither.suggestion.reason


def rows_in(batches: list[Any]) -> set[bytes]:
    """The rows of noted batches."""
    size = 64 * 4
    datas = [data for (_, _, data), _ in batches]
    return {data[k : k + size] for data in datas for k in range(0, len(data), size)}


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("count", [2, 7, 12, 21])
@pytest.mark.parametrize("shuffles", [False, True])
def test_no_run_trains_on_rows_that_judge(
    count: int, shuffles: bool, accumulated: int, digits: Any
) -> None:
    """Data shorter than a run are held back in part, row by row, whatever a loader draws next."""
    batches, _ = digits
    rows = [torch.cat(part)[: 32 * count * accumulated] for part in zip(*batches, strict=True)]
    loader: Any = DataLoader(TensorDataset(*rows), 32, shuffle=shuffles)
    model, optimizer = make_net("adamw")
    watch = Watch(model, optimizer)
    result = race(model, optimizer, loader, watch, num_iter=10,
                  gradient_accumulation_steps=accumulated)  # fmt: skip
    assert result.race is not None and result.race.judged_by == "training"
    drawn = watch.batches[10 * accumulated :]
    assert len(drawn) == result.race.updates * accumulated
    trained, judged = rows_in(drawn), rows_in(watch.judged)
    assert trained and judged and not trained & judged
    if count < STEPS:  # all that is not held back is used
        assert len(trained) + len(judged) == len(rows[0])


def test_a_second_seed_trains_on_no_rows_that_judge(digits: Any) -> None:
    """Of data longer than a run, too, which a loader would draw in another order."""
    batches, _ = digits
    rows = [torch.cat(part) for part in zip(*batches, strict=True)]
    loader: Any = DataLoader(TensorDataset(*rows), 32, shuffle=True)
    model, optimizer = make_net("sgd")
    watch = Watch(model, optimizer)
    training = Training(model, optimizer, loader, watch)
    sweep = make_sweep(model, optimizer, 1e-5, 1.0, 10, "exp", "ratio")
    plan = RacePlan(STEPS, lrfast.schedules.constant())
    runner = _RaceRunner(training, sweep, Snapshot(model, optimizer, loaders=[loader]), plan, False)
    for seed in (0, 1):
        runner.run(0.1, seed)
    first, second = (watch.batches[run] for run in runs_of(watch, 0))
    assert first != second and rows_in(first) == rows_in(second)
    assert len(rows_in(first)) == STEPS * 32
    assert watch.judged and not rows_in(first) & rows_in(watch.judged)


def test_the_batches_after_the_one_that_all_updates_see_judge(
    digits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches, _ = digits
    drawn: list[Batch] = []

    def noted(data: Any) -> Iterator[Batch]:
        for batch in data:
            drawn.append(batch)
            yield batch

    monkeypatch.setattr("lrfast.range_test._race.iterate_once", noted)
    model, optimizer = make_net("adamw")
    watch = Watch(model, optimizer)
    race(model, optimizer, batches, watch, num_iter=10, same_batch=True,
         gradient_accumulation_steps=2)  # fmt: skip
    assert len(drawn) == 6  # no more than are used
    seen = [set(map(repr, each)) for each in (watch.batches, watch.judged)]
    wanted = [set(map(repr, map(bits, each))) for each in (batches[:2], batches[2:6])]
    assert seen == wanted


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        (None, f"makes {8 * STEPS} updates at most (about 92 s): 8 learning rates at most, in runs "
               f"of {STEPS} steps (about 12 s); {STEPS} more for each winner beside one that "),
        (3 * STEPS, "makes 60 updates at most (about 34 s): 3 learning rates at most, in runs of "),
        (9 * STEPS, "makes 180 updates at most (about 100 s): 8 learning rates at most, in "),
        (timedelta(seconds=24), "takes 24 s at most: 8 learning rates at most, in runs of 20 "),
    ],
)  # fmt: skip
def test_the_cost_is_stated_before_and_after(
    budget: int | timedelta | None, said: str, clocked: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="lrfast.range_test"):
        result = clocked(budget=budget)
    assert result.race is not None
    assert any(f"the race {said}" in record.message for record in caplog.records)
    assert result.suggestion.reason.endswith(f"; {result.race.updates} updates in all")
    cost = f"{result.race.updates} updates in {short_time(result.race.seconds)}"
    text = f"Race: {len(result.race.candidates)} learning rates in {STEPS} steps each by their "
    assert f"{text}validation loss, {cost}" in " ".join(str(result).split())
    assert cost in result.plot().axes[0].get_title()
    assert "Race" not in str(replace(result, race=None))


def test_one_batch_judges_itself(digits: Any) -> None:
    batches, _ = digits
    model, optimizer = make_net("adamw")
    watch = Watch(model, optimizer)
    race(model, optimizer, batches[:1], watch, num_iter=10)
    assert set(map(repr, watch.judged)) == set(map(repr, watch.batches))


class Reruns:
    """A runner whose second seeds end as a table says, by place."""

    initial = 2.0

    def __init__(self, finals: dict[int, float], runs: int = 99) -> None:
        self.finals = finals
        self.runs = runs
        self.asked: list[int] = []

    def affords(self, runs: int) -> bool:
        return self.runs - len(self.asked) >= runs

    def run(self, lr: float, seed: int) -> tuple[float, ...]:
        assert seed == 1
        place = round(4 * math.log10(lr))
        self.asked.append(place)
        last = self.finals[place]
        return (0.9, last) if math.isfinite(last) else (last,)


@pytest.mark.parametrize(
    ("finals", "seconds", "place", "asked"),
    [
        ({-1: 0.3, 0: 0.2, 1: 0.3}, {}, 0, []),  # no edge
        ({-1: 0.3, 0: 0.2, 1: math.inf}, {0: 0.25}, 0, [0]),
        ({-1: 0.3, 0: 0.2, 1: math.inf}, {0: math.inf, -1: 0.3}, -1, [0, -1]),
        ({-2: 0.4, -1: 0.3, 0: 0.2, 2: math.inf}, {0: math.inf, -1: 0.3}, -1, [0, -1]),
        ({-2: 0.4, 0: 0.2, 1: 0.3, 2: math.inf}, {}, 0, []),  # not beside it
        ({0: math.inf, 1: math.inf}, {}, 0, []),  # none to confirm
        ({-1: math.inf, 0: 0.2, 1: 0.3}, {0: 0.2}, 0, [0]),  # an edge below
    ],
)
def test_a_winner_at_the_edge_has_to_win_again(
    finals: dict[int, float], seconds: dict[int, float], place: int, asked: list[int]
) -> None:
    ran = {k: (0.9, loss) if math.isfinite(loss) else (loss,) for k, loss in finals.items()}
    runner: Any = Reruns(seconds)
    assert _confirmed_winner(ran, runner, 1.0) == place
    assert runner.asked == asked


def test_a_budget_for_one_second_seed() -> None:
    ran = {-1: (0.9, 0.3), 0: (0.9, 0.2), 1: (math.inf,)}
    runner: Any = Reruns({0: math.inf}, runs=1)
    assert _confirmed_winner(ran, runner, 1.0) == -1 and runner.asked == [0]


@pytest.mark.parametrize("budget", [2, 3, 5, 6.5])
def test_a_race_keeps_to_its_budget(budget: float, digits: Any) -> None:
    batches, judge = digits
    model, optimizer = make_net("sgd")
    watch = Watch(model, optimizer)
    most = int(budget * STEPS)
    result = race(model, optimizer, batches, watch, judge=judge, num_iter=10, budget=most)
    assert result.race is not None
    assert most - 2 * STEPS < result.race.updates == len(watch.batches) - 10 <= most


@pytest.fixture
def clocked(digits: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A race by a clock on which an update takes half a second, and a judgement 0.75 s."""
    batches, judge = digits

    def run(**options: Any) -> RangeTest:
        model, optimizer = make_net("sgd")
        watch = Watch(model, optimizer)

        def now() -> float:
            return 0.5 * len(watch.batches) + 0.25 * len(watch.judged)

        for module in ("_race", "_lr_find"):
            fake = SimpleNamespace(perf_counter=now)
            monkeypatch.setattr(f"lrfast.range_test.{module}.time", fake)
        return race(model, optimizer, batches, watch, num_iter=10, **{"judge": judge} | options)

    return run


RUN = 0.5 * STEPS + 2 * 0.75


@pytest.mark.parametrize("runs", [2, 3, 5, 6.5])
def test_a_race_keeps_to_its_time(runs: float, clocked: Any) -> None:
    budget = 0.75 + runs * RUN  # the first judgement, and the runs
    raced = clocked(budget=timedelta(seconds=budget)).race
    assert raced is not None and budget - 2 * RUN < raced.seconds <= budget
    judged = 0.75 * (1 + sum(len(candidate.losses) for candidate in raced.candidates))
    assert raced.seconds >= 0.5 * raced.updates + judged


def test_no_race_for_which_there_is_no_time(clocked: Any) -> None:
    result = clocked(budget=timedelta(seconds=0.7 + 2 * RUN))
    auto, verified = (result.suggestions[rule] for rule in ("auto", "verified"))
    assert result.race is None and result.rule == "verified" and verified.lr == auto.lr is not None
    wanted = f"; no race, because two runs of {STEPS} steps take longer than 23.7 s"
    assert verified.reason == auto.reason + wanted


def test_a_sweep_that_validates_foretells_no_time(
    clocked: Any, digits: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="lrfast.range_test"):
        result = clocked(val_loader=digits[1], budget=timedelta(seconds=0.75 + 3 * RUN))
    assert not any("about" in record.message for record in caplog.records)
    assert result.race is not None and RUN < result.race.seconds - 0.75 <= 3 * RUN
    short = clocked(val_loader=digits[1], budget=timedelta(seconds=1))
    assert short.race is not None and short.race.updates == STEPS


def test_processes_share_one_time(digits: Any) -> None:
    model, optimizer = make_net("sgd")
    ranks: Any = SimpleNamespace(is_alone=False, is_first=True, mean=lambda value: value + 100)
    training = Training(model, optimizer, digits[0], Watch(model, optimizer), ranks=ranks)
    sweep = make_sweep(model, optimizer, 1e-5, 1.0, 10, "exp", "ratio")
    plan = RacePlan(STEPS, lrfast.schedules.constant(), timedelta(seconds=99), pace=0.5)
    runner = _RaceRunner(training, sweep, Snapshot(model, optimizer), plan, False)
    assert runner.seconds > 100 and not runner.affords(0)
    assert runner.run_seconds is not None and runner.run_seconds > 100.5 * STEPS


@pytest.mark.parametrize("kind", ["adamw", "torch-sgd"])
def test_runs_have_the_schedule_and_length_that_training_will_have(kind: str, digits: Any) -> None:
    batches, judge = digits
    for verify, length in ((0, 30), (12, 12)):
        model, optimizer = make_net(kind)
        rates: list[float] = []

        def note(optimizer: Any, *_: Any, rates: list[float] = rates) -> None:
            lr = optimizer.last_rates[1] if kind in OURS else optimizer.param_groups[1]["lr"]
            rates.append(float(lr))

        optimizer.register_step_post_hook(note)
        plan = lrfast.schedules.wsd(30, warmup_steps=5, decay_steps=10, start=0.1)
        options = {"judge": judge, "num_iter": 10, "verify": verify, "schedule": plan}
        result = race(model, optimizer, batches, **options)
        assert result.race is not None and result.race.steps == length
        planned = plan.extend_to(length).values(range(length))
        first = next(c for c in result.race.candidates if c.rule != "neighbour")
        np.testing.assert_allclose(rates[10 : 10 + length], planned * first.lr, rtol=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 2 * STEPS - 1}, f"budget must be {2 * STEPS} or more, two runs .* got 39"),
        ({"budget": 100, "verify": 0}, "budget must be None without verify, got 100"),
        ({"budget": 41.5}, r"budget must be 40 .* above 0, got 41.5; for seconds pass datetime\."
                           r"timedelta\(seconds=41.5\)"),
        ({"budget": "90s"}, "budget must be 40 or more, two .*, or a timedelta above 0, got '90s'"),
        ({"budget": timedelta(seconds=-3)}, "or a timedelta above 0, got datetime.timedelta"),
        ({"budget": timedelta(1), "verify": 0}, "budget must be None without verify, got datetim"),
    ],
)  # fmt: skip
def test_bad_budgets(options: dict[str, Any], message: str, digits: Any) -> None:
    model, optimizer = make_net("sgd")
    with pytest.raises((TypeError, ValueError), match=message):
        race(model, optimizer, digits[0], **options)


def test_a_second_seed_draws_other_batches_and_numbers(digits: Any) -> None:
    """Divergence at the edge is a matter of the draw: a run that was lucky once is not taken."""
    batches, judge = digits
    model, optimizer = make_net("sgd")
    watch = Watch(model, optimizer)
    result = race(model, optimizer, batches, watch, judge=judge, num_iter=10, end_lr=1e3)
    assert result.race is not None
    runs = runs_of(watch, 10)
    made = [len(watch.batches[run]) for run in runs]
    assert sum(made) == result.race.updates
    again = [run for run in runs if watch.batches[run][0] != watch.batches[runs[0]][0]]
    assert len(again) == 1 and len(runs) == len(result.race.candidates) + 1
    for run in again:
        first = watch.batches[runs[0]]
        assert sorted(map(repr, watch.batches[run])) == sorted(map(repr, first))[: len(first)]
        assert watch.draws[run][0] != watch.draws[runs[0]][0]


def test_a_race_over_windows(digits: Any) -> None:
    batches, _ = digits
    model, optimizer = make_net("adamw")
    watch = Watch(model, optimizer)
    result = race(
        model, optimizer, batches, watch, num_iter=10, gradient_accumulation_steps=2, verify=4
    )
    assert result.race is not None
    assert watch.batches[20:28] == [bits(batch) for batch in batches[:8]]
    assert watch.judged[:2] == [bits(batch) for batch in batches[8:10]]


@ALL
def test_a_race_with_a_scaler(kind: str, digits: Any) -> None:
    batches, judge = digits
    races = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)):
        model, optimizer = make_net(kind)
        races.append(race(model, optimizer, batches, judge=judge, scaler=scaler).race)
    assert races[0] is not None and races[1] is not None
    assert races[0].candidates == races[1].candidates


# Candidates that do badly: losses by rate, with the steps counted.


def bowl(kind: str, curvature: float, first: float, **options: Any) -> tuple[RangeTest, int]:
    """A race on curvature * w**2 / 2, where plain SGD diverges from the rate 2 / curvature on."""
    weight = nn.Parameter(torch.ones(1, dtype=torch.float64))
    model = nn.ParameterList([weight])
    cls: Any = lrfast.SGD if kind == "sgd" else torch.optim.SGD
    optimizer = cls([weight], lr=0.1)
    steps = 0

    def compute_loss(model: Any, batch: Any) -> Tensor:
        nonlocal steps
        steps += torch.is_grad_enabled()
        return batch.sum() * curvature * weight.square().sum() / 2

    settings = {
        "start_lr": first / 3,
        "end_lr": first,
        "num_iter": 20,
        "diverge_threshold": None,
    } | options
    result = race(model, optimizer, [torch.ones(1)], compute_loss, **settings)
    return result, steps - 20


def by_rate(result: RangeTest) -> dict[float, Candidate]:
    assert result.race is not None
    return {candidate.lr: candidate for candidate in result.race.candidates}


@pytest.mark.parametrize("kind", ["sgd", "torch-sgd"])
def test_what_diverges_or_lags_is_dropped_early(kind: str) -> None:
    result, steps = bowl(kind, 100.0, 0.01)
    candidates = by_rate(result)
    made = sum(len(c.losses) * STEPS // 2 for c in candidates.values())
    assert result.race is not None and steps == result.race.updates == made
    assert f"; {made} updates in all" in result.suggestion.reason
    dropped = [c for c in candidates.values() if len(c.losses) == 1]
    assert dropped and not any(c.winner for c in dropped)
    diverged = [c for c in candidates.values() if not math.isfinite(c.losses[-1])]
    assert diverged and all(c.lr > 0.02 for c in diverged)
    winner = next(c for c in candidates.values() if c.winner)
    assert winner.lr < 0.02 and winner.losses[-1] == min(
        c.losses[-1] for c in candidates.values() if len(c.losses) == 2
    )


# Who wins.


def wins_by_simpson(candidates: Sequence[Candidate], initial: float) -> int:
    """The finished one between two others a quarter of a decade away with the lowest mean.

    A run that was dropped counts with its last loss, and none for more than the initial loss.
    """
    means = {}
    for k in range(1, len(candidates) - 1):
        around = candidates[k - 1 : k + 2]
        near = candidates[k + 1].lr / candidates[k - 1].lr < 3.2
        if near and len(around[1].losses) == 2 and math.isfinite(around[1].losses[-1]):
            last = [c.losses[-1] for c in around]
            below, own, above = (min(x, initial) if math.isfinite(x) else initial for x in last)
            means[k] = (below + 4 * own + above) / 6
    return min(means, key=lambda k: means[k])


@pytest.mark.parametrize(
    ("finals", "place"),
    [
        ({-2: 0.5, -1: 0.3, 0: 0.2, 1: 0.3, 2: 0.5}, 0),
        ({-2: 0.5, -1: 0.3, 0: 0.2, 1: 0.19, 2: 0.5}, 0),  # lucky, beside a worse one
        ({-2: 0.5, -1: 0.3, 0: 0.2, 1: 0.12, 2: 0.5}, 1),  # too good to be luck
        ({-2: 0.5, -1: 0.3, 0: 0.2, 1: 0.19, 2: math.inf}, 0),  # as bad as untrained
        ({-2: 0.5, 0: 0.2, 1: 0.3, 2: 0.1}, 2),  # the race ended before its upper neighbour
        ({-4: 0.5, -2: 0.2, -1: 0.25, -3: 0.25, 0: 0.3, 2: 0.205}, -2),  # alone is not good enough
        ({-1: 0.2, 0: 0.2, 1: 0.2, 2: 0.2}, -1),  # the lower of equals
        ({-1: math.inf, 0: 3.0}, 0),  # what ends worse than untrained has at least ended
        ({-2: 3.0, -1: math.inf, 0: 2.5}, 0),
        ({-4: math.inf, -2: math.inf, 0: math.inf}, -4),
    ],
)
def test_the_winner_has_good_neighbours(finals: dict[int, float], place: int) -> None:
    ran = {k: (0.9, loss) if math.isfinite(loss) else (loss,) for k, loss in finals.items()}
    assert _winner(ran, 2.0) == place


def test_what_was_dropped_counts_with_the_loss_it_had() -> None:
    ran = {-1: (0.3, 0.1), 0: (0.3, 0.09), 1: (1.0,), 2: (1.0,), -2: (0.3, 0.12)}
    assert _winner(ran, 2.0) == -1
    assert _winner(ran | {1: (0.12,)}, 2.0) == 0
    assert _winner(ran | {1: (5.0,)}, 0.12) == 0  # never worse than untrained


@pytest.mark.parametrize(("lr", "runs"), [(3.0, 8), (1e-4, 8), (0.01, 5)])
def test_a_race_climbs_from_a_wrong_rate(
    lr: float, runs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six half decades at most and two quarters, down from where all diverge and up."""
    wrong = Suggestion(lr, "auto", "it is wrong", 1.0)
    monkeypatch.setattr(suggest, "auto", lambda lrs, losses, **known: wrong)
    result, _ = bowl("sgd", 100.0, 0.01)
    assert result.race is not None and len(result.race.candidates) == runs
    places = [round(4 * math.log10(c.lr / lr)) for c in result.race.candidates]
    best = round(4 * math.log10(0.01 / lr))
    assert min(places) <= max(best, -8) and max(places) >= min(best, 8)
    assert result.suggestion.lr is not None and result.suggestion.lr < 0.02


def test_where_auto_declines_the_middle_one_of_the_others_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A single rule may be far off: the steepest point of a noisy curve can lie anywhere."""
    declined = Suggestion(None, "auto", "it does not know", 0.0)
    monkeypatch.setattr(suggest, "auto", lambda lrs, losses, **known: declined)
    result, _ = bowl("sgd", 100.0, 0.01)
    others = sorted(s.lr for rule, s in result.suggestions.items() if s.lr and rule != "verified")
    assert result.race is not None and len(others) > 3
    first = next(c for c in result.race.candidates if c.rule != "neighbour")
    assert first.lr == others[(len(others) - 1) // 2]


@pytest.mark.parametrize("kind", ["sgd", "torch-sgd"])
def test_where_every_rate_does_harm_none_is_suggested(kind: str) -> None:
    """The judge's loss is the negative of that in training."""
    result, _ = bowl(kind, 100.0, 0.01, judge=[-torch.ones(1)])
    assert result.race is not None and result.suggestion.lr is None
    reason = (
        f"none of {len(result.race.candidates)} learning rates in {STEPS} steps each brought the "
    )
    cost = f"; {result.race.updates} updates in all"
    assert result.suggestion.reason == reason + "validation loss below its -50" + cost
    with pytest.raises(ValueError, match="rule 'verified' suggests no rate: none of"):
        result.suggested_lrs()


def test_no_race_where_no_rule_answers() -> None:
    model = nn.Linear(2, 1)
    optimizer = lrfast.SGD(model.parameters(), lr=0.1)
    losses = make_scripted([math.nan] * 20)
    result = lr_find(
        model, optimizer, [None], compute_loss=losses, num_iter=20, verify=4, progress=False
    )
    assert result.race is None and result.rule == "verified"
    assert result.suggestion.lr is None and result.suggestion.rule == "verified"
