"""Memory that another stream has made must not be given away before this one has used it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lrfast
from lrfast.optim import _optimizer, _state
from lrfast.training import _snapshot


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Places of the tensors that were noted to be in use on this stream."""
    places: list[int] = []
    for module in (_state, _snapshot, _optimizer):
        monkeypatch.setattr(module, "note_use", lambda tensor: places.append(tensor.data_ptr()))
    return places


def test_converted_states_are_noted(noted: list[int]) -> None:
    param, sums, count = torch.ones(3), torch.ones(3, dtype=torch.float64), torch.ones(())
    _state.as_engine_state("sum", sums, param, torch.float32)
    _state.as_scalar(count, param, torch.float64)
    assert noted == [sums.data_ptr(), count.data_ptr()]


def test_states_in_another_dtype_are_noted(noted: list[int]) -> None:
    param = nn.Parameter(torch.ones(3))
    first: Any = lrfast.SGD([param], momentum=0.9)
    param.grad = torch.ones(3)
    first.step()
    second = lrfast.SGD([param], momentum=0.9, state_dtype=torch.bfloat16)
    second.load_state_dict(first.state_dict())
    assert first.state[param]["momentum_buffer"].data_ptr() in noted


def test_copies_of_a_snapshot_are_noted(noted: list[int]) -> None:
    layer = nn.Linear(2, 1)
    snapshot = _snapshot.Snapshot(layer, torch.optim.SGD(layer.parameters()))
    copies = [copy for _, copy in snapshot._store._saved.values() if isinstance(copy, Tensor)]
    snapshot.restore()
    assert {copy.data_ptr() for copy in copies} <= set(noted)


def _two_steps(second: torch.cuda.Stream, dropped: str) -> list[float]:
    """Step on the current stream and on another, and drop at once what that step has read."""
    param = nn.Parameter(torch.ones(64, 2, device="cuda")[:, 0])  # with gaps, so it is staged
    optimizer = lrfast.SGD([param], lr=0.1, momentum=0.9)
    param.grad = torch.ones_like(param)
    optimizer.step()
    engine = optimizer._engine
    assert engine is not None
    scale = torch.full((), 0.5, dtype=torch.float64, device="cuda")
    flag = torch.zeros((), dtype=torch.float64, device="cuda")
    torch.cuda.synchronize()
    with torch.cuda.stream(second):
        optimizer.step()  # from here on the engine is known to be on this stream
        if dropped == "new group":
            optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3, device="cuda"))]})
        if dropped == "numbers":
            engine.scale_rates(scale)
            engine.watch(flag)
        optimizer.step()
    if dropped == "numbers":
        engine.scale_rates(None)
        engine.watch(None)
    else:
        optimizer._engine = None
    del engine, scale, flag
    torch.cuda.synchronize()
    values: list[float] = param.tolist()
    return values


@pytest.mark.gpu
@pytest.mark.parametrize("dropped", ["engine", "numbers", "new group"])
def test_what_a_step_reads_outlives_it(dropped: str) -> None:
    wanted = _two_steps(torch.cuda.current_stream(), dropped)
    assert _two_steps(torch.cuda.Stream(), dropped) == wanted


@pytest.mark.gpu
def test_states_of_another_stream_outlive_their_conversion() -> None:
    """Adagrad's constructor makes states, which the first step replaces."""
    param = nn.Parameter(torch.ones(64, device="cuda"))
    optimizer = lrfast.Adagrad([param], lr=0.1, initial_accumulator_value=0.5)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        param.grad = torch.ones_like(param)
        optimizer.step()
    torch.cuda.synchronize()
    assert param.tolist() == pytest.approx([1 - 0.1 / 1.5**0.5] * 64)


@pytest.mark.gpu
def test_states_in_another_dtype_outlive_their_conversion() -> None:
    param = nn.Parameter(torch.ones(64, device="cuda"))
    plain = lrfast.SGD([param], lr=0.0, momentum=0.9)
    param.grad = torch.ones_like(param)
    plain.step()
    saved = plain.state_dict()
    optimizer = lrfast.SGD([param], lr=0.1, momentum=0.9, state_dtype=torch.bfloat16)
    del plain
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        optimizer.load_state_dict(saved)
        del saved
        optimizer.param_groups[0]["lr"] = 0.1
        optimizer.step()
    torch.cuda.synchronize()
    assert param.tolist() == pytest.approx([1 - 0.1 * 1.9] * 64, rel=1e-2)
