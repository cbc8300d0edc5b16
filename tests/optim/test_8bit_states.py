"""States in 8 bits: what a step makes of them, and what may be done to them."""

from __future__ import annotations

import copy
import pickle
import re
from typing import Any

import numpy as np
import pytest
import torch
from captures import trained
from cases import OPTIMIZERS, OptimizerCase, by_name, random_grad, twins
from optimizer_bits import bits
from reference import codes as reference
from torch import Tensor

import lrfast
from lrfast._utils.extension import extension

CODED = extension().coded_states
CASES = tuple(
    case for case in OPTIMIZERS if case.ours._rule in CODED and "plain" not in case.name
) + tuple(case for case in OPTIMIZERS if case.name in ("lion-plain", "rmsprop-plain"))
FULLEST = ("sgd-nesterov", "adamw-amsgrad", "nadam-decoupled", "rmsprop-all", "lion-high-decay")
FEW = tuple(case for case in CASES if case.name in FULLEST)
ON_CUDA = tuple(
    case
    for case in CASES
    if case.name in {*FULLEST, "adamw-maximize"} and not re.search("rmsprop|amsgrad", case.name)
)
NUMEL = 4096 + 700  # the last block is cut off


def run(optimizer: Any, params: list[Tensor], grads: list[list[Tensor]]) -> None:
    for each in grads:
        for param, grad in zip(params, each, strict=True):
            param.grad = grad.clone()
        optimizer.step()


def some_grads(params: list[Tensor], steps: int) -> list[list[Tensor]]:
    return [[random_grad(param) for param in params] for _ in range(steps)]


def moments(case: OptimizerCase, optimizer: Any, param: Tensor) -> dict[str, Any]:
    """A parameter's states in float64, as their codes say."""
    state, known = optimizer.state[param], CODED[case.ours._rule]
    found: dict[str, Any] = {}
    for name in known:
        if f"{name}_codes" in state:
            assert name not in state
            codes, scales = state[f"{name}_codes"], state[f"{name}_scales"]
            assert codes.dtype == scales.dtype == torch.uint8
            assert codes.shape == param.shape and scales.shape == (-(-param.numel() // 256),)
            found[name] = reference.decode(codes.numpy().ravel(), scales.numpy(), known[name])
    for name, value in state.items():
        if name in ("step", "mu_product") and isinstance(value, Tensor):
            found[name] = int(value) if name == "step" else float(value)
    return found


@pytest.mark.parametrize("case", CASES, ids=by_name)
def test_steps_are_the_references_on_decoded_states(case: OptimizerCase) -> None:
    """The rule in float64 on what the codes say, its states encoded with the same noise."""
    params = [torch.nn.Parameter(torch.randn(50)), torch.nn.Parameter(torch.randn(2, NUMEL // 2))]
    optimizer = case.ours(params, **case.options, state_dtype="8bit", seed=11)
    param, agreeing = params[1], 1.0
    for step in range(4):
        (grads,) = some_grads(params, 1)
        scale = 10.0 ** torch.randint(-4, 3, param.shape)  # a wide range within each block
        grads[1] *= scale
        before = moments(case, optimizer, param)
        start = param.detach().numpy().astype(np.float64).ravel()
        after, state = case.rule(start, grads[1].numpy().ravel(), before, **case.options)
        run(optimizer, params, [grads])
        np.testing.assert_allclose(param.detach().numpy().ravel(), after, rtol=2e-4, atol=2e-6)
        known = CODED[case.ours._rule]
        forms = extension().rule_states[case.ours._rule]
        names = next(form for form in forms if set(form) == known.keys() & state.keys())
        for which, name in enumerate(names, 1):
            noise = reference.noise(NUMEL, 11, 1, step, which)
            codes, scales = reference.encode(state[name], known[name], noise)
            mine = optimizer.state[param]
            assert np.array_equal(mine[f"{name}_scales"].numpy(), scales)
            same = mine[f"{name}_codes"].numpy().ravel() == codes
            agreeing = min(agreeing, float(same.mean()))
    assert agreeing > 0.999  # the rest lies where float32 and float64 round to either side
    assert all("_codes" not in name for name in optimizer.state[params[0]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=by_name)
@pytest.mark.parametrize("case", FEW, ids=by_name)
def test_runs_go_on_bit_for_bit(case: OptimizerCase, dtype: torch.dtype) -> None:
    """From a state dict, through a file and not, from a copy and from a pickle."""
    rounding = {"stochastic_rounding": dtype is torch.bfloat16, "seed": 5}
    params = [torch.nn.Parameter(torch.randn(n, 8).to(dtype)) for n in (600, 3, 513)]
    optimizer = case.ours(case.groups(params), **case.options, state_dtype="8bit", **rounding)
    run(optimizer, params, some_grads(params, 3))
    others = []
    for way in ("dict", "copy", "pickle"):
        if way == "dict":
            again = case.ours(
                case.groups(twins(params)), **case.options, state_dtype="8bit", **rounding
            )
            again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        else:
            again = copy.deepcopy(optimizer)
            if way == "pickle":
                again = pickle.loads(pickle.dumps(optimizer))
        assert bits(again) == bits(optimizer), way  # loading changes no bit
        others.append(again)
    grads = some_grads(params, 3)
    run(optimizer, params, grads)
    for again in others:
        own = [group["params"][0] for group in again.param_groups]
        run(again, own, grads)
        assert bits(again) == bits(optimizer)


@pytest.mark.parametrize("case", FEW, ids=by_name)
def test_threads_change_nothing(case: OptimizerCase) -> None:
    start = torch.randn(120_001)
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            torch.manual_seed(3)
            param = torch.nn.Parameter(start.clone())
            optimizer = case.ours([param], **case.options, state_dtype="8bit")
            run(optimizer, [param], some_grads([param], 3))
            results.append(bits(optimizer))
    finally:
        torch.set_num_threads(threads)
    assert results[0] == results[1]


@pytest.mark.gpu
@pytest.mark.parametrize("passes", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=by_name)
@pytest.mark.parametrize("case", ON_CUDA, ids=by_name)
def test_cuda_is_the_cpu_to_the_bit(case: OptimizerCase, dtype: torch.dtype, passes: bool) -> None:
    """Then on: a state dict goes from either to the other."""
    options: dict[str, Any] = {**case.options, "state_dtype": "8bit", "seed": 9}
    options["stochastic_rounding"] = dtype is torch.bfloat16
    if passes:
        options |= {"zero_grads": True, "ema_decay": 0.8}
    start = [torch.randn(n).to(dtype) for n in (20_003, 4096, 9)]
    both = []
    for device in ("cpu", "cuda"):
        params = [torch.nn.Parameter(value.to(device)) for value in start]
        both.append((case.ours(params, **options), params))
    for _ in range(2):
        for grads in some_grads(start, 2):
            for optimizer, params in both:
                run(optimizer, params, [[grad.to(params[0].device) for grad in grads]])
        assert bits(both[0][0]) == bits(both[1][0])
        saved = [copy.deepcopy(optimizer.state_dict()) for optimizer, _ in both]
        for (optimizer, _), other in zip(both, reversed(saved), strict=True):
            optimizer.load_state_dict(other)


def test_captured_steps_are_eager_ones(device: torch.device) -> None:
    """The graph is recorded before there are states, and knows that they will be codes."""
    inputs = torch.randn(8, 100, device=device)
    options: dict[str, Any] = {"state_dtype": "8bit"}
    assert bits(trained(inputs, True, **options)) == bits(trained(inputs, False, **options))


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (lrfast.RMSprop, {}, r"state_dtype must be.*'rmsprop' on cuda"),
        (lrfast.AdamW, {"amsgrad": True}, r"state_dtype must be.* on cuda, as .*, got \"8bit\""),
    ],
)
def test_what_cuda_refuses(cls: type[Any], options: dict[str, Any], message: str) -> None:
    param = torch.nn.Parameter(torch.ones(5000, device="cuda"))
    with pytest.raises(ValueError, match=message):
        cls([param], lr=0.1, state_dtype="8bit", **options)
    moved = torch.nn.Parameter(torch.ones(5000))
    optimizer = cls([moved], lr=0.1, state_dtype="8bit", **options)
    moved.data = moved.data.cuda()
    moved.grad = torch.ones_like(moved)
    with pytest.raises(ValueError, match=message):
        optimizer.step()
    assert bool((moved == 1).all())


@pytest.mark.parametrize("case", FEW, ids=by_name)
def test_conversions(case: OptimizerCase) -> None:
    """float32 states become codes by wrap's way and by loading, and the other way round."""
    params = [torch.nn.Parameter(torch.randn(NUMEL)), torch.nn.Parameter(torch.randn(7))]
    wide = case.ours(params, **case.options)
    run(wide, params, some_grads(params, 3))
    coded = case.ours(twins(params), **case.options, state_dtype="8bit")
    coded.load_state_dict(wide.state_dict())
    (param, small) = coded.param_groups[0]["params"]
    known = CODED[case.ours._rule]
    kept = wide.state[params[0]]
    nearest = np.full(NUMEL, 0x8000, dtype=np.uint16)
    for name in known.keys() & kept.keys():
        codes, scales = reference.encode(kept[name].double().numpy(), known[name], nearest)
        assert np.array_equal(coded.state[param][f"{name}_codes"].numpy(), codes)
        assert np.array_equal(coded.state[param][f"{name}_scales"].numpy(), scales)
        assert torch.equal(coded.state[small][name], wide.state[params[1]][name])
    back = case.ours(twins(params), **case.options)
    back.load_state_dict(copy.deepcopy(coded.state_dict()))
    (decoded, _) = back.param_groups[0]["params"]
    values = moments(case, coded, param)
    for name in known.keys() & kept.keys():
        value = back.state[decoded][name]
        assert value.dtype == torch.float32 and np.array_equal(value.double().numpy(), values[name])
    assert not any("_codes" in name or "_scales" in name for name in back.state[decoded])
    run(back, [decoded, back.param_groups[0]["params"][1]], some_grads(params, 1))
    # Squares that codes stand for are not rounded again; means are where a block's scale changes.
    again = case.ours(twins(params), **case.options, state_dtype="8bit")
    again.load_state_dict(coded.float32_state_dict())
    (third, _) = again.param_groups[0]["params"]
    for name, value in moments(case, again, third).items():
        if name in known:
            assert np.array_equal(value, values[name]) or not known[name]
            assert np.allclose(value, values[name], rtol=0.13, atol=1e-4 * abs(value).max())
    if case.in_torch is not None:
        options = {**case.options, **({"foreach": False} if case.name != "lion-plain" else {})}
        theirs = case.in_torch(twins(params), **options)
        theirs.load_state_dict(coded.float32_state_dict())
        for name in known.keys() & kept.keys():
            state = theirs.state[theirs.param_groups[0]["params"][0]]
            assert np.array_equal(state[name].double().numpy(), values[name])


def test_torch_refuses_codes_loudly() -> None:
    param = torch.nn.Parameter(torch.randn(NUMEL))
    optimizer = lrfast.AdamW([param], lr=0.1, state_dtype="8bit")
    run(optimizer, [param], some_grads([param], 1))
    theirs = torch.optim.AdamW([param], lr=0.1, foreach=False)
    theirs.load_state_dict(optimizer.state_dict())
    with pytest.raises(KeyError, match="exp_avg"):
        theirs.step()


def test_wrap_converts_a_running_optimizer() -> None:
    param = torch.nn.Parameter(torch.randn(NUMEL))
    theirs = torch.optim.AdamW([param], lr=0.1, betas=(0.8, 0.95), foreach=False)
    run(theirs, [param], some_grads([param], 2))
    before = theirs.state[param]["exp_avg"].clone()
    ours = lrfast.wrap(theirs, state_dtype="8bit")
    state = ours.state[param]
    assert set(state) == {"step", "exp_avg_codes", "exp_avg_scales", "exp_avg_sq_codes",
                          "exp_avg_sq_scales"}  # fmt: skip
    values = reference.decode(
        state["exp_avg_codes"].numpy(), state["exp_avg_scales"].numpy(), positive=False
    )
    assert np.allclose(values, before.numpy(), rtol=0.13, atol=1e-4)
    run(ours, [param], some_grads([param], 2))


@pytest.mark.parametrize("shape", [(64, 3, 5, 5), (80, 90)], ids=by_name)
def test_other_layouts(shape: tuple[int, ...]) -> None:
    """Codes lie as their parameter does; one of another layout gets the same numbers anew."""
    plain = torch.nn.Parameter(torch.randn(shape))
    turned = torch.nn.Parameter(
        plain.detach().contiguous(memory_format=torch.channels_last)
        if len(shape) == 4
        else plain.detach().t().contiguous().t()
    )
    source = lrfast.Adam([turned], lr=0.1, weight_decay=0.02, state_dtype="8bit")
    run(source, [turned], some_grads([plain], 3))
    target = lrfast.Adam([plain], lr=0.1, weight_decay=0.02, state_dtype="8bit")
    target.load_state_dict(source.state_dict())
    wide = lrfast.Adam([torch.nn.Parameter(plain.detach().clone())], lr=0.1, weight_decay=0.02)
    wide.load_state_dict(source.state_dict())
    expected = wide.state[wide.param_groups[0]["params"][0]]
    got = target.float32_state_dict()["state"][0]
    assert target.state[plain]["exp_avg_codes"].stride() == plain.stride()
    for name, bound in (("exp_avg", 0.13), ("exp_avg_sq", 0.13)):
        largest = expected[name].abs().max()
        close = (got[name] - expected[name]).abs() <= bound * expected[name].abs() + 1e-4 * largest
        assert bool(close.all())
    run(target, [plain], some_grads([plain], 1))


def test_gaps_and_frozen_and_late_parameters() -> None:
    view = torch.randn(200, 60)[:, ::2]
    params = [torch.nn.Parameter(view), torch.nn.Parameter(torch.randn(5000))]
    optimizer = lrfast.AdamW(params, lr=0.1, weight_decay=0.3, state_dtype="8bit")
    late = params[1]
    params[0].grad = random_grad(params[0])
    optimizer.step()
    assert late not in optimizer.state
    assert optimizer.state[params[0]]["exp_avg_codes"].is_contiguous()
    late.grad = random_grad(late)
    optimizer.step()
    assert [float(optimizer.state[p]["step"]) for p in params] == [2, 1]


def test_momentum_that_has_not_begun() -> None:
    """torch keeps None for it, and its first step takes the gradient undampened."""
    param = torch.nn.Parameter(torch.randn(NUMEL))
    options: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}
    optimizer = lrfast.SGD([param], **options, state_dtype="8bit", skip_nonfinite=True)
    param.grad = torch.full_like(param, float("inf"))
    optimizer.step()
    saved = optimizer.state_dict()
    assert saved["state"][0] == {"momentum_buffer": None}
    again = lrfast.SGD(twins([param]), **options, state_dtype="8bit")
    again.load_state_dict(saved)
    (twin,) = again.param_groups[0]["params"]
    run(again, [twin], [[torch.ones(NUMEL)]])
    assert torch.allclose(twin, param.detach() - 0.1)


def test_all_that_a_step_does_besides() -> None:
    """Clipping, EMA, zeroing, telemetry, a schedule and freezing, as with float32 states."""
    start, finals = torch.randn(3, NUMEL), []
    for state_dtype in (None, "8bit"):
        torch.manual_seed(2)
        params = [torch.nn.Parameter(row.clone()) for row in start]
        groups: list[dict[str, Any]] = [{"params": params[:2]}, {"params": params[2:]}]
        optimizer = lrfast.AdamW(
            groups, lr=0.05, betas=(0.8, 0.9), weight_decay=0.1, max_grad_norm=1.5,
            zero_grads=True, ema_decay=0.7, telemetry=20, state_dtype=state_dtype,
            schedule=lrfast.schedules.one_cycle(12),
        )  # fmt: skip
        for step in range(10):
            optimizer.param_groups[1]["frozen"] = step > 5
            for param in params:
                param.grad = random_grad(param)
            optimizer.step()
            assert all(not param.grad.any() for param in params if param.grad is not None)
        finals.append((params, optimizer.telemetry(), optimizer))
    (wide, records, first), (coded, own, second) = finals
    assert torch.equal(records.rates, own.rates) and torch.equal(records.grad_norms, own.grad_norms)
    assert torch.allclose(records.update_norms, own.update_norms, rtol=0.05)
    for a, b in zip(wide, coded, strict=True):
        moved = (a - start[0] if a is wide[0] else a - b).norm()
        assert (a - b).norm() < 0.15 * (wide[0] - start[0]).norm() and moved >= 0
    with first.ema_parameters(), second.ema_parameters():
        assert (wide[0] - coded[0]).norm() < 0.15 * (wide[0] - start[0]).norm()


def test_range_tests_leave_no_trace() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(64, 80), torch.nn.Tanh(), torch.nn.Linear(80, 2))
    optimizer = lrfast.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, state_dtype="8bit")
    data = torch.utils.data.TensorDataset(torch.randn(64, 64), torch.randint(2, (64,)))
    loader = torch.utils.data.DataLoader(data, 16)
    loss_fn = torch.nn.CrossEntropyLoss()
    for inputs, targets in loader:
        optimizer.zero_grad()
        loss_fn(model(inputs), targets).backward()
        optimizer.step()
    before = bits(optimizer)
    lrfast.lr_find(model, optimizer, loader, loss_fn, num_iter=12)
    assert bits(optimizer) == before


ASKED = (torch.float32, "8bit", torch.bfloat16, None)  # by one param group each


def asking(params: list[Tensor], state_dtype: Any = "8bit", asked: Any = ASKED) -> lrfast.AdamW:
    groups = [{"params": [p], "state_dtype": a} for p, a in zip(params, asked, strict=True)]
    return lrfast.AdamW(groups, lr=0.05, betas=(0.8, 0.95), state_dtype=state_dtype, seed=3)


def test_groups_keep_states_in_a_dtype_of_their_own() -> None:
    """Each is updated as by an optimizer of that dtype; state dicts and conversions follow."""
    params = [torch.nn.Parameter(torch.randn(NUMEL)) for _ in ASKED]
    alone = twins(params)
    mixed, grads = asking(params), some_grads(params, 3)
    run(mixed, params, grads)
    for place, asked in enumerate("8bit" if a is None else a for a in ASKED):
        own = [torch.nn.Parameter(torch.ones(9)) for _ in alone]  # noise goes by the place
        own[place] = alone[place]
        one = lrfast.AdamW(own, lr=0.05, betas=(0.8, 0.95), state_dtype=asked, seed=3)
        run(one, own, [[g if i == place else g[:9] for i, g in enumerate(gs)] for gs in grads])
        assert torch.equal(alone[place], params[place])
        assert mixed.state[params[place]].keys() == one.state[own[place]].keys()
    assert {dtype for _, dtype in mixed.memory().sizes} == {"float32", "8bit", "bfloat16"}
    saved = copy.deepcopy(mixed.state_dict())
    again = asking(twins(params))
    again.load_state_dict(saved)
    own = [group["params"][0] for group in again.param_groups]
    for optimizer, each in ((mixed, params), (again, own)):
        run(optimizer, each, grads[:1])
    assert bits(again) == bits(mixed)
    # How states are kept is the optimizer's own, as its option is.
    other = asking(twins(params), None, (None, None, "8bit", "8bit"))
    other.load_state_dict(saved)
    assert [group.get("state_dtype") for group in other.param_groups] == [
        None,
        None,
        "8bit",
        "8bit",
    ]
    coded = ["exp_avg_codes" in other.state[g["params"][0]] for g in other.param_groups]
    assert coded == [False, False, True, True]
    theirs = torch.optim.AdamW([{"params": [p]} for p in twins(params)], foreach=False)
    theirs.load_state_dict(mixed.float32_state_dict())
    wrapped = lrfast.wrap(theirs, state_dtype="8bit")  # which has loaded the groups' entries
    kept = [wrapped.state[g["params"][0]] for g in wrapped.param_groups]
    assert ["exp_avg_codes" in state for state in kept] == [False, True, False, True]


@pytest.mark.parametrize(
    ("cls", "group", "message"),
    [
        (lrfast.AdamW, {"state_dtype": torch.float16}, r"state_dtype of param_groups\[1\] must be"),
        (lrfast.AdamW, {"state_dtype": [8]}, r"state_dtype of .* \"8bit\" or None, got \[8\]"),
        (lrfast.Adadelta, {"state_dtype": "8bit"}, "None for the rule 'adadelta', got \"8bit\""),
        (lrfast.Prodigy, {"state_dtype": torch.bfloat16}, "state_dtype must be None or torch.floa"),
    ],
    ids=str,
)
def test_groups_that_ask_for_what_is_not(cls: Any, group: dict[str, Any], message: str) -> None:
    """At once, and of one that is added."""
    first, second = (torch.nn.Parameter(torch.ones(NUMEL)) for _ in range(2))
    with pytest.raises(ValueError, match=message):
        cls([{"params": [first]}, {"params": [second], **group}], lr=0.1)
    optimizer = cls([first], lr=0.1)
    optimizer.add_param_group({"params": [second], **group})
    first.grad = second.grad = torch.ones(NUMEL)
    with pytest.raises(ValueError, match=message):
        optimizer.step()
    assert bool((first == 1).all()) and not optimizer.state


REFUSED = (lrfast.Adagrad, lrfast.Adadelta, lrfast.Adamax, lrfast.AdamWScheduleFree)


@pytest.mark.parametrize("cls", [*REFUSED, lrfast.SGDScheduleFree], ids=by_name)
def test_other_rules_refuse(cls: Any) -> None:
    with pytest.raises(ValueError, match=r'state_dtype must be a dtype or None for .*got "8bit"'):
        cls([torch.nn.Parameter(torch.ones(2))], lr=0.1, state_dtype="8bit")


def broken(**changes: Any) -> tuple[Any, dict[str, Any]]:
    param = torch.nn.Parameter(torch.randn(NUMEL))
    optimizer = lrfast.AdamW([param], lr=0.1, state_dtype="8bit")
    run(optimizer, [param], some_grads([param], 1))
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0].update(changes)
    saved["state"][0] = {k: v for k, v in saved["state"][0].items() if v is not ...}
    return optimizer, saved


@pytest.mark.parametrize(
    "changes",
    [
        {"exp_avg_codes": ...},
        {"exp_avg_scales": ...},
        {"exp_avg_scales": None},
        {"exp_avg_scales": torch.zeros(5, dtype=torch.uint8)},
        {"exp_avg_codes": torch.zeros(NUMEL)},
        {"exp_avg_codes": torch.zeros(8, dtype=torch.uint8)},
        {"exp_avg": torch.zeros(NUMEL)},
        {"momentum_buffer_codes": torch.zeros(NUMEL, dtype=torch.uint8)},
    ],
    ids=str,
)
def test_broken_codes_change_nothing(changes: dict[str, Any]) -> None:
    optimizer, saved = broken(**changes)
    before = bits(optimizer)
    with pytest.raises(ValueError, match="state"):
        optimizer.load_state_dict(saved)
    assert bits(optimizer) == before


def test_codes_of_another_rule() -> None:
    """RMSprop's and Adam's states have other names; Adadelta's rule has no codes at all."""
    _, saved = broken()
    param = torch.nn.Parameter(torch.randn(NUMEL))
    with pytest.raises(ValueError, match="of the same rule"):
        lrfast.RMSprop([param], state_dtype="8bit").load_state_dict(saved)
    adamax = lrfast.Adamax([param], lr=0.1)
    wrong = adamax.state_dict()
    wrong["state"] = {0: {k: v for k, v in saved["state"][0].items() if "sq" not in k}}
    with pytest.raises(ValueError, match="8 bits"):
        adamax.load_state_dict(wrong)


def test_float64_and_small_ones_stay_as_they_are() -> None:
    params = [
        torch.nn.Parameter(torch.randn(5000, dtype=dtype))
        for dtype in (torch.float64, torch.complex64)
    ]
    params += [torch.nn.Parameter(torch.randn(4095, dtype=d)) for d in (torch.bfloat16, None)]
    optimizer = lrfast.AdamW(params, lr=0.1, state_dtype="8bit")
    run(optimizer, params, some_grads(params, 2))
    found = [optimizer.state[param]["exp_avg"].dtype for param in params]
    assert found == [torch.float64, torch.complex64, torch.float32, torch.float32]


def test_sharded_state_of_whole_parameters() -> None:
    model = torch.nn.Linear(100, 90)
    optimizer = lrfast.AdamW(model.parameters(), lr=0.1, state_dtype="8bit")
    params = list(model.parameters())
    run(optimizer, params, some_grads(params, 2))
    before = bits(optimizer)
    saved = copy.deepcopy(lrfast.ShardedState(model, optimizer).state_dict())
    grads = some_grads(params, 2)
    run(optimizer, params, grads)
    after = bits(optimizer)
    other = torch.nn.Linear(100, 90)
    again = lrfast.AdamW(other.parameters(), lr=0.1, state_dtype="8bit")
    lrfast.ShardedState(other, again).load_state_dict(saved)
    assert bits(again) == before
    run(again, list(other.parameters()), grads)
    assert bits(again) == after


def test_memory() -> None:
    params = [torch.nn.Parameter(torch.randn(n)) for n in (5000, 100)]
    optimizer = lrfast.AdamW(params, lr=0.1, state_dtype="8bit", ema_decay=0.9)
    assert optimizer.memory().sizes == {("parameters", "float32"): 20_400}
    run(optimizer, params, some_grads(params, 1))
    memory = optimizer.memory()
    state = 5000 + 20, 400  # 20 blocks
    assert memory.sizes == {
        ("parameters", "float32"): 20_400, ("gradients", "float32"): 20_400,
        ("exp_avg", "8bit"): state[0], ("exp_avg", "float32"): state[1],
        ("exp_avg_sq", "8bit"): state[0], ("exp_avg_sq", "float32"): state[1],
        ("ema", "float32"): 20_400, ("step", "float32"): 8,
    }  # fmt: skip
    assert memory.states == 2 * sum(state) + 20_400 + 8 == memory.total - 40_800
    lines = str(memory).splitlines()
    assert lines[0].split() == ["dtype", "bytes", "per", "parameter"]
    assert lines[3].split() == ["exp_avg", "8bit", "5,020", "0.984"]
    assert lines[-1].split() == ["total", f"{memory.total:,}", f"{memory.total / 5100:.3g}"]
    assert list(memory.sizes)[2:4] == [("exp_avg", "8bit"), ("exp_avg", "float32")]


def moves(state_dtype: Any, start: Tensor, grads: list[Tensor]) -> Tensor:
    """How far Adam moves weights in all."""
    param = torch.nn.Parameter(start.clone())
    optimizer = lrfast.Adam([param], lr=1e-2, betas=(0.8, 0.97), state_dtype=state_dtype)
    run(optimizer, [param], [[grad] for grad in grads])
    assert ("exp_avg_codes" in optimizer.state[param]) == (state_dtype == "8bit")
    return param.detach() - start


def test_small_gradients_beside_large_ones() -> None:
    """Linear codes make zeros of their squares, and steps that explode: unsloth-zoo's issue 962."""
    grads = [0.1 * torch.randn(40, 256) for _ in range(20)]
    for grad in grads:
        grad[:, 7] = 30.0
    wide, coded = (moves(each, torch.randn(40, 256), grads) for each in (None, "8bit"))
    assert coded.abs().max() < 1.5 * 20 * 1e-2
    assert (coded - wide).abs().mean() < 0.1 * wide.abs().mean()


def test_embeddings() -> None:
    """Rows with a gradient in few steps move as in float32, and those without one not at all.

    Blocks of zeros alone have no scale to divide by.
    """
    words = 1 / torch.arange(1, 301)
    grads = []
    for _ in range(40):
        grad = torch.zeros(300, 64)
        seen = torch.multinomial(words[:200], 8)
        grad[seen] = torch.randn(8, 64)
        grads.append(grad)
    start = torch.randn(300, 64)
    wide, coded = (moves(each, start, grads) for each in (None, "8bit"))
    never = torch.stack(grads).abs().sum((0, 2)) == 0
    assert 100 < int(never.sum()) < 250 and not coded[never].any()
    assert (coded - wide).abs().mean() < 0.1 * wide.abs().mean()
    assert coded.abs().max() < 1.3 * wide.abs().max()


@pytest.mark.full
def test_a_million_adversarial_steps() -> None:
    """Tiny and huge, zeros, one outlier per block, denormals: never NaN, never an explosion."""
    params = [torch.nn.Parameter(torch.zeros(4096)) for _ in range(2)]
    rate = 1e-3
    optimizer = lrfast.AdamW(params, lr=rate, betas=(0.9, 0.999), weight_decay=0.01,
                             state_dtype="8bit")  # fmt: skip
    generator = torch.Generator().manual_seed(4)
    outlier = torch.zeros(4096)
    outlier[::256] = 1e6
    kinds = [
        torch.zeros(4096), torch.full((4096,), 1e-30), torch.full((4096,), 1e-42),
        torch.full((4096,), 1e12), outlier, torch.randn(4096, generator=generator),
        outlier + 1e-8, -outlier + torch.randn(4096, generator=generator),
    ]  # fmt: skip
    choices = torch.randint(len(kinds), (1_000_000 // 16, 2), generator=generator).tolist()
    for chosen in choices:
        for param, kind in zip(params, chosen, strict=True):
            param.grad = kinds[kind]
        for _ in range(16):
            optimizer.step()
        assert all(bool(param.isfinite().all()) for param in params)
    assert all(float(param.detach().abs().max()) < 1 / 0.01 for param in params)
