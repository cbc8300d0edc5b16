"""Every row of torch's own table of optimizer inputs and errors, on our classes.

The table is torch.testing._internal.common_optimizers, of the torch that is installed. It is read
in a process of its own: importing it wants a package that nothing here needs (expecttest), and
changes torch's flags for good.
"""

from __future__ import annotations

import copy
import inspect
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lrfast
from lrfast.optim._wrap import TWINS

NAMES = tuple(cls.__name__ for cls in TWINS.values())
STEPS = 9
REAL = (torch.float32, torch.float64)
COMPLEX = (torch.complex64, torch.complex128)

# Inputs for a GPU are inputs like others: their tensors are on the CPU, and capturable means
# nothing to us. Their errors are made with tensors that are on a GPU.
READ_TABLE = """
import sys, types, unittest
stub = types.ModuleType("expecttest")
stub.TestCase = unittest.TestCase
sys.modules.setdefault("expecttest", stub)
import torch
from torch.testing._internal.common_optimizers import optim_db

table = {}
for info in optim_db:
    name = info.optim_cls.__name__
    if name not in sys.argv[2:]:
        continue
    inputs = [
        (entry.desc, entry.params, entry.kwargs)
        for entry in info.optim_inputs_func(device="cuda", dtype=torch.float64)
    ]
    errors = []
    for entry in info.optim_error_inputs_func(device="cpu", dtype=torch.float64):
        cause = entry.optimizer_error_input
        what = (cause.desc, cause.params, cause.kwargs)
        errors.append((*what, entry.error_on.name, entry.error_type, entry.error_regex))
    table[name] = {"inputs": inputs, "errors": errors, "complex": info.supports_complex}
torch.save(table, sys.argv[1])
"""


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("torch") / "table.pt"
    command = [sys.executable, "-c", READ_TABLE, str(path), *NAMES]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = torch.load(path, weights_only=False)
    path.unlink()
    assert found.keys() == set(NAMES)
    assert all(len(row["inputs"]) >= 7 and len(row["errors"]) >= 7 for row in found.values())
    return found


class Twin:
    """A model and its optimizer; two of them take the same steps."""

    def __init__(self, model: nn.Module, cls: type[Any], options: dict[str, Any]) -> None:
        self.model = model
        self.empty = nn.Parameter(torch.empty(0, dtype=next(model.parameters()).dtype))
        self.params = [*model.parameters(), self.empty]
        self.optimizer = cls(self.params, **copy.deepcopy(options))

    def step(self, index: int, inputs: Tensor) -> None:
        """The last layer is frozen during some steps, and one step finds no gradients at all."""
        self.model[2].requires_grad_(index not in (4, 5, 6))  # type: ignore[index]
        self.optimizer.zero_grad()
        if index != 2:
            self.model(inputs).abs().square().sum().backward()
            self.empty.grad = torch.empty_like(self.empty)
        self.optimizer.step()

    def states(self) -> Iterator[tuple[str, Tensor]]:
        for index, param in enumerate(self.params):
            yield f"parameter {index}", param.detach()
            if param.numel():
                for name, value in self.optimizer.state.get(param, {}).items():
                    yield f"{name} {index}", value


def twins(
    ours: type[Any], theirs: type[Any], dtype: torch.dtype, options: dict[str, Any], flag: str
) -> tuple[Twin, Twin]:
    """Ours with one of the flags that choose an implementation, and torch's plain loop.

    torch reads numbers where ours reads tensors: it would compute with a float32 tensor in float32.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)
    plain = {name: as_numbers(value) for name, value in options.items() if name != "capturable"}
    kinds = {"foreach": False, "fused": False}
    plain |= {k: v for k, v in kinds.items() if k in inspect.signature(theirs).parameters}
    mine = options | ({flag: True} if flag else {})
    return Twin(model, ours, mine), Twin(copy.deepcopy(model), theirs, plain)


def as_numbers(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(as_numbers(item) for item in value)
    return value.item() if isinstance(value, Tensor) else value


def tolerances(name: str, dtype: torch.dtype) -> dict[str, float]:
    """Of one step from equal states. In float32 some units of values around 1.

    torch's NAdam rounds its product of momenta to float32, whatever the parameter's dtype.
    """
    if dtype.to_real() == torch.float32:
        return {"rtol": 2e-6, "atol": 5e-7}
    return {"rtol": 2e-7, "atol": 1e-9} if name == "NAdam" else {"rtol": 1e-12, "atol": 1e-14}


def follow(name: str, ours: Twin, theirs: Twin, desc: str) -> None:
    """Step both, compare everything after each step, and put ours on torch's numbers again."""
    dtype = theirs.params[0].dtype
    within = tolerances(name, dtype)
    for index in range(STEPS):
        inputs = torch.randn(4, 5, dtype=dtype)
        for twin in (ours, theirs):
            twin.step(index, inputs)
        mine, wanted = dict(ours.states()), dict(theirs.states())
        assert mine.keys() == {k for k, v in wanted.items() if v is not None}, desc
        for key, value in mine.items():
            what = f"{name}, {desc}, step {index}, {key}"
            torch.testing.assert_close(
                value, wanted[key], check_dtype=False, **within, msg=lambda m, w=what: f"{w}: {m}"
            )
            value.copy_(wanted[key])


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
@pytest.mark.parametrize("dtype", [*REAL, *COMPLEX], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_every_input(name: str, dtype: torch.dtype, table: dict[str, Any]) -> None:
    if dtype.is_complex and not table[name]["complex"]:
        pytest.skip(f"torch's {name} takes no complex parameters")
    ours, theirs = getattr(lrfast, name), getattr(torch.optim, name)
    for desc, params, options in table[name]["inputs"]:
        assert params is None, desc  # else the model below would not be what the row is about
        follow(name, *twins(ours, theirs, dtype, options, ""), desc)


@pytest.mark.parametrize("flag", ["foreach", "fused"])
@pytest.mark.parametrize("name", NAMES)
def test_every_input_with_a_flag(name: str, flag: str, table: dict[str, Any]) -> None:
    """Accepted where torch's constructor accepts it, refused where it refuses, the same numbers."""
    ours, theirs = getattr(lrfast, name), getattr(torch.optim, name)
    accepted = 0
    for desc, _, options in table[name]["inputs"]:
        given = copy.deepcopy(options) | {flag: True}
        try:
            theirs([nn.Parameter(torch.ones(2))], **given)
        except (TypeError, ValueError, RuntimeError) as error:
            with pytest.raises(type(error)):
                ours([nn.Parameter(torch.ones(2))], **given)
            continue
        accepted += 1
        follow(name, *twins(ours, theirs, torch.float64, options, flag), f"{desc}, {flag}")
    known = flag in inspect.signature(theirs).parameters
    assert accepted > 3 if known else accepted == 0


@pytest.mark.parametrize("name", NAMES)
def test_differentiable_inputs_are_refused(name: str, table: dict[str, Any]) -> None:
    for _, _, options in table[name]["inputs"]:
        with pytest.raises(ValueError, match=r"differentiable must be False.*torch\.optim"):
            getattr(lrfast, name)([nn.Parameter(torch.ones(2))], **options, differentiable=True)


@pytest.mark.parametrize("name", NAMES)
def test_every_error(name: str, table: dict[str, Any]) -> None:
    cls = getattr(lrfast, name)
    for desc, params, options, error_on, error, message in table[name]["errors"]:
        assert error_on == "CONSTRUCTION_ERROR", desc  # what the table has today
        params = [nn.Parameter(torch.ones(1, 1))] if params is None else params
        if issubclass(error, Warning):
            with pytest.warns(error, match=message):
                cls(params, **options)
            continue
        with pytest.raises(error, match=message):
            cls(params, **options)
