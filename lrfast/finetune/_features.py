"""Training of the head on features that the frozen body computes once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lrfast.training._data import LossFunction, device_of, eval_mode, split_pair, to_device
from lrfast.training._random import RandomStates

Features = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class StageData:
    """Model and batches of a stage; or the head and its (features, targets)."""

    model: nn.Module
    train_loader: Iterable[Any]
    val_loader: Iterable[Any] | None


def precompute(
    model: nn.Module,
    train_loader: Iterable[Any],
    val_loader: Iterable[Any] | None,
    amp: torch.dtype | None,
) -> StageData:
    """Run the frozen body over the data, once and in evaluation mode.

    Random augmentation is drawn once only. The features stay on the model's device; random
    generators are as before.
    """
    body, head = split_body_head(model)
    device, loaders = device_of(model), [train_loader, val_loader]

    def run(batch: Any) -> Features:
        inputs, targets = split_pair(to_device(batch, device))
        with torch.no_grad(), autocast(model, amp):
            return body(inputs).detach(), targets

    before = RandomStates.take(loaders)
    try:
        with eval_mode(model):
            features = _features(train_loader, run, "train_loader")
            return StageData(
                head,
                features,
                None if val_loader is None else _features(val_loader, run, "val_loader"),
            )
    finally:
        before.restore(loaders)


def check_precompute(
    model: nn.Module, loss_fn: LossFunction | None, timetable: Mapping[int, int]
) -> None:
    """Check that a stage can train on features."""
    split_body_head(model)
    if loss_fn is None:
        raise ValueError("precompute needs loss_fn(outputs, targets), got none")
    if timetable:
        raise ValueError(f"precompute needs a body that stays frozen, got timetable={timetable}")


def split_body_head(model: nn.Module) -> tuple[nn.Sequential, nn.Sequential]:
    """Return the parts of a chain of modules before, and from, the first one that trains.

    Dropout after the last frozen parameter belongs to the head, because the body runs in
    evaluation mode.
    """
    parts = _chain(model)
    if parts is None:
        raise TypeError(
            "precompute needs an nn.Sequential, whose head can be run by itself, got "
            f"{type(model).__name__}; wrap it as nn.Sequential(body, head)"
        )
    trains = [any(p.requires_grad for p in part.parameters()) for part in parts]
    if True not in trains:
        raise ValueError("precompute needs a head that trains, got a model frozen throughout")
    first = trains.index(True)
    frozen = [i for i in range(first) if next(parts[i].parameters(), None) is not None]
    if not frozen:
        raise ValueError("precompute needs a frozen body, got none; call freeze() first")
    between = range(frozen[-1] + 1, first)
    first = next((i for i in between if any(map(_is_dropout, parts[i].modules()))), first)
    body_ids = {id(p) for part in parts[:first] for p in part.parameters()}
    if any(id(p) in body_ids for part in parts[first:] for p in part.parameters()):
        raise ValueError("precompute needs a head that shares no parameter with the body")
    return nn.Sequential(*parts[:first]), nn.Sequential(*parts[first:])


def _chain(module: nn.Module) -> list[nn.Module] | None:
    """Return the modules of nested Sequentials in the order in which they run."""
    if not isinstance(module, nn.Sequential) or module._forward_hooks or module._forward_pre_hooks:
        return None
    if type(module).forward is not nn.Sequential.forward:
        return None
    # Not children(), which leaves out a module's second turn.
    return [part for child in module for part in _chain(child) or [child]]


def _is_dropout(module: nn.Module) -> bool:
    return "Drop" in type(module).__name__


def _features(data: Iterable[Any], run: Callable[[Any], Features], name: str) -> Iterable[Any]:
    if not isinstance(data, DataLoader):
        if not isinstance(data, Sequence):
            raise TypeError(
                f"precompute needs {name} to be a DataLoader or a list of batches, got "
                f"{type(data).__name__}"
            )
        return [run(batch) for batch in data]
    if data.batch_sampler is None or isinstance(data.dataset, torch.utils.data.IterableDataset):
        raise TypeError(f"precompute needs {name} to batch a map-style dataset, got another loader")
    in_order = DataLoader(
        data.dataset,
        batch_size=data.batch_size or 64,
        collate_fn=data.collate_fn,
        num_workers=data.num_workers,
    )
    parts = [run(batch) for batch in in_order]
    if not all(isinstance(part, Tensor) for pair in parts for part in pair):
        raise TypeError(f"precompute needs features and targets of {name} to be tensors")
    features, targets = (torch.cat([part[index] for part in parts]) for index in (0, 1))
    return DataLoader(
        _FeatureDataset(features, targets),
        batch_sampler=data.batch_sampler,
        collate_fn=_identity_collate,
        generator=data.generator,
    )


class _FeatureDataset(Dataset[Any]):
    """Features and targets on the device, fetched batch by batch."""

    def __init__(self, features: Tensor, targets: Tensor) -> None:
        self._features = features
        self._targets = targets

    def __len__(self) -> int:
        return len(self._targets)

    def __getitem__(self, index: int) -> Features:
        return self._features[index], self._targets[index]

    def __getitems__(self, indices: list[int]) -> Features:
        rows = torch.tensor(indices)
        if self._features.is_cuda:
            rows = rows.pin_memory().to(self._features.device, non_blocking=True)
        return self._features[rows], self._targets[rows]


def _identity_collate(batch: Any) -> Any:
    return batch


def autocast(model: nn.Module, amp: torch.dtype | None) -> AbstractContextManager[None]:
    """Return the context of a forward pass."""
    if amp is None:
        return nullcontext()
    context: AbstractContextManager[None] = torch.autocast(device_of(model).type, dtype=amp)
    return context
