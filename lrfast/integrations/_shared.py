"""Optimizers inside trainers' wrappers, LR-finder callbacks, clipping within the step."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lrfast import suggest
from lrfast._utils.wrapped_optimizers import inner_optimizer
from lrfast.optim import FusedOptimizer
from lrfast.range_test import RangeTest
from lrfast.training._data import check_loss
from lrfast.training._snapshot import TensorStore
from lrfast.training._step import StepSkipped

_log = logging.getLogger(__name__)


def fused_optimizer(optimizer: Optimizer) -> FusedOptimizer:
    """Return the lrfast optimizer in a wrapper."""
    inner = inner_optimizer(optimizer)
    if not isinstance(inner, FusedOptimizer):
        got = f"{type(inner).__module__}.{type(inner).__qualname__}"
        raise TypeError(
            f"optimizer must be one of lrfast, got {got}; lrfast.wrap takes over torch.optim's"
        )
    return inner


class LRFinderBase:
    """Base of the LR-finder callbacks: keeps results and applies the suggested learning rate."""

    def __init__(self, rule: str | None = None) -> None:
        if rule is not None and rule != "verified":
            suggest.get(rule)
        self.results: list[RangeTest] = []
        self._rule = rule

    def _take(
        self, result: RangeTest, optimizer: Optimizer, schedulers: Iterable[object] = ()
    ) -> None:
        """Keep a result, apply its learning rate if there is one, and announce both.

        Of ``schedulers`` those of torch that are attached to the optimizer have their peaks scaled.
        """
        self.results.append(result)
        rule = self._rule or result.rule
        answer = result.suggestions[rule]
        if answer.lr is None:
            self._announce(f"learning rates stay, because {rule} has none: {answer.reason}")
        else:
            before = [f"{float(group['lr']):.3g}" for group in optimizer.param_groups]
            result.apply(optimizer, self._rule, schedulers=_attached(schedulers, optimizer))
            pairs = zip(before, optimizer.param_groups, strict=True)
            rates = ", ".join(f"{old} to {float(group['lr']):.3g}" for old, group in pairs)
            self._announce(f"learning rate set from {rates} ({rule}: {answer.reason})")
        for note in result.notes:
            self._announce(note)

    def _announce(self, text: str) -> None:
        """Tell the user in the trainer's own way."""
        _log.info(text)


def _attached(schedulers: Iterable[object], optimizer: Optimizer) -> list[LRScheduler]:
    """Return the schedulers of torch, also of those within a wrapper, of this optimizer."""
    inner = [getattr(each, "scheduler", each) for each in schedulers]
    return [
        each
        for each in inner
        if isinstance(each, LRScheduler)
        and inner_optimizer(each.optimizer).param_groups is optimizer.param_groups
    ]


def check_own_updates(options: Collection[str]) -> None:
    """Refuse arguments of ``lr_find`` that would replace a trainer's own updates."""
    for name in ("loss_fn", "compute_loss", "step_fn", "capture"):
        if name in options:
            raise ValueError(f"{name} must be left out: the updates are the trainer's own")


def check_measures_nothing(options: Mapping[str, Any], where: str) -> None:
    """Refuse arguments of ``lr_find`` that need a loss without an update."""
    for name in ("val_loader", "verify", "lag"):
        if options.get(name):
            raise ValueError(f"{name} must be left out {where}, which has no loss without a step")


class KeptObjects:
    """Attributes of a trainer's objects, as an entry of ``others``; restored in place.

    Containers and tensors in the attributes are restored, too, and so are objects and modules in
    them for which ``is_part(owner, item)`` is true, and Python's generators. Others, and what is in
    attributes of the names ``apart``, are kept by reference.
    """

    def __init__(
        self,
        roots: Iterable[object],
        is_part: Callable[[object, object], bool] = lambda owner, item: False,
        apart: Collection[str] = (),
    ) -> None:
        self._store = TensorStore()
        self._tables: dict[int, tuple[object, dict[str, Any]]] = {}  # attributes, by the owner's id
        self._random: list[tuple[Random, Any]] = []
        waiting = list(roots)
        while waiting:
            owner = waiting.pop()
            if id(owner) in self._tables or not hasattr(owner, "__dict__"):
                continue
            self._tables[id(owner)] = owner, dict(vars(owner))
            if isinstance(owner, nn.Module):
                self._store.save_modules(owner)
                waiting.extend(owner.children())
            values = [value for name, value in vars(owner).items() if name not in apart]
            self._store.save(values)
            items = list(_items_in(values))
            self._random += [(each, each.getstate()) for each in items if isinstance(each, Random)]
            waiting.extend(each for each in items if is_part(owner, each))

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the store holds the state."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what there was."""
        self._store.restore()
        for owner, table in self._tables.values():
            for name in vars(owner).keys() - table.keys():
                del vars(owner)[name]
            vars(owner).update(table)
        for generator, state in self._random:
            generator.setstate(state)


def _items_in(value: object) -> Iterator[object]:
    """Yield what nested containers hold."""
    if isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _items_in(item)
    else:
        yield value


def mean_loss(losses: Iterable[Any]) -> Tensor:
    """Return the mean loss of micro-batches; None is that of one which the trainer has left out."""
    kept = [check_loss(each, needs_grad=False).detach() for each in losses if each is not None]
    if not kept:
        raise StepSkipped
    return kept[0] if len(kept) == 1 else torch.stack([each.double() for each in kept]).mean()


class StepClipper:
    """Clips within an optimizer's step, for trainers that ask for the norm before the step."""

    def __init__(self, optimizer: FusedOptimizer) -> None:
        self._optimizer = optimizer
        device = optimizer.param_groups[0]["params"][0].device
        self._norm = torch.full((), math.nan, device=device)
        optimizer.register_step_post_hook(self._take)

    def covers(self, params: list[Tensor]) -> bool:
        """Return whether the optimizer updates all of these parameters that are trained."""
        held = {id(p) for group in self._optimizer.param_groups for p in group["params"]}
        return all(id(param) in held for param in params if param.requires_grad)

    def clip(self, max_norm: float) -> Tensor:
        """Let the next step clip, and return the tensor [] that it fills with the norm before.

        An infinite ``max_norm`` leaves the optimizer's own ``max_grad_norm``.
        """
        own = self._optimizer.max_grad_norm
        limit = max_norm if math.isfinite(max_norm) else own
        if limit is None:
            limit = sys.float_info.max  # clips nothing; None would not measure either
        if own != limit:  # setting it makes the engine's tables again
            self._optimizer.max_grad_norm = limit
        return self._norm

    def _take(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if (norm := self._optimizer.grad_norm) is not None:
            self._norm.copy_(norm)
