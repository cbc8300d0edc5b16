"""Who takes part in the benchmarks of optimizer steps: one table, and the check of equal work."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

import lrfast
from benchmarks.speed.model_sets import Layers

Groups = list[dict[str, Any]]
Hypers = dict[str, Any]

# Without weight decay where libraries differ in what they make of it.
HYPERS: dict[str, Hypers] = {
    "SGD": {"lr": 1e-2, "momentum": 0.9, "weight_decay": 1e-4},
    "Adam": {"lr": 1e-2},
    "AdamW": {"lr": 1e-2, "weight_decay": 0.01},
    "NAdam": {"lr": 1e-2},
    "RMSprop": {"lr": 1e-2, "alpha": 0.98},
    "Adagrad": {"lr": 1e-2},
    "Lion": {"lr": 1e-3, "betas": (0.9, 0.99), "weight_decay": 0.01},
}
RULES = tuple(HYPERS)
# Rules that torch has not; each is timed against the package of its authors.
OF_PACKAGES: dict[str, Hypers] = {
    "AdamWScheduleFree": {"lr": 1e-2, "weight_decay": 0.01, "warmup_steps": 10},
    "SGDScheduleFree": {"lr": 1e-1, "weight_decay": 1e-4, "warmup_steps": 10},
    # The gradients stay as they are, at which the estimate would grow without end.
    "Prodigy": {"d0": 1e-3, "weight_decay": 0.01, "growth_rate": 1.0},
    "DAdaptAdam": {"d0": 1e-3, "weight_decay": 0.01, "decouple": True, "growth_rate": 1.0},
}
# Reads of gradient, weight and states and writes of all but the gradient, per element of a step.
ACCESSES = {"SGD": 5, "Adam": 7, "AdamW": 7, "NAdam": 7, "RMSprop": 5, "Adagrad": 5, "Lion": 5}
ACCESSES |= {"AdamWScheduleFree": 7, "SGDScheduleFree": 5}
ACCESSES |= {"Prodigy": 12, "DAdaptAdam": 12}

# Relative to the largest value: of weights, a fraction of what a step moves them by, and of states,
# which depend on the norm, that torch sums in single precision. bfloat16's roundings are of 2^-8;
# torch's for-loop makes more of them than others do.
TOLERANCES = {torch.float32: (2e-6, 1e-4), torch.bfloat16: (2**-7, 2**-6)}
# What the others are compared with: the first of these that takes part.
REFERENCES = ("torch-forloop", "torch-foreach", "torch-fused")


@dataclass
class Contender:
    """One implementation at work on tensors of its own."""

    params: list[Tensor]
    optimizer: torch.optim.Optimizer
    step: Callable[[], Any]
    refill: Callable[[], None] | None = None  # before each step, outside its time
    averages: list[Tensor] | None = None  # of the weights, where torch keeps them

    def values(self) -> dict[str, list[Tensor]]:
        """Everything that a step changes, by torch's name, one tensor per parameter."""
        found: dict[str, list[Tensor]] = {"weight": self.params}
        for param in self.params:
            for name, value in self.optimizer.state[param].items():
                if isinstance(value, Tensor) and value.shape == param.shape and name != "step":
                    found.setdefault(name, []).append(value)
        if self.averages is not None:
            found["ema"] = self.averages
        found["gradient"] = [param.grad for param in self.params if param.grad is not None]
        return {name: [value.detach() for value in values] for name, values in found.items()}


@dataclass(frozen=True)
class Implementation:
    """Where an optimizer's step comes from."""

    make: Callable[[str, Groups, Hypers], torch.optim.Optimizer]  # of a rule's name
    rules: tuple[str, ...] = (*RULES, *OF_PACKAGES)
    device: str | None = None  # None: any
    package: str = "torch"  # takes part where it is installed
    compiled: bool = False  # takes long to begin with, so only where a case says so
    slow: bool = False  # takes part in every fourth round over large tensors

    def takes_part(self, rule: str, device: str, compiled: bool) -> bool:
        return (
            rule in self.rules
            and self.device in (None, device)
            and compiled >= self.compiled
            and find_spec(self.package) is not None
        )


def _torch(**flags: bool) -> Callable[[str, Groups, Hypers], torch.optim.Optimizer]:
    return lambda rule, groups, hypers: getattr(torch.optim, rule)(groups, **hypers, **flags)


def _compiled(rule: str, groups: Groups, hypers: Hypers) -> torch.optim.Optimizer:
    optimizer: Any = getattr(torch.optim, rule)(groups, **hypers, foreach=True)
    optimizer.step = torch.compile(optimizer.step)
    return optimizer  # type: ignore[no-any-return]


def _optimi(rule: str, groups: Groups, hypers: Hypers) -> torch.optim.Optimizer:
    given: Hypers = {"kahan_sum": False} | hypers
    if "Adam" in rule:
        given |= {"betas": (0.9, 0.999), "eps": 1e-8}  # its own defaults are others
    return getattr(import_module("optimi"), rule)(groups, **given)  # type: ignore[no-any-return]


def _torchao(rule: str, groups: Groups, hypers: Hypers) -> torch.optim.Optimizer:
    return getattr(import_module("torchao.optim"), f"_{rule}")(groups, **hypers)  # type: ignore[no-any-return]


def _bitsandbytes(rule: str, groups: Groups, hypers: Hypers) -> torch.optim.Optimizer:
    module = import_module("bitsandbytes.optim")
    return getattr(module, f"{rule}32bit")(groups, **hypers)  # type: ignore[no-any-return]


def _deepspeed(rule: str, groups: Groups, hypers: Hypers) -> torch.optim.Optimizer:
    cpu_adam = import_module("deepspeed.ops.adam").DeepSpeedCPUAdam
    return cpu_adam(groups, **hypers, adamw_mode=rule == "AdamW")  # type: ignore[no-any-return]


def _schedulefree(foreach: bool) -> Callable[[str, Groups, Hypers], torch.optim.Optimizer]:
    def make(rule: str, groups: Groups, hypers: Hypers) -> torch.optim.Optimizer:
        optimizer = getattr(import_module("schedulefree"), rule)(groups, **hypers, foreach=foreach)
        optimizer.train()
        return optimizer  # type: ignore[no-any-return]

    return make


def _estimating(package: str) -> Callable[[str, Groups, Hypers], torch.optim.Optimizer]:
    def make(rule: str, groups: Groups, hypers: Hypers) -> torch.optim.Optimizer:
        cls = getattr(import_module(package), rule)
        with contextlib.redirect_stdout(io.StringIO()):  # it prints that its decay is decoupled
            return cls(groups, **hypers)  # type: ignore[no-any-return]

    return make


_FREE = ("AdamWScheduleFree", "SGDScheduleFree")
_FUSED = ("SGD", "Adam", "AdamW", "Adagrad")
_TORCHS = tuple(rule for rule in RULES if rule != "Lion")

IMPLEMENTATIONS: dict[str, Implementation] = {
    "lrfast": Implementation(lambda rule, groups, hypers: getattr(lrfast, rule)(groups, **hypers)),
    "torch-fused": Implementation(_torch(fused=True), _FUSED),
    "torch-foreach": Implementation(_torch(foreach=True), _TORCHS, slow=True),
    "torch-forloop": Implementation(_torch(foreach=False), _TORCHS, slow=True),
    "torch-capturable": Implementation(
        _torch(foreach=True, capturable=True), ("Adam", "AdamW", "NAdam", "RMSprop"), "cuda"
    ),
    "torch-compiled": Implementation(_compiled, _TORCHS, compiled=True),
    "optimi": Implementation(
        _optimi, ("SGD", "Adam", "AdamW", "Lion"), package="optimi", slow=True
    ),
    "torchao": Implementation(_torchao, ("AdamW",), package="torchao", compiled=True),
    "bitsandbytes": Implementation(
        _bitsandbytes,
        ("SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "Lion"),
        package="bitsandbytes",
        slow=True,
    ),
    "deepspeed": Implementation(_deepspeed, ("Adam", "AdamW"), "cpu", "deepspeed"),
    "schedulefree-foreach": Implementation(_schedulefree(True), _FREE, package="schedulefree"),
    "schedulefree-forloop": Implementation(
        _schedulefree(False), _FREE, package="schedulefree", slow=True
    ),
    "prodigyopt": Implementation(
        _estimating("prodigyopt"), ("Prodigy",), package="prodigyopt", slow=True
    ),
    "dadaptation": Implementation(
        _estimating("dadaptation"), ("DAdaptAdam",), package="dadaptation", slow=True
    ),
}
NAMES = tuple(IMPLEMENTATIONS)


class Start:
    """The weights and gradients that all implementations begin with."""

    def __init__(self, layers: Layers, dtype: torch.dtype, device: str) -> None:
        shapes = [shape for layer in layers for shape in layer]
        options: dict[str, Any] = {"dtype": dtype, "device": device}
        self.layers = layers
        self.dtype = dtype
        self.weights = [torch.randn(shape, **options) for shape in shapes]
        self.grads = [torch.randn(shape, **options) for shape in shapes]

    @property
    def count(self) -> int:
        """Elements of all weights."""
        return sum(weight.numel() for weight in self.weights)

    def groups(self, count: int) -> Groups:
        """Copies of both, with the layers dealt out to so many param groups, in order."""
        rest = iter(zip(self.weights, self.grads, strict=True))
        groups: Groups = [{"params": []} for _ in range(count)]
        for number, layer in enumerate(self.layers):
            for _ in layer:
                weight, grad = next(rest)
                param = torch.nn.Parameter(weight.clone())
                param.grad = grad.clone()
                groups[number * count // len(self.layers)]["params"].append(param)
        return groups


def params_of(groups: Groups) -> list[Tensor]:
    return [param for group in groups for param in group["params"]]


def contender(name: str, rule: str, start: Start, groups: int) -> Contender:
    """Returns an implementation, by its name, ready for its first step."""
    made = start.groups(groups)
    optimizer = IMPLEMENTATIONS[name].make(rule, made, (HYPERS | OF_PACKAGES)[rule])
    params = params_of(made)
    if rule in HYPERS:
        return Contender(params, optimizer, optimizer.step)

    def refill() -> None:  # schedulefree leaves other numbers in the gradients
        torch._foreach_copy_([param.grad for param in params], start.grads)

    return Contender(params, optimizer, optimizer.step, refill)


def participants(
    make: Mapping[str, Callable[[], Contender]], start: Start
) -> tuple[dict[str, Contender], dict[str, str]]:
    """Makes contenders, of whom those that do not do the same work are refused with the reason.

    Ours has to do what the plainest of torch's does. Others may fail, or do something else.
    """
    reference = next((name for name in REFERENCES if name in make), "lrfast")
    found = {name: make[name]() for name in {"lrfast": None, reference: None} if name in make}
    expected = assert_equal_work(found, start)
    refused: dict[str, str] = {}
    for name in make.keys() - found.keys():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                entry = make[name]()
                _take_steps(entry)
            # Only torch's states are named, and defined, as torch's are.
            values = entry.values() if name.startswith("torch-") else {"weight": entry.params}
            _compare(values, expected, start.dtype, name)
            found[name] = entry
        except Exception as error:  # whatever keeps a library from running here
            refused[name] = reason_of(error)
    return {name: found[name] for name in make if name in found}, refused


def reason_of(error: Exception) -> str:
    """Returns why a contender is refused, as one short line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def assert_equal_work(contenders: dict[str, Contender], start: Start) -> dict[str, list[Tensor]]:
    """Takes some steps with all, and compares all that they have changed with torch's."""
    for entry in contenders.values():
        _take_steps(entry)
    found = {name: entry.values() for name, entry in contenders.items()}
    expected = found[next((name for name in REFERENCES if name in found), "lrfast")]
    for param, weight in zip(expected["weight"], start.weights, strict=True):
        assert not torch.equal(param, weight)
    for name, values in found.items():
        _compare(values, expected, start.dtype, name)
    return expected


def _take_steps(entry: Contender, steps: int = 3) -> None:
    for _ in range(steps):
        if entry.refill:
            entry.refill()
        entry.step()


def _compare(
    values: dict[str, list[Tensor]],
    expected: dict[str, list[Tensor]],
    dtype: torch.dtype,
    name: str,
) -> None:
    for kind in values.keys() & expected.keys():
        tolerance = TOLERANCES[dtype][kind not in ("weight", "ema")]
        largest = max(float(other.abs().max()) for other in expected[kind])
        for tensor, other in zip(values[kind], expected[kind], strict=True):
            difference = float((tensor.detach() - other).abs().max())
            message = f"{kind} of {name} differs by {difference:.1e}, the largest is {largest:.1e}"
            assert difference <= tolerance * largest, message
