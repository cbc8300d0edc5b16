"""Every error of optimizers, schedules and the curve says what is wrong and what to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, nan
from typing import Any

import pytest
import torch
from cases import by_name

import lrfast
from lrfast import schedules
from lrfast._utils.extension import extension
from lrfast.curve import LossCurve
from lrfast.schedules import Schedule


@dataclass(frozen=True)
class ErrorCase:
    """A call that must fail, with its exception and a regular expression for its message."""

    name: str
    call: Callable[[], Any]
    error: type[Exception] | tuple[type[Exception], ...]
    message: str


def parameter() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.ones(2, 3))


def step(param: Any = None, grad: Any = None, cls: Any = lrfast.SGD, **changes: Any) -> None:
    """One step, with param_groups[0] changed before it."""
    param = parameter() if param is None else param
    optimizer = cls([param], lr=0.1)
    param.grad = torch.ones_like(param) if grad is None else grad
    optimizer.param_groups[0].update(changes)
    optimizer.step()


def step_misfit(**kind: Any) -> None:
    """With a gradient that was swapped behind torch's back."""
    param = parameter()
    param.grad = torch.ones(2, 3)
    param.grad.data = torch.ones(kind.pop("shape", (2, 3)), **kind)
    lrfast.SGD([param], lr=0.1).step()


def without_lr(cls: Any) -> None:
    optimizer = cls([parameter()], lr=0.1)
    del optimizer.param_groups[0]["lr"]
    optimizer.step()


def load_state(state: dict[str, Any]) -> None:
    param = parameter()
    optimizer = lrfast.AdamW([param])
    saved = optimizer.state_dict()
    saved["state"] = {0: state}
    optimizer.load_state_dict(saved)
    param.grad = torch.ones(2, 3)
    optimizer.step()


def record(loss: Any, lr: Any = None, **options: Any) -> None:
    LossCurve(3, **options).record(loss, lr)


def sgd(**options: Any) -> lrfast.SGD:
    return lrfast.SGD([parameter()], **options)


def adamw(**options: Any) -> lrfast.AdamW:
    return lrfast.AdamW([parameter()], **options)


def lion(**options: Any) -> lrfast.Lion:
    return lrfast.Lion([parameter()], **options)


def negative_in_second_group() -> None:
    lrfast.SGD([{"params": [parameter()]}, {"params": [parameter()], "lr": -1.0}], lr=0.1)


def shared_memory() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.ones(1).expand(4))


def whole() -> Any:
    return torch.nn.Parameter(torch.ones(3, dtype=torch.int32), requires_grad=False)


def two_cycles() -> Schedule:
    return schedules.one_cycle(3) * schedules.one_cycle(3)


OPTIMIZER_ERRORS = (
    ErrorCase("lr", lambda: sgd(lr=-1.0), ValueError, "Invalid learning rate: -1.0"),
    ErrorCase("nan lr", lambda: sgd(lr=nan), ValueError, r"lr of param_groups\[0\].*finite.*nan"),
    ErrorCase("inf lr", lambda: adamw(lr=inf), ValueError, r"lr of param_groups\[0\].*finite.*inf"),
    ErrorCase("2nd lr", negative_in_second_group, ValueError, r"lr of param_groups\[1\].*-1"),
    ErrorCase("momentum", lambda: sgd(momentum=-0.1), ValueError, "Invalid momentum"),
    ErrorCase("decay", lambda: sgd(weight_decay=-0.1), ValueError, "Invalid weight_decay"),
    ErrorCase("nesterov", lambda: sgd(nesterov=True), ValueError, "Nesterov momentum requires"),
    ErrorCase("beta", lambda: adamw(betas=(1.0, 0.9)), ValueError, "Invalid beta parameter"),
    ErrorCase("eps", lambda: adamw(eps=-1.0), ValueError, "Invalid epsilon"),
    ErrorCase("lion lr", lambda: lion(lr=-1.0), ValueError, "Invalid learning rate: -1.0"),
    ErrorCase("lion lrs", lambda: lion(lr=torch.ones(2)), ValueError, "Tensor lr must be 1-el"),
    ErrorCase("lion betas", lambda: lion(betas=(0.9, 1.0)), ValueError, "at index 1: 1.0"),
    ErrorCase(
        "lion decay", lambda: lion(weight_decay=-0.1), ValueError, "weight_decay value: -0.1"
    ),
    ErrorCase(
        "then", lambda: schedules.cosine(5).then(0.5), TypeError, "must be an .*Schedule, got 0.5"
    ),
    ErrorCase("no params", lambda: lrfast.SGD([]), ValueError, "empty parameter list"),
    ErrorCase(
        "differentiable", lambda: sgd(differentiable=True), ValueError, "use torch.optim for diff"
    ),
    ErrorCase("no schedule", lambda: sgd(schedule=0.5), TypeError, "schedule must be an .*got 0.5"),
    ErrorCase(
        "a number",
        lambda: sgd(schedule=[0.5]),
        TypeError,
        r"schedule\[0\] must .*, got 0.5",
    ),
    ErrorCase(
        "schedules", lambda: sgd(schedule=[None, None]), ValueError, "has 1 groups, got 2 schedules"
    ),
    ErrorCase("later lr", lambda: step(lr=-0.5), ValueError, r"\[0\]\['lr'\].*negative, got -0.5"),
    ErrorCase("later nan", lambda: step(lr=nan), ValueError, r"\['lr'\] must be finite.*nan"),
    ErrorCase("text lr", lambda: step(lr="big"), TypeError, r"'lr'\] must be a number, got str"),
    ErrorCase(
        "later beta",
        lambda: step(cls=lrfast.AdamW, betas=(0.9, inf)),
        ValueError,
        r"param_groups\[0\]\['betas'\]\[1\] must be finite, got inf",
    ),
    ErrorCase(
        "one beta",
        lambda: step(cls=lrfast.AdamW, betas=(0.9,)),
        TypeError,
        r"\['betas'\]\[1\] is missing: 'betas' must hold a number for each, got tuple",
    ),
    ErrorCase(
        "tensor lr",
        lambda: step(lr=torch.ones(2)),
        ValueError,
        r"\['lr'\] must be a number or a tensor of one element.*2 elements on cpu",
    ),
    ErrorCase(
        "bool lr", lambda: step(lr=torch.tensor(True)), ValueError, r"\['lr'\] must be finite"
    ),
    ErrorCase("no lr", lambda: without_lr(lrfast.AdamW), KeyError, r"\['lr'\] is missing"),
    ErrorCase(
        "sparse",
        lambda: step(grad=torch.ones(2, 3).to_sparse()),
        RuntimeError,
        r"sparse gradients are not supported.*parameter 0 of param_groups\[0\] \(shape \[2, 3\]\)"
        ".*sparse=False.*SparseAdam",
    ),
    ErrorCase("shape", lambda: step_misfit(shape=(6,)), ValueError, r"its shape, got \[6\]"),
    ErrorCase(
        "grad dtype",
        lambda: step_misfit(dtype=torch.float64),
        TypeError,
        "must be Float, got Double",
    ),
    ErrorCase(
        "overlap", lambda: step(shared_memory()), ValueError, "must not share memory.*strides"
    ),
    ErrorCase("whole", lambda: step(whole()), TypeError, "complex64 or complex128, got Int"),
    ErrorCase(
        "meta", lambda: step(torch.nn.Parameter(torch.ones(2, device="meta"))), ValueError, "on cpu"
    ),
    ErrorCase(
        "state shape",
        lambda: load_state({"step": 1.0, "exp_avg": torch.ones(5), "exp_avg_sq": torch.ones(2, 3)}),
        ValueError,
        r"\['exp_avg'\] must have its parameter's shape \[2, 3\], got a tensor of shape \[5\]",
    ),
    ErrorCase(
        "state type",
        lambda: load_state({"step": 1.0, "exp_avg": 3.0}),
        ValueError,
        r"\['exp_avg'\] must be a tensor or None, got 3.0",
    ),
    ErrorCase(
        "conjugate",
        lambda: step(torch.nn.Parameter(torch.ones(2, dtype=torch.complex64).conj())),
        TypeError,
        "must not be a lazy conjugate",
    ),
    ErrorCase(
        "max norm", lambda: sgd(max_grad_norm=0.0), ValueError, "max_grad_norm must be.*got 0.0"
    ),
    ErrorCase(
        "later max norm",
        lambda: step(max_grad_norm=-1.0),
        ValueError,
        r"\['max_grad_norm'\] must be finite and not negative, got -1",
    ),
    ErrorCase(
        "no max norm",
        lambda: step(max_grad_norm=0.0),
        ValueError,
        r"\['max_grad_norm'\] must be above 0, got 0",
    ),
    ErrorCase(
        "no clipping",
        lambda: adamw(clipping_threshold=0.0),
        ValueError,
        "clipping_threshold must be finite and above 0, or None, got 0.0",
    ),
    ErrorCase(
        "cautious without a word",
        lambda: adamw(cautious="yes"),
        (TypeError, ValueError),
        "cautious must be .*, got 'yes'",
    ),
    ErrorCase(
        "cautious master bits",
        lambda: adamw(cautious=True, master="24bit"),
        ValueError,
        "master must be None with cautious, whose first pass does not know it, got '24bit'",
    ),
    ErrorCase(
        "clipping without squares",
        lambda: sgd(clipping_threshold=1.0),
        ValueError,
        "clipping_threshold must be None for the rule 'sgd', got 1.0: it is for adam, ",
    ),
    ErrorCase(
        "cautious without momentum",
        lambda: lrfast.Adagrad([parameter()], cautious=True),
        ValueError,
        "cautious must be False for the rule 'adagrad', got True: it is for adam, ",
    ),
    ErrorCase(
        "cautious Prodigy",
        lambda: lrfast.Prodigy([parameter()], cautious=True),
        ValueError,
        "cautious must be False for the rule 'prodigy', got True",
    ),
    ErrorCase(
        "cautious decay of SGD",
        lambda: sgd(cautious_weight_decay=True),
        ValueError,
        "cautious_weight_decay must be False for the rule 'sgd', got True: it is for adam, ",
    ),
    ErrorCase(
        "unscheduled decay of Adam",
        lambda: lrfast.Adam([parameter()], scheduled_weight_decay=False),
        ValueError,
        r"scheduled_weight_decay must be True if .* not decoupled.*\[0\], got False: use",
    ),
    ErrorCase("ema", lambda: sgd(ema_decay=1.0), ValueError, r"ema_decay must be within \[0, 1\)"),
    ErrorCase(
        "state dtype", lambda: sgd(state_dtype=torch.float16), ValueError, "state_dtype must be"
    ),
    ErrorCase("seed", lambda: sgd(seed=-1), ValueError, "seed must be a whole number.*-1"),
    ErrorCase("records", lambda: sgd(telemetry=1.5), ValueError, "telemetry must be a whole.*1.5"),  # type: ignore[arg-type]
    ErrorCase("no records", lambda: sgd().telemetry(), ValueError, "telemetry must be asked for"),
    ErrorCase("option", lambda: sgd(ema=0.9), TypeError, "unexpected keyword argument 'ema'"),
    ErrorCase(
        "rule",
        lambda: extension().Engine("adamm", lambda _: None),
        ValueError,
        "rule must be.*'adamm'",
    ),
    ErrorCase("flag", lambda: sgd()._watch(torch.ones(1)), TypeError, "flag must be one float64"),
    ErrorCase(
        "flags",
        lambda: sgd()._watch(torch.ones(2, dtype=torch.float64)),
        TypeError,
        "one float64, got 2 elements",
    ),
)

SCHEDULE_ERRORS = (
    ErrorCase("factor", lambda: schedules.constant(-1.0), ValueError, "factor must be finite.*-1"),
    ErrorCase("nan", lambda: schedules.constant(nan), ValueError, "factor must be finite.*nan"),
    ErrorCase("start", lambda: schedules.linear(-1, 1, 5), ValueError, "start_factor must be"),
    ErrorCase("end", lambda: schedules.linear(1, inf, 5), ValueError, "end_factor must be"),
    ErrorCase("total", lambda: schedules.linear(1, 1, 0), ValueError, "total_steps.*1 or more.*0"),
    ErrorCase("half", lambda: schedules.linear(1, 1, 2.5), ValueError, "whole number.*2.5"),  # type: ignore[arg-type]
    ErrorCase("bool", lambda: schedules.cosine(True), ValueError, "T_max.*whole number.*True"),
    ErrorCase("eta_min", lambda: schedules.cosine(5, -0.1), ValueError, "eta_min must be"),
    ErrorCase("gamma", lambda: schedules.exponential(5, 0.0), ValueError, "gamma.*above 0.*0.0"),
    ErrorCase(
        "underflow", lambda: schedules.exponential(10**6, 0.9), ValueError, r"0.9 \*\* 1000000"
    ),
    ErrorCase("sweep", lambda: schedules.sweep(0.0, 1.0, 9), ValueError, "start must be.*above 0"),
    ErrorCase("sweep end", lambda: schedules.sweep(1.0, nan, 9), ValueError, "end must be.*nan"),
    ErrorCase("sweep steps", lambda: schedules.sweep(0.1, 1.0, 1), ValueError, "2 or more, got 1"),
    ErrorCase("pct", lambda: schedules.one_cycle(9, 1.1), ValueError, r"pct_start.*\[0, 1\].*1.1"),
    ErrorCase(
        "div", lambda: schedules.one_cycle(9, div_factor=0.5), ValueError, "div_factor must be.*0.5"
    ),
    ErrorCase(
        "final",
        lambda: schedules.one_cycle(9, final_div_factor=nan),
        ValueError,
        "final_div_factor must",
    ),
    ErrorCase(
        "anneal", lambda: schedules.one_cycle(9, anneal="cosine"), ValueError, "'linear', got 'cosi"
    ),  # type: ignore[arg-type]
    ErrorCase(
        "momentum", lambda: schedules.one_cycle(9, momentum=(0.8, 0.9)), ValueError, "highest, low"
    ),
    ErrorCase(
        "beta 1",
        lambda: schedules.one_cycle(9, momentum=(1.0, 0.9)),
        ValueError,
        r"within \[0, 1\)",
    ),
    ErrorCase("no cycle", lambda: schedules.one_cycle(0), ValueError, "total_steps must be"),
    ErrorCase("step", lambda: schedules.cosine(5).at(-1), ValueError, "not be negative, got -1"),
    ErrorCase("product", two_cycles, ValueError, "only one factor of a product.*two: one-cycle"),
    ErrorCase("times", lambda: schedules.cosine(5) * 2.0, TypeError, "unsupported operand"),  # type: ignore[operator]
    ErrorCase("dict", lambda: Schedule.from_dict({}), ValueError, "to_dict returned.*without"),
    ErrorCase(
        "shape",
        lambda: Schedule.from_dict(
            schedules.cosine(5).to_dict()
            | {"rate": [[(0, 0, 1.0, 1.0, 0.0, [(0, 0.0, 5, 1.0, 0.0, "sine", 1.0, ())])]]}
        ).at(0),
        ValueError,
        "shape must be one of constant, linear.*'sine'",
    ),
    ErrorCase(
        "no tables",
        lambda: Schedule("none", 3, ((),)).at(0),
        ValueError,
        "track needs one table at least, got 0",
    ),
    ErrorCase(
        "no segments",
        lambda: Schedule("none", 3, ((schedules.Table(()),),)).at(0),
        ValueError,
        "table needs one segment at least, got 0",
    ),
    ErrorCase(
        "no tuples",
        lambda: Schedule.from_dict(schedules.cosine(5).to_dict() | {"rate": [[1.0]]}),
        ValueError,
        "to_dict returned, got tables that are none",
    ),
)

CURVE_ERRORS = (
    ErrorCase(
        "capacity",
        lambda: LossCurve(0),
        ValueError,
        "capacity must be a whole number, 1 or more, got 0",
    ),
    ErrorCase(
        "width",
        lambda: LossCurve(1, width=0),
        ValueError,
        "width must be a whole number, 1 or more, got 0",
    ),
    ErrorCase("beta", lambda: LossCurve(1, beta=1.0), ValueError, r"beta.*\[0, 1\), got 1"),
    ErrorCase(
        "stop",
        lambda: LossCurve(1, diverge_threshold=1.0),
        ValueError,
        "diverge_threshold must be above 1.*got 1",
    ),
    ErrorCase(
        "nan stop",
        lambda: LossCurve(1, diverge_threshold=nan),
        ValueError,
        "diverge_threshold must be above 1.*nan",
    ),
    ErrorCase("number", lambda: record(3.0), TypeError, "scalar tensor, got float"),
    ErrorCase(
        "vector", lambda: record(torch.ones(2)), ValueError, r"scalar tensor, got shape \[2\]"
    ),
    ErrorCase("whole", lambda: record(torch.tensor(1)), TypeError, "floating-point.*got Long"),
    ErrorCase(
        "rates", lambda: record(torch.ones(()), [0.1, 0.2]), ValueError, "must hold 1 rates.*got 2"
    ),
    ErrorCase(
        "wide", lambda: record(torch.ones(()), 0.1, width=2), ValueError, "must hold 2 rates.*got 1"
    ),
    ErrorCase(
        "rate dtype",
        lambda: record(torch.ones(()), torch.ones(1)),
        TypeError,
        "lr must be.*float64",
    ),
    ErrorCase(
        "loss device",
        lambda: record(torch.ones((), device="meta")),
        ValueError,
        "curve's device cpu",
    ),
    ErrorCase("method", lambda: LossCurve(1).smoothed("mean"), ValueError, "'none', got 'mean'"),  # type: ignore[arg-type]
    ErrorCase("window", lambda: LossCurve(1).smoothed("sma", window=4), ValueError, "odd.*got 4"),
    ErrorCase(
        "mix", lambda: LossCurve(1).smoothed(window=3), ValueError, "'ema', which takes beta"
    ),
    ErrorCase("mix 2", lambda: LossCurve(1).smoothed("sma", beta=0.1), ValueError, "takes window"),
    ErrorCase("ema", lambda: LossCurve(1).smoothed(beta=-0.1), ValueError, "got -0.1"),
    ErrorCase(
        "slope", lambda: LossCurve(1).derivative(), ValueError, "needs 2 losses or more, got 0"
    ),
    ErrorCase(
        "reach",
        lambda: LossCurve(1).derivative(window=0),
        ValueError,
        "window must be a whole number, 1",
    ),
)


@pytest.mark.parametrize("case", [*OPTIMIZER_ERRORS, *SCHEDULE_ERRORS, *CURVE_ERRORS], ids=by_name)
def test_error(case: ErrorCase) -> None:
    with pytest.raises(case.error, match=case.message):
        case.call()


def test_wrt_is_checked() -> None:
    curve = LossCurve(2)
    for loss in (1.0, 2.0):
        curve.record(torch.tensor(loss))
    with pytest.raises(ValueError, match="wrt must be 'log_lr', 'step' or 'lr', got 'time'"):
        curve.derivative("time")  # type: ignore[arg-type]


def test_a_refused_loss_takes_no_place() -> None:
    curve = LossCurve(2)
    with pytest.raises(ValueError, match="must hold 1 rates"):
        curve.record(torch.ones(()), [0.1, 0.2])
    curve.record(torch.ones(()))
    assert len(curve) == 1 == curve.status().count


def test_a_refused_schedule_leaves_the_old_one() -> None:
    optimizer = lrfast.SGD([parameter()], lr=1.0, schedule=schedules.constant(0.5))
    with pytest.raises(ValueError, match="one per group"):
        optimizer.set_schedule([schedules.constant(), None])
    with pytest.raises(TypeError, match=r"schedule\[0\] must be an .*Schedule or None"):
        optimizer.set_schedule(["cosine"])  # type: ignore[list-item]
    assert optimizer.get_last_lr() == [0.5]
