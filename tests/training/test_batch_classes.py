"""Batches of any container class: the loss function gets the class that the loader gives."""

from __future__ import annotations

from collections import OrderedDict, UserDict, UserList, defaultdict, namedtuple
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import pytest
import torch
from tiny import cross_entropy, make_model
from torch import Tensor

import lrfast
from lrfast.training._data import num_rows, to_device
from lrfast.training.capture._static_batch import copy_in, make_static

X, Y = torch.ones(4, 4), torch.tensor([0, 1, 2, 0])
META = torch.device("meta")  # another device, which any machine has


class Strict(dict[str, Any]):
    """Its items as attributes; a missing one is a KeyError."""

    __getattr__ = dict.__getitem__


class Attributes(dict[str, Any]):
    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class Easy(dict[str, Any]):
    """Items that are attributes of the object as well, as those of EasyDict."""

    def __init__(self, **items: Any) -> None:
        super().__init__()
        for name, value in items.items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        super().__setitem__(name, value)


class Frozen(Mapping[str, Any]):
    def __init__(self, items: Any) -> None:
        self._items = dict(items)

    def __getitem__(self, name: str) -> Any:
        return self._items[name]

    def __iter__(self) -> Any:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)


class Encoding(UserDict[str, Any]):
    """A dict that moves itself, as that of transformers."""

    def to(self, device: Any) -> Encoding:
        return Encoding({name: value.to(device) for name, value in self.items()})


@dataclass
class Record:
    x: Tensor
    y: Tensor
    name: str = "kept"


@dataclass(frozen=True, slots=True)
class FrozenRecord:
    x: Tensor
    y: Tensor
    name: str = field(default="kept", init=False)


Pair = namedtuple("Pair", ["x", "y"])


class OwnPair(Pair):
    """A named tuple with a constructor of its own."""

    def __new__(cls, both: Any) -> Any:
        return super().__new__(cls, *both)


class Two(tuple[Any, ...]):
    """A tuple whose constructor takes the entries one by one."""

    def __new__(cls, *entries: Any) -> Any:
        made = super().__new__(cls, entries)
        made.name = "kept"
        return made


class Many(list[Any]):
    name = ""


many = Many([X, Y])
many.name = "kept"
marked = Strict(x=X, y=Y)
object.__setattr__(marked, "mark", 1)
DICTS = [
    Strict(x=X, y=Y),
    marked,
    Attributes(x=X, y=Y),
    Easy(x=X, y=Y),
    OrderedDict(x=X, y=Y),
    defaultdict(list, x=X, y=Y),
    UserDict(x=X, y=Y),
    MappingProxyType({"x": X, "y": Y}),
    Frozen({"x": X, "y": Y}),
    Encoding(x=X, y=Y),
]
LISTS = [Pair(X, Y), OwnPair((X, Y)), Two(X, Y), many, UserList([X, Y])]
RECORDS = [Record(X, Y), FrozenRecord(X, Y)]


def kind(batch: Any) -> str:
    return type(batch).__name__


def entries(batch: Any) -> tuple[Tensor, Tensor]:
    if isinstance(batch, Record | FrozenRecord):
        return batch.x, batch.y
    return (batch["x"], batch["y"]) if isinstance(batch, Mapping) else (batch[0], batch[1])


@pytest.mark.parametrize("batch", [*DICTS, *LISTS, *RECORDS], ids=kind)
def test_the_class_survives_the_move_to_a_device(batch: Any) -> None:
    moved = to_device([batch, 3], META)[0]
    assert type(moved) is type(batch)
    assert [each.device for each in entries(moved)] == [META] * 2
    assert entries(batch) == (X, Y)  # as it was
    if kind(batch) in ("Record", "FrozenRecord", "Two", "Many"):
        assert moved.name == "kept"
    if isinstance(batch, Easy | Attributes | Pair):
        assert moved.x.device == META
    assert num_rows(batch) == 4


@pytest.mark.parametrize("batch", [*DICTS, *LISTS], ids=kind)
def test_captured_batches_keep_their_class(batch: Any) -> None:
    if isinstance(batch, UserList):
        pytest.skip("a captured step refuses it by name")
    static = make_static(batch, torch.device("cpu"))
    assert type(static) is type(batch) and entries(static)[0] is not X
    entries(static)[0].zero_()
    copy_in(static, batch)
    assert torch.equal(entries(static)[0], X)


@pytest.mark.parametrize("batch", [*DICTS, *LISTS, *RECORDS], ids=kind)
def test_sweeps_and_stages_hand_over_the_class(batch: Any) -> None:
    model, seen = make_model(), []

    def compute_loss(model: Any, given: Any) -> Tensor:
        seen.append(type(given))
        x, y = entries(given)
        return cross_entropy(model(x), y)

    options: Any = {"compute_loss": compute_loss, "progress": False}
    lrfast.lr_find(model, lrfast.AdamW(model.parameters()), [batch], num_iter=3, **options)
    tuner = lrfast.FineTuner(model, [batch], [batch], **options)
    tuner.fit_one_cycle(1, 1e-3)
    assert len(seen) == 5 and set(seen) == {type(batch)}


def test_a_loss_function_may_take_items_out() -> None:
    batches = [Attributes(x=X, y=Y)]

    def compute_loss(model: Any, batch: Any) -> Tensor:
        targets = batch.pop("y")
        return cross_entropy(model(batch.x), targets)

    model = make_model()
    options: Any = {"compute_loss": compute_loss, "num_iter": 3, "progress": False}
    lrfast.lr_find(model, lrfast.AdamW(model.parameters()), batches, **options)
    assert list(batches[0]) == ["x", "y"]


def test_a_record_that_does_not_move_is_the_same_object() -> None:
    record = Record(X, Y)
    assert to_device(record, X.device) is record


def test_a_class_of_records_is_no_batch() -> None:
    assert to_device([Record], META) == [Record]
