"""Master weights: half parameters whose lost bits are kept beside them."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from captures import trained
from cases import OPTIMIZERS, OptimizerCase, by_name, random_grad
from optimizer_bits import bits
from torch import Tensor

import lrfast
from lrfast._utils.extension import extension

CODED = extension().coded_states
CASES = tuple(case for case in OPTIMIZERS if case.ours._rule in extension().master_rules)
FEW = tuple(case for case in CASES if case.name in ("sgd-nesterov", "adamw-amsgrad", "lion-plain"))
NUMEL = 4096 + 700  # states in 8 bits, whose last block is cut off
PRECISIONS = ("24bit", "32bit")
# Significant digits of a half, and the least exponent of its normal numbers.
HALVES = {torch.bfloat16: (8, -126), torch.float16: (11, -14)}
each_half = pytest.mark.parametrize("half", HALVES, ids=str)


def weights(*sizes: Any, half: torch.dtype = torch.bfloat16) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.randn(size).to(half)) for size in sizes]


def wide(params: list[Any]) -> list[torch.nn.Parameter]:
    """float32 twins of parameters, laid out alike."""
    return [torch.nn.Parameter(p.detach().to(torch.float32, copy=True)) for p in params]


def give(grads: list[Tensor], *owners: list[Any]) -> None:
    for params in owners:
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad.to(param.dtype, copy=True)


def cut(values: Tensor, digits: int, even: bool, least: int = -126) -> Tensor:
    """Round to so many significant binary digits, ties to even or away from zero.

    Numbers below two to the least exponent have as many places as those at it.
    """
    _, exponent = torch.frexp(values.double())
    places = exponent.clamp(min=least + 1) - digits
    scaled = torch.ldexp(values.double(), -places)
    whole = scaled.round() if even else scaled.sign() * (scaled.abs() + 0.5).floor()
    return torch.ldexp(whole, places)


def kept_of(weight: Tensor, half: torch.dtype, master: str | None) -> Tensor:
    """What a half and its bits keep of a float32, or, without bits, the nearest half to that."""
    digits, least = HALVES[half]
    if master is None:
        return cut(weight, digits, False, least)
    longer = cut(weight, digits + 16, True, least)
    return longer if master == "32bit" else cut(longer, digits + 8, True, least)


def expect_split(optimizer: Any, param: Any, weight: Tensor, master: str) -> None:
    """The master is the weight, rounded if that has more digits; the parameter is its rounding."""
    own = optimizer.master_params()[param]
    assert own.dtype == torch.float32
    assert torch.equal(own.double(), kept_of(weight, param.dtype, master))
    assert torch.equal(param.detach().double(), kept_of(own, param.dtype, None))


def run(optimizer: Any, steps: int, seed: int = 0) -> None:
    torch.manual_seed(seed)
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for _ in range(steps):
        give([random_grad(param) for param in params], params)
        optimizer.step()


@pytest.mark.parametrize("master", PRECISIONS)
@pytest.mark.parametrize("case", CASES, ids=by_name)
def test_every_step_is_float32s(case: OptimizerCase, master: Any) -> None:
    """To the bit, from the weight of before, with states of any dtype."""
    kinds: list[tuple[torch.dtype, Any]] = [
        (torch.bfloat16, dtype) for dtype in (torch.float32, torch.bfloat16, "8bit")
    ]
    # Of float16 some are tiny. Its states are float32 unless they are in 8 bits.
    kinds += [(torch.float16, dtype) for dtype in (None, "8bit") if case in FEW]
    for half, state_dtype in kinds:
        if state_dtype == "8bit" and case.ours._rule not in CODED:
            continue
        options = {**case.options, "state_dtype": state_dtype, "seed": 3}
        params = weights(50, (2, NUMEL // 2), half=half)
        params[0].data.mul_(1.0 if half is torch.bfloat16 else 2.0**-13)
        twins = wide(params)
        optimizer, theirs = case.ours(params, **options, master=master), case.ours(twins, **options)
        for _ in range(3):
            before = optimizer.master_params()
            for param, twin in zip(params, twins, strict=True):
                is_exact = master == "32bit" and half is torch.bfloat16
                assert not is_exact or torch.equal(twin, before[param])
                twin.data.copy_(before[param])
            give([random_grad(param) for param in params], params, twins)
            optimizer.step()
            theirs.step()
            for param, twin in zip(params, twins, strict=True):
                expect_split(optimizer, param, twin.detach(), master)
                for name, value in theirs.state[twin].items():
                    assert torch.equal(optimizer.state[param][name], value), name
        kept = {state["master_bits"].dtype for state in optimizer.state.values()}
        assert kept == {torch.int8 if master == "24bit" else torch.int16}


@each_half
@pytest.mark.parametrize("master", [None, *PRECISIONS])
def test_updates_that_a_half_loses(master: Any, half: torch.dtype) -> None:
    rate, steps = 2.0**-13, 100
    (param,) = weights(9, half=half)
    param.data.fill_(1.0)
    optimizer = lrfast.SGD([param], lr=rate, master=master)
    for _ in range(steps):
        param.grad = torch.ones_like(param)
        optimizer.step()
    weight = optimizer.master_params()[param].double()
    moved = 0.0 if master is None else rate * steps
    assert bool((weight == 1.0 - moved).all())
    assert bool((param.double() - weight).abs().max() <= 2.0**-9)


def laid_out(half: torch.dtype) -> list[torch.nn.Parameter]:
    """Gaps in memory, another order of dimensions, and plain ones, of which one needs no bits."""
    plain = torch.nn.Parameter(torch.randn(NUMEL).to(half))
    gaps = torch.nn.Parameter(torch.randn(40, 60).to(half)[:, ::2])
    turned = torch.randn(4, 3, 5, 5).to(half).contiguous(memory_format=torch.channels_last)
    return [plain, gaps, torch.nn.Parameter(turned), torch.nn.Parameter(torch.randn(7))]


@each_half
def test_all_that_a_step_does_besides(half: torch.dtype) -> None:
    """Clipping, scaling, EMA, zeroing, telemetry, a schedule, freezing: as of float32."""
    params = laid_out(half)
    tolerance = {"rtol": 0.0, "atol": 0.0 if half is torch.bfloat16 else 2.0**-30}
    twins, runs = wide(params), []
    for own, master in ((params, "32bit"), (twins, None)):
        groups: list[dict[str, Any]] = [{"params": own[:2]}, {"params": own[2:], "lr": 0.02}]
        optimizer = lrfast.AdamW(
            groups, lr=0.05, betas=(0.8, 0.9), weight_decay=0.1, max_grad_norm=1.5,
            zero_grads=True, ema_decay=0.7, telemetry=20, state_dtype=torch.float32,
            schedule=lrfast.schedules.one_cycle(12), master=master,
        )  # fmt: skip
        optimizer.grad_scale = torch.tensor(4.0)
        optimizer.found_inf = torch.tensor(0.0)
        runs.append(optimizer)
    for step in range(8):
        give([random_grad(param) for param in params], params, twins)
        for optimizer in runs:
            optimizer.found_inf.fill_(float(step == 3))
            optimizer.param_groups[1]["frozen"] = step > 5
            optimizer.step()
        assert all(not param.grad.any() for param in params if param.grad is not None)
    first, second = runs
    assert first.state[params[0]]["step"] == 7 and first.state[params[2]]["step"] == 5
    for param, twin in zip(params, twins, strict=True):
        assert torch.allclose(first.master_params()[param], twin, **tolerance)
        assert torch.allclose(first.state[param]["ema"], second.state[twin]["ema"], **tolerance)
    assert "master_bits" not in first.state[params[3]]
    for name in ("rates", "grad_norms", "update_norms", "weight_norms"):
        own, other = (getattr(optimizer.telemetry(), name) for optimizer in runs)
        assert torch.allclose(own, other, rtol=1e-6, atol=0.0)  # the sums' order is another
    before = bits(first)
    with first.ema_parameters():
        assert torch.equal(params[0], first.state[params[0]]["ema"].to(half))
    assert bits(first) == before


@pytest.mark.parametrize("master", PRECISIONS)
@pytest.mark.parametrize("case", FEW, ids=by_name)
def test_runs_go_on_bit_for_bit(case: OptimizerCase, master: Any) -> None:
    """From a state dict, from a copy and from a pickle."""
    options = {**case.options, "master": master, "state_dtype": "8bit"}
    optimizer = case.ours(weights(NUMEL, (3, 5)), **options)
    run(optimizer, 2)
    params = optimizer.param_groups[0]["params"]
    again = case.ours([torch.nn.Parameter(p.detach().clone()) for p in params], **options)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    others = [again, copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))]
    assert all(bits(other) == bits(optimizer) for other in others)
    run(optimizer, 2, seed=1)
    for other in others:
        run(other, 2, seed=1)
        assert bits(other) == bits(optimizer)


@each_half
def test_conversions(half: torch.dtype) -> None:
    """From 24 bits to 32 and back nothing is lost; without masters the parameter is the weight."""
    optimizer = lrfast.AdamW(weights(NUMEL, half=half), lr=0.01, master="32bit")
    run(optimizer, 3)
    (param,) = optimizer.param_groups[0]["params"]

    def loaded(source: Any, master: Any) -> tuple[Any, Tensor]:
        own = torch.nn.Parameter(param.detach().clone())
        target = lrfast.AdamW([own], lr=0.01, master=master)
        target.load_state_dict(copy.deepcopy(source.state_dict()))
        return target, target.master_params()[own]

    exact = optimizer.master_params()[param]
    shorter, less = loaded(optimizer, "24bit")
    ulp = torch.exp2(torch.frexp(exact)[1].float() - HALVES[half][0] - 8)
    near = (less - kept_of(exact, half, "24bit")).abs()
    assert bool((near <= ulp).all()) and bool((near == 0).float().mean() > 0.99)
    longer, same = loaded(shorter, "32bit")
    assert torch.equal(same, less) and torch.equal(loaded(longer, "24bit")[1], less)
    without, rounded = loaded(optimizer, None)
    assert torch.equal(rounded, param) and "master_bits" not in without.state_dict()["state"][0]
    for each in (shorter, longer, without):
        run(each, 1)
    assert set(optimizer.float32_state_dict()["state"][0]) == {"step", "exp_avg", "exp_avg_sq"}
    theirs = torch.optim.AdamW([torch.nn.Parameter(param.detach().clone())], foreach=False)
    theirs.load_state_dict(optimizer.float32_state_dict())
    theirs.param_groups[0]["params"][0].grad = torch.ones(NUMEL).to(half)
    theirs.step()
    ours = lrfast.wrap(theirs, master="24bit")
    run(ours, 1)
    assert ours.state[ours.param_groups[0]["params"][0]]["master_bits"].any()


CHANGES: dict[str, Any] = {
    "halved": lambda p: p.mul_(0.5),
    "negated": lambda p: p.neg_(),
    "zero": lambda p: p.zero_(),
    "negative zero": lambda p: p.zero_().neg_(),
    "another": lambda p: p.copy_(torch.randn_like(p)),
    "largest": lambda p: p.fill_(torch.finfo(p.dtype).max),
}


@each_half
@pytest.mark.parametrize("master", PRECISIONS)
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_weights_that_something_else_sets(change: Any, master: Any, half: torch.dtype) -> None:
    """Bits of the weights of before are half a unit in the last place at most; signs stay."""
    optimizer = lrfast.SGD(weights(NUMEL, half=half), lr=0.01, master=master)
    run(optimizer, 2)
    (param,) = optimizer.param_groups[0]["params"]
    assert optimizer.state[param]["master_bits"].float().std() > 20
    with torch.no_grad():
        change(param)
    given = param.detach().clone()
    weight = optimizer.master_params()[param]
    upper = (given.view(torch.int16) + 1).view(half)
    most = 2.0**120 if half is torch.bfloat16 else 2.0**5  # of the largest
    unit = (upper.double() - given.double()).abs().clamp(max=most)
    assert bool(((weight.double() - given.double()).abs() <= unit / 2).all())
    assert torch.equal(torch.signbit(weight), torch.signbit(given))
    optimizer.param_groups[0]["lr"] = 0.0
    run(optimizer, 1)
    assert torch.equal(optimizer.master_params()[param], weight) and torch.equal(param, given)


def test_infinite_and_no_numbers() -> None:
    """What float32 does with them, and a weight comes back from an infinite parameter."""
    largest = float(np.finfo(np.float32).max)
    grads = torch.tensor([float("inf"), -float("inf"), float("nan"), -largest, 1e-42, -0.0])
    twin, param = (
        torch.nn.Parameter(torch.zeros(6, dtype=dtype)) for dtype in (None, torch.bfloat16)
    )
    ours, theirs = lrfast.SGD([param], lr=1.0, master="32bit"), lrfast.SGD([twin], lr=1.0)
    for _ in range(2):
        give([grads.bfloat16()], [param], [twin])
        ours.step()
        theirs.step()
        weight = ours.master_params()[param]
        assert torch.equal(weight.nan_to_num(7.0), twin.nan_to_num(7.0))
        assert torch.equal(param.isnan(), weight.isnan()) and torch.equal(
            param.isinf()[:2], weight.isinf()[:2]
        )


@pytest.mark.parametrize("master", PRECISIONS)
def test_float16_ends_where_it_ends(master: Any) -> None:
    """65,536 is infinite for good; tiny steps of tiny weights are rounded to a fixed place."""
    start = torch.tensor([65472.0, -65472.0, 65504.0, 3e-6, 5e-8, 1.0]).half()
    param, wanted = torch.nn.Parameter(start.clone()), start.float()
    optimizer = lrfast.SGD([param], lr=1.0, master=master)
    grads = torch.tensor([-40.0, 40.0, -50.0, 2**-31 + 2**-34, -(2.0**-40), float("nan")])
    for _ in range(3):
        param.grad = (grads * 2.0**10).half()
        optimizer.grad_scale = torch.tensor(2.0**10)
        optimizer.step()
        wanted = kept_of(wanted - param.grad.float() / 2.0**10, torch.float16, master).float()
        wanted[wanted.abs() >= 65536] *= float("inf")
        weight = optimizer.master_params()[param]
        assert torch.equal(weight.nan_to_num(nan=7.0), wanted.nan_to_num(nan=7.0))
        nearest = kept_of(weight, torch.float16, None)
        nearest[nearest.abs() >= 65536] *= float("inf")
        assert torch.equal(param.detach().double().nan_to_num(7.0), nearest.nan_to_num(7.0))
    assert param.isinf().tolist() == [True, True, True, False, False, False]
    assert weight.isinf().tolist() == [True, True, True, False, False, False]


@pytest.mark.parametrize("source", [None, torch.float32], ids=str)
@pytest.mark.parametrize("asked", [None, torch.bfloat16], ids=str)
def test_states_beside_float16_are_float32(source: Any, asked: Any) -> None:
    """Loaded ones, too, without a digit less."""
    plain = lrfast.AdamW(weights(NUMEL, half=torch.float16), lr=0.01, state_dtype=source)
    run(plain, 2)
    (param,) = plain.param_groups[0]["params"]
    assert plain.state[param]["exp_avg"].dtype == (source or torch.float16)
    own = torch.nn.Parameter(param.detach().clone())
    optimizer = lrfast.AdamW([own], lr=0.0, master="24bit", state_dtype=asked, betas=(0.5, 0.5))
    optimizer.load_state_dict(copy.deepcopy(plain.state_dict()))
    optimizer.param_groups[0].update(lr=0.0, betas=(0.5, 0.5))
    own.grad = torch.zeros_like(own)
    optimizer.step()
    for name in ("exp_avg", "exp_avg_sq"):
        found = optimizer.state[own][name]
        assert found.dtype == torch.float32
        assert torch.equal(found, plain.state[param][name].float() / 2)


def test_a_gradient_scaler_of_float16() -> None:
    """Its steps are those of unscaled gradients, and one that overflows is left out."""
    model = torch.nn.Linear(NUMEL, 2).half()
    optimizer = lrfast.AdamW(model.parameters(), lr=0.01, master="24bit", state_dtype="8bit")
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    inputs = torch.randn(3, NUMEL).half()
    for step in range(4):
        before = bits(optimizer)
        loss = (model(inputs).float() * (1e6 if step == 2 else 1e-3)).square().mean()
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        assert (bits(optimizer) == before) == (step == 2)
    assert scaler.get_scale() == 2.0**9
    assert optimizer.state[model.weight]["step"] == 3
    assert all(bool(weight.isfinite().all()) for weight in optimizer.master_params().values())


def test_range_tests_leave_no_trace_and_sharded_states_go_back() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(16, 20), torch.nn.Linear(20, 2)).bfloat16()
    optimizer = lrfast.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, master="24bit")
    data = torch.utils.data.TensorDataset(torch.randn(64, 16).bfloat16(), torch.randint(2, (64,)))
    loader = torch.utils.data.DataLoader(data, 16)
    run(optimizer, 2)
    before = bits(optimizer)
    lrfast.lr_find(model, optimizer, loader, torch.nn.CrossEntropyLoss(), num_iter=12)
    assert bits(optimizer) == before
    saved = copy.deepcopy(lrfast.ShardedState(model, optimizer).state_dict())
    run(optimizer, 1)
    lrfast.ShardedState(model, optimizer).load_state_dict(saved)
    assert bits(optimizer) == before
    other = lrfast.AdamW(model.parameters(), master="32bit")
    with pytest.raises(ValueError, match="master must be '24bit' or None, as its bits were read"):
        lrfast.ShardedState(model, other).load_state_dict(saved)
    assert bits(optimizer) == before and not other.state


def test_captured_steps_are_eager_ones(device: torch.device) -> None:
    inputs = torch.randn(8, 100, device=device, dtype=torch.bfloat16)
    options: dict[str, Any] = {"master": "24bit", "state_dtype": "8bit"}
    assert bits(trained(inputs, True, **options)) == bits(trained(inputs, False, **options))


@pytest.mark.gpu
@each_half
@pytest.mark.parametrize("master", PRECISIONS)
@pytest.mark.parametrize("state_dtype", [None, torch.float32, "8bit"], ids=str)
def test_cuda_is_the_cpu_to_the_bit(state_dtype: Any, master: Any, half: torch.dtype) -> None:
    start, both = weights(20_003, 4096, 9, half=half), []
    for device in ("cpu", "cuda"):
        params = [torch.nn.Parameter(value.detach().to(device)) for value in start]
        both.append(
            lrfast.AdamW(
                params,
                lr=0.01,
                weight_decay=0.1,
                master=master,
                state_dtype=state_dtype,
                ema_decay=0.8,
                zero_grads=True,
            )
        )
    for _ in range(4):
        grads = [random_grad(param) for param in start]
        for optimizer in both:
            own = optimizer.param_groups[0]["params"]
            give([grad.to(own[0].device) for grad in grads], own)
            optimizer.step()
        assert bits(both[0]) == bits(both[1])
    masters = [list(optimizer.master_params().values()) for optimizer in both]
    for ours, theirs in zip(*masters, strict=True):
        assert torch.equal(ours, theirs.cpu())


def test_memory() -> None:
    """Parameter and states of Adam together: 2 bytes, 1 of master bits and 2 of codes."""
    params = weights((1024, 1024), 1024)
    optimizer = lrfast.AdamW(params, lr=0.01, master="24bit", state_dtype="8bit")
    run(optimizer, 1)
    memory = optimizer.memory()
    assert memory.sizes["master_bits", "int8"] == memory.numel == 1024 * 1025
    kept = memory.states + memory.sizes["parameters", "bfloat16"]
    assert 5.0 < kept / memory.numel < 5.1
    assert "master_bits  int8" in str(memory)


REFUSED = (lrfast.AdamWScheduleFree, lrfast.SGDScheduleFree, lrfast.Prodigy, lrfast.Muon)


@pytest.mark.parametrize("cls", REFUSED, ids=by_name)
def test_other_rules_refuse(cls: Any) -> None:
    with pytest.raises(ValueError, match=r"master must be None for the rule .*, got '24bit'"):
        cls(weights((3, 3)), lr=1.0, master="24bit")


def test_options_that_are_refused() -> None:
    (param,) = weights(3)
    with pytest.raises(ValueError, match='master must be "24bit", "32bit" or None, got 24'):
        lrfast.SGD([param], master=24)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="stochastic_rounding must be False with master='24bit'"):
        lrfast.SGD([param], master="24bit", stochastic_rounding=True)


BROKEN = (
    None,
    3,
    torch.zeros(3),
    torch.zeros(2, dtype=torch.int8),
    torch.zeros(3, dtype=torch.int32),
)


@pytest.mark.parametrize("bad", BROKEN, ids=str)
def test_broken_bits_change_nothing(bad: Any) -> None:
    optimizer = lrfast.SGD(weights(3), lr=0.1, momentum=0.9, master="24bit")
    run(optimizer, 1)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0]["master_bits"] = bad
    before = bits(optimizer)
    with pytest.raises(ValueError, match=r"'master_bits'\] must be int8 or int16 \[3\], got"):
        optimizer.load_state_dict(saved)
    assert bits(optimizer) == before
