"""The tables that generic tests run over: optimizers, and shapes and layouts of parameters.

A new optimizer is a row of OPTIMIZERS (and a function in reference/optimizers.py). No
hyperparameter is neutral in all rows: at weight_decay=0 coupled and decoupled decay coincide, at
dampening=0 the first step looks like every other.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from reference import optimizers as reference
from reference import torch_twins
from torch import Tensor

import lrfast

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
HALF_DTYPES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class OptimizerCase:
    """One optimizer with one set of hyperparameters.

    Args:
        name: How tests call it.
        ours: The class under test.
        theirs: The class of torch.optim with the same meaning, or what reference/torch_twins.py
            has in its place.
        rule: Its function in reference/optimizers.py.
        options: Constructor arguments.
        description: What this row shows that the others do not.
    """

    name: str
    ours: type[Any]
    theirs: type[torch.optim.Optimizer]
    rule: Callable[..., Any]
    options: dict[str, Any]
    description: str

    def groups(self, params: list[Tensor]) -> list[dict[str, Any]]:
        """Three groups with hyperparameters of their own, over the parameters in turn."""
        rate, decay = self.options["lr"], self.options["weight_decay"]
        own: list[dict[str, Any]] = [
            {},
            {"lr": rate * 0.3, "weight_decay": decay * 2 + 0.01},
            {"lr": rate * 1.7},
        ]
        if "maximize" in inspect.signature(self.rule).parameters:
            own[2]["maximize"] = not self.options.get("maximize", False)
        if "betas" in self.options:
            own[1]["betas"] = (0.7, 0.95)
        else:
            own[2]["weight_decay"] = 0.2
        if "momentum" in self.options:
            own[1]["momentum"] = self.options["momentum"] * 0.6
        if "eps" in self.options:
            own[2]["eps"] = self.options["eps"] * 3
        for name in ("alpha", "rho", "lr_decay", "momentum_decay", "r", "weight_lr_power"):
            if name in self.options:
                own[1][name] = self.options[name] * 0.9
        return [{"params": params[i::3], **options} for i, options in enumerate(own)]

    @property
    def in_torch(self) -> type[torch.optim.Optimizer] | None:
        """torch.optim's own class, where it has one."""
        return getattr(torch.optim, self.ours.__name__, None)

    def hypers(self, group: dict[str, Any]) -> dict[str, Any]:
        """Of a param group's entries, those that the reference takes."""
        names = inspect.signature(self.rule).parameters
        return {name: value for name, value in group.items() if name in names}


def _sgd(name: str, description: str, **options: Any) -> OptimizerCase:
    options = {"lr": 0.05, "momentum": 0.85, "weight_decay": 0.03, **options}
    return OptimizerCase(
        f"sgd-{name}", lrfast.SGD, torch.optim.SGD, reference.sgd, options, description
    )


def _adamw(name: str, description: str, **options: Any) -> OptimizerCase:
    options = {"lr": 0.02, "betas": (0.85, 0.97), "eps": 1e-4, "weight_decay": 0.07, **options}
    return OptimizerCase(
        f"adamw-{name}", lrfast.AdamW, torch.optim.AdamW, reference.adamw, options, description
    )


def _adam(name: str, description: str, **options: Any) -> OptimizerCase:
    options = {"lr": 0.02, "betas": (0.85, 0.97), "eps": 1e-4, "weight_decay": 0.07, **options}
    return OptimizerCase(
        f"adam-{name}", lrfast.Adam, torch.optim.Adam, reference.adam, options, description
    )


def _adamax(name: str, description: str, **options: Any) -> OptimizerCase:
    options = {"lr": 0.02, "betas": (0.85, 0.97), "eps": 1e-4, "weight_decay": 0.07, **options}
    return OptimizerCase(
        f"adamax-{name}", lrfast.Adamax, torch.optim.Adamax, reference.adamax, options, description
    )


def _nadam(name: str, description: str, **options: Any) -> OptimizerCase:
    options = {"lr": 0.02, "betas": (0.85, 0.97), "eps": 1e-4, "weight_decay": 0.07, **options}
    options = {"momentum_decay": 0.3, **options}
    return OptimizerCase(
        f"nadam-{name}", lrfast.NAdam, torch_twins.NAdam, reference.nadam, options, description
    )


def _radam(name: str, description: str, **options: Any) -> OptimizerCase:
    options = {"lr": 0.02, "betas": (0.85, 0.9), "eps": 1e-4, "weight_decay": 0.07, **options}
    return OptimizerCase(
        f"radam-{name}", lrfast.RAdam, torch.optim.RAdam, reference.radam, options, description
    )


def _rmsprop(name: str, description: str, **options: Any) -> OptimizerCase:
    options = {"lr": 0.01, "alpha": 0.93, "eps": 1e-3, "weight_decay": 0.04, **options}
    return OptimizerCase(
        f"rmsprop-{name}",
        lrfast.RMSprop,
        torch.optim.RMSprop,
        reference.rmsprop,
        {"momentum": 0.0, **options},
        description,
    )


def _adagrad(name: str, description: str, **options: Any) -> OptimizerCase:
    options = {"lr": 0.05, "lr_decay": 0.2, "eps": 1e-3, "weight_decay": 0.06, **options}
    return OptimizerCase(
        f"adagrad-{name}",
        lrfast.Adagrad,
        torch_twins.Adagrad,
        reference.adagrad,
        {"initial_accumulator_value": 0.25, **options},  # the same in every dtype
        description,
    )


def _adadelta(name: str, description: str, **options: Any) -> OptimizerCase:
    options = {"lr": 0.7, "rho": 0.87, "eps": 1e-3, "weight_decay": 0.06, **options}
    return OptimizerCase(
        f"adadelta-{name}",
        lrfast.Adadelta,
        torch.optim.Adadelta,
        reference.adadelta,
        options,
        description,
    )


def _lion(name: str, description: str, **options: Any) -> OptimizerCase:
    # At betas like 0.85 = 17/20, bfloat16 momenta and gradients cancel to exactly 0, and roundings
    # of 1 - beta alone decide the sign.
    options = {"lr": 0.004, "betas": (0.8731, 0.9377), "weight_decay": 0.5, **options}
    return OptimizerCase(
        f"lion-{name}", lrfast.Lion, torch_twins.Lion, reference.lion, options, description
    )


def _adamw_schedule_free(name: str, description: str, **options: Any) -> OptimizerCase:
    options = {"lr": 0.02, "betas": (0.85, 0.97), "eps": 1e-4, "weight_decay": 0.07, **options}
    options = {"warmup_steps": 3, "r": 0.7, "weight_lr_power": 1.5, **options}
    twin, rule = torch_twins.AdamWScheduleFree, reference.adamw_schedule_free
    ours = lrfast.AdamWScheduleFree
    return OptimizerCase(f"adamw-schedule-free-{name}", ours, twin, rule, options, description)


def _sgd_schedule_free(name: str, description: str, **options: Any) -> OptimizerCase:
    options = {"lr": 0.05, "momentum": 0.85, "weight_decay": 0.03, **options}
    options = {"warmup_steps": 3, "r": 0.7, "weight_lr_power": 1.5, **options}
    twin, rule = torch_twins.SGDScheduleFree, reference.sgd_schedule_free
    return OptimizerCase(
        f"sgd-schedule-free-{name}", lrfast.SGDScheduleFree, twin, rule, options, description
    )


_PACKAGES_OWN: dict[str, Any] = {"warmup_steps": 0, "r": 0.0, "weight_lr_power": 2.0}
OPTIMIZERS = (
    _sgd("plain", "no state at all", momentum=0.0),
    _sgd("plain-maximize", "the sign comes before the decay", momentum=0.0, maximize=True),
    _sgd("momentum", "one state"),
    _sgd("dampening", "the first step is not dampened", dampening=0.4),
    _sgd("nesterov", "looks ahead", nesterov=True),
    _sgd("maximize", "all at once", dampening=0.3, maximize=True),
    _sgd("nesterov-maximize", "looks ahead, uphill", nesterov=True, maximize=True),
    _adamw("plain", "two states and bias correction"),
    _adamw("defaults", "torch's own eps and beta2", betas=(0.9, 0.999), eps=1e-8),
    _adamw("amsgrad", "three states", amsgrad=True),
    _adamw("maximize", "the sign spares the decay", maximize=True),
    _adamw("amsgrad-maximize", "all at once", amsgrad=True, maximize=True),
    _adamw("no-beta1", "no average: the power of zero", betas=(0.0, 0.9)),
    _adamw("high-decay", "the decay is decoupled", weight_decay=5.0),
    _adam("plain", "the decay is part of the gradient, and of its square"),
    _adam("defaults", "torch's own eps and beta2", betas=(0.9, 0.999), eps=1e-8),
    _adam("amsgrad-maximize", "the sign comes before the decay", amsgrad=True, maximize=True),
    _adam("decoupled", "AdamW by its other name", decoupled_weight_decay=True),
    _adamax("plain", "the largest gradient decays"),
    _adamax("defaults", "torch's own eps and beta2", betas=(0.9, 0.999), eps=1e-8),
    _adamax("maximize", "the sign comes before the decay", maximize=True),
    _nadam("plain", "momenta of this step and of the next"),
    _nadam("defaults", "torch's own", betas=(0.9, 0.999), eps=1e-8, momentum_decay=4e-3),
    _nadam("decoupled", "the decay spares the moments", decoupled_weight_decay=True),
    _nadam("maximize", "the sign comes before the decay", maximize=True),
    _radam("plain", "rectified from the sixth step on"),
    # At a beta2 of 0.999 the length keeps ten digits of what 1 - beta2^t had: torch's rows have it.
    _radam("small-eps", "torch's own eps, a longer average", betas=(0.9, 0.99), eps=1e-8),
    _radam("decoupled", "the decay spares the moments", decoupled_weight_decay=True),
    _radam("maximize", "the sign comes before the decay", maximize=True),
    _rmsprop("plain", "one state"),
    _rmsprop("momentum", "a buffer of directions, not of gradients", momentum=0.8),
    _rmsprop("centered", "a difference under the root", centered=True),
    _rmsprop("all", "three states, all at once", centered=True, momentum=0.8, maximize=True),
    _adagrad("plain", "sums start above 0, rates shrink"),
    _adagrad("defaults", "torch's own", lr_decay=0, initial_accumulator_value=0, eps=1e-10),
    _adagrad("maximize", "the sign comes before the decay", maximize=True),
    _adadelta("plain", "the last moves decide on the next"),
    _adadelta("defaults", "torch's own", lr=1.0, rho=0.9, eps=1e-6),
    _adadelta("maximize", "the sign comes before the decay", maximize=True),
    _lion("plain", "the step by one beta, the momentum by the other"),
    _lion("maximize", "the sign spares the decay", maximize=True),
    _lion("high-decay", "the decay counts by the rate, not by the step", weight_decay=30.0),
    _adamw_schedule_free("plain", "the average weighs each step"),
    _adamw_schedule_free("defaults", "the package's own", lr=0.0025, **_PACKAGES_OWN),
    _sgd_schedule_free("plain", "no square"),
    _sgd_schedule_free("defaults", "the package's own", lr=1.0, momentum=0.9, **_PACKAGES_OWN),
)
# One row per class, for tests of what does not depend on hyperparameters: of those with several
# forms the one with the most states, else its first. SGD's and AdamW's come first.
_FULLEST = ("sgd-dampening", "adamw-amsgrad", "rmsprop-all")
_CHOSEN = {case.ours: case for case in reversed(OPTIMIZERS)}
_CHOSEN |= {case.ours: case for case in OPTIMIZERS if case.name in _FULLEST}
STATEFUL = tuple(_CHOSEN[cls] for cls in dict.fromkeys(case.ours for case in OPTIMIZERS))


def by_name(case: Any) -> str:
    """For pytest's ids."""
    return str(getattr(case, "name", case)).replace("torch.", "")


@dataclass(frozen=True)
class ShapeCase:
    """A parameter's shape and place in memory.

    Args:
        name: How tests call it.
        make: Turns a generator of values (of a given shape) into a tensor.
    """

    name: str
    make: Callable[[Callable[..., Tensor]], Tensor]


SHAPES = (
    ShapeCase("0-d", lambda new: new()),
    ShapeCase("1", lambda new: new(1)),
    ShapeCase("3", lambda new: new(3)),
    ShapeCase("empty", lambda new: new(0)),
    ShapeCase("empty-2d", lambda new: new(3, 0)),
    ShapeCase("4097", lambda new: new(4097)),
    ShapeCase("65537", lambda new: new(65537)),
    ShapeCase("4-d", lambda new: new(2, 3, 4, 5)),
    ShapeCase("gaps", lambda new: new(40, 6)[::2, 1:5]),
    ShapeCase("gaps-1d", lambda new: new(5000)[::3]),
    ShapeCase("offset", lambda new: new(77)[5:]),
    ShapeCase("transposed", lambda new: new(7, 11).t()),
    ShapeCase("transposed-gaps", lambda new: new(8, 12).t()[::2]),
    ShapeCase("channels-last", lambda new: _channels_last(new(2, 3, 4, 5))),
    ShapeCase("ones", lambda new: new(1, 5, 1)),
)


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


def values(dtype: torch.dtype, device: torch.device | str = "cpu") -> Callable[..., Tensor]:
    """A generator of normal values: the same ones on every device and, rounded, in every dtype."""

    def new(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64).to(device=device, dtype=dtype)

    return new


def parameters(dtype: torch.dtype, device: torch.device | str = "cpu") -> list[Tensor]:
    """One parameter per row of SHAPES, each in its layout."""
    new = values(dtype, device)
    return [torch.nn.Parameter(shape.make(new)) for shape in SHAPES]


def random_grad(param: Tensor) -> Tensor:
    """A contiguous gradient, so of other strides than a transposed or channels-last parameter."""
    return values(param.dtype, param.device)(*param.shape)


def twins(params: list[Tensor]) -> list[Tensor]:
    """Copies with the same strides, gaps included."""
    copies = []
    for param in params:
        span = 1 + sum((n - 1) * s for n, s in zip(param.shape, param.stride(), strict=True))
        memory = torch.zeros(max(span, 0), dtype=param.dtype, device=param.device)
        view = memory.as_strided(param.shape, param.stride())
        copies.append(torch.nn.Parameter(view.copy_(param.detach())))
    return copies
