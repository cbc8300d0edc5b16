"""Frozen weights beside adapters: not copied by a snapshot, and named if a step changes them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from adapters import BASES, WIDTH, LoRA, make_adapted
from idle_parameters import WithoutStorage
from module_trees import tree
from tiny import bits, cross_entropy, make_batches
from torch import Tensor, nn

import lrfast
from lrfast.snapshot import Snapshot, bytes_needed, preserved
from lrfast.training._base_weights import BaseWeights

CPU = torch.device("cpu")
LARGE = ("2.base.weight", "2.base.1.weight", "2.base.codes")  # of 4096 elements, by kind of base


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(lrfast.lora_groups(model, 0.01))


def large_of(model: nn.Module) -> Tensor:
    state: dict[str, Any] = dict(model.named_parameters()) | dict(model.named_buffers())
    (found,) = [state[name] for name in LARGE if name in state]
    return found  # type: ignore[no-any-return]


def all_bytes(model: nn.Module) -> int:
    return sum(t.nbytes for t in (*model.parameters(), *model.buffers()))


def widened(base: str) -> nn.Sequential:
    """A model whose last layer's weights count as large, whatever their type."""
    model = make_adapted(base)
    large = large_of(model)
    if large.nbytes <= 4096:
        model[2] = LoRA(BASES[base](nn.Linear(WIDTH, 2 * WIDTH)), WIDTH, 2 * WIDTH)
    return model


@pytest.mark.parametrize("base", BASES)
def test_base_weights_are_not_copied(base: str) -> None:
    model = widened(base)
    wanted = all_bytes(model) - large_of(model).nbytes
    snapshot = Snapshot(model, adam(model))
    assert snapshot.nbytes == wanted
    assert bytes_needed(model, adam(model)) == {CPU: wanted}
    # An optimizer that was given all parameters changes nothing of it.
    everything = torch.optim.AdamW(p for p in model.parameters() if p.is_floating_point())
    assert Snapshot(model, everything).nbytes == wanted
    assert bytes_needed(model, everything) == {CPU: wanted}
    # Nor does a range test.
    model = model.append(nn.Linear(large_of(model).shape[0], 3))
    swept = lrfast.lr_find(
        model, adam(model), make_batches(2), cross_entropy, num_iter=2, progress=False
    )
    head = 4 * sum(p.numel() for p in model[-1].parameters())
    data = sum(t.nbytes for batch in make_batches(2) for t in batch)
    assert swept.snapshot_bytes == wanted + head + data


def test_a_second_name_of_base_weights_is_not_copied_either() -> None:
    model = widened("int8 parameter")
    optimizer, wanted = adam(model), Snapshot(model, adam(model)).nbytes
    model[2].base.again = large_of(model).detach()
    assert Snapshot(model, optimizer).nbytes == wanted
    assert bytes_needed(model, optimizer) == {CPU: wanted}
    model[2].base.again = large_of(model).detach().clone()
    assert Snapshot(model, optimizer).nbytes == wanted + large_of(model).nbytes


def test_without_a_trained_adapter_all_is_copied() -> None:
    model = widened("float32")
    for name, p in model.named_parameters():
        p.requires_grad = name == "2.base.bias"
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert Snapshot(model, optimizer).nbytes == all_bytes(model)


def test_base_weights_with_a_gradient_are_copied() -> None:
    model = widened("float32")
    large = large_of(model)
    large.grad = torch.ones_like(large)
    assert Snapshot(model, adam(model)).nbytes == all_bytes(model) + large.nbytes
    large.grad, large.requires_grad = None, True
    assert Snapshot(model, adam(model)).nbytes == all_bytes(model)


@torch.no_grad()
def in_place(tensor: Tensor) -> None:
    tensor[0, 0] += 1


def through_data(tensor: Tensor) -> None:
    tensor.data.mul_(2)


def other_data(tensor: Tensor) -> None:
    tensor.data = tensor.data + 1


CHANGES: dict[str, Callable[[Tensor], None]] = {
    "in place": in_place,
    "through .data": through_data,
    "other data": other_data,
}


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("change", CHANGES)
def test_changed_base_weights_are_named(change: str, base: str) -> None:
    model = widened(base)
    snapshot = Snapshot(model, adam(model))
    CHANGES[change](large_of(model))
    snapshot.restore()
    (name,) = [name for name in LARGE if name in model.state_dict()]
    assert snapshot.notes == (
        f"model.{name} changed and cannot be restored: frozen weights beside trained adapters are "
        "not copied",
    )


def test_equal_elements_that_change_alike_are_seen() -> None:
    model = widened("float32")
    large = large_of(model)
    large.data.fill_(1.0)  # a hash is 0 before and after
    snapshot = Snapshot(model, adam(model))
    through_data(large)
    snapshot.restore()
    assert len(snapshot.notes) == 1


def test_several_changed_weights_make_one_note() -> None:
    model = nn.Sequential(*(LoRA(nn.Linear(40, 40), 40, 40) for _ in range(3)))
    snapshot = Snapshot(model, adam(model))
    for layer in model:
        in_place(layer.base.weight)
    snapshot.restore()
    (note,) = snapshot.notes
    assert note.startswith("model.0.base.weight and 2 others changed")


def test_weights_that_are_not_numbers_have_not_changed() -> None:
    model = widened("float32")
    large_of(model).data[3, 4] = torch.nan
    large_of(model).data[0, 0] = torch.nan
    with preserved(model, adam(model)) as snapshot:
        pass
    assert snapshot.notes == ()


def test_small_frozen_parameters_are_restored() -> None:
    model = widened("float32")
    before = bits(dict(model.state_dict()))
    with preserved(model, adam(model)), torch.no_grad():
        for name, p in model.named_parameters():
            if name != "2.base.weight":
                p.add_(1)
    assert bits(dict(model.state_dict())) == before


class Student(nn.Module):
    """A teacher that each step moves towards the student, as a part of the model."""

    def __init__(self) -> None:
        super().__init__()
        self.student = nn.Sequential(nn.Linear(4, 4).requires_grad_(False), make_adapted())
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    @torch.no_grad()
    def move(self) -> None:
        for p, own in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            p.data.mul_(0.9).add_(own + 1, alpha=0.1)


def test_a_teacher_within_the_model_is_restored() -> None:
    model = Student()
    before = bits(dict(model.state_dict()))
    with preserved(model, adam(model)) as snapshot:
        model.move()
        assert bits(dict(model.state_dict())) != before
    assert bits(dict(model.state_dict())) == before and snapshot.notes == ()
    assert snapshot.nbytes == all_bytes(model) - large_of(model.student[1]).nbytes


def test_a_teacher_outside_the_model_is_restored() -> None:
    both = Student()
    before = bits(dict(both.state_dict()))

    def step() -> None:
        both.move()

    with preserved(both.student, adam(both.student), functions=[step]) as snapshot:
        step()
    assert bits(dict(both.state_dict())) == before and snapshot.notes == ()


# Large weights that torch cannot hash, copy or index.
PACKED: dict[str, Callable[[], Tensor]] = {
    "float8": lambda: torch.ones(80, 80).to(torch.float8_e4m3fn),
    "complex": lambda: torch.ones(80, 80, dtype=torch.complex64),
    "quantised": lambda: torch.quantize_per_tensor(torch.ones(80, 80), 0.1, 0, torch.qint8),
    "without storage": lambda: WithoutStorage(torch.ones(80, 80)),
    "meta": lambda: torch.ones(80, 80, device="meta"),
    "sparse": lambda: torch.eye(80).to_sparse(),
    "opaque": lambda: torch.ones(80, 80).to_mkldnn(),
    "expanded": lambda: torch.ones(1).expand(8000),
}


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("kind", PACKED)
def test_packed_base_weights(kind: str) -> None:
    model = tree(q=LoRA(nn.Linear(4, 4), 4, 4))
    model.q.base.weight = nn.Parameter(PACKED[kind](), requires_grad=False)
    optimizer = lrfast.AdamW(lrfast.lora_groups(model, 0.5))
    adapters = bits([model.q.lora_A, model.q.lora_B])
    with preserved(model, optimizer) as snapshot:
        model.q.lora_A.grad = torch.ones_like(model.q.lora_A)
        optimizer.step()
        assert bits([model.q.lora_A, model.q.lora_B]) != adapters
    assert bits([model.q.lora_A, model.q.lora_B]) == adapters and model.q.lora_A.grad is None
    assert snapshot.notes == () and snapshot.nbytes == 2 * 16 * 4 + 4 * 4


def test_weights_without_memory_are_told_apart() -> None:
    model = tree(q=LoRA(nn.Linear(4, 4), 4, 4))
    model.q.base.weight = nn.Parameter(WithoutStorage(torch.ones(80, 80)), requires_grad=False)
    base = BaseWeights(model)
    assert model.q.base.weight in base and WithoutStorage(torch.ones(80, 80)) not in base
