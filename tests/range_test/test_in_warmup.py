"""The range test within the warm-up: its rollback, its schedule, and its resumption."""

from __future__ import annotations

import copy
import io
import math
from functools import partial
from typing import Any

import pytest
import torch
from captures import Training, assert_same, copied, make_batches
from cases import OPTIMIZERS, STATEFUL, OptimizerCase, by_name
from device_reads import NoDeviceReads
from torch import Tensor, nn

import lrfast
from lrfast import schedules as S
from lrfast.range_test import WarmupSearch

TOTAL, SWEEP = 60, 24
ONE_CYCLE = S.one_cycle(TOTAL, pct_start=0.4, momentum=None)
PLANS: dict[str, S.Schedule] = {
    "one-cycle": ONE_CYCLE,
    "cosine": S.cosine(TOTAL, eta_min=0.1),
    "wsd": S.wsd(TOTAL, warmup_steps=5, decay_steps=20),
    "flat-cosine": S.flat_cosine(TOTAL),
}
Batch = tuple[Tensor, Tensor]


class Run:
    """A training with batch norm and three param groups, and its search."""

    def __init__(
        self,
        case: OptimizerCase,
        device: torch.device | str = "cpu",
        *,
        searches: bool = True,
        plan: S.Schedule = ONE_CYCLE,
        seed: int = 5,
        end_lr: float | None = None,
        **options: Any,
    ) -> None:
        torch.manual_seed(seed)
        body = nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.Tanh())
        self.model = nn.Sequential(body, nn.Linear(9, 3)).to(device)
        groups = case.groups(list(self.model.parameters()))
        for group in groups:  # uphill there is no lowest loss
            group["maximize"] = False
        kept = {name: value for name, value in case.options.items() if name != "maximize"}
        self.optimizer = case.ours(groups, **kept, ema_decay=0.9, max_grad_norm=1.0, **options)
        self.optimizer.average_buffers(self.model)
        self.search: WarmupSearch | None = None
        if searches:
            self.search = lrfast.find_in_warmup(
                *(self.model, self.optimizer, plan), num_iter=SWEEP, end_lr=end_lr, batch_size=8
            )

    def step(self, batch: Batch, factor: float = 1.0) -> Tensor:
        self.optimizer.zero_grad()
        loss = factor * nn.functional.cross_entropy(self.model(batch[0]), batch[1])
        loss.backward()
        self.optimizer.step()
        if self.search is not None:
            self.search.observe(loss)
        return loss.detach()

    def memory(self) -> dict[str, Any]:
        state = self.optimizer.state_dict()["state"]
        states = {f"{i} {name}": v for i, each in state.items() for name, v in each.items()}
        averages = self.optimizer._buffer_averages.state_dict()
        return self.model.state_dict() | states | {f"ema {k}": v for k, v in averages.items()}

    def state_dict(self) -> dict[str, Any]:
        assert self.search is not None
        parts = {"model": self.model, "optimizer": self.optimizer, "search": self.search}
        return {name: part.state_dict() for name, part in parts.items()}

    def load(self, saved: dict[str, Any]) -> None:
        assert self.search is not None
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"], schedule="saved")
        self.search.load_state_dict(saved["search"])


def saved_and_read(state: dict[str, Any], device: torch.device | None = None) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, map_location=device, weights_only=True)


@pytest.mark.parametrize("case", OPTIMIZERS, ids=by_name)
def test_the_rest_is_a_run_that_is_given_the_schedule_after_the_first_step(
    case: OptimizerCase, device: torch.device
) -> None:
    batches = make_batches(TOTAL, device)
    run = Run(case, device)
    for batch in batches:
        run.step(batch)
    assert run.search is not None and run.search.result is not None
    result, spent = run.search.result, run.search.spent
    lr = [float(group["lr"]) for group in run.optimizer.param_groups]

    other = Run(case, device, searches=False)
    first = result.sweep.table(1)[0]
    for group, rate in zip(other.optimizer.param_groups, first, strict=True):
        group["lr"] = float(rate)
    other.step(batches[0])
    for group, rate in zip(other.optimizer.param_groups, lr, strict=True):
        group["lr"] = rate
    other.optimizer.set_schedule(ONE_CYCLE.extend_to(TOTAL - spent))
    for batch in batches[spent:]:
        other.step(batch)
    assert 5 < spent <= SWEEP
    assert_same(copied(run.memory()), copied(other.memory()))


@pytest.mark.parametrize("name", PLANS)
def test_no_step_is_spent_beyond_the_plan(name: str) -> None:
    run = Run(STATEFUL[1], plan=PLANS[name])
    rates = []
    for batch in make_batches(TOTAL):
        run.step(batch)
        rates.append(run.optimizer.last_rates.clone())
    assert run.search is not None and run.search.result is not None
    result, spent = run.search.result, run.search.spent
    peaks = [float(group["lr"]) for group in run.optimizer.param_groups]
    assert run.optimizer.schedule_step == TOTAL
    assert {each.total_steps for each in run.optimizer.schedules} == {TOTAL}
    # The sweep as it was, and then the whole plan in the steps that are left.
    swept = torch.from_numpy(result.sweep.table(spent))
    torch.testing.assert_close(torch.stack(rates[:spent]), swept, rtol=1e-12, atol=0)
    left = TOTAL - spent
    planned = PLANS[name].extend_to(left).values(range(left))
    expected = torch.from_numpy(planned)[:, None] * torch.tensor(peaks, dtype=torch.float64)
    torch.testing.assert_close(torch.stack(rates[spent:]), expected, rtol=1e-12, atol=0)
    # And the attached schedule tells of both.
    shown = torch.from_numpy(run.optimizer.planned().rates)
    torch.testing.assert_close(shown, torch.stack(rates), rtol=1e-9, atol=1e-300)
    assert result.lrs.tolist() == pytest.approx(result.sweep.table(len(result.lrs))[:, 2].tolist())
    assert any(f"{spent} of {TOTAL} steps" in note for note in result.notes)
    assert result.snapshot_bytes > 0


@pytest.mark.parametrize(
    ("plan", "first"),
    [
        (S.sgdr(40, 1, 3, eta_min=0.1), 40),
        (S.sgdr(40, 1.5, 2, eta_min=0.1), 40),
        (S.cyclic(15, 20, 0.3, momentum=(0.9, 0.7)).lasting(105), 35),
    ],
    ids=["alike", "longer", "triangles"],
)
def test_of_cycles_only_the_first_makes_up_for_the_sweep(plan: S.Schedule, first: int) -> None:
    run, total = Run(STATEFUL[1], plan=plan), plan.total_steps
    for batch in make_batches(total):
        run.step(batch)
    assert run.search is not None and run.search.result is not None
    spent, schedule = run.search.spent, run.optimizer.schedules[2]
    assert schedule is not None and schedule.total_steps == run.optimizer.schedule_step == total
    later = range(first, total + 7)
    assert schedule.values(later).tolist() == plan.values(later).tolist()
    rest = plan.extend_to(total - spent, until=first).values(range(first - spent))
    torch.testing.assert_close(schedule.values(range(spent, first)), rest, rtol=1e-12, atol=0)


def test_cycles_shorter_than_the_sweep_are_as_they_were() -> None:
    plan = S.sgdr(SWEEP, 1, 3, eta_min=0.1)
    run = Run(STATEFUL[1], plan=plan)
    for batch in make_batches(plan.total_steps):
        run.step(batch)
    assert run.search is not None
    spent, schedule = run.search.spent, run.optimizer.schedules[2]
    assert schedule is not None and schedule.total_steps == plan.total_steps
    left = plan.total_steps - spent
    rest = plan.extend_to(left).values(range(left))
    assert schedule.values(range(spent, plan.total_steps)).tolist() == rest.tolist()


@pytest.mark.parametrize(
    ("plan", "points"),
    [
        (S.one_cycle(700), 70),
        (S.one_cycle(2000), 100),
        (S.one_cycle(90), 20),
        (S.sgdr(100, 2, 3), 50),
        (S.sgdr(30, 1, 9), 20),
        (S.sgdr(20, 1, 50), 100),  # in which no sweep fits
    ],
)
def test_how_long_a_sweep_is(plan: S.Schedule, points: int) -> None:
    model = nn.Linear(3, 2)
    search = lrfast.find_in_warmup(model, lrfast.SGD(model.parameters(), lr=0.1), plan)
    assert search._sweep.num_iter == points


def test_ratios_between_groups_survive() -> None:
    run = Run(STATEFUL[1])
    for batch in make_batches(TOTAL):
        run.step(batch)
    assert run.search is not None and run.search.result is not None
    peaks = [group["lr"] for group in run.optimizer.param_groups]
    assert peaks == pytest.approx([p * peaks[0] / 1.0 for p in (1.0, 0.3, 1.7)])
    assert peaks[2] == pytest.approx(run.search.result.suggestion.lr)


@pytest.mark.parametrize("case", STATEFUL, ids=by_name)
def test_resuming_anywhere_changes_no_bit(case: OptimizerCase, device: torch.device) -> None:
    batches = make_batches(TOTAL, device)
    run = Run(case, device, end_lr=1e4)
    states = [copy.deepcopy(run.state_dict())]
    for batch in batches:
        run.step(batch)
        states.append(copy.deepcopy(run.state_dict()))
    assert run.search is not None
    spent = run.search.spent
    assert spent < SWEEP  # a resumed run reads the divergence as late as this one
    for step in (0, 1, 2, 6, spent - 2, spent - 1, spent, TOTAL - 2):
        other = Run(case, device, seed=step)
        other.load(saved_and_read(states[step]))
        for batch in batches[step:]:
            other.step(batch)
        assert other.search is not None and other.search.spent == spent, step
        assert_same(copied(run.memory()), copied(other.memory()))
        assert other.optimizer.schedules == run.optimizer.schedules
        assert repr(other.search.result) == repr(run.search.result)


@pytest.mark.parametrize("is_home", [False, True], ids=["host", "device"])
def test_a_checkpoint_may_be_read_to_either_memory(is_home: bool, device: torch.device) -> None:
    batches = make_batches(TOTAL, device)
    run, other = Run(STATEFUL[1], device), Run(STATEFUL[1], device, seed=6)
    for batch in batches[:9]:
        run.step(batch)
    memory = device if is_home else torch.device("cpu")
    other.load(saved_and_read(run.state_dict(), memory))
    for batch in batches[9:]:
        run.step(batch)
        other.step(batch)
    assert_same(copied(run.memory()), copied(other.memory()))


def test_a_state_dict_holds_the_rollback_point_only_during_the_sweep() -> None:
    run = Run(STATEFUL[1])
    states = []
    for batch in make_batches(TOTAL):
        run.step(batch)
        states.append(run.state_dict()["search"])
    assert run.search is not None
    held = [state["point"] is not None for state in states]
    assert held == [step < run.search.spent for step in range(1, TOTAL + 1)]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_sweep_two_steps_later(value: float) -> None:
    run = Run(STATEFUL[1], skip_nonfinite=False)
    for step, batch in enumerate(make_batches(TOTAL)):
        run.step(batch, factor=value if step == 9 else 1.0)
    assert run.search is not None and run.search.result is not None
    assert run.search.spent == 12
    assert run.search.result.outcome == "non-finite" and len(run.search.result.losses) == 10
    assert all(torch.isfinite(p).all() for p in run.model.parameters())
    assert all(torch.isfinite(b).all() for b in run.model.buffers())


def scripted(losses: list[float], **options: Any) -> WarmupSearch:
    """Observe losses that no model makes."""
    param = nn.Parameter(torch.ones(3))
    optimizer = lrfast.SGD([param], lr=0.1)
    model = nn.Module()
    model.weight = param
    options = {"num_iter": 40, "start_lr": 1e-4, "end_lr": 1.0} | options
    search = lrfast.find_in_warmup(model, optimizer, S.cosine(100), **options)
    for loss in losses:
        param.grad = torch.full((3,), 0.01)
        optimizer.step()
        if search.observe(torch.tensor(loss, dtype=torch.float64)) is not None:
            break
    return search


def curve(rise: float) -> list[float]:
    """Noise, a fall from 3 to 2, and a rise."""
    generator = torch.Generator().manual_seed(2)
    noise = (0.01 * torch.randn(100, generator=generator, dtype=torch.float64)).tolist()
    fall = [3.0 - max(0, min(i - 10, 10)) / 10 for i in range(100)]
    return [n + f + rise * max(0, i - 22) for i, (n, f) in enumerate(zip(noise, fall, strict=True))]


@pytest.mark.parametrize(("shift", "unit"), [(0.0, 1.0), (100.0, 1.0), (-3.0, 1.0), (0.0, 1e3)])
def test_the_end_of_the_sweep_ignores_the_unit_of_the_loss(shift: float, unit: float) -> None:
    losses = [unit * (loss + shift) for loss in curve(0.2)]
    search = scripted(losses)
    assert search.spent == scripted(curve(0.2)).spent
    assert 22 < search.spent < 40
    assert search.result is not None and search.result.outcome == "diverged"


def test_a_sweep_without_a_rise_takes_all_its_points() -> None:
    search = scripted(curve(0.0))
    assert search.spent == 40 and search.result is not None
    assert search.result.outcome == "completed"


def test_noise_alone_rarely_ends_the_sweep() -> None:
    generator = torch.Generator().manual_seed(3)
    noise = (5 + torch.randn(40, 60, generator=generator)).tolist()
    assert sum(scripted(losses).spent < 40 for losses in noise) <= 1


def test_without_a_suggestion_it_trains_at_what_is_usual() -> None:
    search = scripted([5.0] * 60)
    assert search.result is not None
    lr = search._optimizer.param_groups[0]["lr"]
    assert search.result.suggestion.lr in (None, lr)
    assert 1e-4 < lr < 10
    note = [each for each in search.result.notes if "no suggestion" in each]
    assert bool(note) == (search.result.suggestion.lr is None)


def test_the_default_range_lies_around_the_typical_learning_rate() -> None:
    layer = nn.Linear(4, 2)
    optimizer = lrfast.AdamW(layer.parameters(), lr=0.5)
    search = lrfast.find_in_warmup(layer, optimizer, S.cosine(400))
    low, high = search._sweep.ranges[0]
    weight, bias = (float(p.detach().square().mean().sqrt()) for p in layer.parameters())
    rms = (8 * weight + 2 * bias) / 10
    typical = lrfast.suggest.typical_rate("AdamW", 10, weight_rms=rms)
    assert typical is not None
    assert (low, high) == pytest.approx((typical / 1e3, typical * 300), rel=1e-6)
    assert search._sweep.num_iter == 40


def test_no_step_of_the_sweep_reads_the_device() -> None:
    batches = make_batches(TOTAL)
    run = Run(STATEFUL[1])
    run.step(batches[0])
    with NoDeviceReads():
        for batch in batches[1:8]:
            run.step(batch)
    assert run.search is not None and run.search.result is None and run.search.spent == 8


def test_a_captured_step_stays_valid_through_the_rollback(device: torch.device) -> None:
    """The schedule, the rates and the weights change under the graph, which is not made again."""
    seen = []
    for captured in (False, True):
        training = Training(
            partial(lrfast.AdamW, betas=(0.8, 0.95), weight_decay=0.1), device, zeroing="before"
        )
        step = training.capture() if captured else training.step
        torch.manual_seed(17)
        search = lrfast.find_in_warmup(
            training.model, training.optimizer, S.one_cycle(TOTAL), num_iter=SWEEP
        )
        losses = []
        for batch in make_batches(TOTAL, device):
            loss = step(batch)
            losses.append(loss.detach().clone())
            search.observe(loss)
        assert search.result is not None and training.optimizer.schedule_step == TOTAL
        seen.append((copied(training.memory()), search.spent, torch.stack(losses)))
        if captured:
            step.release()
    assert_same(seen[0][0], seen[1][0])
    assert seen[0][1] == seen[1][1] and torch.equal(seen[0][2], seen[1][2])


def test_steps_that_a_scaler_skips_are_spent_and_add_no_point(device: torch.device) -> None:
    """The plan is one of batches; the learning rate of a skipped step comes once more."""
    run = Run(STATEFUL[1], device)
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**9, growth_interval=9)
    assert run.search is not None
    for step, batch in enumerate(make_batches(TOTAL, device)):
        run.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(run.model(batch[0]), batch[1])
        scaler.scale(loss).backward()
        if step in (0, 5):
            next(run.model.parameters()).grad.fill_(math.inf)  # type: ignore[union-attr]
        scaler.step(run.optimizer)
        scaler.update()
        run.search.observe(loss)
    result, spent = run.search.result, run.search.spent
    assert result is not None and spent == SWEEP and len(result.lrs) == SWEEP - 2
    assert result.lrs.tolist() == result.sweep.table(SWEEP - 2)[:, 2].tolist()
    assert run.optimizer.schedule_step == TOTAL


def small() -> tuple[nn.Module, lrfast.SGD]:
    layer = nn.Linear(2, 1)
    return layer, lrfast.SGD(layer.parameters(), lr=0.1, momentum=0.7)


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "sweep as long as the plan": ({"num_iter": 50}, ValueError, "num_iter must be below the 50"),
    "one point": ({"num_iter": 1}, ValueError, "num_iter must be a whole number, 2 or more"),
    "plan below the default": (
        {"schedule": S.cosine(20)},
        ValueError,
        "more than 20 steps .* got 20; run lr_find",
    ),
    "no schedule": (
        {"schedule": [None]},
        TypeError,
        r"schedule\[0\] must be an lrfast.schedules.Schedule",
    ),
    "two for one group": ({"schedule": [S.cosine(50)] * 2}, ValueError, "one per group"),
    "lookup": ({"schedule": S.from_function(lambda s: 1 / (1 + s), 50)}, ValueError, "lookup"),
    "negative start": ({"start_lr": -1.0}, ValueError, "start_lr must be finite and above 0"),
    "end below start": ({"start_lr": 1.0, "end_lr": 0.1}, ValueError, "end_lr must be above"),
    "batch size": ({"batch_size": 0}, ValueError, "batch_size must be a whole number, 1 or more"),
    "targets": ({"targets": -1}, ValueError, "targets must be a whole number, 1 or more"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name: str) -> None:
    model, optimizer = small()
    options, kind, message = BAD[name]
    with pytest.raises(kind, match=message) as caught:
        lrfast.find_in_warmup(model, optimizer, **({"schedule": S.cosine(50)} | options))
    assert "\n" not in str(caught.value)
    assert optimizer.param_groups[0]["lr"] == 0.1 and not any(optimizer.schedules)


def test_bad_optimizers() -> None:
    model, optimizer = small()
    with pytest.raises(TypeError, match=r"optimizer must be one of lrfast's, got SGD; lrfast.wrap"):
        lrfast.find_in_warmup(model, torch.optim.SGD(model.parameters(), lr=0.1), S.cosine(50))
    optimizer.set_schedule(S.cosine(50))
    with pytest.raises(ValueError, match=r"optimizer must have no schedule .* got cosine; pass it"):
        lrfast.find_in_warmup(model, optimizer, S.cosine(50))
    model, optimizer = small()
    torch.optim.lr_scheduler.StepLR(optimizer, 3)
    with pytest.raises(ValueError, match=r"optimizer must have no scheduler of torch"):
        lrfast.find_in_warmup(model, optimizer, S.cosine(50))
    model, optimizer = small()
    lrfast.Plateau(optimizer)
    with pytest.raises(ValueError, match=r"optimizer must have no loss schedule .* got a Plateau"):
        lrfast.find_in_warmup(model, optimizer, S.cosine(50))


def test_a_model_without_parameters() -> None:
    model, optimizer = small()
    search = lrfast.find_in_warmup(model, optimizer, S.cosine(50))
    parts = (search._schedules, search._sweep, search.data_size)
    with pytest.raises(ValueError, match="model must have parameters, got ReLU without any"):
        WarmupSearch(nn.ReLU(), optimizer, *parts)


def test_bad_losses() -> None:
    model, optimizer = small()
    search = lrfast.find_in_warmup(model, optimizer, S.cosine(50), num_iter=10)
    with pytest.raises(TypeError, match="tensor"):
        search.observe(0.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="scalar"):
        search.observe(torch.ones(3))
    assert search.spent == 0
    for _ in range(9):
        search.observe(torch.tensor(1.0))
    for _ in range(2):  # the second time as the first
        with pytest.raises(ValueError, match=r"after optimizer.step\(\), got 10 losses and no"):
            search.observe(torch.tensor(1.0))


def test_bad_state_dicts_change_nothing() -> None:
    batches = make_batches(8)
    run = Run(STATEFUL[1])
    for batch in batches:
        run.step(batch)
    good = saved_and_read(run.state_dict())["search"]
    spoiled: list[tuple[dict[str, Any], str]] = [
        ({"format": 2}, "format must be 1, got 2"),
        ({"spent": 99}, "spent must be 24 at most, and the curve as long, got 99"),
        ({"point": None}, "point must be there during the sweep"),
        ({"point": {"param/0/0": torch.ones(2)}}, r"point must hold param/0/0 of shape"),
        ({"point": {}}, "point must hold"),
        ({"curve": {"state": torch.ones(2)}}, "curve must hold .losses."),
        ({"late": [torch.ones(2).double()] * 2}, "late must have .* numbers, got 2"),
        ({"late": good["late"][:1]}, "late must be of the last 2 of 8 losses, got 1"),
        ({"schedules": good["schedules"][:1]}, "state_dict must be of 3 param groups"),
        ({"weights": [1.0]}, "weights"),
        ({"sweep": {}}, "got one that is broken: KeyError"),
    ]
    before = copied(run.memory())
    assert run.search is not None
    for change, message in spoiled:
        with pytest.raises(ValueError, match=message):
            run.search.load_state_dict(good | change)
        with pytest.raises(ValueError, match="state_dict"):
            run.search.load_state_dict({k: v for k, v in good.items() if k not in change})
    after = saved_and_read(run.state_dict())["search"]
    assert repr(after) == repr(good)
    assert_same(before, copied(run.memory()))
