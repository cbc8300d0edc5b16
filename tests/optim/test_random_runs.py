"""Random optimizers through random events, each step against the float64 reference."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from cases import DTYPES, OPTIMIZERS, SHAPES, OptimizerCase, random_grad, values
from hypothesis import given, settings
from hypothesis import strategies as st
from steps import check_step, copied
from torch import Tensor

import lrfast
from lrfast import schedules

GROUPS = 3


@dataclass
class Run:
    """An optimizer on its way, with what the next event needs to know."""

    case: OptimizerCase
    optimizer: Any
    schedule: schedules.Schedule | None
    frozen: set[int] = field(default_factory=set)

    def step(self, with_grad: list[bool]) -> None:
        """Step, and check every parameter that has to move, and that no other does."""
        moving, resting = {}, {}
        index = 0
        for number, group in enumerate(self.optimizer.param_groups):
            for param in group["params"]:
                has_grad = with_grad[index % len(with_grad)]
                index += 1
                param.grad = random_grad(param) if has_grad else None
                kind = moving if has_grad and number not in self.frozen else resting
                kind[param] = copied(param, self.optimizer.state.get(param, {}))
        rates = self.optimizer.get_last_lr()
        kept = [group["lr"] for group in self.optimizer.param_groups]
        self.optimizer.step()
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate  # what the reference reads
        check_step(self.case, self.optimizer, {p: v for p, v in moving.items() if p.numel()})
        for group, rate in zip(self.optimizer.param_groups, kept, strict=True):
            group["lr"] = rate
        for param, (value, _) in resting.items():
            assert torch.equal(param.detach().double(), value)

    def freeze(self, group: int, frozen: bool) -> None:
        group %= len(self.optimizer.param_groups)
        self.optimizer.param_groups[group]["frozen"] = frozen
        (self.frozen.add if frozen else self.frozen.discard)(group)

    def load(self) -> None:
        """Into a new optimizer over the same parameters, which knows the groups' flags alone.

        Its schedule is for all groups, that of the run not for those that were added.
        """
        old = self.optimizer
        groups = [{**g, "params": list(g["params"])} for g in old.param_groups]
        self.optimizer = self.case.ours(groups, **self.case.options, schedule=self.schedule)
        self.optimizer.load_state_dict(copy.deepcopy(old.state_dict()), schedule="saved")

    def add_group(self, params: list[Tensor]) -> None:
        self.optimizer.add_param_group({"params": params})

    def change_rates(self, factor: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] *= factor

    def swap(self, which: int) -> None:
        """The parameter's memory is another from now on."""
        params = [p for group in self.optimizer.param_groups for p in group["params"]]
        param = params[which % len(params)]
        param.grad = None
        param.data = param.data.clone()


def draw_params(draw: Any) -> list[Tensor]:
    kind = st.tuples(st.sampled_from(SHAPES), st.sampled_from(DTYPES))
    kinds = draw(st.lists(kind, min_size=1, max_size=4))
    return [torch.nn.Parameter(shape.make(values(dtype))) for shape, dtype in kinds]


@st.composite
def runs(draw: Any) -> Run:
    case = draw(st.sampled_from(OPTIMIZERS))
    params = draw_params(draw)
    count = draw(st.integers(1, GROUPS))
    groups = [g for g in case.groups(params)[:count] if g["params"]]
    cycle = schedules.one_cycle(7, momentum=None)  # the reference knows no cycled momentum
    schedule = draw(st.sampled_from([None, cycle, schedules.cosine(3)]))
    return Run(case, case.ours(groups, **case.options, schedule=schedule), schedule)


EVENTS = st.one_of(
    st.tuples(st.just("step"), st.lists(st.booleans(), min_size=1, max_size=4)),
    st.tuples(st.just("freeze"), st.integers(0, GROUPS), st.booleans()),
    st.tuples(st.just("load")),
    st.tuples(st.just("add_group")),
    st.tuples(st.just("change_rates"), st.sampled_from([0.0, 0.3, 1.7])),
    st.tuples(st.just("swap"), st.integers(0, 12)),
)


@settings(max_examples=300)
@given(st.data())
def test_random_runs_are_the_references(data: st.DataObject) -> None:
    torch.manual_seed(data.draw(st.integers(0, 2**16)))
    run = data.draw(runs())
    for name, *arguments in data.draw(st.lists(EVENTS, min_size=2, max_size=9)):
        if name == "add_group":
            arguments = [draw_params(data.draw)]
        getattr(run, name)(*arguments)
    run.step([True])


def test_the_runs_notice_a_wrong_rate() -> None:
    """So that the checks above cannot pass by looking at nothing."""
    torch.manual_seed(0)
    case = OPTIMIZERS[0]
    run = Run(case, case.ours([torch.nn.Parameter(torch.ones(3))], **case.options), None)
    run.optimizer.get_last_lr = lambda: [case.options["lr"] * 1.01]
    try:
        run.step([True])
    except AssertionError:
        return
    raise AssertionError("a rate that is off by 1 % was not noticed")


def test_lrfast_is_what_runs() -> None:
    assert all(case.ours.__module__.startswith(lrfast.__name__) for case in OPTIMIZERS)
