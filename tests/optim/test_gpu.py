"""What is claimed for CUDA alone, or cannot be seen without it; tests/README.md lists the rest.

Where a test makes sense on the CPU it runs there too, so that its own logic is tested on every
machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import pytest
import torch
from cases import STATEFUL, OptimizerCase, by_name, parameters, random_grad, twins
from device_reads import NoDeviceReads
from tiny import cross_entropy, make_batches, make_model
from torch import Tensor, nn

import lrfast
from lrfast import schedules

STEPS = 6
ALL_PASSES: dict[str, Any] = {
    "max_grad_norm": 1.0,
    "skip_nonfinite": True,
    "zero_grads": True,
    "ema_decay": 0.9,
    "telemetry": 8,
}
OPTIONS = {"plain": {}, "all-passes": ALL_PASSES}
cuda = torch.device("cuda")


@contextmanager
def no_waits(device: torch.device) -> Iterator[None]:
    """Raises on every wait for the GPU, and on the CPU on what would be one there."""
    if device.type == "cpu":
        with NoDeviceReads():
            yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_a_wait_is_noticed() -> None:
    with no_waits(cuda), pytest.raises(RuntimeError, match="synchroniz"):
        torch.ones((), device=cuda).item()


# ---- the same numbers ------------------------------------------------------------------------


def all_kinds(device: torch.device) -> list[Tensor]:
    """Parameters of every dtype and layout, the same ones on every device."""
    torch.manual_seed(3)
    dtypes = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    return [param for dtype in dtypes for param in parameters(dtype, device)]


def run(case: OptimizerCase, device: torch.device, **options: Any) -> list[Tensor]:
    """Weights, states and averages after some steps, on the CPU."""
    params = all_kinds(device)
    optimizer = case.ours(case.groups(params), **case.options, **options)
    for _ in range(STEPS):
        for param in params:
            param.grad = random_grad(param)
        optimizer.step()
    states = [optimizer.state[param] for param in params]
    found = [value for state in states for _, value in sorted(state.items())]
    return [tensor.detach().cpu() for tensor in [*params, *found] if isinstance(tensor, Tensor)]


@pytest.mark.gpu
@pytest.mark.parametrize("rounding", [False, True], ids=["nearest", "stochastic"])
@pytest.mark.parametrize("case", STATEFUL, ids=by_name)
def test_cpu_and_gpu_agree_to_the_bit(case: OptimizerCase, rounding: bool) -> None:
    """Nothing but + - * / and sqrt is in a rule, without contraction: NAdam's powers excepted."""
    options = {"stochastic_rounding": rounding, "seed": 5, "ema_decay": 0.9}
    on_cpu, on_gpu = (run(case, torch.device(d), **options) for d in ("cpu", "cuda"))
    assert len(on_cpu) == len(on_gpu)
    for expected, found in zip(on_cpu, on_gpu, strict=True):
        if case.ours is lrfast.NAdam:
            torch.testing.assert_close(found, expected)
        else:
            assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "second", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)], ids=["cpu", "cuda"]
)
@pytest.mark.parametrize("case", STATEFUL, ids=by_name)
def test_parameters_on_two_devices_in_one_optimizer(case: OptimizerCase, second: str) -> None:
    """As two optimizers would do it, one on each, with a schedule."""
    schedule = schedules.one_cycle(STEPS)
    params = [nn.Parameter(torch.randn(700, device=d)) for d in ("cpu", second, "cpu", second)]
    alone = [twins(params[::2]), twins(params[1::2])]
    together = case.ours([{"params": params}], **case.options, schedule=schedule)
    apart = [case.ours(each, **case.options, schedule=schedule) for each in alone]
    for _ in range(STEPS):
        for param in params:
            param.grad = random_grad(param)
        for first, own in enumerate(alone):
            for other, param in zip(own, params[first::2], strict=True):
                other.grad = param.grad.clone() if param.grad is not None else None
        for optimizer in (together, *apart):
            optimizer.step()
    for first, own in enumerate(alone):
        for other, param in zip(own, params[first::2], strict=True):
            assert torch.equal(param, other)


# ---- launches and waits ----------------------------------------------------------------------


def kernels_of(call: Callable[[], Any]) -> list[str]:
    """Names of what a call runs on the GPU, copies and fills included."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    probe = torch.ones(8, device=cuda)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=activities) as profile:
        probe.mul_(2)
        call()
        torch.cuda.synchronize()
    events = [e for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    names = [event.name for event in sorted(events, key=lambda event: event.time_range.start)]
    if not names:
        pytest.skip("torch's profiler sees no kernels on this machine")
    return [name for name in names if "vectorized_elementwise" not in name]


@pytest.mark.gpu
@pytest.mark.parametrize("scheduled", [False, True])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("case", STATEFUL, ids=by_name)
def test_one_launch(case: OptimizerCase, options: dict[str, Any], scheduled: bool) -> None:
    """For 224 groups of four dtypes; one more where the norm comes first; and no copy at all."""
    dtypes = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    params = [nn.Parameter(torch.randn(33, device=cuda, dtype=dtypes[i % 4])) for i in range(224)]
    schedule = schedules.one_cycle(20) if scheduled else None
    groups = [{"params": [param], "lr": 1e-3 * (i + 1)} for i, param in enumerate(params)]
    optimizer = case.ours(groups, **case.options, schedule=schedule, **options)
    for param in params:
        param.grad = random_grad(param)
    for _ in range(3):
        optimizer.step()
    names = kernels_of(optimizer.step)
    wanted = ["norm_kernel", "step_kernel"] if options else ["step_kernel"]
    assert len(names) == len(wanted), names
    for name, part in zip(names, wanted, strict=True):
        assert part in name


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"cautious_weight_decay": True}, ["altered_kernel"]),
        ({"scheduled_weight_decay": False}, ["step_kernel"]),
        ({"cautious": True}, ["foresee_kernel", "altered_kernel"]),
        ({"clipping_threshold": 0.5}, ["foresee_kernel", "altered_kernel"]),
        (
            {"cautious": True, "clipping_threshold": 0.5, "max_grad_norm": 1.0},
            ["norm_kernel", "foresee_kernel", "altered_kernel"],
        ),
    ],
    ids=str,
)
def test_sums_over_tensors_are_one_more_launch(options: dict[str, Any], wanted: list[str]) -> None:
    """For 40 groups of four dtypes, and without a synchronisation."""
    dtypes = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    params = [nn.Parameter(torch.randn(33, device=cuda, dtype=dtypes[i % 4])) for i in range(40)]
    groups = [{"params": [param], "lr": 1e-3 * (i + 1)} for i, param in enumerate(params)]
    optimizer = lrfast.AdamW(groups, schedule=schedules.one_cycle(20), **options)
    for param in params:
        param.grad = random_grad(param)
    for _ in range(3):
        optimizer.step()
    names = kernels_of(optimizer.step)
    assert len(names) == len(wanted), names
    for name, part in zip(names, wanted, strict=True):
        assert part in name
    torch.cuda.synchronize()
    with no_waits(cuda):
        optimizer.step()


@pytest.mark.gpu
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_muon_launches_each_of_its_passes_once(options: dict[str, Any]) -> None:
    """For 24 matrices of two shapes and AdamW's tensors; the products between are torch's."""
    shapes = [(6, 9), (9, 6), (7,)] * 12
    params = [nn.Parameter(torch.randn(shape, device=cuda)) for shape in shapes]
    rules = ("muon", "adamw")
    groups = [
        {"params": [param], "lr": 1e-3 * (i + 1), "rule": rules[param.dim() < 2]}
        for i, param in enumerate(params)
    ]
    optimizer = lrfast.Muon(groups, schedule=schedules.one_cycle(20), **options)
    for param in params:
        param.grad = random_grad(param)
    for _ in range(3):
        optimizer.step()
    own = [n for n in kernels_of(optimizer.step) if "step_kernel" in n or "norm_kernel" in n]
    wanted = [*(["norm_kernel"] if options else []), "step_kernel", "step_kernel"]
    assert len(own) == len(wanted), own
    for name, part in zip(own, wanted, strict=True):
        assert part in name
    torch.cuda.synchronize()
    with no_waits(cuda):
        optimizer.step()


def test_a_training_loop_with_everything_waits_for_nothing(device: torch.device) -> None:
    """One-cycle, all passes, scaler, plateau and loss curve, from the third step on."""
    model = make_model().to(device)
    optimizer = lrfast.AdamW(
        model.parameters(), lr=0.01, schedule=schedules.one_cycle(40), **ALL_PASSES
    )
    plateau = lrfast.Plateau(optimizer, patience=2)
    curve = lrfast.LossCurve(40, device=device, diverge_threshold=1e9)
    scaler = torch.amp.GradScaler(device.type, init_scale=64.0, growth_interval=5)
    batches = [(x.to(device), y.to(device)) for x, y in make_batches(4)]

    def step(number: int) -> None:
        inputs, targets = batches[number % 4]
        loss = cross_entropy(model(inputs), targets)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        curve.record(loss, optimizer.last_rates)
        curve.poll()
        plateau.observe(loss.detach())

    for number in range(2):
        step(number)
    with no_waits(device):
        for number in range(2, 38):
            step(number)
    assert optimizer._clock()[0] == 38 and curve.status().count == 38
    assert optimizer.telemetry().rates.shape == (8, 1)


@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
def test_a_sweep_waits_for_nothing(kind: str, device: torch.device) -> None:
    model = make_model().to(device)
    optimizer = getattr(lrfast, kind)(model.parameters(), lr=0.1, max_grad_norm=1.0)
    batches = [(x.to(device), y.to(device)) for x, y in make_batches(4)]
    calls, guards = count(), []

    def compute_loss(model: nn.Module, batch: Any) -> Tensor:
        number = next(calls)
        if number == 3:
            guards.append(no_waits(device))
            guards[0].__enter__()
        if number == 27:
            guards.pop().__exit__(None, None, None)
        return cross_entropy(model(batch[0]), batch[1])

    try:
        result = lrfast.lr_find(
            model, optimizer, batches, compute_loss=compute_loss, num_iter=30,
            diverge_threshold=1e9, progress=False,
        )  # fmt: skip
    finally:
        if guards:
            guards.pop().__exit__(None, None, None)
    assert len(result.lrs) == 30 and not guards


# ---- streams and memory ----------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("case", STATEFUL, ids=by_name)
def test_two_optimizers_on_two_streams_at_once(case: OptimizerCase) -> None:
    starts = [torch.randn(200_000, device=cuda) for _ in range(2)]
    grads = [torch.randn(200_000, device=cuda) for _ in range(STEPS)]

    def make(start: Tensor) -> tuple[Any, Tensor]:
        param = nn.Parameter(start.clone())
        return case.ours([param], **case.options, schedule=schedules.one_cycle(20)), param

    expected = []
    for start in starts:
        optimizer, param = make(start)
        for grad in grads:
            param.grad = grad.clone()
            optimizer.step()
        expected.append(param.detach())
    made = [make(start) for start in starts]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in made]
    for grad in grads:
        for stream, (optimizer, param) in zip(streams, made, strict=True):
            with torch.cuda.stream(stream):
                param.grad = grad.clone()
                optimizer.step()
    torch.cuda.synchronize()
    for (_, param), wanted in zip(made, expected, strict=True):
        assert torch.equal(param, wanted)


@pytest.mark.gpu
def test_one_optimizer_on_alternating_streams() -> None:
    """Each stream waits for the other, as it must; tables that change go along."""
    param = nn.Parameter(torch.zeros(1 << 20, device=cuda))
    optimizer = lrfast.SGD([param], lr=1.0)
    streams = [torch.cuda.Stream() for _ in range(2)]
    torch.cuda.synchronize()
    for step in range(20):
        stream, other = streams[step % 2], streams[1 - step % 2]
        stream.wait_stream(other)
        with torch.cuda.stream(stream):
            optimizer.param_groups[0]["lr"] = 2.0 ** -(step % 3)
            param.grad = torch.ones_like(param)
            optimizer.step()
            param.grad.record_stream(stream)
    torch.cuda.synchronize()
    wanted = -sum(2.0 ** -(step % 3) for step in range(20))
    assert bool((param == wanted).all())


@pytest.mark.gpu
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_memory_is_flat_over_a_thousand_steps(options: dict[str, Any]) -> None:
    """With new gradients at every step, a schedule that changes, and groups that freeze."""
    params = [nn.Parameter(torch.randn(1000, device=cuda)) for _ in range(20)]
    optimizer = lrfast.AdamW([{"params": params[:9]}, {"params": params[9:]}], lr=0.01, **options)
    curve = lrfast.LossCurve(1000, device=cuda, width=2)
    loss = torch.ones((), device=cuda)
    used = []
    for step in range(1000):
        if step % 100 == 0:
            optimizer.set_schedule(schedules.one_cycle(100 + step))
            used.append(torch.cuda.memory_allocated())
        optimizer.param_groups[0]["frozen"] = step % 7 == 0
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer.step()
        curve.record(loss, optimizer.last_rates)
        optimizer.zero_grad()
    assert max(used[2:]) - used[1] < 16384, used  # tables come and go, tensors do not


LARGE = 2**31 + 5


@pytest.mark.parametrize(
    ("where", "numel"),
    [("cpu", 2**17 + 5), pytest.param("cuda", LARGE, marks=pytest.mark.gpu)],
    ids=["cpu", "cuda"],
)
@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
def test_more_elements_than_32_bits_count(kind: str, where: str, numel: int) -> None:
    """All elements begin alike and must end alike: none left out, none updated twice.

    In bfloat16 with bfloat16 states: 9 GB for SGD, 17 GB for AdamW. The first 2^31 elements start
    at 1, the others at 2.
    """
    arrays = {"SGD": 2, "AdamW": 4}[kind]
    if where == "cuda" and torch.cuda.mem_get_info()[0] < 2 * numel * (arrays + 1):
        pytest.skip(f"needs {2 * numel * (arrays + 1) / 1e9:.0f} GB of GPU memory")
    half = {"dtype": torch.bfloat16, "device": where}
    param = nn.Parameter(torch.ones(numel, **half))
    with torch.no_grad():
        param[numel - 5 :] = 2.0
    param.grad = torch.full((numel,), 0.5, **half)
    optimizer = getattr(lrfast, kind)([param], lr=0.25, weight_decay=0.5)
    few = nn.Parameter(torch.tensor([1.0, 2.0], **half))
    few.grad = torch.full((2,), 0.5, **half)
    twin = getattr(lrfast, kind)([few], lr=0.25, weight_decay=0.5)
    for _ in range(2):
        optimizer.step()
        twin.step()
    first, last = few.tolist()
    assert first != 1.0 and last != 2.0 and first != last
    for part, wanted in ((param[: numel - 5], first), (param[numel - 5 :], last)):
        assert [edge.item() for edge in torch.aminmax(part.detach())] == [wanted, wanted]


# ---- for compute-sanitizer -------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("case", STATEFUL, ids=by_name)
def test_every_kernel_once(
    case: OptimizerCase, options: dict[str, Any], device: torch.device
) -> None:
    """Every kernel of a step over every dtype and layout, and the curve's: little work for what
    runs it a hundred times slower (tools/gpu_check.py)."""
    params = all_kinds(device)
    schedule = schedules.one_cycle(20, momentum=None)
    optimizer = case.ours(case.groups(params), **case.options, schedule=schedule, **options)
    curve = lrfast.LossCurve(STEPS, device=device, width=3)
    for step in range(STEPS):
        for param in params:
            param.grad = random_grad(param)
        optimizer.step()
        curve.record(torch.full((), 1.0 + step, device=device), optimizer.last_rates)
    for method in ("ema", "median"):
        window = {"window": 3} if method == "median" else {}
        assert curve.smoothed(method, **window).isfinite().all()
    assert all(param.isfinite().all() for param in params)
