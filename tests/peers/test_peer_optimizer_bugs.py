"""Twelve ways in which other fused optimizers go wrong unnoticed, or fail: ours does neither.

Where the peer is the installed torch, a test also sees it fail. Should a later torch have mended
that, the test is skipped with a message, after ours has been checked. apex, DeepSpeed, Transformer
Engine and bitsandbytes are not installed here: what they do is said in a sentence.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from cases import HALF_DTYPES, STATEFUL, OptimizerCase, by_name, random_grad, twins, values
from device_reads import NoDeviceReads
from steps import check_step, copied
from torch import Tensor
from torch import distributed as dist
from torch.optim import lr_scheduler

import lrfast
from lrfast import schedules

SGD = {"lr": 0.1, "momentum": 0.9, "dampening": 0.4, "weight_decay": 0.02}
ADAMW = {"lr": 0.1, "betas": (0.8, 0.9), "weight_decay": 0.2}


def raises(call: Callable[[], Any]) -> bool:
    try:
        call()
    except (TypeError, RuntimeError):
        return True
    return False


def still(broken: bool, what: str) -> None:
    """The last line of a test: whether torch is what the test says it is."""
    if not broken:
        pytest.skip(f"torch {torch.__version__} no longer fails here: {what}")


def follow(optimizer: Any, params: list[Tensor], grads: list[list[Tensor | None]]) -> None:
    """One step per entry of grads, [steps][parameters]."""
    for step in grads:
        for param, grad in zip(params, step, strict=True):
            param.grad = None if grad is None else grad.clone(memory_format=torch.preserve_format)
        optimizer.step()


def assert_close(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for param, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(param, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", STATEFUL, ids=by_name)
def test_1_gradients_of_other_strides(case: OptimizerCase) -> None:
    """torch's fused CPU kernels walk parameter and gradient side by side as they lie in memory."""
    new = values(torch.float64)
    params = [torch.nn.Parameter(new(6, 4)), torch.nn.Parameter(new(8, 6)[:, ::2])]
    others = twins(params)
    grads: list[list[Tensor | None]] = [
        [new(4, 6).t(), torch.stack((new(8, 3), new(8, 3)), 2)[..., 1]] for _ in range(3)
    ]
    follow(case.ours(params, **case.options), params, grads)
    follow(case.theirs(others, **case.options, foreach=False), others, grads)
    assert_close(params, others)
    if case.in_torch is None or "fused" not in inspect.signature(case.in_torch).parameters:
        return
    peers = [torch.nn.Parameter(torch.ones(6, 4))]
    rights = twins(peers)
    ramp: list[list[Tensor | None]] = [[torch.arange(24.0).view(4, 6).t() - 9] for _ in range(3)]
    follow(case.in_torch(peers, lr=0.1, fused=True), peers, ramp)  # type: ignore[call-arg]
    follow(case.in_torch(rights, lr=0.1, foreach=False), rights, ramp)  # type: ignore[call-arg]
    still(not torch.allclose(peers[0], rights[0], atol=0.1), "gradients of other strides")


def test_2_a_parameter_that_is_unfrozen_late() -> None:
    """torch's fused SGD finds None among its momentum buffers."""
    grads: list[list[Tensor | None]] = [
        [torch.full((3,), 1.0 + step), torch.full((3,), 2.0) if step > 1 else None]
        for step in range(5)
    ]
    params, others, peers = ([torch.nn.Parameter(torch.ones(3)) for _ in "ab"] for _ in range(3))
    follow(lrfast.SGD(params, **SGD), params, grads)
    follow(torch.optim.SGD(others, **SGD, foreach=False), others, grads)
    for param, other in zip(params, others, strict=True):
        torch.testing.assert_close(param, other)
    fused = torch.optim.SGD(peers, **SGD, fused=True)
    still(raises(lambda: follow(fused, peers, grads)), "fused SGD, parameter unfrozen late")


def test_3_a_first_step_that_overflows() -> None:
    """torch's fused SGD keeps whatever memory held as its buffer; torch.empty is full of NaN here.

    GradScaler's overflows are most frequent at the very start.
    """

    def run(optimizer: Any, param: Tensor) -> None:
        for overflows in (1.0, 0.0, 0.0):
            optimizer.grad_scale, optimizer.found_inf = torch.ones(()), torch.tensor(overflows)
            param.grad = torch.full_like(param, torch.inf if overflows else 0.5)
            optimizer.step()

    params = [torch.nn.Parameter(torch.ones(4)) for _ in range(3)]
    run(lrfast.SGD(params[:1], **SGD), params[0])
    follow(torch.optim.SGD(params[1:2], **SGD), params[1:2], [[torch.full((4,), 0.5)]] * 2)
    torch.testing.assert_close(params[0], params[1])
    run(torch.optim.SGD(params[2:], **SGD, fused=True), params[2])
    still(not bool(params[2].isfinite().all()), "fused SGD, overflow at the first step")


def test_4_cycled_betas_of_a_tensor() -> None:
    """torch's OneCycleLR puts a number in a tensor's place, so no captured graph sees it change.

    Ours cycles on the device and leaves the user's tensors alone.
    """
    cycle = schedules.one_cycle(9, momentum=(0.95, 0.85))
    betas = (torch.tensor(0.9, dtype=torch.float64), torch.tensor(0.99, dtype=torch.float64))
    params = [torch.nn.Parameter(torch.randn(5, dtype=torch.float64))]
    others = twins(params)
    ours = lrfast.AdamW(params, lr=0.1, betas=betas, schedule=cycle)
    plain = lrfast.AdamW(others, lr=0.1, betas=(0.9, 0.99), schedule=cycle)
    fixed_params = twins(params)
    rates = schedules.one_cycle(9, momentum=None)
    fixed = lrfast.AdamW(fixed_params, lr=0.1, betas=(0.9, 0.99), schedule=rates)
    grads: list[list[Tensor | None]] = [[random_grad(params[0])] for _ in range(9)]
    for optimizer, tensors in ((ours, params), (plain, others), (fixed, fixed_params)):
        follow(optimizer, tensors, grads)
    assert torch.equal(params[0], others[0]) and not torch.equal(params[0], fixed_params[0])
    kept = ours.param_groups[0]["betas"]
    assert kept[0] is betas[0] and kept[1] is betas[1]
    assert [beta.item() for beta in betas] == [0.9, 0.99]
    peer = torch.optim.AdamW(twins(params), lr=torch.tensor(0.1), betas=betas, capturable=True)
    lr_scheduler.OneCycleLR(peer, 0.1, 9)
    still(peer.param_groups[0]["betas"][0] is not betas[0], "OneCycleLR replaces a tensor beta")


@pytest.mark.gpu
def test_5_one_tensor_rate_for_several_devices() -> None:
    """torch's fused Adam moves the rate to each device when it first meets it, and then goes on
    with the last one: a third bucket, on the first device again, gets the second one's."""
    places = [("cuda", torch.float32), ("cpu", torch.float32), ("cuda", torch.bfloat16)]
    rate = torch.tensor(0.25, dtype=torch.float64)
    params = [torch.nn.Parameter(torch.ones(4, device=d, dtype=t)) for d, t in places]
    optimizer = lrfast.SGD(params, lr=rate)
    for value in (0.25, 0.125):
        rate.fill_(value)
        follow(optimizer, params, [[torch.ones_like(p) for p in params]])
    assert [param.tolist() for param in params] == [[0.625] * 4] * 3


@pytest.mark.parametrize("dtype", HALF_DTYPES, ids=by_name)
@pytest.mark.parametrize("case", STATEFUL, ids=by_name)
def test_6_float32_states_survive_a_load(case: OptimizerCase, dtype: torch.dtype) -> None:
    """torch casts them to the parameter's dtype: 16 of 24 bits of a second moment are gone."""
    wide = torch.nn.Parameter(torch.randn(64))
    source = case.theirs([wide], **case.options)
    follow(source, [wide], [[torch.randn(64)], [torch.randn(64)]])
    param = torch.nn.Parameter(wide.detach().to(dtype))
    peer = torch.nn.Parameter(param.detach().clone())
    saved = source.state_dict()
    ours, theirs = case.ours([param], **case.options), case.theirs([peer], **case.options)
    for optimizer in (ours, theirs):
        optimizer.load_state_dict(copy.deepcopy(saved))
    lost = []
    for name, value in saved["state"][0].items():
        mine = ours.state[param][name]
        assert torch.equal(mine, value) and mine.dtype == value.dtype, name
        if value.dim():
            lost.append(theirs.state[peer][name].dtype == dtype)
    assert lost
    still(all(lost), "load_state_dict casts float32 states down")


@pytest.fixture
def mesh() -> Iterator[Any]:
    """A device mesh of this process alone."""
    from torch.distributed.tensor import init_device_mesh

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize("case", STATEFUL, ids=by_name)
def test_7_dtensors_and_tensors_in_one_group(case: OptimizerCase, mesh: Any) -> None:
    """As FSDP2 with ignored parameters makes them; torch's fused and foreach steps refuse both."""
    from torch.distributed.tensor import DTensor, Shard, distribute_tensor

    def spread(tensor: Tensor) -> Any:
        return distribute_tensor(tensor, mesh, [Shard(0)])

    whole = [torch.randn(4, 3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)]
    params = [torch.nn.Parameter(spread(whole[0])), torch.nn.Parameter(whole[1].clone())]
    plain = [torch.nn.Parameter(tensor.clone()) for tensor in whole]
    ours, theirs = case.ours(params, **case.options), case.ours(plain, **case.options)
    for step in range(4):
        grads: list[Tensor | None] = [torch.randn_like(tensor) for tensor in whole]
        follow(theirs, plain, [grads])
        params[0].grad, params[1].grad = spread(grads[0]), grads[1]  # type: ignore[arg-type]
        ours.step()
        if step == 1:  # through a checkpoint, as a resumed run
            saved = copy.deepcopy(ours.state_dict())
            ours = case.ours(params, **case.options)
            ours.load_state_dict(saved)
    assert torch.equal(params[0].full_tensor(), plain[0]) and torch.equal(params[1], plain[1])
    for name, value in theirs.state[plain[0]].items():
        mine = ours.state[params[0]][name]
        assert isinstance(mine, DTensor) == bool(value.dim()), name
        assert torch.equal(mine.full_tensor() if value.dim() else mine, value), name
    if case.in_torch is not None:
        peer = case.theirs(params, **case.options, foreach=True)
        still(raises(peer.step), "DTensors and tensors in one group, foreach")


def test_8_bfloat16_states_of_float32_parameters() -> None:
    """torch's fused CPU kernel takes no states of another dtype than the parameter's."""
    for case in STATEFUL:
        param = torch.nn.Parameter(torch.randn(50))
        optimizer = case.ours([param], **case.options, state_dtype=torch.bfloat16)
        # z of a schedule-free rule starts as the parameter, rounded.
        first = {"z": param.detach().bfloat16()} if hasattr(optimizer, "eval") else {}
        for _ in range(4):
            param.grad = torch.randn(50)
            was = {param: copied(param, optimizer.state.get(param, first))}
            optimizer.step()
            check_step(case, optimizer, was)
        kept = [value for value in optimizer.state[param].values() if value.dim()]
        assert kept and all(value.dtype == torch.bfloat16 for value in kept), case.name
    peers = [torch.nn.Parameter(torch.ones(2))]
    peer = torch.optim.AdamW(peers, fused=True)
    follow(peer, peers, [[torch.ones(2)]])
    for name in ("exp_avg", "exp_avg_sq"):
        peer.state[peers[0]][name] = peer.state[peers[0]][name].bfloat16()
    still(raises(peer.step), "fused AdamW with bfloat16 states on the CPU")


def test_9_moments_counts_and_first_steps() -> None:
    """apex's capturable Adam rounds the moments of half parameters to half, counts a step by the
    overflow of the one before, and its SGD lets the last parameter say whether all are at their
    first step."""
    adamw = next(case for case in STATEFUL if case.ours is lrfast.AdamW)
    param = torch.nn.Parameter(torch.randn(200).half())
    optimizer = adamw.ours([param], **adamw.options, state_dtype=torch.float32)
    for step, overflows in enumerate((1.0, 0.0, 1.0, 0.0, 0.0)):
        param.grad = torch.full_like(param, torch.inf) if overflows else random_grad(param)
        was = {param: copied(param, optimizer.state.get(param, {}))}
        optimizer.grad_scale, optimizer.found_inf = torch.ones(()), torch.tensor(overflows)
        optimizer.step()
        if not overflows:
            check_step(adamw, optimizer, was)
        assert optimizer.state[param]["step"].item() == [0, 1, 1, 2, 3][step]
    assert optimizer.state[param]["exp_avg_sq"].dtype == torch.float32
    params = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    others = twins(params)
    grads: list[list[Tensor | None]] = [
        [torch.full((3,), 1.0 + step), torch.full((3,), 2.0) if step > 2 else None]
        for step in range(6)
    ]
    follow(lrfast.SGD(params, **SGD), params, grads)
    follow(torch.optim.SGD(others, **SGD, foreach=False), others, grads)
    for param, other in zip(params, others, strict=True):
        torch.testing.assert_close(param, other)


@pytest.mark.parametrize("case", STATEFUL, ids=by_name)
def test_10_every_parameter_counts_for_itself(case: OptimizerCase) -> None:
    """DeepSpeed's FusedAdam counts for the last parameter of a group alone, and in a group of
    several dtypes two or three times per step."""
    kinds = (torch.float32, torch.bfloat16, torch.float32, torch.float16, torch.float64)
    params = [torch.nn.Parameter(torch.ones(3, dtype=dtype)) for dtype in kinds]
    optimizer = case.ours(params, **case.options)
    for step in range(6):
        grads = [random_grad(p) if step >= index else None for index, p in enumerate(params)]
        was = {
            p: copied(p, optimizer.state.get(p, {}))
            for p, grad in zip(params, grads, strict=True)
            if grad is not None
        }
        follow(optimizer, params, [grads])
        check_step(case, optimizer, was)
    counts = [optimizer.state[p].get("step", torch.tensor(6.0 - i)) for i, p in enumerate(params)]
    assert [count.item() for count in counts] == [6, 5, 4, 3, 2]


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
@pytest.mark.parametrize("case", STATEFUL, ids=by_name)
def test_11_infinities_stay_out_and_momentum_below_one(case: OptimizerCase, bad: float) -> None:
    """Transformer Engine's plain kernel lets infinities through to the weights; DeepSpeed's
    OneCycle can drive a cycled momentum above 1."""
    params = [torch.nn.Parameter(torch.randn(9)) for _ in range(2)]
    cycle = schedules.one_cycle(5, momentum=(0.95, 0.85))
    optimizer = case.ours(params, **case.options, skip_nonfinite=True, schedule=cycle)
    for step in range(12):
        for param in params:
            param.grad = torch.randn(9)
        if step % 3 == 0:
            params[1].grad[4] = bad  # type: ignore[index]
        optimizer.step()
        states = [v for p in params for v in optimizer.state[p].values() if v is not None]
        assert all(bool(value.isfinite().all()) for value in [*params, *states])
    assert optimizer.schedule_step == 8
    momenta = cycle.momentum(range(10_000))
    assert momenta is not None
    assert 0.85 <= min(momenta) <= max(momenta) <= 0.95
    with pytest.raises(ValueError, match=r"within \[0, 1\)"):
        schedules.one_cycle(5, momentum=(1.05, 0.85))


def test_12_no_wait_between_parameters() -> None:
    """bitsandbytes waits for the device after every parameter; here no operator of a step reads
    the device, however many parameters there are."""
    params = [torch.nn.Parameter(torch.randn(3)) for _ in range(200)]
    optimizer = lrfast.AdamW(params, **ADAMW)
    for _ in range(2):
        for param in params:
            param.grad = torch.randn(3)
        with NoDeviceReads():
            optimizer.step()


@pytest.mark.gpu
def test_12_the_users_stream() -> None:
    """bitsandbytes launches on stream 0: what the user's stream has yet to write is not there."""
    param = torch.nn.Parameter(torch.zeros(1 << 20, device="cuda"))
    param.grad = torch.zeros_like(param)
    optimizer = lrfast.SGD([param], lr=1.0)
    optimizer.step()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        param.grad.fill_(1.0)
        optimizer.step()
        seen = param.detach().clone()
    stream.synchronize()
    assert bool((seen == -1).all())
