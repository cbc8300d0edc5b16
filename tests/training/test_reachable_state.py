"""State of every kind is restored in place, however a training reaches it, or named in a note."""

from __future__ import annotations

import array
import io
import random
from collections import OrderedDict, UserDict, defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import bits
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, Sampler, Subset

from lrfast.snapshot import Snapshot, bytes_needed, preserved
from lrfast.training import _reachable

# --- kinds of state: how one is made, changed in place, and read


@dataclass
class Plain:
    """A class of the user's."""

    count: int = 0
    seen: list[int] = field(default_factory=list)

    def change(self) -> None:
        self.count += 1
        self.seen.append(self.count)
        self.late = True


class Slotted:
    __slots__ = ("count", "late", "parts")

    def __init__(self) -> None:
        self.count, self.parts = 3, [1]

    def change(self) -> None:
        self.count, self.late = 4, 1
        self.parts.append(2)


class Counted(dict[str, int]):
    """A dict that does more than it is asked to."""

    def __setitem__(self, key: str, value: int) -> None:
        super().__setitem__(key, 100 * value)


def reorder(value: Any) -> None:
    value["a"] = value.pop("a")


def looped() -> list[Any]:
    value: list[Any] = [1]
    value.append(value)
    return value


@dataclass
class Kind:
    make: Callable[[], Any]
    change: Callable[[Any], Any]
    read: Callable[[Any], Any] = bits


def attributes(value: Any) -> Any:
    return bits(vars(value))


KINDS: dict[str, Kind] = {
    "tensor": Kind(lambda: torch.arange(3.0), lambda v: v.add_(1)),
    "leaf": Kind(
        lambda: torch.ones(2, requires_grad=True),
        lambda v: v.square().sum().backward(),
        lambda v: (bits(v), v.grad),
    ),
    "array": Kind(lambda: np.arange(3), lambda v: v.__iadd__(1)),
    "array of objects": Kind(
        lambda: np.array([[1], {}], dtype=object),
        lambda v: v[0].append(1),
        lambda v: str(v.tolist()),
    ),
    "list": Kind(lambda: [1, [2]], lambda v: (v.append(3), v[1].append(4))),
    "list in itself": Kind(looped, lambda v: v.append(1), len),
    "dict": Kind(lambda: {"a": 1, "b": [1]}, lambda v: (v.pop("a"), v["b"].clear())),
    "order of a dict": Kind(lambda: {"a": 1, "b": 2}, reorder),
    "order": Kind(lambda: OrderedDict(a=1, b=2), lambda v: v.move_to_end("a")),
    "dict subclass": Kind(lambda: Counted(a=1, b=2), lambda v: v.update(a=7)),
    "defaultdict": Kind(lambda: defaultdict(list), lambda v: v["late"].append(1)),
    "UserDict": Kind(lambda: UserDict(a=1), lambda v: v.update(b=2), lambda v: dict(v)),
    "set": Kind(lambda: {1, 2}, lambda v: (v.add(3), v.discard(1)), sorted),
    "deque": Kind(lambda: deque([1, 2], maxlen=2), lambda v: v.append(3), list),
    "bytearray": Kind(lambda: bytearray(b"ab"), lambda v: v.extend(b"c"), bytes),
    "array.array": Kind(lambda: array.array("i", [1]), lambda v: v.append(2), list),
    "dataclass": Kind(Plain, Plain.change, attributes),
    "slots": Kind(Slotted, Slotted.change, lambda v: (v.count, list(v.parts), hasattr(v, "late"))),
    "namespace": Kind(lambda: SimpleNamespace(a=[1]), lambda v: v.a.append(2), attributes),
    "module": Kind(
        lambda: nn.BatchNorm1d(2),
        lambda v: v(torch.randn(4, 2)),
        lambda v: bits(dict(v.named_buffers())),
    ),
    "optimizer": Kind(
        lambda: torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1, momentum=0.9),
        lambda v: v.step(lambda: v.param_groups[0]["params"][0].square().sum().backward()),
        lambda v: (bits(v.param_groups[0]["params"]), len(v.state)),
    ),
    "position of a list": Kind(lambda: iter([1, 2, 3]), next, lambda v: v.__length_hint__()),
    "pairs of lists": Kind(
        lambda: zip([1, 2], (3, 4), strict=True), next, lambda v: v.__reduce__()[1][0].__reduce__()
    ),
}
RANDOM: dict[str, Kind] = {
    "random": Kind(lambda: random.Random(3), lambda v: v.random(), lambda v: v.getstate()),
    "numpy": Kind(
        lambda: np.random.default_rng(3), lambda v: v.random(), lambda v: v.bit_generator.state
    ),
    "numpy's MT19937": Kind(
        lambda: np.random.Generator(np.random.MT19937(3)),
        lambda v: v.integers(9, size=700),
        lambda v: bits(v.bit_generator.state),
    ),
    "bits": Kind(lambda: np.random.PCG64(3), lambda v: v.random_raw(), lambda v: v.state),
    "numpy's former": Kind(
        lambda: np.random.RandomState(3), lambda v: v.rand(), lambda v: bits(v.get_state())
    ),
    "torch": Kind(
        lambda: torch.Generator().manual_seed(3),
        lambda v: torch.rand(1, generator=v),
        lambda v: bits(v.get_state()),
    ),
}
KINDS |= RANDOM

# --- ways to reach it: arguments of Snapshot that hold the state somewhere


class Holder:
    def __init__(self, held: Any) -> None:
        self.held = held

    def __call__(self, *args: Any) -> Any:
        return args


class Rows(Dataset[int], Holder):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        return index


class Order(Sampler[int], Holder):
    def __init__(self, held: Any) -> None:
        self.held = held

    def __iter__(self) -> Iterator[int]:
        return iter(range(4))


class Endless(Holder):
    """Batches of the user's own class."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(4))


class Watch(Holder):
    """One of the others."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert state == {}


def model_with(**attributes: Any) -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 2))
    vars(model[0]).update(attributes)
    return model


def scheduler_with(held: Any, optimizer: Any) -> Any:
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    scheduler.held = held  # type: ignore[attr-defined]
    return scheduler


def optimizer_with(held: Any, place: str) -> Any:
    optimizer: Any = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    if place == "attribute":
        optimizer.held = held
    elif place == "state":
        optimizer.state[optimizer.param_groups[0]["params"][0]]["held"] = held
    else:
        optimizer.param_groups[0]["held"] = held
    return optimizer


def in_class(held: Any) -> Any:
    return type("Own", (Rows,), {"shared": held, "__module__": __name__})(0)


WAYS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "attribute": lambda v: {"model": model_with(held=v)},
    "nested": lambda v: {"model": model_with(held=[{"a": (1, v)}, v])},
    "object": lambda v: {"model": model_with(held=Holder(Holder(v)))},
    "partial": lambda v: {"model": model_with(held=[Holder(v)], act=partial(max, key=Holder(v)))},
    "optimizer": lambda v: {"optimizer": optimizer_with(v, "attribute")},
    "group": lambda v: {"optimizer": optimizer_with(v, "group")},
    "state": lambda v: {"optimizer": optimizer_with(v, "state")},
    "others": lambda v: {"others": [Watch(v)]},
    "scheduler": lambda v: {"others": [scheduler_with(v, optimizer_with(0, "attribute"))]},
    "data set": lambda v: {"loaders": [DataLoader(Rows(v))]},
    "subset": lambda v: {"loaders": [DataLoader(Subset(Rows(v), [1, 2]))]},
    "transform": lambda v: {"loaders": [DataLoader(Rows(Holder(v)))]},
    "sampler": lambda v: {"loaders": [DataLoader(Rows(0), sampler=Order(v))]},
    "batch sampler": lambda v: {
        "loaders": [DataLoader(Rows(0), batch_sampler=BatchSampler(Order(v), 2, False))]
    },
    "collate": lambda v: {"loaders": [DataLoader(Rows(0), collate_fn=Holder(v))]},
    "own loader": lambda v: {"loaders": [Endless(v)]},
    "loader in a list": lambda v: {"loaders": [[DataLoader(Rows(v)), 3]]},
    "class": lambda v: {"loaders": [DataLoader(in_class(v))]},
}


def take(**arguments: Any) -> Snapshot:
    model = arguments.pop("model", None) or model_with()
    optimizer = arguments.pop("optimizer", None) or torch.optim.SGD(model.parameters(), lr=0.1)
    return Snapshot(model, optimizer, **arguments)


def check(kind: Kind, value: Any, snapshot: Snapshot) -> None:
    before = kind.read(value)
    for _ in range(2):
        kind.change(value)
        assert kind.read(value) != before
        snapshot.restore()
        assert kind.read(value) == before
    assert snapshot.notes == ()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_state_is_restored_in_place(kind: str, way: str) -> None:
    value = KINDS[kind].make()
    arguments = WAYS[way](value)
    check(KINDS[kind], value, take(**arguments))


# --- what code names: only what belongs to training

TRAINS = RANDOM | {name: KINDS[name] for name in ("module", "optimizer")}
shared: Any = None  # what the functions below name


def uses_shared(*batch: Any) -> Any:
    def inner() -> Any:
        return shared

    return inner()


class UsesShared(Dataset[int]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        return shared


def closure_over(value: Any) -> Callable[[], Any]:
    return lambda: value


def methods_of(value: Any) -> Iterator[Any]:
    """A method that the class of the state brings, compiled or not."""
    names = ("random", "rand", "random_raw", "seed", "step", "train")
    yield from (getattr(value, name) for name in names if hasattr(value, name))


CODE_WAYS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "closure": lambda v: {"functions": [closure_over(v)]},
    "closure of a closure": lambda v: {"functions": [closure_over(closure_over({"a": [v]}))]},
    "default": lambda v: {"functions": [lambda batch, held=v: held]},
    "partial": lambda v: {"functions": [partial(uses_shared, held=v)]},
    "callable": lambda v: {"functions": [Holder(v)]},
    "method": lambda v: {"functions": [Holder(v).__call__]},
    "global": lambda v: {"functions": [uses_shared]},
    "own method": lambda v: {"loaders": [Holder(next(iter(methods_of(v))))]},
    "collate": lambda v: {"loaders": [DataLoader(Rows(0), collate_fn=closure_over(v))]},
    "global of collate": lambda v: {"loaders": [DataLoader(Rows(0), collate_fn=uses_shared)]},
    "global of a data set": lambda v: {"loaders": [DataLoader(UsesShared())]},
    "hook of a scheduler": lambda v: {
        "others": [torch.optim.lr_scheduler.LambdaLR(optimizer_with(0, "group"), lambda s, h=v: 1)]
    },
}


@pytest.mark.parametrize("way", CODE_WAYS)
@pytest.mark.parametrize("kind", TRAINS)
def test_what_code_names_of_a_training(
    kind: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = TRAINS[kind].make()
    monkeypatch.setitem(globals(), "shared", value)
    check(TRAINS[kind], value, take(**CODE_WAYS[way](value)))


def test_the_records_of_functions_and_hooks_stay() -> None:
    seen: list[int] = []
    recorder = Holder(seen)
    model = nn.Linear(2, 1)
    model.register_forward_hook(lambda *args: seen.append(1))
    with preserved(
        *(model, torch.optim.SGD(model.parameters(), lr=0.1)),
        functions=[recorder, lambda: seen.append(2), recorder.__call__],
    ) as saved:
        model(torch.ones(1, 2))
        recorder.late = 1  # type: ignore[attr-defined]
    words = "was changed by a function that names it, and is not restored"
    assert sorted(saved.notes) == [f"Holder {words}", f"Holder.held {words}"]
    assert (seen, recorder.late) == ([1], 1)  # type: ignore[attr-defined]


def test_tensors_that_functions_change_are_named() -> None:
    average, weights = {"a": torch.zeros(2)}, torch.ones(2)
    model = nn.Linear(2, 1)
    parameters = list(model.parameters())
    with preserved(
        *(model, torch.optim.SGD(model.parameters(), lr=0.1)),
        functions=[lambda: (average, weights, parameters)],
    ) as saved:
        average["a"].add_(1)
        with torch.no_grad():
            parameters[0].add_(1)
    (note,) = saved.notes
    assert note.startswith("average['a'] was changed by a function")


# --- identity, sharing, rebinding


def test_rebound_attributes_are_the_same_objects_again() -> None:
    model: Any = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    model.hidden, model.table, model.part = torch.ones(2), [1], model[1]
    held = (model.hidden, model.table, model[1])
    with preserved(model, torch.optim.SGD(model.parameters(), lr=0.1)):
        model.hidden = torch.full((9,), float("nan"))
        model.table = (1, 2)
        model[1] = nn.Tanh()
        model.late = 1
        del model.part
    assert all(a is b for a, b in zip((model.hidden, model.table, model[1]), held, strict=True))
    assert model.part is model[1]
    assert not hasattr(model, "late")


def test_what_is_shared_is_copied_once() -> None:
    tensor = torch.ones(100)
    model = model_with(a=tensor, b=[tensor, {"c": tensor}])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert Snapshot(model, optimizer, others=[Watch(tensor)]).nbytes == 6 * 4 + 400
    assert bytes_needed(model, optimizer) == {torch.device("cpu"): 6 * 4 + 400}


def test_a_tensor_of_a_graph_that_did_not_change_leaves_the_graph_alone() -> None:
    leaf = torch.ones(2, requires_grad=True)
    hidden = leaf.exp()
    loss = hidden.square().sum()
    with preserved(m := model_with(hidden=hidden), torch.optim.SGD(m.parameters(), lr=0.1)):
        pass
    loss.backward()  # raises if it was written to
    assert leaf.grad is not None


def test_a_tensor_that_was_drawn_into_a_graph_is_a_leaf_again() -> None:
    total = torch.zeros(1)
    model = model_with(total=total)
    with preserved(model, torch.optim.SGD(model.parameters(), lr=0.1)):
        total.add_(model(torch.ones(1, 2)).sum())
        assert total.grad_fn is not None
    assert total.is_leaf and not total.requires_grad and total.item() == 0


def test_counters_of_classes() -> None:
    class Counting(Rows):
        reads = 0

        def __getitem__(self, index: int) -> int:
            Counting.reads += 1
            return index

    loader = DataLoader(Counting(0))
    with preserved(m := nn.Linear(2, 1), torch.optim.SGD(m.parameters(), lr=0.1), loaders=[loader]):
        list(loader)
        assert Counting.reads == 4
    assert Counting.reads == 0


# --- what cannot be restored is named


def opened(path: Path, mode: str) -> Any:
    path.write_text("abc")
    return path.open(mode)


NOTED: dict[str, tuple[Callable[[Path], Any], Callable[[Any], Any], str]] = {
    "large tensor": (lambda p: torch.zeros(5000), lambda v: v[7].add_(1), "changed in place"),
    "large array": (lambda p: np.zeros(5000), lambda v: v.__setitem__(7, 1), "changed in place"),
    "memory map": (
        lambda p: np.memmap(p, dtype="uint8", mode="w+", shape=(9000,)),
        lambda v: v.__setitem__(7, 1),
        "changed in place",
    ),
    "generator": (lambda p: (i for i in range(4)), next, "a generator that has moved on"),
    "iterator at its end": (lambda p: iter([1]), list, "an iterator that is used up"),
    "log": (lambda p: opened(p, "a"), lambda v: v.write("d"), "a file that was written to"),
    "resized array": (lambda p: np.zeros(4), lambda v: v.resize(9, refcheck=False), "its shape"),
}


@pytest.mark.parametrize("name", NOTED)
@pytest.mark.parametrize("changes", [True, False])
def test_what_cannot_be_restored_is_named_if_it_has_changed(
    name: str, changes: bool, tmp_path: Path
) -> None:
    make, change, words = NOTED[name]
    value = make(tmp_path / "file")
    model = nn.Linear(2, 1)
    loaders = {"data": DataLoader(Rows(value))}
    with preserved(model, torch.optim.SGD(model.parameters(), lr=0.1), loaders=loaders) as saved:
        if changes:
            change(value)
    getattr(value, "close", int)()
    assert len(saved.notes) == changes
    assert all(note.startswith("data.dataset.held ") and words in note for note in saved.notes)


def test_a_file_that_is_read_goes_on_where_it_was(tmp_path: Path) -> None:
    file = opened(tmp_path / "rows", "r")
    file.read(1)
    check(
        Kind(io.StringIO, lambda v: v.read(1), lambda v: v.tell()),
        file,
        take(loaders=[DataLoader(Rows(file))]),
    )
    file.close()


def test_more_objects_than_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_reachable, "_ROOM", 1000)
    rows = [[index] for index in range(100)]
    snapshot = take(loaders=[DataLoader(Rows(rows))])
    rows[0].append(7)
    snapshot.restore()
    assert len(snapshot.notes) == 1
    assert "loaders[0].dataset.held and what follows it are too many" in snapshot.notes[0]


def test_large_data_are_not_copied() -> None:
    rows = torch.utils.data.TensorDataset(torch.zeros(100_000), torch.zeros(100_000))
    sampler = RandomSampler(rows, generator=torch.Generator())
    assert take(loaders=[DataLoader(rows, sampler=sampler), [torch.zeros(5000)]]).nbytes < 1000


def test_an_error_while_restoring_is_named_and_stops_nothing() -> None:
    class Stubborn(list[int]):
        pass

    value, after = Stubborn([1]), [1]
    model = model_with(after=after, held=value)
    snapshot = take(model=model)
    value.append(2)
    after.append(2)
    broken = [(n, v, k, c if v is not value else None) for n, v, k, c in snapshot._copies._saved]
    snapshot._copies._saved = broken
    snapshot.restore()
    assert after == [1]
    assert len(snapshot.notes) == 1 and snapshot.notes[0].startswith(
        "model.0.held is not as before"
    )


def test_an_object_that_cannot_be_looked_into_is_named() -> None:
    class Broken(list[int]):
        def __getattribute__(self, name: str) -> Any:
            raise ZeroDivisionError("no attributes")

    after = [1]
    snapshot = take(model=model_with(held=Broken([1]), after=after))
    after.append(2)
    snapshot.restore()
    assert after == [1]
    assert snapshot.notes == ("model.0.held cannot be looked into: no attributes",)


def test_tensors_that_cannot_be_copied_are_named() -> None:
    class Opaque(Tensor):
        @classmethod
        def __torch_function__(
            cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func is Tensor.clone:
                raise NotImplementedError("no clone")
            return super().__torch_function__(func, types, args, kwargs or {})

    snapshot = take(model=model_with(held=torch.ones(2).as_subclass(Opaque)))
    assert snapshot.notes == ("model.0.held cannot be copied: no clone",)
