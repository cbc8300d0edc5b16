"""`lrfast.bench`: equal work, no trace of it, and losses called losses."""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import cross_entropy, make_batches, make_model, trace
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR, OneCycleLR

import lrfast
from lrfast import BenchResult, bench
from lrfast.tools import cli
from lrfast.tools.bench import _contenders, _timing

FAST = {"seconds": 1e-3}
FORWARD = "forward + backward"
UPDATES: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, dampening=0.3, weight_decay=0.01),
    "sgd-plain": lambda p: torch.optim.SGD(p, 0.05, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, betas=(0.8, 0.95), weight_decay=0.1),
    "amsgrad": lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.1, amsgrad=True),
    "nadam": lambda p: torch.optim.NAdam(p, 0.01, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.05, lr_decay=0.1, weight_decay=0.1),
    "fused": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1, fused=True),
    "ours": lambda p: lrfast.AdamW(
        p,
        lr=0.01,
        weight_decay=0.1,
        max_grad_norm=0.1,
        ema_decay=0.9,
        schedule=lrfast.schedules.cosine(50),
    ),
    "muon": lambda p: torch.optim.Muon([each for each in p if each.dim() == 2], 0.01),
    "ours-muon": lambda p: lrfast.Muon([each for each in p if each.dim() == 2], 0.01, 0.2),
    "ours-zeroing": lambda p: lrfast.SGD(p, lr=0.05, momentum=0.9, zero_grads=True),
}
NO_FUSED = {"nadam", "rmsprop", "fused", "muon", "ours-muon"}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 2) -> None:
    for inputs, targets in make_batches(steps):
        optimizer.zero_grad()
        cross_entropy(model(inputs), targets).backward()
        optimizer.step()


@pytest.mark.parametrize("kind", UPDATES)
def test_every_optimizer_and_no_trace(kind: str) -> None:
    """With its states, on a batch, without touching anything: gradients, states, generators."""
    model = make_model()
    optimizer = UPDATES[kind](model.parameters())
    train(model, optimizer)
    before, generator = trace(model, optimizer), torch.get_rng_state()
    grads = [param.grad for param in model.parameters()]
    values = [grad.clone() for grad in grads if grad is not None]
    result = bench(model, optimizer, make_batches(1)[0], cross_entropy, **FAST)
    assert trace(model, optimizer) == before
    assert torch.equal(torch.get_rng_state(), generator)
    for param, grad, value in zip(model.parameters(), grads, values, strict=True):
        assert param.grad is grad and torch.equal(value, param.grad)
    assert 0 < result.difference <= 1
    wanted = {"torch", "lrfast"} | (set() if kind in NO_FUSED else {"torch, fused=True"})
    assert result.times.keys() == wanted
    size = (4 * 8 + 54 + 12, 3) if "muon" in kind else (4 * 8 + 8 + 16 + 54 + 21, 8)
    assert (result.parameters, result.tensors, result.groups) == (*size, 1)
    train(model, optimizer)  # and goes on


def test_parts_and_what_is_made_of_them() -> None:
    model = make_model()
    optimizer = UPDATES["adamw"](model.parameters())
    scheduler = OneCycleLR(optimizer, 0.1, 12)
    before = trace(model, optimizer), dict(scheduler.state_dict())
    options = {"scheduler": scheduler, "max_grad_norm": 0.1, "ema_decay": 0.9}
    result = bench(model, optimizer, make_batches(1)[0], cross_entropy, **options, **FAST)
    assert (trace(model, optimizer), scheduler.state_dict()) == before
    parts = [FORWARD, "clip", "step", "average", "scheduler", "zero_grad", "update"]
    assert list(result.times["torch"]) == parts
    assert list(result.times["lrfast"]) == [FORWARD, "step", "zero_grad", "update"]
    for times in result.times.values():
        assert all(0 < low <= median <= high for low, median, high in times.values())
    assert result.median("torch") > result.median("torch", "step")
    assert result.median("lrfast", "clip") == 0.0
    assert result.bytes_moved == 131 * (4 * 4 + 4 * 4 + 8)  # a norm, two states and an average
    assert result.bandwidth is None and result.bandwidth_share("lrfast") is None
    assert result.update_share is not None and 0 < result.update_share < 1
    without = bench(model, optimizer, **FAST)
    assert without.update_share is None and without.step_ratio is None
    assert without.bytes_moved == 131 * 28
    plain = bench(model, UPDATES["sgd-plain"](model.parameters()), **FAST)
    assert plain.bytes_moved == 131 * 12


@pytest.mark.parametrize("kind", ["adamw", "ours"])
def test_the_rates_are_those_of_the_schedule(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is timed steps by the user's scheduler on both sides, and starts over at its end."""
    model = make_model()
    optimizer = UPDATES[kind](model.parameters())
    scheduler = ExponentialLR(optimizer, 0.5) if kind == "adamw" else None
    held: dict[str, Any] = {}
    real = _timing.measure

    def measure(contenders: Any, *rest: Any) -> Any:
        held.update(contenders)
        return real(contenders, *rest)

    monkeypatch.setattr(
        sys.modules["lrfast.tools.bench"], "measure", measure
    )  # behind the function
    monkeypatch.setattr(_timing, "ROUNDS", (2, 2))
    bench(model, optimizer, scheduler=scheduler, **FAST)
    ours, theirs = held["lrfast"].optimizer, held["torch"].optimizer
    rounds = _timing.WARM_UP + 2
    assert ours._clock()[0] == rounds
    assert theirs.param_groups[0]["lr"] == pytest.approx(ours.get_last_lr()[0])
    assert theirs.param_groups[0]["lr"] != optimizer.param_groups[0]["lr"]
    start = theirs.param_groups[0]["lr"]
    monkeypatch.setattr(_contenders, "SCHEDULE_STEPS", 3)
    bench(model, optimizer, scheduler=scheduler, **FAST)
    assert held["torch"].optimizer.param_groups[0]["lr"] > start


def test_bandwidth_of_large_parameters() -> None:
    model = nn.Linear(1500, 1000)
    result = bench(model, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9), **FAST)
    assert result.bandwidth is not None and result.bandwidth > 1e8
    moved = result.bytes_moved / result.median("lrfast") * 1e6
    assert result.bandwidth_share("lrfast") == pytest.approx(moved / result.bandwidth)
    assert "of the bandwidth" in result.table() and "GB/s" in result.table()


def made(ours: float, theirs: float, forward: float | None = None) -> BenchResult:
    parts = {} if forward is None else {FORWARD: (forward, forward, forward)}
    times = {
        name: {**parts, "step": (0.5 * t, t, 2 * t), "update": (0.5 * t, t, 2 * t)}
        for name, t in {"torch": theirs, "lrfast": ours}.items()
    }
    return BenchResult("torch's SGD", "cpu", 7, 2, 1, times, times, 140, None, 0.5, 9)


def test_a_loss_is_called_a_loss() -> None:
    loses = made(ours=30.0, theirs=20.0, forward=70.0)
    assert loses.ratio == pytest.approx(2 / 3) and loses.saved_us == -10
    assert "lrfast's update is 1.50 times slower and costs 10.0 us per step." in loses.table()
    assert loses.update_share == pytest.approx(2 / 9) and loses.step_ratio == pytest.approx(0.9)
    assert "whole step takes 111% of its time" in loses.table()
    wins = made(ours=10.0, theirs=25.0)
    assert "is 2.50 times faster and saves 15.0 us per step." in wins.table()
    assert "torch's SGD on cpu: 7 parameters in 2 tensors, 1 group; 9 rounds" in wins.table()
    rows = {row[0]: row[1:] for row in made(ours=1.0, theirs=1600.0).rows()}
    assert rows["update"] == ("1,600", "1.0")
    quartiles = (rows["update, lower quartile"], rows["upper quartile"])
    assert quartiles == (("800.0", "0.5"), ("3,200", "2.0"))


def test_torchs_faster_way_is_named() -> None:
    result = made(ours=10.0, theirs=50.0)
    result.times["torch, fused=True"] = {"update": (20.0, 20.0, 20.0)}
    assert "Next to torch, fused=True, the faster way in torch, the ratio is 2.00." in (
        result.summary()
    )
    result.times["torch, fused=True"] = {"update": (60.0, 60.0, 60.0)}
    assert not any("Next to" in line for line in result.summary())


def test_unequal_work_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = lrfast.optim.wrap

    def wrong(optimizer: torch.optim.Optimizer, **options: Any) -> Any:
        optimizer.param_groups[0]["weight_decay"] = 0.2
        return real(optimizer, **options)

    monkeypatch.setattr(lrfast.optim, "wrap", wrong)
    model = make_model()
    with pytest.raises(RuntimeError, match="lrfast does not do the same as the optimizer given"):
        bench(model, UPDATES["adamw"](model.parameters()), **FAST)


def test_not_a_number_is_not_the_same() -> None:
    model = nn.Linear(2, 2)
    nn.init.constant_(model.weight, torch.nan)
    with pytest.raises(RuntimeError, match="a parameter is nan times"):
        bench(model, UPDATES["sgd"](model.parameters()), **FAST)


def odd(p: Any) -> torch.optim.Optimizer:
    return torch.optim.Rprop(p)


def scheduled(b: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    return bench(b, optimizer, scheduler=ExponentialLR(optimizer, 0.5))


def ended(b: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    scheduler = OneCycleLR(optimizer, 0.1, 4)
    for _ in range(2):
        optimizer.step()
        scheduler.step()
    return bench(b, optimizer, scheduler=scheduler)


Call = Callable[[nn.Module], Any]
ERRORS: list[tuple[str, Call, type[Exception], str]] = [
    ("rule", lambda m: bench(m, odd(m.parameters())), TypeError, "torch.optim SGD, .*Rprop"),
    ("lion", lambda m: bench(m, lrfast.Lion(m.parameters())), TypeError, "counterpart.*got Lion"),
    (
        "rounding",
        lambda m: bench(m, lrfast.SGD(m.parameters(), stochastic_rounding=True)),
        ValueError,
        "what torch can do",
    ),
    *[
        (
            name,
            lambda m, name=name, value=value: bench(
                m, lrfast.AdamW(m.parameters(), **{name: value})
            ),
            ValueError,
            f"what torch can do, .*{name}",
        )
        for name, value in (("master", "24bit"), ("cautious", True), ("clipping_threshold", 1.0))
    ],
    (
        "states of a group",
        lambda m: bench(m, lrfast.SGD([{"params": m.parameters(), "state_dtype": "8bit"}], 0.1)),
        ValueError,
        "what torch can do",
    ),
    (
        "muon and adamw",
        lambda m: bench(m, lrfast.Muon(lrfast.muon_groups(m, 0.02, 1e-3))),
        ValueError,
        "param_groups must be of rule 'muon', .* got some of 'adamw'",
    ),
    (
        "both",
        lambda m: bench(m, UPDATES["ours"](m.parameters()), max_grad_norm=1.0),
        ValueError,
        "must be None for an optimizer of lrfast",
    ),
    (
        "both schedules",
        lambda m: scheduled(m, UPDATES["ours"](m.parameters())),
        ValueError,
        "scheduler, .* must be None",
    ),
    (
        "no steps left",
        lambda m: ended(m, UPDATES["sgd"](m.parameters())),
        ValueError,
        "scheduler must have 3 steps left, got one at 2",
    ),
    *[
        (
            f"seconds {s}",
            lambda m, s=s: bench(m, UPDATES["sgd"](m.parameters()), seconds=s),
            ValueError,
            "seconds must be finite and above 0",
        )
        for s in (0, -1, float("nan"), float("inf"))
    ],
    (
        "no batch",
        lambda m: bench(m, UPDATES["sgd"](m.parameters()), loss_fn=cross_entropy),
        ValueError,
        "batch must be given where a loss is",
    ),
    (
        "norm",
        lambda m: bench(m, UPDATES["sgd"](m.parameters()), max_grad_norm=-1.0),
        ValueError,
        "max_grad_norm must be finite and above 0",
    ),
]


@pytest.mark.parametrize("case", ERRORS, ids=[case[0] for case in ERRORS])
def test_errors(case: tuple[str, Call, type[Exception], str]) -> None:
    _, call, error, message = case
    with pytest.raises(error, match=message):
        call(make_model())


MEMORIES: list[tuple[type[lrfast.optim.FusedOptimizer], dict[str, Any], int]] = [
    (lrfast.AdamW, {"ema_decay": 0.9}, 12),
    (lrfast.SGD, {}, 12),
    (lrfast.RMSprop, {"momentum": 0.9}, 12),
    (lrfast.Adagrad, {}, 8),  # without codes
    (lrfast.Muon, {}, 4),  # without masters, too
]


@pytest.mark.parametrize("case", MEMORIES, ids=[cls.__name__ for cls, _, _ in MEMORIES])
def test_memory_is_that_of_such_an_optimizer(case: Any) -> None:
    """Of one that has been made so, in every row; what the rule refuses has none."""
    cls, options, count = case
    plain, unused, other = nn.Linear(90, 64, False), nn.Linear(9, 5, False), nn.Linear(4, 3, False)
    model = nn.ModuleList([plain, unused, other.double()])

    def compute_loss(model: Any, scale: float) -> torch.Tensor:
        return scale * sum(each.weight.sum().float() for each in (model[0], model[2]))

    result = bench(
        model, cls(model.parameters(), **options), 2.0, compute_loss=compute_loss, **FAST
    )
    dtypes: dict[str, Any] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "8bit": "8bit"}
    for (weights, states), found in result.memory.items():
        dtype, _, master = weights.removesuffix(" master").partition(", ")
        half = copy.deepcopy(model)
        half[0].to(dtypes[dtype])
        half[1].to(dtypes[dtype])
        kept = {"master": master or None, "state_dtype": dtypes[states]}
        optimizer = cls(half.parameters(), **options, **kept)
        compute_loss(half, 2.0).backward()
        optimizer.step()
        assert found == optimizer.memory(), (weights, states)
    assert len(result.memory) == count


def test_the_table_of_memory() -> None:
    model = nn.Linear(90, 64, bias=False)
    table = bench(model, torch.optim.AdamW(model.parameters()), **FAST).memory_table()
    cells = {tuple(line.split()[:4]) for line in table.splitlines()}
    assert {("float32", "none", "float32", "8.00"), ("bfloat16", "24bit", "8bit", "3.01")} <= cells
    double = nn.Linear(90, 64).double()  # which no row makes bfloat16
    memory = bench(double, torch.optim.AdamW(double.parameters()), **FAST).memory
    assert {weights for weights, _ in memory} == {"float32", "bfloat16"}


@pytest.mark.gpu
def test_on_a_gpu_nothing_waits_between_rounds() -> None:
    model = make_model().cuda()
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    batch = tuple(entry.cuda() for entry in make_batches(1)[0])
    result = bench(model, optimizer, batch, cross_entropy, max_grad_norm=1.0, **FAST)
    assert result.host_times != result.times and "update, host's time" in result.table()


SUBJECT = """
import torch
def good():
    model = torch.nn.Linear(3, 2)
    return model, torch.optim.SGD(model.parameters(), 0.1)
def scheduled():
    model, optimizer = good()
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, 9, cycle_momentum=False)
    loss = torch.nn.functional.mse_loss
    return model, optimizer, (torch.ones(4, 3), torch.ones(4, 2)), loss, scheduler
def bad():
    return 3
"""


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["mlp", "--clip", "0.1", "--ema", "0.9", "--optimizer", "SGD"], 0, "per step"),
        (["mlp", "--one-cycle", "--optimizer", "Adagrad"], 0, "scheduler"),
        (["subject:scheduled"], 0, "scheduler .*in the step"),
        (["subject:good"], 0, "torch's SGD on cpu: 8 parameters"),
        (["subject:bad"], 1, r"must return \(model, optimizer\).*got int"),
        (["subject:none"], 1, "must name a function, got 'subject:none'"),
        (["mlp"], 0, "float32 . none . 8bit .* bfloat16 . none . 8bit .* 32bit . 8bit"),
        (["cnn", "--optimizer", "SGD"], 0, "399,146 parameters in 14 tensors"),
        (["transformer", "--optimizer", "SGD"], 0, "3,240,970 parameters in 50 tensors"),
        (["mlp", "--optimizer", "None"], 1, "must be a class of torch.optim, got 'None'"),
        (["vgg"], 1, "target must be mlp, cnn, transformer or module:function, got 'vgg'"),
        (["mlp", "--optimizer", "Rprop"], 1, "lrfast bench: optimizer must be"),
    ],
)
def test_the_command(
    arguments: list[str],
    status: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "subject.py").write_text(SUBJECT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", ["lrfast", "bench", *arguments, "--seconds", "0.01"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    failed = isinstance(ended.value.code, str)  # what sys.exit prints
    text = str(ended.value.code) if failed else capsys.readouterr().out
    assert failed == bool(status) and re.search(message, re.sub(r"\s+", " ", text)), text
