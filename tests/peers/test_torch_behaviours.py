"""What torch's own suite (TestOptimRenewed) asserts of an optimizer, in our words.

Schedulers are in test_torch_schedulers.py, numbers in test_torch_table.py. Four things that torch's
suite does not see are looked at here: a tensor rate steps, strided tensors go through the fused
path, an overflow leaves momentum buffers alone, and every configuration is compared.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import OPTIMIZERS, STATEFUL, OptimizerCase, by_name, random_grad, twins
from torch import Tensor

import lrfast
from lrfast import schedules
from lrfast.optim._wrap import TWINS

CLASSES = tuple(TWINS.values())


def new_params(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """One of them strided."""
    shapes = [torch.randn(4, 3, dtype=dtype), torch.randn(3, 5, dtype=dtype).t()]
    return [torch.nn.Parameter(tensor) for tensor in shapes]


def give(params: list[Tensor], *others: list[Tensor]) -> None:
    """The same gradients to all, in strides that are not the parameters'."""
    for index, param in enumerate(params):
        grad = random_grad(param)
        for tensors in (params, *others):
            tensors[index].grad = grad.clone()


def train(params: list[Tensor], optimizer: Any, steps: int = 3) -> None:
    for _ in range(steps):
        give(params)
        optimizer.step()


def contents(params: list[Tensor], optimizer: Any) -> list[Tensor]:
    """Copies of everything that a step changes."""
    states = [optimizer.state.get(param, {}) for param in params]
    kept = [value for state in states for _, value in sorted(state.items()) if value is not None]
    return [tensor.detach().clone() for tensor in [*params, *kept]]


def assert_equal(one: list[Tensor], other: list[Tensor]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


def assert_same_dicts(one: Any, other: Any) -> None:
    """Equal state dicts, tensors included."""
    if isinstance(one, Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same_dicts(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same_dicts(a, b)
    else:
        assert one == other


def through_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return dict(torch.load(file, weights_only=True))


# ---- hyperparameters -------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (1,)], ids=["0-d", "1-element"])
@pytest.mark.parametrize("case", OPTIMIZERS, ids=by_name)
def test_tensor_hyperparameters_step_as_numbers(
    case: OptimizerCase, shape: tuple[int, ...]
) -> None:
    """Rate and betas, to the bit; and they do step, which torch's test never tries."""

    def tensor(value: float) -> Tensor:
        return torch.full(shape, value, dtype=torch.float64)

    options = {**case.options, "lr": tensor(case.options["lr"])}
    # torch.optim.NAdam and its like take betas as numbers alone.
    if case.ours in (lrfast.Adam, lrfast.AdamW, lrfast.Lion):
        options["betas"] = tuple(map(tensor, case.options["betas"]))
    params = new_params()
    others = twins(params)
    ours, plain = case.ours(params, **options), case.ours(others, **case.options)
    for _ in range(3):
        before = [param.detach().clone() for param in params]
        give(params, others)
        ours.step()
        plain.step()
        assert not any(torch.equal(a, b) for a, b in zip(before, params, strict=True))
        assert_equal(contents(params, ours), contents(others, plain))
    options["lr"].fill_(case.options["lr"] / 2)
    plain.param_groups[0]["lr"] = case.options["lr"] / 2
    give(params, others)
    ours.step()
    plain.step()
    assert_equal(contents(params, ours), contents(others, plain))


@pytest.mark.parametrize("case", OPTIMIZERS, ids=by_name)
def test_groups_have_their_own_rate_and_decay(case: OptimizerCase) -> None:
    """Strided gradients too; each parameter moves as in an optimizer of its own."""
    params = [*new_params(), torch.nn.Parameter(torch.randn(4, dtype=torch.float64))]
    others = twins(params)
    ours = case.ours(case.groups(params), **case.options)
    singles = []
    for group in case.groups(others):
        tensors = group.pop("params")
        singles.append(case.ours(tensors, **{**case.options, **group}))
    for _ in range(4):
        give(params, others)
        ours.step()
        for single in singles:
            single.step()
        assert_equal([p.detach() for p in params], [p.detach() for p in others])


# ---- nothing to do ---------------------------------------------------------------------------


@pytest.mark.parametrize("trained", [False, True], ids=["new", "trained"])
@pytest.mark.parametrize("case", OPTIMIZERS, ids=by_name)
def test_no_gradients_are_no_step(case: OptimizerCase, trained: bool) -> None:
    params = new_params()
    optimizer = case.ours(params, **case.options)
    train(params, optimizer, 2 if trained else 0)
    optimizer.zero_grad()
    before = contents(params, optimizer)
    optimizer.step()
    assert_equal(before, contents(params, optimizer))


@pytest.mark.parametrize("case", OPTIMIZERS, ids=by_name)
def test_zero_gradients_move_nothing(case: OptimizerCase) -> None:
    """Without a decay; the count goes on."""
    params = new_params()
    optimizer = case.ours(params, **{**case.options, "weight_decay": 0.0})
    before = [param.detach().clone() for param in params]
    for _ in range(3):
        for param in params:
            param.grad = torch.zeros_like(param)
        optimizer.step()
    assert_equal(before, [param.detach() for param in params])
    for param in params:
        assert optimizer.state.get(param, {}).get("step", torch.tensor(3.0)).item() == 3


# ---- state dicts -----------------------------------------------------------------------------


@pytest.mark.parametrize("named", [False, True], ids=["plain", "named"])
@pytest.mark.parametrize("case", OPTIMIZERS, ids=by_name)
def test_state_dicts_are_deterministic(case: OptimizerCase, named: bool) -> None:
    """Twice the same; an optimizer that loads one gives it back; through a file, safely read."""
    params = new_params()
    given: list[Any] = [("weight", params[0]), ("bias", params[1])] if named else params
    optimizer = case.ours(given, **case.options, schedule=schedules.one_cycle(9, momentum=None))
    train(params, optimizer)
    first = copy.deepcopy(optimizer.state_dict())
    assert_same_dicts(first, optimizer.state_dict())
    assert ("param_names" in first["param_groups"][0]) == named
    assert_same_dicts(first, through_file(first))
    copies = twins(params)
    again: list[Any] = [("weight", copies[0]), ("bias", copies[1])] if named else copies
    other = case.ours(again, **case.options)
    other.load_state_dict(through_file(first))
    assert_same_dicts(first, other.state_dict())


@pytest.mark.parametrize("case", OPTIMIZERS, ids=by_name)
def test_states_load_from_named_to_plain_and_back(case: OptimizerCase) -> None:
    """The numbers go over; names stay the loading optimizer's business, as torch has it."""
    for source_named, target_named in ((True, False), (False, True)):
        runs = []
        for cls in (case.ours, case.theirs):
            torch.manual_seed(1)
            params = new_params()

            def named(tensors: list[Tensor], wanted: bool) -> list[Any]:
                return [(f"p{i}", t) for i, t in enumerate(tensors)] if wanted else list(tensors)

            source = cls(named(params, source_named), **case.options)
            train(params, source)
            copies = twins(params)
            target = cls(named(copies, target_named), **case.options)
            target.load_state_dict(copy.deepcopy(source.state_dict()))
            train(copies, target)
            runs.append((copies, target))
        (ours, optimizer), (theirs, other) = runs
        for param, wanted in zip(ours, theirs, strict=True):
            torch.testing.assert_close(param, wanted, rtol=1e-12, atol=1e-12)
        names = [o.param_groups[0].get("param_names") for o in (optimizer, other)]
        assert names[0] == names[1]


@pytest.mark.parametrize("case", STATEFUL, ids=by_name)
def test_deepcopy_copies_all_public_attributes(case: OptimizerCase) -> None:
    params = new_params()
    options = {**case.options, "max_grad_norm": 2.0, "skip_nonfinite": True, "telemetry": 3}
    optimizer = case.ours(params, **options)
    train(params, optimizer)

    def public(one: Any) -> set[str]:
        return {name for name in dir(one) if not name.startswith("_")}

    other = copy.deepcopy(optimizer)
    assert public(optimizer) == public(other)
    assert other.max_grad_norm == 2.0 and other.schedule_step == optimizer.schedule_step
    assert len(other.telemetry().rates) == 0  # what was measured is not what is set
    assert_same_dicts(optimizer.state_dict(), other.state_dict())


def entries_that_torch_fills(cls: Any) -> list[str]:
    """Keys of a param group without which torch's load_state_dict and step still work."""
    found = []
    for key in cls([torch.zeros(1)]).param_groups[0]:
        param = torch.nn.Parameter(torch.ones(2))
        optimizer = cls([param])
        state = optimizer.state_dict()
        state["param_groups"][0].pop(key, None)
        param.grad = torch.ones(2)
        try:
            optimizer.load_state_dict(state)
            optimizer.step()
        except KeyError:
            continue
        found.append(key)
    return found


@pytest.mark.parametrize("number", [int, float, torch.tensor], ids=["int", "float", "tensor"])
@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_older_state_dicts_load(cls: Any, number: Callable[[float], Any]) -> None:
    """Without entries that later versions of torch added, one by one and all; steps as numbers."""
    theirs_class = getattr(torch.optim, cls.__name__)
    filled = entries_that_torch_fills(theirs_class)
    assert {"maximize", "differentiable", "foreach"} <= set(filled)
    for missing in [*([key] for key in filled), filled]:
        params = new_params()
        others = twins(params)
        ours, theirs = cls(params, lr=0.1), theirs_class(others, lr=0.1)
        train(others, theirs)
        state = copy.deepcopy(theirs.state_dict())
        for group in state["param_groups"]:
            for key in missing:
                group.pop(key)
        for entry in state["state"].values():
            if "step" in entry:
                entry["step"] = number(entry["step"].item())
        for param, other in zip(params, others, strict=True):
            param.data.copy_(other.data)
        ours.load_state_dict(copy.deepcopy(state))
        theirs.load_state_dict(copy.deepcopy(state))
        for _ in range(3):
            give(params, others)
            ours.step()
            theirs.step()
        # torch's NAdam keeps a product in float32.
        rtol = 1e-7 if cls is lrfast.NAdam else 1e-12
        for param, other in zip(params, others, strict=True):
            torch.testing.assert_close(param, other, rtol=rtol, atol=1e-10, msg=str(missing))


@pytest.mark.parametrize("case", STATEFUL, ids=by_name)
def test_hooks_of_state_dicts_run_and_may_replace_them(case: OptimizerCase) -> None:
    """The hooks after saving and before loading see all there is, and what they return counts."""
    params = new_params()
    source = case.ours(params, **case.options, schedule=schedules.linear(0.5, 1.0, 9))
    train(params, source, 2)
    seen: list[str] = []

    def wrap(optimizer: Any, state: dict[str, Any]) -> dict[str, Any]:
        seen.append("wrap")
        return {"wrapped": state}

    def unwrap(optimizer: Any, state: dict[str, Any]) -> dict[str, Any]:
        seen.append("unwrap")
        return dict(state["wrapped"])

    def saw(what: str) -> Callable[..., None]:
        return lambda *arguments: seen.append(what)

    source.register_state_dict_pre_hook(saw("before saving"))
    source.register_state_dict_post_hook(wrap)
    state = source.state_dict()
    assert state.keys() == {"wrapped"} and seen == ["before saving", "wrap"]
    assert state["wrapped"]["lrfast"]["schedule_step"] == 2
    seen.clear()
    copies = twins(params)
    target = case.ours(copies, **case.options)
    target.register_load_state_dict_pre_hook(unwrap)
    target.register_load_state_dict_post_hook(saw("after loading"))
    target.load_state_dict(copy.deepcopy(state))
    assert seen == ["unwrap", "after loading"] and target.schedule_step == 2
    give(params, copies)
    source.step()
    target.step()
    assert_equal(contents(params, source), contents(copies, target))


# ---- complex numbers, overflows --------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3,), (4, 3)], ids=["1-d", "2-d"])
@pytest.mark.parametrize("case", OPTIMIZERS, ids=by_name)
def test_complex_parameters_are_pairs_of_reals(case: OptimizerCase, shape: tuple[int, ...]) -> None:
    param = torch.nn.Parameter(torch.randn(shape, dtype=torch.complex128))
    real = torch.nn.Parameter(torch.view_as_real(param.detach()).clone())
    ours, pairs = case.ours([param], **case.options), case.ours([real], **case.options)
    for _ in range(5):
        grad = torch.randn(shape, dtype=torch.complex128)
        param.grad, real.grad = grad, torch.view_as_real(grad).clone()
        ours.step()
        pairs.step()
        assert torch.equal(torch.view_as_real(param.detach()), real)
        for name, value in ours.state[param].items():
            value = torch.view_as_real(value) if value.is_complex() else value
            assert torch.equal(value, pairs.state[real][name]), name


@pytest.mark.parametrize("late", [0, 2], ids=["first step", "later"])
@pytest.mark.parametrize("case", OPTIMIZERS, ids=by_name)
def test_an_overflow_changes_nothing(case: OptimizerCase, late: int) -> None:
    """As a GradScaler announces it: parameters, counts, momentum buffers, and all that follows.

    torch's fused SGD fills its buffer with whatever memory holds when the first step overflows.
    """
    params = new_params()
    others = twins(params)
    ours, never = case.ours(params, **case.options), case.ours(others, **case.options)
    for _ in range(late):
        give(params, others)
        ours.step()
        never.step()
    before = contents(params, ours)
    ours.grad_scale, ours.found_inf = torch.tensor(2.0), torch.tensor(1.0)
    for _ in range(2):
        give(params)
        params[0].grad.fill_(torch.inf)  # type: ignore[union-attr]
        ours.step()
        if late:
            assert_equal(before, contents(params, ours))
        assert_equal(before[: len(params)], [p.detach() for p in params])
        values = contents(params, ours)[len(params) :]
        assert all(bool(value.isfinite().all()) for value in values)
        counts = [ours.state.get(p, {}).get("step", torch.tensor(float(late))) for p in params]
        assert [count.item() for count in counts] == [late, late]
    del ours.grad_scale, ours.found_inf
    for _ in range(3):
        give(params, others)
        ours.step()
        never.step()
        assert_equal(contents(params, ours), contents(others, never))
