"""A training step reads nothing back from the device: no operator that would wait for it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import STATEFUL, OptimizerCase, by_name
from device_reads import NoDeviceReads

from lrfast import schedules
from lrfast.curve import LossCurve


@pytest.mark.parametrize(
    "read",
    [
        lambda loss: loss.item(),
        lambda loss: float(loss),
        lambda loss: bool(loss > 0),
        lambda loss: torch.equal(loss, loss),
        lambda loss: loss.nonzero(),
        lambda loss: torch.allclose(loss, loss),
    ],
)
def test_the_mode_bites(read: Callable[[torch.Tensor], Any]) -> None:
    loss = torch.ones(())
    with NoDeviceReads(), pytest.raises(AssertionError, match="reads a value"):
        read(loss)


@pytest.mark.parametrize("case", STATEFUL, ids=by_name)
def test_a_training_loop_reads_nothing(case: OptimizerCase, device: torch.device) -> None:
    """With schedule, curve, watch and poll, over bfloat16 and float32, from the first step on."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    model.to(device)
    half = torch.nn.Parameter(torch.ones(3, device=device, dtype=torch.bfloat16))
    groups = [{"params": model[0].parameters()}, {"params": [*model[2].parameters(), half]}]
    optimizer = case.ours(
        groups, **case.options, schedule=[schedules.linear(0.1, 1.0, 9), schedules.cosine(15)]
    )
    curve = LossCurve(20, device, width=2, diverge_threshold=1e9)
    inputs = torch.randn(16, 4, device=device)
    optimizer._watch(curve.stop_flag)
    with NoDeviceReads():
        for step in range(20):
            loss = model(inputs).square().mean() + half.float().square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            curve.record(loss, optimizer.last_rates)
            curve.poll()
            optimizer.param_groups[0]["frozen"] = step % 5 == 0
            optimizer.param_groups[1]["weight_decay"] = 0.01 * step
    assert curve.status().count == 20
    rates = torch.tensor([g["lr"] for g in optimizer.param_groups], dtype=torch.float64)
    wanted = [[s.at(t) for s in optimizer._schedules] for t in range(20)]
    torch.testing.assert_close(curve.lrs.cpu() / rates, torch.tensor(wanted, dtype=torch.float64))


def test_cycling_beta1_reads_only_before_the_first_step() -> None:
    """The product of the betas starts from the count, which is read once."""
    param = torch.nn.Parameter(torch.ones(3))
    case = STATEFUL[1]
    optimizer = case.ours([param], **case.options, schedule=schedules.one_cycle(20))
    param.grad = torch.ones(3)
    optimizer.step()
    with NoDeviceReads():
        for _ in range(20):
            param.grad = torch.ones(3)
            optimizer.step()
